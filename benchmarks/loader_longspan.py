"""Candidate of `benchmarks.loader`: longspan's own loader.

`python -m benchmarks.loader_longspan FOLDER` takes turns; with a step it opens FOLDER and makes that step's batch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.loader_rows import BATCH, MAX_DOCUMENT, MAX_QUERY
from benchmarks.loader_turns import report, serve, start_times
from longspan.data.batch import PairBatch
from longspan.data.collate import PairCollator, pair_plan
from longspan.data.dataset import Dataset
from longspan.data.loader import Loader

EPOCHS = 2
"""Of a pass."""
MORE_BATCHES = 20
"""After the first, before memory is looked at."""


def open_loader(folder: Path, *, only: tuple[str, ...] = ()) -> tuple[Loader[PairBatch], int]:
    """A loader over the prepared pairs of a folder, and its steps in an epoch."""
    dataset = Dataset(folder, "pairs", only=only)
    collate = PairCollator(
        dataset, num_negatives=0, max_query_tokens=MAX_QUERY, max_document_tokens=MAX_DOCUMENT, seed=0
    )
    plan = pair_plan(dataset, BATCH, seed=0)
    return Loader(plan, collate), plan.steps_per_epoch


def main() -> None:
    """Take turns, or start once."""
    folder, *step = sys.argv[1:]
    if step:
        report(lambda: _start(Path(folder), int(step[0])))
        return
    loader, steps = open_loader(Path(folder))
    serve({"longspan": lambda: _pass(loader, EPOCHS * steps)}, ["longspan"])


def _pass(loader: Loader[PairBatch], steps: int) -> int:
    return sum(batch.queries.num_sequences for batch in loader(0, steps))


def _start(folder: Path, step: int) -> dict[str, float]:
    began = time.perf_counter()
    loader, _ = open_loader(folder)
    opened = time.perf_counter()
    loader.batch(step)
    made = time.perf_counter()
    for later in range(step + 1, step + 1 + MORE_BATCHES):
        loader.batch(later)
    return start_times(began, opened, made)


if __name__ == "__main__":
    main()
