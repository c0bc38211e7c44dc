"""Rotation and attention on a CPU in one compiled pass each way (`kernels/training_attention.c`).

Training computes it so, and embedding in float32.

torch's kernels read queries, keys and values that were cut apart and rotated in passes of their own, multiply float32
through MKL and give bfloat16 back several times slower than its products take. Here the way back computes weights
again from one number per token and head, so nothing grows with the square of a length.

Axes: T tokens of all sequences, D width, H heads, K head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longspan.model.compiled_training import can_train_compiled, place_of, training_library
from longspan.text.packed import Packed


def can_attend(head_size: int, device: torch.device) -> bool:
    """Whether the compiled code is there and computes heads of that size on that device."""
    return head_size % 32 == 0 and can_train_compiled(device)


def attend(qkv_TC: Tensor, rotation: tuple[Tensor, Tensor] | None, packed: Packed, num_heads: int) -> Tensor:
    """Softmax attention of every token over its own sequence. Returns (T, D) in the type of `qkv_TC`.

    Args:
        qkv_TC: queries, keys and values of every token, (T, 3 H K), not rotated; float32 or bfloat16.
        rotation: cosines and sines, each (T, K), or None.
    """
    cos_TK, sin_TK = (None, None) if rotation is None else (table.float().contiguous() for table in rotation)
    return _Attend.apply(qkv_TC, cos_TK, sin_TK, packed, num_heads)  # pyright: ignore[reportReturnType]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_TC: Tensor, cos_TK: Tensor | None, sin_TK: Tensor | None, packed: Packed, num_heads: int
    ) -> Tensor:
        qkv_TC = qkv_TC.contiguous()
        num_tokens, width = len(qkv_TC), qkv_TC.shape[1] // 3
        ctx.layout = (place_of(packed.cu_seqlens), packed.num_sequences, num_heads, width // num_heads)
        ctx.packed = packed  # keeps the boundaries where `layout` says they are
        out_TD = qkv_TC.new_empty(num_tokens, width)
        sums_HT = torch.empty(num_heads, num_tokens)
        failed = training_library().attention(
            *(place_of(tensor) for tensor in (qkv_TC, cos_TK, sin_TK)),
            *ctx.layout,
            place_of(out_TD),
            place_of(sums_HT),
            qkv_TC.dtype == torch.bfloat16,
            torch.get_num_threads(),
        )
        _check(failed, packed)
        ctx.save_for_backward(qkv_TC, cos_TK, sin_TK, out_TD, sums_HT)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        qkv_TC, cos_TK, sin_TK, out_TD, sums_HT = ctx.saved_tensors
        grad_TD = grad_TD.to(qkv_TC.dtype).contiguous()
        grad_qkv_TC = torch.empty_like(qkv_TC)
        failed = training_library().attention_back(
            *(place_of(tensor) for tensor in (qkv_TC, cos_TK, sin_TK)),
            *ctx.layout,
            *(place_of(tensor) for tensor in (out_TD, sums_HT, grad_TD, grad_qkv_TC)),
            qkv_TC.dtype == torch.bfloat16,
            torch.get_num_threads(),
        )
        _check(failed, ctx.packed)
        return grad_qkv_TC, None, None, None, None


def _check(failed: int, packed: Packed) -> None:
    if failed:
        raise MemoryError(f"attention over {packed.max_length} tokens")
