"""Rotary positions (paper, sections 3.4 and 3.5.2), from each sequence's own length.

Axes: T tokens, B sequences, H heads, K head size.

Published implementations of dynamic NTK take the length of the longest sequence in the batch, or remember the longest
they ever saw; there a text's vector depends on its neighbours or on history. Here the base is a function of the
sequence's own length alone. For a single sequence on a fresh model the two agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.text.packed import Packed


def dynamic_ntk_base(base: float, length: int, trained_length: int, alpha: float, head_size: int) -> float:
    """The rotary base for a sequence of `length` tokens, equation (5).

    `b' = b * (alpha * s - (alpha - 1)) ** (K / (K - 2))` with `s = length / trained_length`; `b` itself up to the
    trained length, where the formula gives the same.
    """
    if length <= trained_length:
        return base
    stretch = alpha * length / trained_length - (alpha - 1)
    return base * stretch ** (head_size / (head_size - 2))


def inverse_frequencies(base: float, head_size: int) -> Tensor:
    """`base ** (-2 i / K)` for i = 0 ... K/2 - 1, float32 (section 3.4)."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    return 1.0 / (base**exponents)


def rotary_tables(
    packed: Packed, *, base: float, head_size: int, trained_length: int, alpha: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's rotation, each (T, K).

    Angles are computed in float32 whatever `dtype` is, as in every published implementation, so that float64 runs can
    be compared with theirs exactly.
    """
    device = packed.ids_T.device
    bases = [dynamic_ntk_base(base, length, trained_length, alpha, head_size) for length in packed.lengths]
    distinct = sorted(set(bases))
    frequencies = torch.stack([inverse_frequencies(b, head_size) for b in distinct]).to(device)
    if len(distinct) == 1:
        frequency_TK = frequencies
    else:
        which_B = torch.tensor([distinct.index(b) for b in bases], device=device)
        frequency_TK = frequencies[which_B[packed.sequence_T()]]
    angles_TK = packed.positions_T().float()[:, None] * frequency_TK
    angles_TK = torch.cat([angles_TK, angles_TK], dim=-1)
    return angles_TK.cos().to(dtype), angles_TK.sin().to(dtype)


def rotate(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotate each head's vector by its token's angles; the two halves of K are the pairs' coordinates."""
    first, second = x_THK.chunk(2, dim=-1)
    turned_THK = torch.cat((-second, first), dim=-1)
    return x_THK * cos_TK[:, None, :] + turned_THK * sin_TK[:, None, :]
