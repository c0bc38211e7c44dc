"""Exact and near duplicates, within a file and across files: of each group of copies the first row is kept.

Two passes over the files. The first makes a sketch of every row (`sketches.py`), which tells the candidates. This one
goes through the rows in their order and drops a row if it equals an earlier one, or if the exact Jaccard similarity of
its n-grams to a row that was kept reaches the threshold.
So a row is only ever dropped for one that is still there and that similar: chains of slowly changing copies do not pull
in what is unlike the row that stays.

Axes: N rows, B bands, E (row, group of candidates) entries, G n-grams.
"""

from __future__ import annotations

import heapq
import itertools
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longspan.curate.report import write_values
from longspan.curate.rows import (
    DROPPED,
    KEPT,
    column_text,
    excerpt,
    json_lines,
    result_names,
)
from longspan.curate.sketches import EXACT_KEYS, Progress, Sketcher, Sketches, digest
from longspan.data.readers import Row, read_rows
from longspan.errors import LongspanError
from longspan.files import atomic_path

NUM_EXAMPLES = 10


def deduplicate(sketches: Sketches, out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write `out/kept/` (a file for each file read), `out/dropped.jsonl` and `out/report.json`.

    Memory is about 120 bytes a row (the keys of one band at a time, sorted) and, for rows that have candidates, their
    places; the n-grams of the rows that later ones are compared with lie in a temporary file.

    Returns:
        The report: counts, sizes of clusters, the recall curve of the bands, and examples.

    Raises:
        LongspanError: a file has changed since it was sketched, or the result cannot be written.
    """
    decider = _Decider(sketches)
    names = result_names(sketches.files)
    with (
        decider.texts,
        atomic_path(out / KEPT) as kept,
        json_lines(out / DROPPED) as drop,
    ):
        kept.mkdir()
        for file, rows in itertools.groupby(_all_rows(sketches), key=lambda place: place[1]):
            with json_lines(kept / names[file]) as keep:
                for index, _, number, row in rows:
                    dropped = decider.decide(index, file, number, row)
                    if dropped is None:
                        keep(row)
                    else:
                        drop(row | {"duplicate": dropped})
                    if progress is not None:
                        progress(1)
        for file in sketches.files:
            (kept / names[file]).touch()  # an empty file has an empty result
    report = decider.report()
    write_values(out, "dedup", report)
    shutil.rmtree(sketches.folder, ignore_errors=True)
    return report


def _all_rows(sketches: Sketches) -> Iterator[tuple[int, str, int, Row]]:
    """Every row with its index, file and number."""
    index = 0
    for file, blocks in zip(sketches.files, sketches.blocks, strict=True):
        end = index + sum(map(len, blocks))
        for number, row in read_rows(file):
            if index == end:
                raise _changed(file)
            yield index, file, number, row
            index += 1
        if index < end:
            raise _changed(file)


def _changed(file: str) -> LongspanError:
    return LongspanError("the file has changed while it was read", where=file, remedy="run the same command again")


@dataclass
class _Company:
    """The rows that later rows are compared with, once they are kept: their n-grams, in a temporary file."""

    folder: Path
    _places: dict[int, tuple[str, int, int, list[int], list[str]]] = field(default_factory=dict)

    def __enter__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stream = tempfile.TemporaryFile(dir=self.folder)

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, index: int, file: str, number: int, sets: list[np.ndarray], excerpts: list[str]) -> None:
        start = self._stream.seek(0, 2)
        for ngrams_G in sets:
            self._stream.write(ngrams_G.tobytes())
        self._places[index] = (file, number, start, [len(ngrams_G) for ngrams_G in sets], excerpts)

    def similarity(self, index: int, sets: list[np.ndarray], thresholds: Iterable[float]) -> float | None:
        """The smallest Jaccard similarity in any column; None if one is below its threshold."""
        _, _, start, sizes, _ = self._places[index]
        smallest = 1.0
        for size, ngrams_G, threshold in zip(sizes, sets, thresholds, strict=True):
            if min(size, len(ngrams_G)) < threshold * max(size, len(ngrams_G)):
                return None
            self._stream.seek(start)
            other_G = np.frombuffer(self._stream.read(8 * size), np.uint64)
            start += 8 * size
            found = jaccard(ngrams_G, other_G)
            if found < threshold:
                return None
            smallest = min(smallest, found)
        return smallest

    def place(self, index: int) -> tuple[str, int, list[str]]:
        """File, number and excerpts of a row."""
        file, number, _, _, excerpts = self._places[index]
        return file, number, excerpts


def jaccard(first_G: np.ndarray, second_G: np.ndarray) -> float:
    """Size of the intersection over that of the union, of two arrays of distinct values; of empty ones 0."""
    shared = len(np.intersect1d(first_G, second_G, assume_unique=True))
    return shared / max(1, len(first_G) + len(second_G) - shared)


class _Decider:
    """Goes through the rows in their order and says which are copies of an earlier one."""

    def __init__(self, sketches: Sketches) -> None:
        self._config = sketches.config
        self._num_rows = sketches.num_rows
        self._first_N, self._copies_N = _exact_groups(sketches)
        self._starts_N, self._group_E = _candidate_groups(sketches, self._first_N)
        self._sketcher = Sketcher(sketches.config)
        self.texts = _Company(sketches.folder)
        self._kept_in: dict[int, list[int]] = {}
        self._owner: dict[int, tuple[int, float]] = {}
        self._sizes: Counter[int] = Counter()
        self._files: dict[str, Counter[str]] = {
            file: Counter(rows=0, kept=0, exact=0, near=0) for file in sketches.files
        }
        self._crossed: Counter[tuple[str, str]] = Counter()
        self._borderline, self._sample = _Smallest(NUM_EXAMPLES), _Smallest(NUM_EXAMPLES)

    def decide(self, index: int, file: str, number: int, row: Row) -> dict[str, Any] | None:
        """None if the row is kept; otherwise what it is a copy of."""
        texts = [column_text(row, column, f"{file}:{number}") for column in self._config.columns]
        counts = self._files[file]
        counts["rows"] += 1
        owner, similarity = self._owner_of(index, file, number, texts)
        if owner == index:
            counts["kept"] += 1
            return None
        kind = "exact" if owner == self._first_N[index] else "near"
        counts[kind] += 1
        self._sizes[owner] += 1
        kept_file, kept_number, kept_texts = self.texts.place(owner)
        self._crossed[file, kept_file] += 1
        dropped = {"kind": kind, "similarity": round(similarity, 4), "kept": f"{kept_file}:{kept_number}"}
        example = {**dropped, "dropped": f"{file}:{number}"}
        for column, text, kept_text in zip(self._config.columns, texts, kept_texts, strict=True):
            example[column] = {"dropped": excerpt(text), "kept": kept_text}
        if kind == "near":
            self._borderline.offer((similarity, index), example)
        self._sample.offer((digest(texts), index), example)
        return dropped

    def _owner_of(self, index: int, file: str, number: int, texts: list[str]) -> tuple[int, float]:
        """The row that is kept for this one (perhaps itself), and their similarity."""
        first = int(self._first_N[index])
        if first != index:
            return self._owner.get(first, (first, 1.0))
        groups = self._group_E[self._starts_N[index] : self._starts_N[index + 1]].tolist()
        if not groups and self._copies_N[index] == 1:
            return index, 1.0
        sets = [self._sketcher.ngrams(text) for text in texts] if groups else []
        for other in sorted({kept for group in groups for kept in self._kept_in.get(group, ())}):
            similarity = self.texts.similarity(other, sets, self._config.columns.values())
            if similarity is not None:
                self._owner[index] = other, similarity
                return other, similarity
        for group in groups:
            self._kept_in.setdefault(group, []).append(index)
        self.texts.add(index, file, number, sets, [excerpt(text) for text in texts])
        return index, 1.0

    def report(self) -> dict[str, Any]:
        totals = sum(self._files.values(), Counter())
        examples = {str(item["dropped"]): item for item in [*self._borderline.values(), *self._sample.values()]}
        sizes = Counter(1 + size for size in self._sizes.values())
        return {
            "rows": self._num_rows,
            "kept": totals["kept"],
            "dropped_exact": totals["exact"],
            "dropped_near": totals["near"],
            "clusters": len(self._sizes),
            "cluster_sizes": {str(size): count for size, count in sorted(sizes.items())},
            "files": {file: dict(counts) for file, counts in self._files.items()},
            "dropped_because_of": [
                {"file": file, "kept_file": kept_file, "rows": count}
                for (file, kept_file), count in sorted(self._crossed.items())
            ],
            "settings": self._config.model_dump(mode="json"),
            "candidates": self._curve() if self._config.near else None,
            "examples": list(examples.values()),
        }

    def _curve(self) -> dict[str, Any]:
        num_bands, slots = self._config.bands
        curve = {str(s): round(self._config.recall(s), 4) for s in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)}
        at_threshold = round(self._config.recall(math.prod(self._config.columns.values())), 4)
        return {"bands": num_bands, "slots_per_band": slots, "recall_at_threshold": at_threshold, "recall_at": curve}


def _exact_groups(sketches: Sketches) -> tuple[np.ndarray, np.ndarray]:
    """For every row the first that equals it, and how many rows equal it (itself included)."""
    keys = [sketches.column(number) for number in range(EXACT_KEYS)]
    order_N = np.lexsort(keys)  # stable: equal rows stay in their order
    is_new_N = np.ones(len(order_N), bool)
    is_new_N[1:] = np.any([key[order_N][1:] != key[order_N][:-1] for key in keys], axis=0)
    group_N = np.cumsum(is_new_N) - 1
    first_N, copies_N = np.empty_like(order_N), np.empty_like(order_N)
    first_N[order_N] = order_N[is_new_N][group_N]
    copies_N[order_N] = np.bincount(group_N, minlength=1)[group_N]
    return first_N, copies_N


def _candidate_groups(sketches: Sketches, first_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The groups of at least two rows with one band key in common; row n is in groups[starts[n]:starts[n + 1]].

    Of equal rows only the first is in any.
    """
    rows_N = np.flatnonzero(first_N == np.arange(len(first_N)))
    num_bands = sketches.config.bands[0] if sketches.config.near else 0
    rows, groups, num_groups = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for band in range(num_bands):
        key_N = sketches.column(EXACT_KEYS + band)[rows_N]
        _, group_N, size_G = np.unique(key_N, return_inverse=True, return_counts=True)
        shared_N = size_G[group_N] > 1
        rows.append(rows_N[shared_N])
        groups.append(group_N[shared_N] + num_groups)
        num_groups += len(size_G)
    rows_E, group_E = np.concatenate(rows), np.concatenate(groups)
    order_E = np.argsort(rows_E, kind="stable")
    return np.searchsorted(rows_E[order_E], np.arange(len(first_N) + 1)), group_E[order_E]


class _Smallest:
    """The few items with the smallest keys."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: list[tuple[Any, dict[str, Any]]] = []

    def offer(self, key: Any, item: dict[str, Any]) -> None:
        self._items = heapq.nsmallest(self._size, [*self._items, (key, item)], key=lambda pair: pair[0])

    def values(self) -> list[dict[str, Any]]:
        return [item for _, item in self._items]
