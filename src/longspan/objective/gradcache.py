"""GradCache (Gao et al., 2021): a loss over a batch of any size in the memory of one chunk.

A contrastive loss needs the vectors of the whole batch at once, but the activations behind them only piece by piece:

1. embed every chunk without a graph and keep the vectors;
2. compute the loss on the vectors, and its gradient with respect to each of them;
3. embed every chunk again, now with a graph, and push the cached gradient of its vectors into the weights.

The result is the gradient of the plain computation, for any chunking. When everything fits into one chunk, the first
pass keeps its graph and the third is not needed. There is no dropout in this house, so no random state has to be
replayed.

Axes: B sequences, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from longspan.text.packed import Packed, chunks_of_similar_length


def embed_in_chunks(
    model: nn.Module, packed: Packed, chunk_tokens: int, autocast: torch.dtype | None
) -> tuple[Tensor, Callable[[Tensor], None]]:
    """Steps 1 and 3.

    Args:
        model: maps a `Packed` to vectors (B, D).
        chunk_tokens: most tokens in a chunk; a longer sequence is a chunk by itself.
        autocast: type of mixed precision, or None.

    Returns:
        The vectors (B, D) of all sequences in their order, detached, and a function that takes the gradient of a loss
        with respect to them and adds the weights' gradients to `.grad`. Call it once.
    """
    device = next(model.parameters()).device

    def embed(group: list[int]) -> Tensor:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            return model(packed.select(group).to(device))

    groups = chunks_of_similar_length(packed.lengths, chunk_tokens)
    if len(groups) == 1:
        kept_BD = embed(groups[0])
        return _in_order([kept_BD.detach()], groups), lambda gradient_BD: kept_BD.backward(gradient_BD[groups[0]])

    with torch.no_grad():
        vectors_BD = _in_order([embed(group) for group in groups], groups)

    def backward(gradient_BD: Tensor) -> None:
        for group in groups:
            embed(group).backward(gradient_BD[group])

    return vectors_BD, backward


def _in_order(pieces: list[Tensor], groups: list[list[int]]) -> Tensor:
    together_BD = torch.cat(pieces)
    order = torch.tensor([number for group in groups for number in group], device=together_BD.device)
    vectors_BD = torch.empty_like(together_BD)
    vectors_BD[order] = together_BD
    return vectors_BD
