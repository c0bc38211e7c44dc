"""Rotary positions (paper, sections 3.4 and 3.5), from each sequence's own length.

Axes: T tokens, B sequences, R rows of the tables, H heads, K head size.

Four ways to read beyond the trained length, `EncoderConfig.rope_scaling`:

- `none`: the trained angles go on;
- `linear`: position interpolation, equation (3), and `ntk`: NTK-aware scaling, equation (4). Both stretch by the same
  factor whatever the length, so they change short sequences too, as in the paper;
- `dynamic`: dynamic NTK, equation (5). Up to the trained length nothing changes.

Published implementations of dynamic NTK take the length of the longest sequence in the batch, or remember the longest
they ever saw; there a text's vector depends on its neighbours or on history. Here the base is a function of the
sequence's own length alone. For a single sequence on a fresh model the two agree.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longspan.model.config import EncoderConfig
from longspan.text.packed import Packed


def inverse_frequencies(base: float, head_size: int) -> Tensor:
    """`base ** (-2 i / K)` for i = 0 ... K/2 - 1, float32 (section 3.4)."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    return 1.0 / (base**exponents)


def interpolated(frequencies_K: Tensor, factor: float) -> Tensor:
    """Position interpolation, equation (3): the position m is read as `m L / L'`, where `factor` is `L' / L`.

    L is the trained length, L' the longest to be read. An angle is position times frequency, so the frequencies are
    divided and the positions stay whole; rounded otherwise than the equation as written, but as published code does.
    """
    return frequencies_K / factor


def ntk_base(base: float, factor: float, head_size: int) -> float:
    """NTK-aware scaling, equation (4): `b' = b * s ** (K / (K - 2))`, where s is `factor`, `L' / L`.

    The fastest pair of coordinates turns as before, the slowest s times slower.
    """
    return base * factor ** (head_size / (head_size - 2))


def dynamic_ntk_base(base: float, length: int, trained_length: int, alpha: float, head_size: int) -> float:
    """The rotary base for a sequence of `length` tokens, equation (5).

    `b' = b * (alpha * s - (alpha - 1)) ** (K / (K - 2))` with `s = length / trained_length`; `b` itself up to the
    trained length, where the formula gives the same. With alpha 1 it is equation (4) for the sequence's own s.
    """
    if length <= trained_length:
        return base
    return ntk_base(base, alpha * length / trained_length - (alpha - 1), head_size)


def rotary_frequencies(length: int, config: EncoderConfig) -> Tensor:
    """The inverse frequencies by which a sequence of `length` tokens is read, (K / 2), float32."""
    base, head_size = config.rotary_base, config.head_size
    if config.rope_scaling == "linear":
        return interpolated(inverse_frequencies(base, head_size), config.stretch)
    if config.rope_scaling == "ntk":
        base = ntk_base(base, config.stretch, head_size)
    elif config.rope_scaling == "dynamic":
        base = dynamic_ntk_base(base, length, config.trained_length, config.ntk_alpha, head_size)
    return inverse_frequencies(base, head_size)


def rotary_tables(packed: Packed, config: EncoderConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's rotation, each (T, K).

    Angles are computed in float32 whatever `dtype` is, as in every published implementation, so that float64 runs can
    be compared with theirs exactly.
    """
    # Sequences with the same frequencies share the rows of one table, computed once; only dynamic NTK has several.
    always = config.trained_length if config.rope_scaling == "dynamic" else packed.max_length
    stretched = sorted({length for length in packed.lengths if length > always})
    shared = max([0, *(length for length in packed.lengths if length <= always)])
    tables = [shared, *stretched] if shared else stretched
    device = packed.ids_T.device
    cos_RK, sin_RK = (
        torch.cat([table_RK, table_RK], dim=-1).to(dtype)
        for table_RK in _cosines_and_sines([(length, rotary_frequencies(length, config)) for length in tables], device)
    )
    if tables == list(packed.lengths):  # one sequence, or several that share nothing
        return cos_RK, sin_RK
    if len(tables) == 1:
        rows_T = packed.positions_T()
    else:
        first_row, rows = {}, 0
        for length in tables:
            first_row[length], rows = rows, rows + length
        first_B = torch.tensor([first_row.get(length, 0) for length in packed.lengths]).to(device, non_blocking=True)
        rows_T = packed.positions_T() + first_B[packed.sequence_T()]
    return cos_RK[rows_T], sin_RK[rows_T]


def rotate(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotate each head's vector by its token's angles; the two halves of K are the pairs' coordinates."""
    if x_THK.device.type == "cpu" and not torch.compiler.is_compiling():
        return _Rotate.apply(x_THK, cos_TK, sin_TK)  # pyright: ignore[reportReturnType]
    first, second = x_THK.chunk(2, dim=-1)
    turned_THK = torch.cat((-second, first), dim=-1)
    return x_THK * cos_TK[:, None, :] + turned_THK * sin_TK[:, None, :]


class _Rotate(torch.autograd.Function):
    """The same bits with fewer passes over memory, and nothing kept for the way back: that is the opposite rotation."""

    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TK, sin_TK)
        return _rotated(x_THK, cos_TK, sin_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos_TK, sin_TK = ctx.saved_tensors
        return _rotated(grad_THK, cos_TK, -sin_TK), None, None


def _rotated(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    first, second = x_THK.chunk(2, dim=-1)
    first_sin, second_sin = sin_TK[:, None, :].chunk(2, dim=-1)
    out_THK = x_THK * cos_TK[:, None, :]
    out_first, out_second = out_THK.chunk(2, dim=-1)
    out_first.sub_(second * first_sin)
    out_second.add_(first * second_sin)
    return out_THK


def _cosines_and_sines(tables: list[tuple[int, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    angles = []
    for length, frequencies_K in tables:
        positions_R = torch.arange(length, device=device, dtype=torch.float32)
        angles.append(positions_R[:, None] * frequencies_K.to(device, non_blocking=True))
    angles_RK = torch.cat(angles)
    return angles_RK.cos(), angles_RK.sin()
