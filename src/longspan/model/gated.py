"""The gate of SwiGLU and GeGLU, `up * act(gate)`, in one pass over memory each way.

Where training's compiled code is there, that is what it does (`kernels/training_passes.c`). Else torch's operators do
it in blocks of rows that stay in a CPU's cache.

Written plainly it is a pass over memory for the function, another for the product, four more on the way back and a
sum of two gradients, and everything in between is kept. Here a block goes through all of it before the next one is
read, and only the input is kept. Every element meets the same operations in the same order, so the numbers are the same
bits, but for the last few of a block, which torch's SiLU and GELU round otherwise.

Axes: T tokens, t tokens of a block, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from longspan.model.compiled_training import can_read, can_train_compiled, place_of, training_library

_ELEMENTS = 2**20
"""Of a block: few enough for the last-level cache, and enough that starting the threads does not count."""
_BACKWARD: dict[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    functional.silu: torch.ops.aten.silu_backward,
    functional.gelu: torch.ops.aten.gelu_backward,
}
"""Gradient of the function's output, and its input -> gradient of its input."""
_KINDS: dict[Callable[[Tensor], Tensor], int] = {functional.silu: 0, functional.gelu: 1}
"""By function: its number in the compiled code."""


def gated_product(up_gate_TF: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """`up * act(gate)`, (T, F), of `[up, gate]`, (T, 2 F)."""
    if can_gate(up_gate_TF, act):
        return _CompiledGate.apply(up_gate_TF, act)  # pyright: ignore[reportReturnType]
    if up_gate_TF.device.type == "cpu" and act in _BACKWARD and not torch.compiler.is_compiling():
        return _GatedProduct.apply(up_gate_TF, act)  # pyright: ignore[reportReturnType]
    up_TF, gate_TF = up_gate_TF.chunk(2, dim=-1)
    return up_TF * act(gate_TF)


def can_gate(up_gate_TF: Tensor, act: Callable[[Tensor], Tensor]) -> bool:
    """Whether the compiled code is there and computes this gate."""
    fits = act in _KINDS and up_gate_TF.shape[-1] % 32 == 0
    return fits and can_train_compiled(up_gate_TF.device) and can_read(up_gate_TF)


class _CompiledGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, up_gate_TF: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        up_gate_TF = up_gate_TF.contiguous()
        ctx.save_for_backward(up_gate_TF)
        ctx.how = (_KINDS[act], up_gate_TF.dtype == torch.bfloat16, torch.get_num_threads())
        out_TF = up_gate_TF.new_empty(len(up_gate_TF), up_gate_TF.shape[1] // 2)
        training_library().gate(place_of(up_gate_TF), *out_TF.shape, place_of(out_TF), *ctx.how)
        return out_TF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (up_gate_TF,) = ctx.saved_tensors
        grad_TF = grad_TF.to(up_gate_TF.dtype).contiguous()
        out_TF = torch.empty_like(up_gate_TF)
        places = (place_of(up_gate_TF), place_of(grad_TF))
        training_library().gate_back(*places, *grad_TF.shape, place_of(out_TF), *ctx.how)
        return out_TF, None


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, up_gate_TF: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(up_gate_TF)
        ctx.act = act
        num_tokens, width = up_gate_TF.shape[0], up_gate_TF.shape[1] // 2
        out_TF = up_gate_TF.new_empty(num_tokens, width)
        for rows in _blocks(num_tokens, width):
            up_tF, gate_tF = up_gate_TF[rows].chunk(2, dim=-1)
            torch.mul(up_tF, act(gate_tF), out=out_TF[rows])
        return out_TF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (up_gate_TF,) = ctx.saved_tensors
        grad_up_gate_TF = torch.empty_like(up_gate_TF)
        for rows in _blocks(*grad_TF.shape):
            up_tF, gate_tF = up_gate_TF[rows].chunk(2, dim=-1)
            grad_up_tF, grad_gate_tF = grad_up_gate_TF[rows].chunk(2, dim=-1)
            torch.mul(grad_TF[rows], ctx.act(gate_tF), out=grad_up_tF)
            grad_gate_tF.copy_(_BACKWARD[ctx.act](grad_TF[rows] * up_tF, gate_tF))
        return grad_up_gate_TF, None


def _blocks(num_tokens: int, width: int) -> list[slice]:
    rows = max(1, _ELEMENTS // width)
    return [slice(start, start + rows) for start in range(0, num_tokens, rows)]
