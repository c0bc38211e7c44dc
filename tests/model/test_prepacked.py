"""Prepacked linear layers compute what linear layers compute, row by row."""

from functools import partial

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from longspan.model import prepacked
from longspan.model.encoder import ACTIVATIONS
from longspan.model.prepacked import (
    BUILT_IN,
    FloatLinear,
    Int8Linear,
    has_float_kernels,
    has_int8_kernels,
    largest_input,
)

needs_float = pytest.mark.skipif(not has_float_kernels(torch.float32), reason="torch has no prepacked float kernels")
needs_int8 = pytest.mark.skipif(not has_int8_kernels(), reason="torch has no integer kernels")
KINDS = [pytest.param(FloatLinear, marks=needs_float), pytest.param(Int8Linear, marks=needs_int8)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@needs_float
@pytest.mark.parametrize("bias", [True, False])
def test_float_linear_is_linear(bias):
    weight_OI, x_TI = random(48, 64), random(7, 64, seed=1)
    bias_O = random(48, seed=3) if bias else None
    linear = FloatLinear(weight_OI, bias_O)
    expected_TO = x_TI.double() @ weight_OI.double().T + (0 if bias_O is None else bias_O)
    torch.testing.assert_close(linear(x_TI).double(), expected_TO, rtol=0, atol=2e-5)


@needs_float
@pytest.mark.parametrize("activation", BUILT_IN)
def test_a_product_applies_an_activation(activation):
    weight_OI, x_TI, bias_O = random(50, 64) / 4, random(9, 64, seed=1), random(50, seed=3)
    expected_TO = ACTIVATIONS[activation](x_TI.double() @ weight_OI.double().T + bias_O)
    y_TO = FloatLinear(weight_OI, bias_O, activation=activation)(x_TI)
    torch.testing.assert_close(y_TO.double(), expected_TO, rtol=0, atol=1e-5)  # measured: 1.2e-6


@needs_float
def test_the_state_is_that_of_a_linear_layer():
    linear = torch.nn.Linear(30, 50)
    state = FloatLinear(linear.weight.detach(), linear.bias.detach()).state_dict()
    assert state.keys() == linear.state_dict().keys()
    for name, tensor in linear.state_dict().items():
        assert torch.equal(state[name], tensor)


@needs_int8
@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_exact_for_what_int8_can_hold(bias):
    """Rows that reach over as many integers as there are steps, and weights likewise, lose nothing."""
    steps = largest_input()
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randint(-127, 128, (48, 96), generator=generator).float()
    lowest_T1 = torch.arange(-180, 31, 30)[:7, None]
    x_TI = torch.randint(0, steps + 1, (7, 96), generator=generator).float() + lowest_T1
    weight_OI[:, 5], x_TI[:, 9:10], x_TI[:, 10:11] = 127, lowest_T1, lowest_T1 + steps
    bias_O = random(48) if bias else None
    expected_TO = torch.nn.functional.linear(x_TI, weight_OI, bias_O)
    torch.testing.assert_close(Int8Linear(weight_OI, bias_O)(x_TI), expected_TO, rtol=1e-5, atol=0.1)


@needs_int8
def test_int8_rounds_and_no_more():
    weight_OI = random(64, 256)
    x_TI = random(9, 256, seed=1) * 10.0 ** torch.arange(-4, 5)[:, None]
    expected_TO = x_TI.double() @ weight_OI.double().T
    linear = Int8Linear(weight_OI, None)
    error = (linear(x_TI) - expected_TO).norm(dim=1) / expected_TO.norm(dim=1)
    # Steps of a range of about 6 sigma / 127, uniform within a step: 0.047 / sqrt(12) = 1.4 %; of the weights half.
    assert float(error.max()) < 0.03


@needs_int8
def test_int8_takes_rows_and_outputs_of_zeros():
    weight_OI = random(16, 32)
    weight_OI[3] = 0
    linear = Int8Linear(weight_OI, None)
    assert torch.equal(linear(torch.zeros(2, 32)), torch.zeros(2, 16))
    torch.testing.assert_close(linear(torch.ones(2, 32)), weight_OI.sum(dim=1).expand(2, 16), rtol=0, atol=0.2)
    assert torch.equal(linear(random(2, 32))[:, 3], torch.zeros(2))


@needs_int8
def test_int8_state_says_weights_and_scales():
    weight_OI, bias_O = random(16, 32), random(16)
    state = Int8Linear(weight_OI, bias_O).state_dict()
    assert state["weight"].dtype == torch.int8
    assert torch.equal(state["bias"], bias_O)
    rounded_OI = state["weight"] * state["scale"][:, None]
    assert float((rounded_OI - weight_OI).abs().max()) <= float(state["scale"].max()) / 2 * 1.001


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 192), (30, 50), (257, 96), (768, 64)])
@given(st.integers(1, 90), st.integers(0, 60), st.sampled_from([1, 2, 5]))
@example(1, 0, 1)
def test_a_row_does_not_depend_on_the_number_of_rows(kind, inputs, outputs, rows, start, threads):
    x_TI = random(150, inputs)
    kinds = [kind, *(partial(kind, activation=name) for name in BUILT_IN if kind is FloatLinear)]
    ways = [kind(random(outputs, inputs, seed=2), random(outputs, seed=3)) for kind in kinds]
    before = torch.get_num_threads()
    whole_TO = [way(x_TI) for way in ways]
    some = slice(start, start + rows)
    torch.set_num_threads(threads)
    try:
        for way, expected_TO in zip(ways, whole_TO, strict=True):
            assert torch.equal(way(x_TI[some]), expected_TO[some])
    finally:
        torch.set_num_threads(before)


def test_kernels_that_are_missing_or_wrong_are_not_used(monkeypatch):
    def missing(*_):
        raise NotImplementedError

    def wrong(x_TI, *_):
        return x_TI.new_zeros(len(x_TI), 32, dtype=torch.float32)

    monkeypatch.setattr(prepacked, "largest_input", missing)
    assert not has_int8_kernels.__wrapped__()
    monkeypatch.setattr(prepacked.FloatLinear, "forward", lambda self, x_TI: wrong(x_TI))
    assert not has_float_kernels.__wrapped__(torch.float32)


@pytest.mark.parametrize(("exact_up_to", "expected"), [(255, 255), (127, 127), (126, 0)])
def test_the_largest_input_is_the_largest_that_is_summed_exactly(monkeypatch, exact_up_to, expected):
    def saturating(x_TI, weight_OI, _):
        return (x_TI.double().clamp(max=exact_up_to) @ weight_OI.double().T).float()

    monkeypatch.setattr(prepacked, "_pack_int8", lambda weight_OI: weight_OI)
    monkeypatch.setattr(prepacked, "_multiply_int8", saturating)
    assert largest_input.__wrapped__() == expected
