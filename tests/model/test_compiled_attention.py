"""Compiled attention of training is plain softmax attention of rotated queries and keys, forward and back."""

import pytest
import torch

from longspan.model.attention import attention
from longspan.model.compiled_attention import attend, can_attend
from longspan.model.compiled_training import load_training
from longspan.model.rope import rotate

pytestmark = pytest.mark.skipif(load_training().library is None, reason="no compiled code on this machine")

LENGTHS = [
    [1],
    [5, 16, 17],
    [30, 30, 5, 48, 49],
    [255, 256, 257],  # a block of keys, and one token less and more
    [600, 40],
]


def example(lengths, pack, *, num_heads=2, head_size=64, rotated=True):
    """Queries, keys and values, the rotation, the batch and the direction that the loss looks in."""
    packed = pack(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    width = num_heads * head_size
    qkv_TC = torch.randn(packed.num_tokens, 3 * width, generator=generator)
    qkv_TC[:, 2 * width :] += 2  # values have something in common, as hidden vectors have
    angles_TK = 6 * torch.rand(packed.num_tokens, head_size // 2, generator=generator).repeat(1, 2)
    rotation = (angles_TK.cos(), angles_TK.sin()) if rotated else None
    return qkv_TC, rotation, packed, torch.randn(packed.num_tokens, width, generator=generator)


def by_torch(qkv_TC, rotation, packed, num_heads):
    q_THK, k_THK, v_THK = qkv_TC.unflatten(-1, (3, num_heads, -1)).unbind(dim=1)
    if rotation is not None:
        cos_TK, sin_TK = (table.to(qkv_TC.dtype) for table in rotation)
        q_THK, k_THK = rotate(q_THK, cos_TK, sin_TK), rotate(k_THK, cos_TK, sin_TK)
    return attention(q_THK, k_THK, v_THK, packed).flatten(-2)


def both_ways(function, qkv_TC, rotation, packed, direction_TD, num_heads=2):
    qkv_TC = qkv_TC.clone().requires_grad_()
    out_TD = function(qkv_TC, rotation, packed, num_heads)
    (out_TD * direction_TD.to(out_TD.dtype)).sum().backward()
    return out_TD.detach().double(), qkv_TC.grad.double()


def error(found, exact):
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("lengths", LENGTHS)
def test_float32_is_near_float64(pack, lengths):
    qkv_TC, rotation, packed, direction_TD = example(lengths, pack)
    exact = both_ways(by_torch, qkv_TC.double(), rotation, packed, direction_TD)
    for ours, expected in zip(both_ways(attend, qkv_TC, rotation, packed, direction_TD), exact, strict=True):
        assert error(ours, expected) < 2e-6


@pytest.mark.parametrize("lengths", LENGTHS)
def test_bfloat16_is_nearer_to_the_truth_than_torch(pack, lengths):
    qkv_TC, rotation, packed, direction_TD = example(lengths, pack)
    qkv_TC, direction_TD = qkv_TC.bfloat16(), direction_TD.bfloat16()
    exact = both_ways(by_torch, qkv_TC.double(), rotation, packed, direction_TD.double())
    ours = both_ways(attend, qkv_TC, rotation, packed, direction_TD)
    theirs = both_ways(by_torch, qkv_TC, rotation, packed, direction_TD)
    for found, peer, expected in zip(ours, theirs, exact, strict=True):
        assert error(found, expected) < 6e-3
        assert error(found, expected) < max(1.2 * error(peer, expected), 1e-6)


@pytest.mark.parametrize(("num_heads", "head_size", "rotated"), [(3, 32, True), (1, 96, True), (2, 128, False)])
def test_any_head_size_with_and_without_rotation(pack, num_heads, head_size, rotated):
    inputs = example([100, 3, 300], pack, num_heads=num_heads, head_size=head_size, rotated=rotated)
    qkv_TC, rotation, packed, direction_TD = inputs
    exact = both_ways(by_torch, qkv_TC.double(), rotation, packed, direction_TD, num_heads)
    found = both_ways(attend, qkv_TC, rotation, packed, direction_TD, num_heads)
    for ours, expected in zip(found, exact, strict=True):
        assert error(ours, expected) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_in_any_batch_and_with_any_number_of_threads(pack, dtype):
    lengths = [70, 300, 20]
    qkv_TC, rotation, packed, direction_TD = example(lengths, pack)
    assert rotation is not None
    qkv_TC = qkv_TC.to(dtype)
    together = both_ways(attend, qkv_TC, rotation, packed, direction_TD)
    threads = torch.get_num_threads()
    for number, rows in enumerate([slice(0, 70), slice(70, 370), slice(370, 390)]):
        rotation_of_one = tuple(table[rows] for table in rotation)
        torch.set_num_threads(1)
        alone = both_ways(attend, qkv_TC[rows], rotation_of_one, pack([lengths[number]]), direction_TD[rows])
        torch.set_num_threads(threads)
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one, all_of_them[rows])


def test_without_gradients_it_is_the_same(pack):
    qkv_TC, rotation, packed, _ = example([40, 30], pack)
    with torch.no_grad():
        expected = attend(qkv_TC, rotation, packed, 2)
    assert torch.equal(attend(qkv_TC.requires_grad_(), rotation, packed, 2), expected)


def test_large_scores_do_not_overflow(pack):
    qkv_TC, rotation, packed, direction_TD = example([40, 30], pack)
    for dtype in (torch.float32, torch.bfloat16):
        found = both_ways(attend, (100 * qkv_TC).to(dtype), rotation, packed, direction_TD)
        assert all(bool(torch.isfinite(x).all()) for x in found)


def test_what_it_cannot_compute_is_left_to_torch():
    assert can_attend(64, torch.device("cpu"))
    assert not can_attend(48, torch.device("cpu"))
    assert not can_attend(64, torch.device("meta"))
    assert load_training.__wrapped__().library is not None


def test_one_may_ask_for_torchs_operators(monkeypatch):
    monkeypatch.setenv("LONGSPAN_COMPILE", "0")
    found = load_training.__wrapped__()
    assert found.library is None
    assert "LONGSPAN_COMPILE=0" in found.reason
