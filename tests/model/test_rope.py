"""Rotary positions: the base of equation (5), and a rotation that only knows differences of positions."""

from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from longspan.model.rope import dynamic_ntk_base, inverse_frequencies, rotary_tables, rotate

getcontext().prec = 40


@given(st.integers(1, 4096), st.sampled_from([1000.0, 10_000.0]), st.sampled_from([16, 64, 128]))
def test_up_to_the_trained_length_the_base_is_unchanged(length, base, head_size):
    assert dynamic_ntk_base(base, length, 4096, 2.0, head_size) == base


@given(
    st.integers(33, 100_000), st.sampled_from([32, 2048]), st.floats(1, 8), st.sampled_from([4, 64]), st.floats(2, 1e6)
)
def test_beyond_it_is_equation_5(length, trained, alpha, head_size, base):
    assume(length > trained)
    s = Decimal(length) / Decimal(trained)
    a = Decimal(alpha)
    expected = Decimal(base) * (a * s - (a - 1)) ** (Decimal(head_size) / Decimal(head_size - 2))
    ours = dynamic_ntk_base(base, length, trained, alpha, head_size)
    assert ours == pytest.approx(float(expected), rel=1e-12)
    assert ours > base


def test_the_papers_numbers():
    """Trained to 2,048, read to 8,192 (s = 4, alpha = 2), heads of 64, theta 1,000: 1000 * 7 ** (64 / 62)."""
    assert dynamic_ntk_base(1000.0, 8192, 2048, 2.0, 64) == pytest.approx(7453.483, abs=0.001)
    # alpha = 1 is plain NTK, equation (4).
    assert dynamic_ntk_base(1000.0, 8192, 2048, 1.0, 64) == pytest.approx(1000 * 4 ** (64 / 62))


def test_inverse_frequencies():
    frequencies = inverse_frequencies(1000.0, 8)
    assert frequencies.dtype == torch.float32
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 1000**-0.25, 1000**-0.5, 1000**-0.75]))


def tables(packed, trained_length=32, dtype=torch.float64):
    return rotary_tables(packed, base=1000.0, head_size=8, trained_length=trained_length, alpha=2.0, dtype=dtype)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_tables_are_those_of_each_sequence_alone(pack, lengths):
    packs = [pack((length,)) for length in lengths]
    together = tables(pack(lengths))
    for both, parts in zip(together, zip(*(tables(p) for p in packs), strict=True), strict=True):
        assert torch.equal(both, torch.cat(parts))


def test_tables_are_cosine_and_sine_of_position_times_frequency(pack):
    cos_TK, sin_TK = tables(pack((40, 3)))
    stretched = dynamic_ntk_base(1000.0, 40, 32, 2.0, 8)
    for token, position, base in ((39, 39, stretched), (0, 0, stretched), (42, 2, 1000.0)):
        angle_K = (position * inverse_frequencies(base, 8)).repeat(2)
        assert torch.equal(cos_TK[token], angle_K.cos().double())
        assert torch.equal(sin_TK[token], angle_K.sin().double())


def test_tables_come_in_the_dtype_asked_for(pack):
    assert {table.dtype for table in tables(pack((3, 50)), dtype=torch.bfloat16)} == {torch.bfloat16}


def test_rotation_keeps_lengths_and_sees_differences_only(pack):
    packed = pack((30,))
    cos_TK, sin_TK = tables(packed)
    q, k = torch.randn((2, 1, 2, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q_THK, k_THK = (rotate(x.expand(30, 2, 8), cos_TK, sin_TK) for x in (q, k))
    # Angles are float32: the identity of cosines holds to that.
    torch.testing.assert_close(q_THK.norm(dim=-1), q.norm(dim=-1).expand(30, 2), rtol=1e-6, atol=0)
    scores_HTT = torch.einsum("thk,shk->hts", q_THK, k_THK)
    for shift in (-5, 0, 7):
        diagonal = scores_HTT.diagonal(shift, dim1=1, dim2=2)
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal), rtol=0, atol=2e-5)


def test_rotation_at_position_0_is_the_identity(pack):
    cos_TK, sin_TK = tables(pack((1,)))
    x_THK = torch.randn((1, 3, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x_THK, cos_TK, sin_TK), x_THK)
