"""Candidate of `benchmarks.loader`: `datasets` and the batch samplers of sentence-transformers.

The loader is put together from the parts that `SentenceTransformerTrainer` puts together: a batch sampler for each
data set, `ProportionalBatchSampler` over them, its data collator, and torch's `DataLoader` over a `ConcatDataset`. What
the trainer adds around it (accelerate's loader, a column with the name of the data set) is left out.

`python -m benchmarks.loader_sentence_transformers FOLDER` takes turns; with a step it opens FOLDER (Arrow files) and
makes that step's batch of raw texts.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler, ProportionalBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, RandomSampler

from benchmarks.loader_rows import ARROW, BATCH, BATCHES_OF, MAX_DOCUMENT, PREFIX
from benchmarks.loader_turns import Pass, report, serve, start_times
from longspan.demo.teacher import teacher_folder

SEED = 0
RAW_BATCHES, TOKENISED_BATCHES = 3, 1
"""Of a pass."""

Source = Any  # datasets.Dataset, which type checkers do not take for torch's
Sampler = Callable[[Source, torch.Generator], BatchSampler]


def main() -> None:
    """Take turns, or start once."""
    folder, *step = sys.argv[1:]
    if step:
        report(lambda: _start(Path(folder), int(step[0])))
        return
    sources = [_read(Path(folder), name) for name in BATCHES_OF]
    model = SentenceTransformer(str(teacher_folder()), device="cpu")
    # One length for both columns: queries that reach it are next to none.
    model.max_seq_length = MAX_DOCUMENT
    collate = SentenceTransformerDataCollator(model.preprocess, prompts=dict(PREFIX))
    hashed = _sharing_hashes(sources)
    passes: dict[str, Pass] = {}

    def add(name: str, sampler: Sampler, collate: Callable[[Any], Any], batches: int) -> None:
        loader = DataLoader(ConcatDataset(sources), batch_sampler=_proportional(sources, sampler), collate_fn=collate)
        passes[f"sentence-transformers, {name}"] = lambda: sum(BATCH for _ in itertools.islice(loader, batches))

    add("raw texts", _default, list, RAW_BATCHES)
    add("raw texts, no duplicates", _no_duplicates, list, RAW_BATCHES)
    add("raw texts, no duplicates (hashed)", hashed, list, RAW_BATCHES)
    add("tokenised and padded", _default, collate, TOKENISED_BATCHES)
    add("tokenised and padded, no duplicates (hashed)", hashed, collate, TOKENISED_BATCHES)
    serve(passes, ["sentence-transformers", "datasets", "transformers", "tokenizers"])


def _read(folder: Path, name: str) -> Source:
    return datasets.Dataset.from_json(str(folder / f"{name}.jsonl"), cache_dir=str(folder / ARROW))


def _default(dataset: Source, generator: torch.Generator) -> BatchSampler:
    rows: Any = RandomSampler(dataset, generator=generator)
    return DefaultBatchSampler(rows, BATCH, True, generator=generator)


def _no_duplicates(dataset: Source, generator: torch.Generator) -> BatchSampler:
    return NoDuplicatesBatchSampler(dataset, BATCH, True, generator=generator)


def _sharing_hashes(sources: list[Source]) -> Sampler:
    # The sampler keeps its hashes, so only the first of a data set's samplers computes them.
    generator = torch.Generator()
    samplers = {
        id(source): NoDuplicatesBatchSampler(source, BATCH, True, generator=generator, precompute_hashes=True)
        for source in sources
    }
    return lambda dataset, _: samplers[id(dataset)]


def _proportional(sources: list[Source], sampler: Sampler) -> ProportionalBatchSampler:
    generator = torch.Generator().manual_seed(SEED)
    return ProportionalBatchSampler(
        ConcatDataset(sources), [sampler(source, generator) for source in sources], generator=generator, seed=SEED
    )


class _FromStep:
    """A batch sampler whose first batches are skipped, as the trainer resumes: it draws them and lets them go."""

    def __init__(self, sampler: ProportionalBatchSampler, step: int) -> None:
        self._sampler = sampler
        self._step = step

    def __iter__(self) -> Iterator[list[int]]:
        epoch, skipped = divmod(self._step, len(self._sampler))
        self._sampler.set_epoch(epoch)
        return itertools.islice(iter(self._sampler), skipped, None)


def _start(folder: Path, step: int) -> dict[str, float]:
    began = time.perf_counter()
    tables = map(datasets.Dataset.from_file, map(str, sorted(folder.glob("*.arrow"))))
    sources: list[Source] = [datasets.concatenate_datasets(list(tables))]
    opened = time.perf_counter()
    sampler: Any = _FromStep(_proportional(sources, _default), step)
    next(iter(DataLoader(ConcatDataset(sources), batch_sampler=sampler, collate_fn=list)))
    made = time.perf_counter()
    return start_times(began, opened, made)


if __name__ == "__main__":
    main()
