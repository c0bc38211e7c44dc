"""Batches whose loss or gradient was not finite, kept for study: plain tensors in safetensors, without pickle."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from longspan.data.batch import MaskedBatch, PairBatch
from longspan.files import atomic_path
from longspan.text.packed import Packed

FOLDER = "bad-batches"


def save_bad_batch(run: Path, step: int, rank: int, batch: MaskedBatch | PairBatch, rows: np.ndarray, why: str) -> Path:
    """Write this process's share of the batch of `step` (from 1) to `bad-batches/step-N-rank-R.safetensors`.

    Tensors, all int64: `rows` (numbers in the source); for pairs `queries.ids`, `queries.lengths`, `documents.ids`,
    `documents.lengths`; for masked rows `ids` (masked), `lengths` of the sequences, `row_lengths`, and `positions` in
    the row and `labels` of what is to be predicted, with their number in each row, `targets`. Where a teacher is
    distilled, its `teacher_scores` as well (float32). The metadata says why, and of pairs the source.

    Raises:
        LongspanError: the disk is full.
    """
    tensors = {"rows": torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))}
    metadata = {"why": why, "step": str(step), "rank": str(rank)}
    if isinstance(batch, PairBatch):
        metadata["source"] = batch.source
        tensors |= _sequences("queries.", [batch.queries]) | _sequences("documents.", [batch.documents])
        if batch.teacher_scores is not None:
            tensors["teacher_scores"] = batch.teacher_scores
    else:
        tensors |= _sequences("", batch.rows)
        tensors["row_lengths"] = torch.tensor([row.num_tokens for row in batch.rows])
        tensors["targets"] = torch.tensor([len(positions) for positions, _ in batch.targets])
        positions, labels = zip(*batch.targets, strict=True)
        tensors |= {"positions": torch.cat(positions), "labels": torch.cat(labels)}
    path = run / FOLDER / f"step-{step:08d}-rank-{rank}.safetensors"
    with atomic_path(path) as unfinished:
        save_file(tensors, unfinished, metadata=metadata)
    return path


def _sequences(prefix: str, pieces: list[Packed]) -> dict[str, Tensor]:
    lengths = list(itertools.chain.from_iterable(piece.lengths for piece in pieces))
    return {f"{prefix}ids": torch.cat([piece.ids_T for piece in pieces]), f"{prefix}lengths": torch.tensor(lengths)}
