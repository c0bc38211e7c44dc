"""Linear layers of a model that is trained: float32 products by oneDNN's kernels where they are faster than MKL's.

torch multiplies float32 matrices with MKL, which on processors of other makers than Intel takes a code path for older
ones: a third to a half of the rate that oneDNN reaches there (docs/performance.md). oneDNN wants a weight in a layout
of its own, which costs a pass over the weight and pays from a few hundred rows on.

Axes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from longspan.machine import read_processor
from longspan.model.prepacked import has_float_kernels

_FEWEST_ROWS = 128
"""Below, laying out the weight takes as long as the product."""


class Linear(nn.Linear):
    """torch's linear layer, with `linear` for its products."""

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        return linear(input, self.weight, self.bias)


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, (T, O), differentiable once where oneDNN computes it."""
    if _is_for_onednn(x_TI, weight_OI) and multiplies_by_onednn():
        return _OneDNNLinear.apply(x_TI, weight_OI, bias_O)  # pyright: ignore[reportReturnType]
    return functional.linear(x_TI, weight_OI, bias_O)


@functools.cache
def multiplies_by_onednn() -> bool:
    """Whether float32 training takes oneDNN's kernels: on AMD's processors, a rule and no measurement.

    What a process measured could differ from one run to the next, and the last bits of a resumed run with it.
    """
    return (
        read_processor().vendor == "AuthenticAMD"
        and torch.backends.mkl.is_available()
        and has_float_kernels(torch.float32)
    )


def _is_for_onednn(x_TI: Tensor, weight_OI: Tensor) -> bool:
    # Subclasses of tensors (sharded, fake, of torch.func) have no plain memory that oneDNN could read.
    return (
        x_TI.device.type == "cpu"
        and x_TI.dtype == weight_OI.dtype == torch.float32
        and x_TI.dim() == 2
        and len(x_TI) >= _FEWEST_ROWS
        and type(x_TI) is Tensor
        and type(weight_OI) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.onnx.is_in_onnx_export()
    )


class _OneDNNLinear(torch.autograd.Function):
    """All three products by oneDNN; the weight is laid out anew each time, for it changes with every step."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        ctx.has_bias = bias_O is not None
        return _product(x_TI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TI, weight_OI = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _product(grad_TO, weight_OI.t(), None)
        if ctx.needs_input_grad[1]:
            rows, grads = x_TI.contiguous().to_mkldnn(), grad_TO.contiguous().to_mkldnn()
            grad_weight, _ = torch.ops.aten.mkldnn_linear_backward_weights(grads, rows, weight_OI, False)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad_TO.sum(0)
        return grad_x, grad_weight, grad_bias


def _product(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), len(x_TI))
    return torch.ops.mkldnn._linear_pointwise(x_TI.contiguous(), packed, bias_O, "none", [], "")
