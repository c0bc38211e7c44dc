"""A part of a step on this machine: how long the whole step of a recipe will take here.

The recipe's own objective and optimiser work on the real model, with texts as long as those that the recipe will meet.
Tokens are random: what they say does not change how long they take.

Axes: n queries, M masked tokens.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from longspan.data.batch import MaskedBatch, PairBatch
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.heads import MaskedLanguageModel
from longspan.model.pooling import PooledEncoder
from longspan.objective.contrastive import Contrastive, ContrastiveConfig
from longspan.objective.mlm import MaskedConfig, MaskedLanguageModelling
from longspan.objective.temperature import TemperedEncoder
from longspan.objective.world import World
from longspan.text.packed import Packed
from longspan.train.blocks import prepare_blocks
from longspan.train.config import TrainConfig
from longspan.train.cost import TextLengths, Workload, chunk_tokens, operations, workload
from longspan.train.heap import keep_freed_memory
from longspan.train.optim import build_optimizer, clip_gradients

ROUNDS = 3
CHUNKS = 4
"""A step with more chunks is tried with about so many."""


_TOKENS_PER_SPECIAL = 32
"""[CLS] and [SEP] are never masked; rows of short documents have more of them."""


class StepSeconds(NamedTuple):
    """Seconds of a step: of its passes forward and back, and of what is done once, whatever the batch: the sum of the
    gradients over the processes, and the optimiser."""

    passes: float
    update: float


def try_step(
    config: TrainConfig,
    shape: EncoderConfig,
    work: Workload,
    texts: dict[str, TextLengths],
    device: torch.device,
    world: World,
) -> StepSeconds:
    """Time a step, or a part of it from which the whole is reckoned by its operations: the median of a few; collective.

    Args:
        work: of the whole step, over all processes.
        texts: as for `cost.workload`.
    """
    if device.type == "cpu":
        keep_freed_memory()  # as the run will
    share = min(1.0, CHUNKS * chunk_tokens(config, work) * world.size / work.num_tokens) / world.size
    part = config.model_copy(update={"batch_size": max(1, round(share * config.batch_size))})
    draw = np.random.default_rng(config.seed + world.rank)
    autocast = torch.bfloat16 if config.precision == "bf16" else None
    encoder = Encoder(shape)
    initialize(encoder, config.seed)
    if isinstance(part.objective, MaskedConfig):
        model = MaskedLanguageModel(encoder)
        objective = MaskedLanguageModelling(part.objective, world=world, autocast=autocast)
    else:
        model = _pooled(encoder, part.objective)
        objective = Contrastive(part.objective, world=world, autocast=autocast)
    prepare_blocks(model, compiled=config.compile, checkpointed=config.activation_checkpointing)
    tried = _Step(model.to(device), objective, config, world)
    whole, usual = operations(shape, work).total / world.size, workload(part, texts, 0)
    rounds = []
    for _ in range(1 + ROUNDS):
        # A new batch each time, as in a run: kernels are made for the shapes that they meet.
        batch = _batch(part, shape, texts, draw)
        seconds = tried(batch)
        done = operations(shape, _as_drawn(usual, batch)).total
        rounds.append((seconds.passes * whole / done, seconds.update))
    del rounds[0]  # the first is slower
    medians = torch.tensor([statistics.median(column) for column in zip(*rounds, strict=True)], device=device)
    return StepSeconds(*(world.sum(medians) / world.size).tolist())


def _as_drawn(work: Workload, batch: MaskedBatch | PairBatch) -> Workload:
    """The work of a part with the lengths that its texts really have."""
    packs = [batch.queries, batch.documents] if isinstance(batch, PairBatch) else batch.rows
    lengths = [length for packed in packs for length in packed.lengths]
    return work.model_copy(update={"num_tokens": sum(lengths), "sum_of_squares": sum(length**2 for length in lengths)})


class _Step:
    """A step as the loop does it, timed."""

    def __init__(self, model: nn.Module, objective: Any, config: TrainConfig, world: World) -> None:
        self._model, self._objective, self._world = model, objective, world
        self._device = next(model.parameters()).device
        self._clip_norm = config.optim.clip_norm
        self._optimizer = build_optimizer(model, config.optim)

    def __call__(self, batch: MaskedBatch | PairBatch) -> StepSeconds:
        began = self._now()
        self._optimizer.zero_grad(set_to_none=True)
        self._objective.backward(self._model, batch)
        passed = self._now()
        # The objective has done this already: once more, to know how long it takes.
        self._world.sum_gradients(self._model.parameters())
        summed = self._now()
        clip_gradients(self._model, self._clip_norm)
        self._optimizer.step()
        return StepSeconds(passes=passed - began - (summed - passed), update=self._now() - passed)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _pooled(encoder: Encoder, settings: ContrastiveConfig) -> PooledEncoder:
    if settings.learn_temperature:
        return TemperedEncoder(encoder, settings.pooling, settings.temperature)
    return PooledEncoder(encoder, settings.pooling)


def _batch(
    config: TrainConfig, shape: EncoderConfig, texts: dict[str, TextLengths], draw: np.random.Generator
) -> MaskedBatch | PairBatch:
    if isinstance(config.objective, MaskedConfig):
        return _rows(config.batch_size, config.objective, shape, draw)
    return _pairs(config.batch_size, config.objective, shape, texts, draw)


def _pairs(
    n: int, settings: ContrastiveConfig, shape: EncoderConfig, texts: dict[str, TextLengths], draw: np.random.Generator
) -> PairBatch:
    """n pairs with their negatives."""
    documents = [texts["document"].draw(n, draw)]
    if settings.num_negatives:
        documents.append(texts.get("negatives", texts["document"]).draw(n * settings.num_negatives, draw))
    queries = _random(texts["query"].draw(n, draw), shape, draw)
    return PairBatch(queries, _random(np.concatenate(documents), shape, draw), settings.num_negatives, "tried", 0)


def _rows(num_rows: int, settings: MaskedConfig, shape: EncoderConfig, draw: np.random.Generator) -> MaskedBatch:
    length = settings.row_length
    rows, targets = [], []
    for _ in range(num_rows):
        num_special = draw.integers(2, max(3, length // _TOKENS_PER_SPECIAL))
        num_masked = max(1, round(settings.mask_rate * (length - num_special)))
        rows.append(_random(np.array([length]), shape, draw))
        positions_M = np.sort(draw.permutation(length)[:num_masked])
        targets.append((torch.from_numpy(positions_M), rows[-1].ids_T[positions_M]))
    return MaskedBatch(rows, targets)


def _random(lengths: np.ndarray, shape: EncoderConfig, draw: np.random.Generator) -> Packed:
    ids_T = draw.integers(0, shape.vocab_size, int(lengths.sum()))
    return Packed.of_flat(ids_T, lengths)
