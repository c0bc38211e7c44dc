"""Cross-entropy over a large vocabulary in tiles of rows: exact, and flat in memory.

Axes: M rows (masked tokens), m rows of one tile, D width, V vocabulary.

Logits of 10,000 masked tokens over 30,528 ids are 1.2 GB in float32, and a plain cross-entropy holds them several
times. Here a tile of them is made, used for the loss and for the gradients of everything that made it, and forgotten.
No product is computed twice: the gradients of the sum are ready before `backward`, which only scales them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

LOGITS_PER_TILE = 2**25
"""Logits in memory at a time: 128 MiB in float32, which is enough rows to keep matrix units busy."""


def tiled_cross_entropy(
    h_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_M: Tensor, *, logits_per_tile: int = LOGITS_PER_TILE
) -> tuple[Tensor, Tensor]:
    """The sum of `cross_entropy(h_MD @ weight_VD.T + bias_V, labels_M)` over rows, and how many it predicts right.

    Products are in autocast's type where it is on, everything else in float32 or wider, as in a plain computation under
    autocast. The gradients of tiles are added up in float32 or wider.

    Args:
        labels_M: int64, each below V.
        logits_per_tile: logits in memory at a time; a tile has at least one row.

    Returns:
        The sum, float32 or wider, with gradients to h, weight and bias; and the number of labels with the largest
        logit, int64.
    """
    dtype = h_MD.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled(h_MD.device.type):
        dtype = torch.get_autocast_dtype(h_MD.device.type)
    rows = max(1, logits_per_tile // weight_VD.shape[0])
    return _TiledCrossEntropy.apply(h_MD, weight_VD, bias_V, labels_M, rows, dtype, torch.is_grad_enabled())  # pyright: ignore[reportReturnType]


class _TiledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        labels_M: Tensor,
        rows: int,
        dtype: torch.dtype,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        loss = h_MD.new_zeros((), dtype=wide)
        correct = labels_M.new_zeros(())
        grad_h_MD = torch.empty_like(h_MD)
        grad_weight_VD, grad_bias_V = (torch.zeros_like(p, dtype=wide) for p in (weight_VD, bias_V))
        with torch.autocast(h_MD.device.type, enabled=False):
            weight_VD, bias_V = weight_VD.to(dtype), bias_V.to(dtype)
            for start in range(0, len(labels_M), rows):
                tile = slice(start, start + rows)
                h_mD, labels_m1 = h_MD[tile].to(dtype), labels_M[tile, None]
                logits_mV = linear(h_mD, weight_VD, bias_V).to(wide)
                largest_m1, predicted_m1 = logits_mV.max(dim=1, keepdim=True)
                said_m1 = logits_mV.gather(1, labels_m1)
                weights_mV = logits_mV.sub_(largest_m1).exp_()
                sum_m1 = weights_mV.sum(dim=1, keepdim=True)
                loss += (largest_m1 + sum_m1.log() - said_m1).sum()
                correct += (predicted_m1 == labels_m1).sum()
                if not with_gradients:
                    continue
                # The gradient of the loss with respect to a logit: its probability, less 1 for the label.
                grad_mV = weights_mV.div_(sum_m1)
                grad_mV.scatter_add_(1, labels_m1, grad_mV.new_full((1, 1), -1.0).expand_as(labels_m1))
                grad_bias_V += grad_mV.sum(dim=0)
                grad_mV = grad_mV.to(dtype)
                grad_h_MD[tile] = grad_mV @ weight_VD
                grad_weight_VD += grad_mV.T @ h_mD
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(grad_h_MD, grad_weight_VD, grad_bias_V)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_h_MD, grad_weight_VD, grad_bias_V = ctx.saved_tensors
        return grad_h_MD * grad_loss, grad_weight_VD * grad_loss, grad_bias_V * grad_loss, None, None, None, None
