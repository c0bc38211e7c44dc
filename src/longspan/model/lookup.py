"""Rows of a table of vectors, with gradients that are not as large as the table.

The gradient of a table of 30,528 rows of 768 is 94 MB, made, filled with zeros and added up for every chunk, though a
chunk has a few thousand tokens. Where there is a gradient already that is to be added to (every chunk of a step but the
first), a chunk's gradient has only the rows of its tokens.

Axes: T tokens, V rows of the table, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def rows_of(table_VD: Tensor, ids_T: Tensor) -> Tensor:
    """`table[ids]`, (T, D).

    Raises:
        IndexError: on a CPU, an id that the table does not have.
    """
    is_trained = table_VD.requires_grad and table_VD.is_leaf and torch.is_grad_enabled()
    if is_trained and table_VD.device.type == "cpu":
        return _Rows.apply(table_VD, ids_T)  # pyright: ignore[reportReturnType]
    return functional.embedding(ids_T, table_VD)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, ids_T: Tensor) -> Tensor:
        ctx.save_for_backward(table_VD, ids_T)
        return functional.embedding(ids_T, table_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table_VD, ids_T = ctx.saved_tensors
        if table_VD.grad is None:
            return torch.ops.aten.embedding_dense_backward(grad_TD, ids_T, len(table_VD), -1, False), None
        # The engine adds it to what is there, in place.
        return torch.sparse_coo_tensor(ids_T[None], grad_TD, table_VD.shape, check_invariants=False), None
