"""Rotary positions: equations (3) to (5), tables of each sequence by itself, a rotation that sees differences only."""

from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from longspan.model.config import EncoderConfig
from longspan.model.rope import (
    dynamic_ntk_base,
    interpolated,
    inverse_frequencies,
    ntk_base,
    rotary_frequencies,
    rotary_tables,
    rotate,
)

getcontext().prec = 40

SCALINGS = ("none", "linear", "ntk", "dynamic")
head_sizes = st.sampled_from([4, 16, 64, 128])
bases = st.floats(2, 1e6)
lengths_of_batches = st.lists(st.integers(1, 70), min_size=1, max_size=6)


def small(scaling="dynamic", **changes):
    """Heads of 8, trained to 32 tokens, reading 128."""
    settings = {"width": 16, "num_heads": 2, "trained_length": 32, "max_length": 128, "rope_scaling": scaling}
    return EncoderConfig.model_validate(settings | changes)


# --- equations (3), (4), (5) -----------------------------------------------------------------------------------------


def test_inverse_frequencies():
    frequencies_K = inverse_frequencies(1000.0, 8)
    assert frequencies_K.dtype == torch.float32
    torch.testing.assert_close(frequencies_K, torch.tensor([1.0, 1000**-0.25, 1000**-0.5, 1000**-0.75]))


@given(st.integers(0, 100_000), st.floats(1, 64), head_sizes)
def test_equation_3_reads_position_m_as_m_divided_by_the_factor(position, factor, head_size):
    frequencies_K = inverse_frequencies(1000.0, head_size)
    ours_K = position * interpolated(frequencies_K, factor).double()
    expected_K = (position / factor) * frequencies_K.double()
    torch.testing.assert_close(ours_K, expected_K, rtol=2**-23, atol=0)  # one rounding of a quotient in float32


@given(bases, st.floats(1, 64), head_sizes)
def test_equation_4_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor(base, factor, head_size):
    stretched = ntk_base(base, factor, head_size)
    expected = Decimal(base) * Decimal(factor) ** (Decimal(head_size) / Decimal(head_size - 2))
    assert stretched == pytest.approx(float(expected), rel=1e-12)
    slowest = (head_size - 2) / head_size
    assert stretched**slowest == pytest.approx(factor * base**slowest, rel=1e-12)
    assert inverse_frequencies(stretched, head_size)[0] == 1.0


@given(bases, head_sizes)
def test_a_factor_of_1_changes_nothing(base, head_size):
    frequencies_K = inverse_frequencies(base, head_size)
    assert torch.equal(interpolated(frequencies_K, 1.0), frequencies_K)
    assert ntk_base(base, 1.0, head_size) == base


@given(st.integers(1, 4096), bases, head_sizes)
def test_equation_5_leaves_the_base_up_to_the_trained_length(length, base, head_size):
    assert dynamic_ntk_base(base, length, 4096, 2.0, head_size) == base


@given(st.integers(33, 100_000), st.sampled_from([32, 2048]), st.floats(1, 8), st.sampled_from([4, 64]), bases)
def test_equation_5_beyond_it(length, trained, alpha, head_size, base):
    assume(length > trained)
    s, a = Decimal(length) / Decimal(trained), Decimal(alpha)
    expected = Decimal(base) * (a * s - (a - 1)) ** (Decimal(head_size) / Decimal(head_size - 2))
    ours = dynamic_ntk_base(base, length, trained, alpha, head_size)
    assert ours == pytest.approx(float(expected), rel=1e-12)
    assert ours > base


@given(st.integers(2, 10**7), st.floats(1, 8), head_sizes, bases)
def test_equation_5_is_continuous_at_the_trained_length_and_grows(trained, alpha, head_size, base):
    """One token more moves the base by its derivative, `b * alpha / L0 * K / (K - 2)`, which vanishes with 1 / L0."""
    at, after, later = (dynamic_ntk_base(base, trained + n, trained, alpha, head_size) for n in (0, 1, 2))
    assert at == base
    assert base < after < later
    power = head_size / (head_size - 2)
    steepest = power * (1 + alpha / trained) ** (power - 1)
    assert after - at <= base * steepest * alpha / trained * (1 + 1e-9) + 1e-9 * base


@given(st.integers(33, 10_000), head_sizes, bases)
def test_equation_5_with_alpha_1_is_equation_4_for_the_sequences_own_factor(length, head_size, base):
    assert dynamic_ntk_base(base, length, 32, 1.0, head_size) == ntk_base(base, length / 32, head_size)


def test_the_papers_numbers():
    """Trained to 2,048, read to 8,192 (s = 4, alpha = 2), heads of 64, theta 1,000: 1000 * 7 ** (64 / 62)."""
    assert dynamic_ntk_base(1000.0, 8192, 2048, 2.0, 64) == pytest.approx(7453.483, abs=0.001)
    assert ntk_base(1000.0, 4.0, 64) == pytest.approx(4182.937, abs=0.001)
    paper = EncoderConfig()
    assert paper.rope_scaling == "dynamic"
    assert torch.equal(
        rotary_frequencies(8192, paper), inverse_frequencies(dynamic_ntk_base(1000, 8192, 2048, 2, 64), 64)
    )


# --- the four settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 32, 33, 128])
def test_frequencies_are_those_of_the_setting(length):
    plain_K = inverse_frequencies(1000.0, 8)
    expected = {
        "none": plain_K,
        "linear": plain_K / 4,
        "ntk": inverse_frequencies(1000 * 4 ** (8 / 6), 8),
        "dynamic": inverse_frequencies(dynamic_ntk_base(1000.0, length, 32, 2.0, 8), 8),
    }
    for scaling, frequencies_K in expected.items():
        torch.testing.assert_close(rotary_frequencies(length, small(scaling)), frequencies_K, rtol=1e-7, atol=0)


def test_linear_and_ntk_change_short_sequences_and_dynamic_does_not():
    plain_K = rotary_frequencies(3, small("none"))
    assert torch.equal(rotary_frequencies(3, small("dynamic")), plain_K)
    assert not torch.equal(rotary_frequencies(3, small("linear")), plain_K)
    assert not torch.equal(rotary_frequencies(3, small("ntk")), plain_K)


@pytest.mark.parametrize("scaling", ["linear", "ntk"])
def test_the_factor_may_be_given(scaling):
    given_K = rotary_frequencies(3, small(scaling, rope_factor=2.5))
    assert torch.equal(given_K, rotary_frequencies(3, small(scaling, max_length=80)))
    assert torch.equal(rotary_frequencies(3, small(scaling, rope_factor=1.0)), rotary_frequencies(3, small("none")))


@given(st.integers(1, 32))
def test_up_to_the_trained_length_dynamic_is_none(pack, length):
    packed = pack((length, 32, 1))
    for ours_TK, plain_TK in zip(tables(packed), tables(packed, "none"), strict=True):
        assert torch.equal(ours_TK, plain_TK)


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(packed, scaling="dynamic", dtype=torch.float64):
    return rotary_tables(packed, small(scaling), dtype)


@given(lengths_of_batches, st.sampled_from(SCALINGS))
def test_tables_are_those_of_each_sequence_alone(pack, lengths, scaling):
    """Bit for bit: short beside long, long of equal and of different lengths, in any order."""
    packs = [pack((length,)) for length in lengths]
    together = tables(pack(lengths), scaling)
    for both, parts in zip(together, zip(*(tables(p, scaling) for p in packs), strict=True), strict=True):
        assert torch.equal(both, torch.cat(parts))


@given(lengths_of_batches, st.randoms(use_true_random=False))
def test_tables_do_not_depend_on_the_order(pack, lengths, chance):
    order = chance.sample(range(len(lengths)), len(lengths))
    for ordered, shuffled in zip(tables(pack(lengths)), tables(pack([lengths[i] for i in order])), strict=True):
        pieces = ordered.split(lengths)
        assert torch.equal(shuffled, torch.cat([pieces[i] for i in order]))


def test_tables_are_cosine_and_sine_of_position_times_frequency(pack):
    cos_TK, sin_TK = tables(pack((40, 3)))
    stretched = dynamic_ntk_base(1000.0, 40, 32, 2.0, 8)
    for token, position, base in ((39, 39, stretched), (0, 0, stretched), (42, 2, 1000.0)):
        angle_K = (position * inverse_frequencies(base, 8)).repeat(2)
        assert torch.equal(cos_TK[token], angle_K.cos().double())
        assert torch.equal(sin_TK[token], angle_K.sin().double())


def test_tables_come_in_the_dtype_asked_for(pack):
    assert {table.dtype for table in tables(pack((3, 50)), dtype=torch.bfloat16)} == {torch.bfloat16}


# --- the published computation ---------------------------------------------------------------------------------------


def published(rope_type, factor=None):
    """transformers' configuration of nomic-bert: heads of 64, trained to 2,048 tokens."""
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": rope_type, "rope_theta": 1000.0} | ({} if factor is None else {"factor": factor})
    return transformers.NomicBertConfig(max_position_embeddings=2048, rope_parameters=rope)


LONG = [128, 2048, 2049, 4096, 8192]


@pytest.mark.parametrize("length", LONG)
@pytest.mark.parametrize(("scaling", "rope"), [("none", "default"), ("linear", "linear"), ("dynamic", "dynamic")])
def test_one_sequence_equals_the_published_module_on_a_fresh_model(pack, length, scaling, rope):
    from transformers.models.nomic_bert.modeling_nomic_bert import NomicBertRotaryEmbedding

    factor = {"none": None, "linear": 4.0, "dynamic": 2.0}[scaling]
    ours = rotary_tables(pack((length,)), EncoderConfig(rope_scaling=scaling), torch.float32)
    theirs = NomicBertRotaryEmbedding(published(rope, factor))(torch.ones(1), torch.arange(length)[None])
    for ours_TK, theirs_1TK in zip(ours, theirs, strict=True):
        if scaling == "dynamic" and length > 2048:
            # Their base is computed in float32, ours in float64 before the cast: frequencies may differ by two units in
            # the last place, and the angle of a token by that times its position. Measured: 0 at these lengths.
            bound_T1 = 2 * 2**-23 * torch.arange(1, length + 1)[:, None]
            assert bool(((ours_TK - theirs_1TK[0]).abs() <= bound_T1).all())
        else:
            assert torch.equal(ours_TK, theirs_1TK[0])


@pytest.mark.parametrize("length", LONG)
def test_frequencies_equal_the_published_function_bit_for_bit(length):
    """Given the length as a number, and not as a tensor, transformers too computes equation (5) in float64."""
    config = published("dynamic", 2.0)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs_K, scale = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=length)
    assert scale == 1.0
    assert torch.equal(rotary_frequencies(length, EncoderConfig()), theirs_K)


# --- rotation --------------------------------------------------------------------------------------------------------


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
