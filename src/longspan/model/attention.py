"""The kernel seam: the only file that knows which attention kernel exists.

Axes: T tokens of all sequences, H heads, K head size.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longspan.text.packed import Packed


def attention(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packed: Packed) -> Tensor:
    """Softmax attention of every token over its own sequence, scaled by K ** -0.5. Returns (T, H, K).

    CUDA in 16-bit types uses FlashAttention's variable-length kernel through torch; everything else computes runs of
    equally long sequences as one dense batch. Neither multiplies a padded token.
    """
    if q_THK.is_cuda and q_THK.dtype in (torch.bfloat16, torch.float16):
        return _flash(q_THK, k_THK, v_THK, packed)
    return _dense_runs(q_THK, k_THK, v_THK, packed)


def _flash(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packed: Packed) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    boundaries, longest = packed.cu_seqlens, packed.max_length
    out = varlen_attn(q_THK, k_THK, v_THK, boundaries, boundaries, longest, longest)
    return out  # pyright: ignore[reportReturnType]  # only a tuple when auxiliary outputs are asked for


def _dense_runs(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packed: Packed) -> Tensor:
    # Callers order sequences by length where they can, so a batch of thousands of short texts is a few dozen runs.
    runs = [(length, len(list(group))) for length, group in itertools.groupby(packed.lengths)]
    sizes = [length * count for length, count in runs]
    pieces = []
    for (length, count), q, k, v in zip(runs, q_THK.split(sizes), k_THK.split(sizes), v_THK.split(sizes), strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v)
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
