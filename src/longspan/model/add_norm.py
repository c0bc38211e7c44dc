"""A residual sum and its layer norm, in one compiled pass each way where that is there (`kernels/training_passes.c`).

Under autocast the sum and the norm are float32 and the products that read the norm want bfloat16: torch's operators
add, normalise and round in passes of their own, and on the way back round, add and sum again.

Axes: T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longspan.model.compiled_training import can_read, can_train_compiled, place_of, training_library

_BLOCK = 128
"""Rows whose part of the gradients of a norm's weights is one sum; the compiled code's own constant."""


def add_norm(h_TD: Tensor, y_TD: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`norm(h + y)`, (T, D), as the next sum reads it and as the next products do: rounded, where `y` is bfloat16.

    Without the compiled code both are the same tensor, and autocast rounds it.
    """
    if can_add_norm(h_TD, y_TD, norm):
        out_TD, copy_TD = _AddNorm.apply(h_TD, y_TD, norm.weight, norm.bias, norm.eps)  # pyright: ignore[reportGeneralTypeIssues]
        return out_TD, out_TD if copy_TD is None else copy_TD
    out_TD = norm(h_TD + y_TD)
    return out_TD, out_TD


def can_add_norm(h_TD: Tensor, y_TD: Tensor, norm: nn.Module) -> bool:
    """Whether the compiled code is there and computes this sum."""
    return (
        type(norm) is nn.LayerNorm
        and can_train_compiled(h_TD.device)
        and can_read(h_TD, y_TD)
        and h_TD.dtype == norm.weight.dtype == torch.float32
        # A forward in bfloat16 without autocast gives bfloat16 back.
        and (y_TD.dtype == torch.float32 or torch.is_autocast_enabled("cpu"))
        and h_TD.dim() == 2
        and h_TD.shape[1] % 16 == 0
    )


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_TD: Tensor, y_TD: Tensor, gamma_D: Tensor, beta_D: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        h_TD, y_TD = h_TD.contiguous(), y_TD.contiguous()
        half = y_TD.dtype == torch.bfloat16
        out_TD = torch.empty_like(h_TD)
        total_TD = torch.empty_like(h_TD) if any(ctx.needs_input_grad) else out_TD  # only the way back reads it
        mean_T, scale_T = torch.empty(2, len(h_TD))
        copy_TD = torch.empty_like(y_TD) if half else None
        weights = (place_of(gamma_D), place_of(beta_D))
        results = (total_TD, mean_T, scale_T, out_TD, copy_TD)
        training_library().add_norm(
            place_of(h_TD),
            place_of(y_TD),
            *weights,
            eps,
            *h_TD.shape,
            *(place_of(tensor) for tensor in results),
            half,
            torch.get_num_threads(),
        )
        ctx.save_for_backward(gamma_D, total_TD, mean_T, scale_T)
        ctx.half = half
        return out_TD, copy_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor | None, grad_copy_TD: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gamma_D, total_TD, mean_T, scale_T = ctx.saved_tensors
        grad_TD = None if grad_TD is None else grad_TD.contiguous()
        grad_copy_TD = None if grad_copy_TD is None else grad_copy_TD.contiguous()
        num_tokens, width = total_TD.shape
        of_total_TD = torch.empty_like(total_TD)
        of_y_TD = torch.empty_like(total_TD, dtype=torch.bfloat16) if ctx.half else of_total_TD
        of_weights = torch.empty(-(-num_tokens // _BLOCK), 2, width)
        inputs = (grad_TD, grad_copy_TD, gamma_D, total_TD, mean_T, scale_T)
        training_library().add_norm_back(
            *(place_of(tensor) for tensor in inputs),
            num_tokens,
            width,
            *(place_of(tensor) for tensor in (of_total_TD, of_y_TD, of_weights)),
            ctx.half,
            torch.get_num_threads(),
        )
        of_gamma_D, of_beta_D = of_weights.sum(0)
        wants_beta = ctx.needs_input_grad[3]
        return of_total_TD, of_y_TD, of_gamma_D, of_beta_D if wants_beta else None, None
