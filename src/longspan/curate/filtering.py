"""The consistency filter on the files of a source: pairs in, kept and dropped pairs and a report out.

The source is read pass by pass and never held in memory. The first pass takes its fingerprint, and the next counts and
checks the pairs; then they are embedded, and at last each is written to where it belongs. Between them pairs are
numbers: of vectors in a store, and of ranks in a memory-mapped file. What is finished stays: a run that was killed, or
one with another `k`, goes on from there.

Axes: N pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longspan.curate.approximate import EXACT_DOCUMENTS, Search
from longspan.curate.consistency import (
    DEPTH,
    JUDGED,
    SAMPLE_SIZE,
    PairVectors,
    Rule,
    Searching,
    Teacher,
    check_sizes,
    judge,
)
from longspan.curate.engine import Engine
from longspan.curate.filter_report import close_look
from longspan.curate.filter_state import (
    NUMBERS,
    OF_A_SAMPLE,
    RANKS,
    SEARCHES,
    STATE,
    WORK,
    State,
    forget,
    is_of,
    open_vectors,
    read_array,
    read_searches,
)
from longspan.curate.pairs import Pair, PairReader
from longspan.curate.report import Report, write_report
from longspan.curate.rows import json_lines
from longspan.curate.vectors import VectorStore
from longspan.data.places import is_local
from longspan.data.source import PairSource
from longspan.errors import LongspanError
from longspan.files import atomic_path, sweep_unfinished, write_json
from longspan.progress import Tell, counted

KEPT, DROPPED = "kept.jsonl", "dropped.jsonl"
CONSISTENCY = "consistency"
"""Key that a dropped row is given: its number in the source (`row`, from 1), `rank` and `score`."""

PAIRS_PER_CHUNK = 2**14
"""Pairs whose texts are in memory at a time."""


def filter_source(
    source: PairSource,
    teacher: Teacher,
    out: Path,
    *,
    rule: Rule | None = None,
    sample_size: int = SAMPLE_SIZE,
    seed: int = 0,
    searching: Searching | None = None,
    cache: Path | None = None,
    engine: Engine | None = None,
    device: str = "cpu",
    progress: Tell | None = None,
) -> Report:
    """Filter a source into `out/kept.jsonl` and `out/dropped.jsonl`, with `out/report.json` and `out/report.html`.

    Rows that are kept are as they came; rows that are dropped say why under `consistency`. What was found out about
    each pair stays in `out/judged`, for `longspan.curate.explain` and for another rule.

    Args:
        rule: which pairs are kept (default: the paper's, top 2).
        searching: how documents are searched (default: exactly, but in large samples by an index, whose recall the
            report tells). Its depth is raised to the rule's k.
        cache: where the teacher's vectors are kept for reuse (default: `out/vectors`).
        engine: where they are computed (default: in this process).
        device: where vectors are compared: "cpu", or a CUDA device.

    Raises:
        LongspanError: a file is missing, broken, changes meanwhile, or would be overwritten; no pairs; a rule or
            `sample_size` with which nothing could be kept or nothing dropped.
    """
    rule, reader = rule or Rule(), PairReader(source)
    _refuse_to_overwrite(reader.files, out)
    check_sizes(1, rule.k, sample_size)
    tell = _Teller(progress)
    fingerprint, num_pairs = reader.fingerprint(), sum(1 for _ in tell.each("counting", reader, 0))
    check_sizes(num_pairs, rule.k, sample_size)
    stores = _Stores(teacher, cache or out / "vectors", engine)
    searching = searching or Searching()
    searching = replace(searching, depth=max(searching.depth, rule.k))
    state = State(
        source=reader.source,
        num_pairs=num_pairs,
        pairs_fingerprint=fingerprint,
        teacher=teacher.embedder.name,
        teacher_fingerprint=teacher.embedder.fingerprint,
        teacher_precision=teacher.embedder.precision,
        query_task=teacher.query_task,
        document_task=teacher.document_task,
        max_length=teacher.max_length,
        sample_size=sample_size,
        seed=seed,
        search=searching.way,
        target_recall=searching.target_recall,
        depth=searching.depth if _may_use_index(searching, min(sample_size, num_pairs)) else 0,
        query_vectors=_relative(stores.queries.blocks.folder, out),
        document_vectors=_relative(stores.documents.blocks.folder, out),
        dim=teacher.embedder.dim,
    )
    work = out / WORK
    sweep_unfinished(work)
    if not is_of(work / STATE, state):
        forget(out)
        write_json(work / STATE, state.model_dump(mode="json", exclude_unset=True))
    # Each time: the vectors' numbers change when someone deletes a block of them.
    _number(reader, num_pairs, stores, work / NUMBERS, tell)
    vectors = open_vectors(out, state)
    judged_N = _judged(vectors, state, work, device, tell)
    report, wanted = close_look(vectors, judged_N, rule, state, read_searches(out), device)
    finished = report(_write(reader, judged_N, rule, out, set(wanted), tell))
    write_report(out, finished)
    return finished


class _Teller:
    """Progress, counted: of "counting", "embedding", "ranking" and "writing"."""

    def __init__(self, tell: Tell | None) -> None:
        self._tell = tell

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        advance = counted(self._tell, what, total)
        advance(0)  # so that the clock starts
        return advance

    def each(self, what: str, pairs: Iterable[Pair], total: int) -> Iterator[Pair]:
        advance = self.counter(what, total)
        for chunk in _chunks(pairs):
            yield from chunk
            advance(len(chunk))


class _Stores:
    """The stores of both sides: one and the same where both are read for one task."""

    def __init__(self, teacher: Teacher, cache: Path, engine: Engine | None) -> None:
        tasks = dict.fromkeys((teacher.query_task, teacher.document_task))
        settings: dict[str, Any] = {"max_length": teacher.max_length, "engine": engine}
        opened = {task: VectorStore(cache, teacher.embedder, task=task, **settings) for task in tasks}
        self.queries, self.documents = opened[teacher.query_task], opened[teacher.document_task]


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    chunk: list[Pair] = []
    for pair in pairs:
        chunk.append(pair)
        if len(chunk) == PAIRS_PER_CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _number(reader: PairReader, num_pairs: int, stores: _Stores, path: Path, tell: _Teller) -> None:
    """Embed all texts that are not yet, and write which vectors are each pair's: int64 (N, 2)."""
    advance = tell.counter("embedding", 2 * num_pairs)
    stores.queries.fill((pair.query for pair in reader), advance)
    stores.documents.fill((pair.document for pair in reader), advance)
    with atomic_path(path) as unfinished:
        numbers_N2 = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.int64, shape=(num_pairs, 2))
        start = 0
        for chunk in _chunks(reader):
            if start + len(chunk) > num_pairs:
                raise _changed(reader)
            part = slice(start, start + len(chunk))
            numbers_N2[part, 0] = stores.queries.numbers([pair.query for pair in chunk])
            numbers_N2[part, 1] = stores.documents.numbers([pair.document for pair in chunk])
            start += len(chunk)
        if start != num_pairs:
            raise _changed(reader)
        numbers_N2.flush()


def _judged(vectors: PairVectors, state: State, work: Path, device: str, tell: _Teller) -> np.ndarray:
    """Rank and score of every pair, memory-mapped: (N,) of `JUDGED`."""
    path = work / RANKS
    if not path.is_file():
        advance = tell.counter("ranking", state.num_pairs)
        with atomic_path(path) as unfinished:
            judged_N = np.lib.format.open_memmap(unfinished, mode="w+", dtype=JUDGED, shape=(state.num_pairs,))
            searches: list[Search] = []
            judge(
                vectors,
                sample_size=state.sample_size,
                seed=state.seed,
                searching=Searching(state.search, state.target_recall, state.depth or DEPTH),
                device=device,
                into=judged_N,
                blocks=work,
                on_search=searches.append,
                progress=advance,
            )
            judged_N.flush()
            write_json(work / SEARCHES, [search.report() for search in searches])
        for file in work.glob(OF_A_SAMPLE):
            file.unlink()
    return read_array(path)


def _write(
    reader: PairReader, judged_N: np.ndarray, rule: Rule, out: Path, wanted: set[int], tell: _Teller
) -> dict[int, Pair]:
    """Write kept and dropped rows; returns the wanted pairs."""
    texts, number = {}, 0
    with json_lines(out / KEPT) as keep, json_lines(out / DROPPED) as drop:
        for chunk in _chunks(tell.each("writing", reader, len(judged_N))):
            block = judged_N[number : number + len(chunk)]
            if len(block) < len(chunk):
                raise _changed(reader)
            for pair, judged, keeps in zip(chunk, block, rule.keeps(block), strict=True):
                if keeps:
                    keep(pair.row)
                else:
                    why = {"row": number + 1, "rank": int(judged["rank"]), "score": round(float(judged["score"]), 6)}
                    drop(pair.row | {CONSISTENCY: why})
                if number in wanted:
                    texts[number] = pair
                number += 1
        if number != len(judged_N):
            raise _changed(reader)
    return texts


def _may_use_index(searching: Searching, sample_size: int) -> bool:
    return searching.way == "approximate" or (searching.way == "by size" and sample_size > EXACT_DOCUMENTS)


def _relative(folder: Path, out: Path) -> str:
    return os.path.relpath(folder.resolve(), out.resolve())


def _refuse_to_overwrite(files: list[str], out: Path) -> None:
    written = [(out / name).resolve() for name in (KEPT, DROPPED)]
    for file in files:
        if is_local(file) and Path(file.removeprefix("file://")).resolve() in written:
            raise LongspanError("this file would be overwritten", where=file, remedy="choose another --out")


def _changed(reader: PairReader) -> LongspanError:
    where = ", ".join(reader.files) or reader.source.name
    return LongspanError("the pairs changed while they were read", where=where, remedy="run the same command again")
