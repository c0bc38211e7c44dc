"""Sums over rows in tiles: the gradients of a tile are ready when its value is, and everything else of it is forgotten.

A contrastive loss over N pairs has N x N scores, though its inputs and its gradients have N rows only. Here a tile of
rows goes forward and back before the next one begins, so that memory holds the scores of one tile. Nothing is computed
twice: the gradients of the sum exist before `backward`, which only scales them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Tensors = Mapping[str, Tensor]

SumOfTile = Callable[[slice, Tensors, Tensors], tuple[Tensor, Tensor]]
"""(rows of the tile, their part of the tensors that are cut, the tensors that are not) -> the sum of the rows' losses,
a scalar that is differentiable in both; and counts of the tile, int64, of any one shape."""


def sum_over_rows(of_tile: SumOfTile, by_row: Tensors, whole: Tensors, rows_per_tile: int) -> tuple[Tensor, Tensor]:
    """The sum of `of_tile` over tiles of rows, differentiable once in all floating-point tensors that ask for it.

    The result depends on `rows_per_tile` by rounding only. Autocast is off inside.

    Args:
        by_row: tensors with the same number of rows, at least one, of which a tile gets its own.
        whole: tensors that every tile needs; their gradients are added up over the tiles.

    Returns:
        The sum, a scalar, and the sum of the counts.
    """
    tensors = [*by_row.values(), *whole.values()]
    names = tuple(by_row), tuple(whole)
    return _SumOverRows.apply(of_tile, names, rows_per_tile, torch.is_grad_enabled(), *tensors)  # pyright: ignore[reportReturnType]


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        of_tile: SumOfTile,
        names: tuple[tuple[str, ...], tuple[str, ...]],
        rows_per_tile: int,
        grad_enabled: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wanted = [grad_enabled and needed for needed in ctx.needs_input_grad[4:]]
        num_cut = len(names[0])
        gradients = [torch.zeros_like(x) if want else None for x, want in zip(tensors, wanted, strict=True)]
        loss, counts = None, None
        for start in range(0, len(tensors[0]), rows_per_tile):
            tile = slice(start, start + rows_per_tile)
            leaves = [
                (x[tile] if i < num_cut else x).detach().requires_grad_(want)
                for i, (x, want) in enumerate(zip(tensors, wanted, strict=True))
            ]
            by_row = dict(zip(names[0], leaves[:num_cut], strict=True))
            whole = dict(zip(names[1], leaves[num_cut:], strict=True))
            with torch.set_grad_enabled(any(wanted)), torch.autocast(leaves[0].device.type, enabled=False):
                of_this, counts_of_this = of_tile(tile, by_row, whole)
            loss = of_this.detach() if loss is None else loss + of_this.detach()
            counts = counts_of_this if counts is None else counts + counts_of_this
            if any(wanted):
                _add_gradients(of_this, leaves, tile, num_cut, gradients)
        assert loss is not None
        assert counts is not None
        ctx.mark_non_differentiable(counts)
        ctx.save_for_backward(*gradients)
        return loss, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (None,) * 4 + tuple(x if x is None else x * grad_loss for x in ctx.saved_tensors)


def _add_gradients(
    loss: Tensor, leaves: list[Tensor], tile: slice, num_cut: int, gradients: list[Tensor | None]
) -> None:
    wanted = [i for i, gradient in enumerate(gradients) if gradient is not None]
    of_tile = torch.autograd.grad(loss, [leaves[i] for i in wanted], allow_unused=True)
    for i, found in zip(wanted, of_tile, strict=True):
        total = gradients[i]
        if found is None or total is None:
            continue
        if i < num_cut:
            total[tile] = found
        else:
            total += found
