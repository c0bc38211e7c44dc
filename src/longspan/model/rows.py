"""Matrices as compiled code reads and writes them (`kernels/common.h`): what a product multiplies and what it gives.

Axes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.model.compiled import load_fused, multiplies


@dataclass(frozen=True)
class Rows:
    """What a matrix product reads: bfloat16, or `middle + step * integer` with both numbers for every row."""

    values_TI: Tensor
    step_T: Tensor | None = None
    middle_T: Tensor | None = None

    @classmethod
    def empty(cls, num_rows: int, width: int, *, int8: bool) -> Rows:
        """Room for rows."""
        if not int8:
            return cls(torch.empty((num_rows, width), dtype=torch.bfloat16))
        values_TI = torch.empty((num_rows, width), dtype=integers())
        return cls(values_TI, torch.empty(num_rows), torch.empty(num_rows))

    def part(self, start: int, end: int) -> Rows:
        """The rows from `start` to `end`, where they lie."""
        cut = (None if tensor is None else tensor[start:end] for tensor in (self.step_T, self.middle_T))
        return Rows(self.values_TI[start:end], *cut)

    def places(self) -> tuple[int | None, ...]:
        """Where the compiled code writes them: bfloat16, or integers, steps and middles."""
        if self.step_T is None:
            return at(self.values_TI), None, None, None
        return None, at(self.values_TI), at(self.step_T), at(self.middle_T)


@dataclass(frozen=True)
class Product:
    """A matrix product as the compiled code reads it: bfloat16, and what is still to be put to it."""

    values_TO: Tensor
    step_T: Tensor | None = None
    middle_T: Tensor | None = None
    sums_O: Tensor | None = None
    bias_O: Tensor | None = None

    def places(self) -> tuple[int | None, ...]:
        """Where the compiled code reads it."""
        parts = (self.values_TO, self.step_T, self.middle_T, self.sums_O, self.bias_O)
        return tuple(at(tensor) for tensor in parts)


def integers() -> torch.dtype:
    """The type to which the compiled code rounds rows: what the products beside it read."""
    return torch.uint8 if multiplies() else torch.int8


def library() -> Any:
    """A ctypes library, whose functions no checker knows."""
    return load_fused().library


def at(tensor: Tensor | None) -> int | None:
    """The address of a tensor's numbers."""
    return None if tensor is None else tensor.data_ptr()
