"""oneDNN's linear layers give torch's results and gradients, and are taken for float32 on AMD's processors."""

import pytest
import torch
from torch.nn import functional

from longspan.machine import Processor
from longspan.model import linear as module
from longspan.model.linear import Linear, linear, multiplies_by_onednn
from longspan.model.prepacked import has_float_kernels

needs_onednn = pytest.mark.skipif(not has_float_kernels(torch.float32), reason="this build of torch has no oneDNN")


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(module, "multiplies_by_onednn", lambda: True)


def example(num_rows, *, bias):
    generator = torch.Generator().manual_seed(num_rows)
    shapes = ((num_rows, 96), (160, 96), (160,), (num_rows, 160))
    x_TI, weight_OI, bias_O, direction_TO = (torch.randn(shape, generator=generator) for shape in shapes)
    return (x_TI, weight_OI, *([bias_O] if bias else [])), direction_TO


def gradients(function, inputs, direction_TO):
    leaves = [x.clone().requires_grad_() for x in inputs]
    y_TO = function(*leaves)
    return y_TO.detach(), *torch.autograd.grad((y_TO * direction_TO).sum(), leaves)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_is_near_float64(onednn, bias):
    inputs, direction_TO = example(300, bias=bias)
    exact = gradients(functional.linear, [x.double() for x in inputs], direction_TO.double())
    for ours, expected in zip(gradients(linear, inputs, direction_TO), exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - expected).norm() < 1e-6 * expected.norm()


@needs_onednn
def test_reads_what_is_not_contiguous(onednn):
    (x_TI, weight_OI), direction_TO = example(300, bias=False)
    expected = gradients(linear, (x_TI, weight_OI), direction_TO)
    strided = (x_TI.T.contiguous().T, weight_OI.T.contiguous().T)
    for ours, same in zip(gradients(linear, strided, direction_TO.T.contiguous().T), expected, strict=True):
        assert torch.equal(ours, same)


@needs_onednn
def test_only_what_is_asked_for_is_computed(onednn):
    (x_TI, weight_OI, bias_O), _ = example(300, bias=True)
    weight_OI.requires_grad_()
    linear(x_TI, weight_OI, bias_O).sum().backward()
    assert weight_OI.grad is not None
    assert x_TI.grad is None
    assert bias_O.grad is None


@needs_onednn
@pytest.mark.parametrize(("num_rows", "dtype"), [(300, torch.float64), (300, torch.bfloat16), (5, torch.float32)])
def test_other_types_and_few_rows_are_left_to_torch(onednn, num_rows, dtype):
    inputs, _ = example(num_rows, bias=False)
    x_TI, weight_OI = (x.to(dtype).requires_grad_() for x in inputs)
    y_TO = linear(x_TI, weight_OI)
    assert torch.equal(y_TO, functional.linear(x_TI, weight_OI))
    assert "Linear" not in type(y_TO.grad_fn).__name__


def test_under_autocast_it_is_left_to_torch(onednn):
    (x_TI, weight_OI), _ = example(300, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x_TI, weight_OI).dtype == torch.bfloat16


def test_the_layer_is_torchs_own_with_other_products():
    layer = Linear(96, 160)
    assert isinstance(layer, torch.nn.Linear)
    assert set(layer.state_dict()) == {"weight", "bias"}
    (x_TI, _), _ = example(5, bias=False)
    assert torch.equal(layer(x_TI), functional.linear(x_TI, layer.weight, layer.bias))


@needs_onednn
@pytest.mark.parametrize(("vendor", "onednn"), [("AuthenticAMD", True), ("GenuineIntel", False), (None, False)])
def test_the_rule_is_the_processors_maker(monkeypatch, vendor, onednn):
    processor = Processor(
        name="any", vendor=vendor, architecture="x86_64", num_cores=2, num_logical=2, usable=2.0, simd=()
    )
    monkeypatch.setattr(module, "read_processor", lambda: processor)
    assert multiplies_by_onednn.__wrapped__() == (onednn and torch.backends.mkl.is_available())
