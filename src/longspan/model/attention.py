"""The kernel seam: attention by torch's kernels. (Its other side, `compiled_attention.py`, is code of ours.)

Axes: T tokens of all sequences, H heads, K head size; of a run of equally long sequences N sequences times heads, L
length.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from longspan.text.packed import Packed

LONGEST_BY_PRODUCTS = 1024
"""Up to this length the backward pass in bfloat16 on a CPU is written out as products."""
_SCORES = 2**20
"""Attention scores in memory at a time: they and what is made of them stay near a core."""


def attention(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packed: Packed) -> Tensor:
    """Softmax attention of every token over its own sequence, scaled by K ** -0.5. Returns (T, H, K).

    CUDA in 16-bit types uses FlashAttention's variable-length kernel through torch; everything else computes runs of
    equally long sequences as one dense batch. Neither multiplies a padded token.
    """
    if q_THK.is_cuda and q_THK.dtype in (torch.bfloat16, torch.float16):
        return _flash(q_THK, k_THK, v_THK, packed)
    if _is_trained_in_bfloat16(q_THK) and packed.max_length <= LONGEST_BY_PRODUCTS:
        return _DenseRuns.apply(q_THK, k_THK, v_THK, packed)  # pyright: ignore[reportReturnType]
    return dense_runs(q_THK, k_THK, v_THK, packed)


def _is_trained_in_bfloat16(q_THK: Tensor) -> bool:
    return (
        q_THK.device.type == "cpu" and q_THK.dtype == torch.bfloat16 and q_THK.requires_grad and torch.is_grad_enabled()
    )


def _flash(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packed: Packed) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    boundaries, longest = packed.cu_seqlens, packed.max_length
    out = varlen_attn(q_THK, k_THK, v_THK, boundaries, boundaries, longest, longest)
    return out  # pyright: ignore[reportReturnType]  # only a tuple when auxiliary outputs are asked for


def dense_runs(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packed: Packed) -> Tensor:
    """`attention` by torch's dense kernel in both directions, equally long neighbours together."""
    # Callers order sequences by length where they can, so a batch of thousands of short texts is a few dozen runs.
    runs = _runs(packed)
    sizes = [length * count for length, count in runs]
    pieces = []
    for (length, count), q, k, v in zip(runs, q_THK.split(sizes), k_THK.split(sizes), v_THK.split(sizes), strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v)
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _runs(packed: Packed) -> list[tuple[int, int]]:
    """Length and number of neighbours of equal length."""
    return [(length, len(list(group))) for length, group in itertools.groupby(packed.lengths)]


class _DenseRuns(torch.autograd.Function):
    """`dense_runs` with a backward pass of plain matrix products.

    In bfloat16 the backward pass of torch's own kernel is several times slower than the five products that it consists
    of (docs/performance.md). Probabilities are computed again, for a few heads at a time.
    """

    @staticmethod
    def forward(ctx: Any, q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packed: Packed) -> Tensor:
        ctx.save_for_backward(q_THK, k_THK, v_THK)
        ctx.runs = _runs(packed)
        return dense_runs(q_THK, k_THK, v_THK, packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = (*ctx.saved_tensors, grad_THK)
        grads = [torch.empty(x.shape, dtype=x.dtype) for x in ctx.saved_tensors]
        first = 0
        for length, count in ctx.runs:
            run = slice(first, first := first + length * count)
            by_head = [x[run].unflatten(0, (count, length)).transpose(1, 2).flatten(0, 1).contiguous() for x in inputs]
            for out_THK, grad_NLK in zip(grads, _run_backward(*by_head), strict=True):
                grad_run = out_THK[run].unflatten(0, (count, length)).transpose(1, 2)
                grad_run.copy_(grad_NLK.unflatten(0, grad_run.shape[:2]))
        return *grads, None


def _run_backward(q_NLK: Tensor, k_NLK: Tensor, v_NLK: Tensor, grad_NLK: Tensor) -> list[Tensor]:
    """Gradients of q, k and v, given that of the output."""
    scale = q_NLK.shape[-1] ** -0.5
    grads = [torch.empty_like(x) for x in (q_NLK, k_NLK, v_NLK)]
    at_a_time = max(1, _SCORES // q_NLK.shape[1] ** 2)
    blocks = zip(*(x.split(at_a_time) for x in (q_NLK, k_NLK, v_NLK, grad_NLK, *grads)), strict=True)
    for q, k, v, grad, grad_q, grad_k, grad_v in blocks:
        q = q * scale
        p = torch.softmax(q @ k.mT, dim=-1)
        grad_scores = torch.ops.aten._softmax_backward_data(grad @ v.mT, p, -1, p.dtype)
        torch.bmm(grad_scores, k, out=grad_q).mul_(scale)
        torch.bmm(grad_scores.mT, q, out=grad_k)
        torch.bmm(p.mT, grad, out=grad_v)
    return grads
