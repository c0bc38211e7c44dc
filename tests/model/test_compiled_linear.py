"""Linear layers by our own kernel compute what linear layers compute, row by row, to the bit."""

import functools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional

from longspan.model.compiled import load_fused
from longspan.model.compiled_linear import ACTIVATIONS, CompiledFloatLinear, CompiledLinear
from longspan.model.encoder import ACTIVATIONS as ENCODER_ACTIVATIONS
from longspan.model.rows import Rows

TIER = load_fused().tier
pytestmark = pytest.mark.skipif(TIER is None or not TIER.multiplies, reason="the products here are not ours")
SHAPES = [(64, 192), (16, 16), (96, 80), (768, 64), (32, 144)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_rows(num_rows, width, int8):
    if not int8:
        return Rows(random(num_rows, width).bfloat16())
    generator = torch.Generator().manual_seed(0)
    values_TI = torch.randint(0, 256, (num_rows, width), generator=generator, dtype=torch.uint8)
    return Rows(values_TI, random(num_rows, seed=1).abs(), random(num_rows, seed=2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_in_bfloat16_it_is_linear(inputs, outputs, bias):
    weight_OI, x = random(outputs, inputs).bfloat16(), random_rows(13, inputs, int8=False)
    bias_O = random(outputs, seed=3) if bias else None
    expected_TO = x.values_TI.double() @ weight_OI.double().T + (0 if bias_O is None else bias_O)
    found_TO = CompiledLinear(weight_OI, bias_O, int8=False)(x).values_TO
    assert found_TO.dtype == torch.bfloat16
    # The result is rounded once, to 8 bits; sums are float32.
    torch.testing.assert_close(found_TO.double(), expected_TO, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [*SHAPES, (7, 48)])
def test_in_float32_it_is_linear(inputs, outputs, bias):
    weight_OI, x_TI, bias_O = (
        random(outputs, inputs),
        random(13, inputs, seed=1),
        random(outputs, seed=3) if bias else None,
    )
    expected_TO = x_TI.double() @ weight_OI.double().T + (0 if bias_O is None else bias_O)
    found_TO = CompiledFloatLinear(weight_OI, bias_O)(x_TI)
    assert found_TO.dtype == torch.float32
    torch.testing.assert_close(found_TO.double(), expected_TO, rtol=0, atol=1e-4)


@pytest.mark.parametrize("outputs", [32, 48, 96])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_float32_activation_and_gate_are_exact(activation, outputs):
    gated = ACTIVATIONS[activation][1]
    weight_OI, x_TI, bias_O = (
        random(outputs * (1 + gated), 64) / 4,
        random(13, 64),
        random(outputs * (1 + gated), seed=3),
    )
    plain_TO = x_TI.double() @ weight_OI.double().T + bias_O
    up_TO, gate_TO = plain_TO.chunk(2, dim=1) if gated else (torch.ones(()), plain_TO)
    layer = CompiledFloatLinear(weight_OI, bias_O, activation=activation)
    expected_TO = up_TO * ENCODER_ACTIVATIONS[activation](gate_TO)
    torch.testing.assert_close(
        layer(x_TI).double(), expected_TO, rtol=1e-6, atol=1e-5
    )  # measured: 1.2e-5, of large products
    assert torch.equal(layer.state_dict()["bias"], bias_O)
    assert torch.equal(layer.state_dict()["weight"], weight_OI)


@pytest.mark.parametrize(("inputs", "outputs"), [*SHAPES, (3072, 96)])
@given(st.integers(1, 200), st.integers(0, 100), st.sampled_from([1, 2, 5]))
@example(1, 0, 1)
@example(200, 0, 2)
def test_in_float32_a_row_does_not_depend_on_the_number_of_rows(inputs, outputs, num_rows, start, threads):
    x_TI, linear = random(300, inputs), CompiledFloatLinear(random(outputs, inputs), random(outputs), activation="gelu")
    whole_TO = linear(x_TI)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(linear(x_TI[start : start + num_rows]), whole_TO[start : start + num_rows])
    finally:
        torch.set_num_threads(before)


def test_no_rows_give_no_rows():
    assert CompiledFloatLinear(random(16, 8), None)(random(0, 8)).shape == (0, 16)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_in_int8_it_is_linear_in_what_the_integers_stand_for(inputs, outputs, bias):
    x, bias_O = random_rows(13, inputs, int8=True), random(outputs, seed=3) if bias else None
    assert x.step_T is not None
    assert x.middle_T is not None
    linear = CompiledLinear(random(outputs, inputs), bias_O, int8=True)
    state = linear.state_dict()
    weight_OI = state["weight"].double() * state["scale"].double()[:, None]
    values_TI = x.middle_T.double()[:, None] + x.step_T.double()[:, None] * x.values_TI.double()
    expected_TO = values_TI @ weight_OI.T + (0 if bias_O is None else bias_O)
    # Integers are summed exactly. What is rounded are the scales' products, as large as the sums of the weights.
    torch.testing.assert_close(linear(x).values_TO.double(), expected_TO, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("outputs", [32, 48, 96])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_and_gate_follow(activation, outputs, int8):
    gated = ACTIVATIONS[activation][1]
    weight_OI, bias_O = random(outputs * (1 + gated), 64) / 4, random(outputs * (1 + gated), seed=3)
    x = random_rows(13, 64, int8=int8)
    plain_TO = CompiledLinear(weight_OI, bias_O, int8=int8)(x).values_TO.float()
    kind = {"swiglu": functional.silu, "relu": functional.relu}.get(activation, functional.gelu)
    if activation == "gelu_tanh":
        kind = functools.partial(functional.gelu, approximate="tanh")
    up_TO, gate_TO = plain_TO.chunk(2, dim=1) if gated else (torch.ones(()), plain_TO)
    layer = CompiledLinear(weight_OI, bias_O, int8=int8, activation=activation)
    found_TO = layer(x).values_TO.float()
    assert found_TO.shape == (13, outputs)
    # `plain_TO` is rounded before the activation, which turns a relative error of 2^-9 into as much of its argument.
    error_TO = (found_TO - up_TO * kind(gate_TO)).abs()
    assert bool((error_TO <= 2**-6 * (gate_TO.abs() * up_TO.abs()) + 1e-3).all())
    assert torch.equal(layer.state_dict()["bias"], bias_O)
    assert torch.equal(layer.state_dict()["weight"], CompiledLinear(weight_OI, None, int8=int8).state_dict()["weight"])


def test_the_largest_integers_are_summed_exactly():
    """Two products of 255 and 127 do not fit into 16 bits, 4,096 of them do into 32."""
    x = Rows(torch.full((7, 4096), 255, dtype=torch.uint8), torch.ones(7), torch.zeros(7))
    signs_O = torch.tensor([1.0, -1.0]).repeat(32)
    linear = CompiledLinear(signs_O[:, None].repeat(1, 4096), None, int8=True)
    expected_O = (signs_O * 255 * 4096).bfloat16()
    assert torch.equal(linear(x).values_TO, expected_O.expand(7, -1))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [*SHAPES, (3072, 96)])
@given(st.integers(1, 200), st.integers(0, 100), st.sampled_from([1, 2, 5]))
@example(1, 0, 1)
@example(200, 0, 2)
def test_a_row_does_not_depend_on_the_number_of_rows(int8, inputs, outputs, num_rows, start, threads):
    x, linear = random_rows(300, inputs, int8), CompiledLinear(random(outputs, inputs), random(outputs), int8=int8)
    whole_TO = linear(x).values_TO
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(linear(x.part(start, start + num_rows)).values_TO, whole_TO[start : start + num_rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("int8", [False, True])
def test_the_state_is_that_of_a_linear_layer(int8):
    weight_OI, bias_O = random(80, 32).bfloat16(), random(80)
    state = CompiledLinear(weight_OI, bias_O, int8=int8).state_dict()
    assert torch.equal(state["bias"], bias_O)
    if int8:
        rounded_OI = state["weight"] * state["scale"][:, None]
        assert float((rounded_OI - weight_OI).abs().max()) <= float(state["scale"].max()) / 2 * 1.001
    else:
        assert torch.equal(state["weight"], weight_OI)
