"""Linear layers by our own kernel (`kernels/gemm.c`) in float32, bfloat16 or 8-bit integers, for CPUs without AMX.

Of floating point every output is one sum in one order, and integers are summed exactly: a row's result does not depend
on how many other rows there are, bit for bit. Integers are brought back to what they stand for, and activated, while a
part of the product is at hand, so that nothing is left to do for the pass that reads it. One kernel takes any number of
rows: oneDNN makes one for every number, which costs as much as a short product.

Axes: T rows, I inputs, O outputs, P panels of outputs, G groups of inputs (32 bits: one of float32, 2 of bfloat16, or 4
integers).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longspan.model.compiled import multiplies
from longspan.model.config import EncoderConfig
from longspan.model.prepacked import round_weights
from longspan.model.rows import Product, Rows, at, library

_PANEL = 64
"""Outputs of a panel: `PANEL` of the kernel."""


ACTIVATIONS = {"swiglu": (0, True), "geglu": (1, True), "gelu": (1, False), "gelu_tanh": (2, False), "relu": (3, False)}
"""By activation: its number in the compiled code, and whether it is gated."""


_BFLOAT16, _INT8, _FLOAT32 = range(3)
"""The kernel's numbers of what it multiplies."""


def multiplies_float32(config: EncoderConfig) -> bool:
    """Whether the compiled code is there and has the products of such an encoder in float32."""
    return multiplies() and config.width % 16 == 0 and config.inner_width % 16 == 0


class _PanelLinear(nn.Module):
    """Weights in the kernel's layout, and the product with them.

    Attributes:
        num_weights: rows of weights; every one is multiplied with every row.
        activates: whether the activation is applied.
    """

    def __init__(self, kind: int, weight_OI: Tensor, bias_O: Tensor | None, activation: str | None) -> None:
        super().__init__()
        self._kind, self.num_weights = kind, len(weight_OI)
        self.activates = activation is not None
        self._activation, self._gated = (-1, False) if activation is None else ACTIVATIONS[activation]
        self._scale_O, self._sums_O = None, None
        if kind == _INT8:
            weight_OI, scale_O = round_weights(weight_OI.float())
            self._scale_O, self._sums_O = self._in_panels(scale_O), self._in_panels(weight_OI.sum(dim=1) * scale_O)
        self._weight_type = weight_OI.dtype
        self._bias_O = None if bias_O is None else self._in_panels(bias_O.float())
        groups_OG = self._in_panels(weight_OI.contiguous().view(torch.int32))
        self._groups_PGO = groups_OG.view(-1, _PANEL, groups_OG.shape[1]).transpose(1, 2).contiguous()

    def _multiply(self, x: Rows, dtype: torch.dtype) -> Tensor:
        """(T, O), complete."""
        num_rows, num_outputs = len(x.values_TI), self.num_weights // 2 if self._gated else self.num_weights
        y_TO = torch.empty((num_rows, num_outputs), dtype=dtype)
        library().multiply(
            self._kind,
            at(x.values_TI),
            at(x.step_T),
            at(x.middle_T),
            num_rows,
            self._groups_PGO.shape[1],
            at(self._groups_PGO),
            at(self._scale_O),
            at(self._sums_O),
            at(self._bias_O),
            num_outputs,
            self._activation,
            self._gated,
            at(y_TO),
            torch.get_num_threads(),
        )
        return y_TO

    def _in_panels(self, x: Tensor) -> Tensor:
        """Rows of weights in the order in which they are laid out, with zeros up to a whole number of panels."""
        parts = x.chunk(2) if self._gated else (x,)
        size = _PANEL // len(parts)
        filled = [torch.cat([part, part.new_zeros(-len(part) % size, *x.shape[1:])]) for part in parts]
        return torch.stack([part.unflatten(0, (-1, size)) for part in filled], dim=1).flatten(0, 2)

    def _out_of_panels(self, x: Tensor) -> Tensor:
        """What `_in_panels` was given."""
        count = 2 if self._gated else 1
        parts = x.unflatten(0, (-1, count, _PANEL // count)).unbind(dim=1)
        return torch.cat([part.flatten(0, 1)[: self.num_weights // count] for part in parts])

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        groups_OG = self._out_of_panels(self._groups_PGO.transpose(1, 2).flatten(0, 1))
        destination[f"{prefix}weight"] = groups_OG.view(self._weight_type)
        if self._scale_O is not None:
            destination[f"{prefix}scale"] = self._out_of_panels(self._scale_O)
        if self._bias_O is not None:
            destination[f"{prefix}bias"] = self._out_of_panels(self._bias_O)


class CompiledLinear(_PanelLinear):
    """`act(x @ weight.T + bias)` with both factors in bfloat16, or rounded to 8-bit integers as `Int8Linear` does.

    A gated activation gives half as many outputs as there are rows of weights: up first, then the gates.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, int8: bool, activation: str | None = None) -> None:
        """Lay out the weights; inputs are a multiple of 4, outputs of 16."""
        kind, weight_OI = (_INT8, weight_OI) if int8 else (_BFLOAT16, weight_OI.to(torch.bfloat16))
        super().__init__(kind, weight_OI, bias_O, activation)

    def forward(self, x: Rows) -> Product:
        """(T, O), bfloat16, complete."""
        return Product(self._multiply(x, torch.bfloat16))


class CompiledFloatLinear(_PanelLinear):
    """`act(x @ weight.T + bias)` in float32; with a gated activation as `CompiledLinear`."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, activation: str | None = None) -> None:
        """Lay out the weights; outputs are a multiple of 16."""
        super().__init__(_FLOAT32, weight_OI.float(), bias_O, activation)

    def forward(self, x_TI: Tensor) -> Tensor:
        """(T, O), float32."""
        return self._multiply(Rows(x_TI.contiguous()), torch.float32)
