"""Pooling: plain means and picks, for each sequence by itself; cutting normalises again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.model.config import EmbeddingConfig
from longspan.model.pooling import PooledEncoder, finish, pool

some_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)
NAIVE = {"mean": lambda h_LD: h_LD.mean(dim=0), "cls": lambda h_LD: h_LD[0], "last": lambda h_LD: h_LD[-1]}


def random_tokens(packed, dtype=torch.float64, width=5):
    generator = torch.Generator().manual_seed(packed.num_tokens)
    return torch.randn((packed.num_tokens, width), dtype=dtype, generator=generator)


@given(some_lengths, st.sampled_from(sorted(NAIVE)))
def test_pool_equals_naive_and_its_gradient(pack, lengths, pooling):
    packed = pack(lengths)
    h_TD = random_tokens(packed).requires_grad_()
    reference_TD = h_TD.detach().clone().requires_grad_()
    e_BD = pool(h_TD, packed, pooling)
    expected_BD = torch.stack([NAIVE[pooling](h_LD) for h_LD in reference_TD.split(lengths)])
    torch.testing.assert_close(e_BD, expected_BD, rtol=0, atol=1e-15)
    weights_BD = torch.arange(e_BD.numel(), dtype=torch.float64).reshape(e_BD.shape)
    (e_BD * weights_BD).sum().backward()
    (expected_BD * weights_BD).sum().backward()
    torch.testing.assert_close(h_TD.grad, reference_TD.grad, rtol=0, atol=1e-14)


@given(some_lengths, st.sampled_from(sorted(NAIVE)), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_pool_is_bitwise_independent_of_neighbours(pack, lengths, pooling, dtype):
    packed = pack(lengths)
    h_TD = random_tokens(packed, dtype)
    together_BD = pool(h_TD, packed, pooling)
    alone = [pool(h_LD, pack((len(h_LD),)), pooling) for h_LD in h_TD.split(lengths)]
    assert torch.equal(together_BD, torch.cat(alone))


def test_narrow_types_are_averaged_in_float32(pack):
    packed = pack((3000,))
    h_TD = torch.full((3000, 2), 1.0, dtype=torch.bfloat16)  # a bfloat16 sum of ones stops at 256
    e_BD = pool(h_TD, packed, "mean")
    assert e_BD.dtype == torch.float32
    assert torch.equal(e_BD, torch.ones(1, 2))


def test_unknown_pooling(pack):
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        pool(torch.ones(2, 2), pack((2,)), "max")


def test_finish_cuts_and_normalises_again():
    e_BD = torch.tensor([[3.0, 4.0, 12.0], [0.0, 2.0, 5.0]], dtype=torch.float64)
    config = EmbeddingConfig()
    expected_BD = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(finish(e_BD, config, 2), expected_BD)
    torch.testing.assert_close(finish(e_BD, config)[0], e_BD[0] / 13)
    raw = EmbeddingConfig(normalize=False)
    assert torch.equal(finish(e_BD, raw, 2), e_BD[:, :2])
    assert torch.equal(finish(e_BD, raw), e_BD)


@given(st.integers(1, 5))
def test_finished_vectors_have_length_1(dim):
    e_BD = torch.randn((7, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(dim))
    cut_BD = finish(e_BD, EmbeddingConfig(), dim)
    assert cut_BD.shape == (7, dim)
    torch.testing.assert_close(cut_BD.norm(dim=-1), torch.ones(7, dtype=torch.float64))
    # The same direction as the cut of the whole vector.
    torch.testing.assert_close(cut_BD, torch.nn.functional.normalize(finish(e_BD, EmbeddingConfig())[:, :dim]))


@given(st.integers(1, 5), st.booleans())
def test_layer_norm_comes_before_the_cut(dim, normalize):
    """nomic-embed v1.5: pool, layer norm without weights, slice, length 1."""
    e_BD = torch.randn((7, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(dim))
    finished_BD = finish(e_BD, EmbeddingConfig(layer_norm=True, normalize=normalize), dim)
    centred_BD = e_BD - e_BD.mean(dim=1, keepdim=True)
    expected_BD = (centred_BD / (centred_BD.square().mean(dim=1, keepdim=True) + 1e-5).sqrt())[:, :dim]
    if normalize:
        expected_BD = expected_BD / expected_BD.norm(dim=1, keepdim=True)
    torch.testing.assert_close(finished_BD, expected_BD, rtol=1e-12, atol=1e-12)


def test_pooled_encoder(pack, small_encoder):
    encoder = small_encoder()
    packed = pack((3, 1, 40))
    with torch.no_grad():
        for pooling in NAIVE:
            assert torch.equal(PooledEncoder(encoder, pooling)(packed), pool(encoder(packed), packed, pooling))


def test_the_gradient_of_the_mean_is_that_of_torch(pack):
    packed = pack([3, 1, 40])
    h_TD = torch.randn(44, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    direction_BD = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    expected = torch.segment_reduce(h_TD, "mean", lengths=packed.lengths_B())
    found = pool(h_TD, packed, "mean")
    assert torch.equal(found, expected)
    (ours,) = torch.autograd.grad(found, h_TD, direction_BD)
    (theirs,) = torch.autograd.grad(expected, h_TD, direction_BD)
    assert torch.equal(ours, theirs)
