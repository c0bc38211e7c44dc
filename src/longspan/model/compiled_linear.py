"""Linear layers by our own kernel (`kernels/gemm.c`): bfloat16, or 8-bit integers, for CPUs without a matrix unit.

In bfloat16 every output is one sum in one order, and integers are summed exactly: a row's result does not depend on how
many other rows there are, bit for bit. Integers are brought back to what they stand for where a product is still in
registers, so that nothing is left to do for the pass that reads it.

Axes: T rows, I inputs, O outputs, P panels of outputs, G groups of inputs (32 bits: 2 of bfloat16, or 4 integers).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longspan.model.prepacked import round_weights
from longspan.model.rows import Product, Rows, at, library

_PANEL = 64
"""Outputs of a panel: `PANEL` of the kernel."""


class CompiledLinear(nn.Module):
    """`x @ weight.T + bias` with both factors in bfloat16, or rounded to 8-bit integers as `Int8Linear` does."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, int8: bool) -> None:
        """Lay out the weights; inputs are a multiple of 4, outputs of 16."""
        super().__init__()
        self._int8, self._outputs = int8, len(weight_OI)
        self._scale_O, self._sums_O = None, None
        if int8:
            weight_OI, scale_O = round_weights(weight_OI.float())
            self._scale_O, self._sums_O = _filled(scale_O), _filled(weight_OI.sum(dim=1) * scale_O)
        else:
            weight_OI = weight_OI.to(torch.bfloat16)
        self._bias_O = None if bias_O is None else _filled(bias_O.float())
        groups_OG = _filled(weight_OI.contiguous().view(torch.int32))
        self._groups_PGO = groups_OG.view(-1, _PANEL, groups_OG.shape[1]).transpose(1, 2).contiguous()

    def forward(self, x: Rows) -> Product:
        """(T, O), bfloat16, complete."""
        num_rows = len(x.values_TI)
        y_TO = torch.empty((num_rows, self._outputs), dtype=torch.bfloat16)
        library().multiply(
            self._int8,
            at(x.values_TI),
            at(x.step_T),
            at(x.middle_T),
            num_rows,
            self._groups_PGO.shape[1],
            at(self._groups_PGO),
            at(self._scale_O),
            at(self._sums_O),
            at(self._bias_O),
            self._outputs,
            at(y_TO),
            torch.get_num_threads(),
        )
        return Product(y_TO)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        groups_OG = self._groups_PGO.transpose(1, 2).flatten(0, 1)[: self._outputs].contiguous()
        destination[f"{prefix}weight"] = groups_OG.view(torch.int8 if self._int8 else torch.bfloat16)
        if self._scale_O is not None:
            destination[f"{prefix}scale"] = self._scale_O[: self._outputs]
        if self._bias_O is not None:
            destination[f"{prefix}bias"] = self._bias_O[: self._outputs]


def _filled(x: Tensor) -> Tensor:
    """With zeros behind it up to a whole number of panels."""
    out = x.new_zeros((-len(x) % _PANEL + len(x), *x.shape[1:]))
    out[: len(x)] = x
    return out
