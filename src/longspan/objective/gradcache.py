"""GradCache (Gao et al., 2021): a loss over a batch of any size in the memory of one chunk.

A contrastive loss needs the vectors of the whole batch at once, but the activations behind them only piece by piece:

1. embed every chunk without a graph and keep the vectors;
2. compute the loss on the vectors, and its gradient with respect to each of them;
3. embed every chunk again, now with a graph, and push the cached gradient of its vectors into the weights.

The result is the gradient of the plain computation, for any chunking. The last chunk of the first pass keeps its graph,
for that is the memory of one chunk, and is not embedded again: with k chunks the second forward pass costs 1 - 1/k of
the first, and nothing when everything fits into one. The encoders of this house have no dropout; for a model that has,
each chunk meets the same random numbers in both passes.

Axes: B sequences, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from longspan.objective.world import Alone, World
from longspan.text.packed import Packed, chunks_of_similar_length


def embed_in_chunks(
    model: nn.Module, packed: Packed, chunk_tokens: int, autocast: torch.dtype | None, world: World | None = None
) -> tuple[Tensor, Callable[[Tensor], None]]:
    """Steps 1 and 3.

    Args:
        model: maps a `Packed` to vectors (B, D).
        chunk_tokens: most tokens in a chunk; a longer sequence is a chunk by itself.
        autocast: type of mixed precision, or None.
        world: where the model's weights are sharded, every rank makes as many passes as the rank with most chunks.

    Returns:
        The vectors (B, D) of all sequences in their order, detached, and a function that takes the gradient of a loss
        with respect to them and adds the weights' gradients to `.grad`. Call it once.
    """
    device = next(model.parameters()).device

    def embed(group: list[int]) -> Tensor:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            return model(packed.select(group).to(device))

    groups = chunks_of_similar_length(packed.lengths, chunk_tokens)
    num_idle = (world or Alone()).passes(len(groups)) - len(groups)
    random_states, pieces = [], []
    with torch.no_grad():
        for group in groups[:-1]:
            random_states.append(_RandomState(device))
            pieces.append(embed(group))
        for _ in range(num_idle):
            embed(groups[0][:1])
    kept_BD = embed(groups[-1])
    pieces.append(kept_BD.detach())

    def backward(gradient_BD: Tensor) -> None:
        kept_BD.backward(gradient_BD[groups[-1]])
        for group, random_state in zip(groups[:-1], random_states, strict=True):
            with random_state.again():
                vectors_BD = embed(group)
            vectors_BD.backward(gradient_BD[group])
        for _ in range(num_idle):
            vectors_BD = embed(groups[0][:1])
            vectors_BD.backward(torch.zeros_like(vectors_BD))

    return _in_order(pieces, groups), backward


class _RandomState:
    """Where torch's random numbers stand now, on the CPU and on the device."""

    def __init__(self, device: torch.device) -> None:
        self._gpus = [device] if device.type == "cuda" else []
        self._on_cpu = torch.get_rng_state()
        self._on_gpus = [torch.cuda.get_rng_state(gpu) for gpu in self._gpus]

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same numbers again in the body; afterwards, numbers go on as if nothing had been drawn."""
        with torch.random.fork_rng(self._gpus):
            torch.set_rng_state(self._on_cpu)
            for gpu, state in zip(self._gpus, self._on_gpus, strict=True):
                torch.cuda.set_rng_state(state, gpu)
            yield


def _in_order(pieces: list[Tensor], groups: list[list[int]]) -> Tensor:
    together_BD = torch.cat(pieces)
    order = torch.tensor([number for group in groups for number in group], device=together_BD.device)
    vectors_BD = torch.empty_like(together_BD)
    vectors_BD[order] = together_BD
    return vectors_BD
