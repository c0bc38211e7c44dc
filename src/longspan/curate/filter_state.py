"""What the consistency filter leaves beside its result, for a later run and for `explain`: what is known of each pair.

Axes: N pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from longspan.config import Config
from longspan.curate.approximate import Search
from longspan.curate.consistency import PairVectors
from longspan.curate.rows import REPORT
from longspan.curate.vectors import VectorBlocks
from longspan.data.source import PairSource
from longspan.errors import LongspanError
from longspan.files import read_json, sha256_json

WORK = "judged"
"""Folder, beside the result, of what was found out about each pair."""
STATE, NUMBERS, RANKS, SEARCHES = "state.json", "numbers.npy", "ranks.npy", "searches.json"
OF_A_SAMPLE = "sample-*"
"""What `judge` keeps in `WORK` until all ranks are known."""


class State(Config):
    """What `WORK` holds: everything that its ranks depend on, and where the vectors are."""

    source: PairSource
    num_pairs: int
    pairs_fingerprint: str
    teacher: str
    teacher_fingerprint: str
    teacher_precision: str = "float32"
    query_task: str
    document_task: str
    max_length: int | None
    sample_size: int
    seed: int
    search: Literal["by size", "exact", "approximate"]
    target_recall: float
    depth: int
    """Neighbours that are looked for in large samples; 0 where there can be none."""
    query_vectors: str
    """Folder of the store, relative to the result's."""
    document_vectors: str
    dim: int

    @property
    def key(self) -> str:
        """What changes when a rank could; the precision is part of the fingerprint."""
        return sha256_json(self.model_dump(mode="json", exclude={"source", "teacher", "teacher_precision"}))


def read_state(out: Path) -> State:
    """What a filter has left in `out`.

    Raises:
        LongspanError: there is nothing, or nothing whole.
    """
    remedy = "name the folder of a source that `longspan curate filter` has finished"
    return State.parse(read_json(out / WORK / STATE, remedy=remedy), where=out / WORK / STATE)


def read_searches(out: Path) -> list[Search]:
    """How each sample of a filtered source was searched.

    Raises:
        LongspanError: the filter has not been finished.
    """
    remedy = "run `longspan curate filter` again, to its end"
    return [Search(**search) for search in read_json(out / WORK / SEARCHES, remedy=remedy)]


def known_ranks(state: State, searches: list[Search]) -> int | None:
    """Up to which rank the ranks are known; None: all are. A rank that is this means "at least"."""
    return None if all(search.ranks_all for search in searches) else state.depth


def open_vectors(out: Path, state: State) -> PairVectors:
    """The vectors of a filtered source's pairs.

    Raises:
        LongspanError: the filter has not been finished.
    """
    numbers_N2 = read_array(out / WORK / NUMBERS)
    queries, documents = (
        VectorBlocks(out / folder, state.dim) for folder in (state.query_vectors, state.document_vectors)
    )
    return PairVectors(numbers_N2[:, 0], numbers_N2[:, 1], queries.take, documents.take)


def read_array(path: Path) -> np.ndarray:
    """A memory map of an array that the filter has left.

    Raises:
        LongspanError: it is missing or torn.
    """
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        remedy = "run `longspan curate filter` again, to its end"
        raise LongspanError(f"{path.name} cannot be read: {error}", where=path, remedy=remedy) from None


def is_of(path: Path, state: State) -> bool:
    """Whether the file is a state with the same key."""
    if not path.is_file():
        return False
    try:
        return State.parse(read_json(path, remedy=""), where=path).key == state.key
    except LongspanError:  # of another version, or torn: it is made anew
        return False


def forget(out: Path) -> None:
    """Delete what was found out about other pairs, and the report, which an unfinished filter must not have."""
    for path in (out / REPORT, out / WORK / RANKS, *(out / WORK).glob(OF_A_SAMPLE)):
        if path.exists():
            path.unlink()
