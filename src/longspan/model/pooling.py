"""Token vectors to text vectors.

Axes: T tokens, B sequences, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longspan.model.config import EmbeddingConfig
from longspan.model.encoder import Encoder
from longspan.text.packed import Packed


class PooledEncoder(nn.Module):
    """An encoder and a pooling: `PooledEncoder(encoder, "mean")(packed) -> e_BD`, not normalised.

    This is what contrastive training trains and what `Embedder` runs.
    """

    def __init__(self, encoder: Encoder, pooling: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling

    def forward(self, packed: Packed) -> Tensor:
        return pool(self.encoder(packed), packed, self.pooling)


def pool(h_TD: Tensor, packed: Packed, pooling: str) -> Tensor:
    """One vector per sequence, (B, D), in float32 or wider: the mean of all its tokens, its first, or its last."""
    h_TD = h_TD.to(torch.promote_types(h_TD.dtype, torch.float32))
    if pooling == "mean":
        if h_TD.device.type == "cpu" and h_TD.requires_grad and not torch.compiler.is_compiling():
            return _Mean.apply(h_TD, packed)  # pyright: ignore[reportReturnType]
        return torch.segment_reduce(h_TD, "mean", lengths=packed.lengths_B())
    if pooling == "cls":
        return h_TD[packed.cu_seqlens[:-1].long()]
    if pooling == "last":
        return h_TD[packed.cu_seqlens[1:].long() - 1]
    raise ValueError(f"unknown pooling {pooling!r}")


class _Mean(torch.autograd.Function):
    """The same numbers: on a CPU torch's own way back walks through them on one thread, strided."""

    @staticmethod
    def forward(ctx: Any, h_TD: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return torch.segment_reduce(h_TD, "mean", lengths=packed.lengths_B())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        packed: Packed = ctx.packed
        return (grad_BD / packed.lengths_B()[:, None])[packed.sequence_T()], None


def finish(e_BD: Tensor, config: EmbeddingConfig, dim: int | None = None) -> Tensor:
    """Vectors as they are used: layer norm, the first `dim` coordinates (Matryoshka), length 1; as the settings say.

    The layer norm (nomic-embed v1.5) has no weights: each vector is brought to mean 0 and variance 1, all coordinates
    together, before it is cut.
    """
    if config.layer_norm:
        e_BD = torch.nn.functional.layer_norm(e_BD, e_BD.shape[-1:])
    if dim is not None:
        e_BD = e_BD[:, :dim]
    if config.normalize:
        e_BD = torch.nn.functional.normalize(e_BD, dim=-1)
    return e_BD
