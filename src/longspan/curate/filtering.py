"""The consistency filter on the files of a source: pairs in, kept and dropped pairs and a report out.

The source is read pass by pass and never held in memory. The first pass takes its fingerprint, and the next counts and
checks the pairs; then they are embedded, and at last each is written to where it belongs. Between them pairs are
numbers: of vectors in a store, and of ranks in a memory-mapped file. What is finished stays: a run that was killed, or
one with another `k`, goes on from there.

Axes: N pairs, R pairs that the report looks at closely, K other documents for each.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longspan.config import Config
from longspan.curate.approximate import EXACT_DOCUMENTS, Search
from longspan.curate.consistency import (
    DEPTH,
    JUDGED,
    SAMPLE_SIZE,
    PairVectors,
    Rule,
    Sample,
    Searching,
    Teacher,
    agreement,
    check_sizes,
    equal_threshold,
    judge,
    nearest_wrong,
    sample_pairs,
)
from longspan.curate.engine import Engine
from longspan.curate.pairs import Pair, PairReader
from longspan.curate.report import (
    NUM_EXAMPLES,
    Example,
    Other,
    Report,
    Table,
    evenly,
    score_histogram,
    shortened,
    write_report,
)
from longspan.curate.rows import REPORT, json_lines
from longspan.curate.vectors import VectorBlocks, VectorStore
from longspan.data.places import is_local
from longspan.data.source import PairSource
from longspan.errors import LongspanError
from longspan.files import atomic_path, read_json, sha256_json, sweep_unfinished, write_json
from longspan.progress import Tell, counted

KEPT, DROPPED = "kept.jsonl", "dropped.jsonl"
WORK = "judged"
"""Folder, beside the result, of what was found out about each pair."""
STATE, NUMBERS, RANKS, SEARCHES = "state.json", "numbers.npy", "ranks.npy", "searches.json"
OF_A_SAMPLE = "sample-*"
"""What `judge` keeps in `WORK` until all ranks are known."""
CONSISTENCY = "consistency"
"""Key that a dropped row is given: its number in the source (`row`, from 1), `rank` and `score`."""

PAIRS_PER_CHUNK = 2**14
"""Pairs whose texts are in memory at a time."""
REPORT_PAIRS = 2**14
"""Pairs, drawn at random, whose best wrong documents the report looks at."""
NUM_OTHERS = 3
"""Other documents shown with an example."""
TOPS = (1, 2, 5, 10, 20)


class State(Config):
    """What `WORK` holds: everything that its ranks depend on, and where the vectors are."""

    source: PairSource
    num_pairs: int
    pairs_fingerprint: str
    teacher: str
    teacher_fingerprint: str
    query_task: str
    document_task: str
    max_length: int | None
    sample_size: int
    seed: int
    search: Literal["by size", "exact", "approximate"]
    target_recall: float
    depth: int
    """Neighbours that an index looks for; 0 where there can be no index."""
    query_vectors: str
    """Folder of the store, relative to the result's."""
    document_vectors: str
    dim: int

    @property
    def key(self) -> str:
        """What changes when a rank could."""
        return sha256_json(self.model_dump(mode="json", exclude={"source", "teacher"}))


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
    if not _is_of(work / STATE, state):
        _forget(out)
        write_json(work / STATE, state.model_dump(mode="json", exclude_unset=True))
    # Each time: the vectors' numbers change when someone deletes a block of them.
    _number(reader, num_pairs, stores, work / NUMBERS, tell)
    vectors = open_vectors(out, state)
    judged_N = _judged(vectors, state, work, device, tell)
    report, wanted = _close_look(vectors, judged_N, rule, state, read_searches(out), device)
    finished = report(_write(reader, judged_N, rule, out, set(wanted), tell))
    write_report(out, finished)
    return finished


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
    return None if all(search.exact for search in searches) else state.depth


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


def _close_look(
    vectors: PairVectors, judged_N: np.ndarray, rule: Rule, state: State, searches: list[Search], device: str
) -> tuple[Callable[[dict[int, Pair]], Report], list[int]]:
    """What the report will show: a function from texts to the report, and the pairs whose texts it needs."""
    sample = Sample.draw(0, vectors, state.sample_size, state.seed)
    drawn_R = np.sort(sample_pairs(0, len(vectors), state.sample_size, state.seed)[:REPORT_PAIRS])
    scores_RK, pairs_RK = nearest_wrong(vectors, sample, drawn_R, max(rule.k, NUM_OTHERS), device=device)
    judged_R = judged_N[drawn_R]
    cut = equal_threshold(judged_N, rule.k) if rule.threshold is None else rule.threshold
    # By how much the own document is in front of the first one that would have to be behind it, or the threshold.
    rivals_R = scores_RK[:, rule.k - 1] if rule.threshold is None else rule.threshold
    margin_R = judged_R["score"] - rivals_R
    keeps_R, found_R = rule.keeps(judged_R), judged_R["rank"] < rule.k
    only_found_R = np.flatnonzero(found_R & (judged_R["score"] < cut))
    chosen = {
        "kept": evenly(np.flatnonzero(keeps_R)),
        "dropped": evenly(np.flatnonzero(~keeps_R)),
        "borderline": np.argsort(np.abs(margin_R), kind="stable")[:NUM_EXAMPLES],
        "found among the top k, but below the threshold": only_found_R[
            np.argsort(judged_R["score"][only_found_R], kind="stable")
        ][:NUM_EXAMPLES],
    }
    places = np.unique(np.concatenate(list(chosen.values())))
    wanted = np.unique(np.concatenate([drawn_R[places], pairs_RK[places, :NUM_OTHERS].ravel()]))

    def example(place: int, texts: dict[int, Pair]) -> Example:
        pair = int(drawn_R[place])
        others = [
            Other(shortened(texts[int(other)].document), round(float(score), 4), int(other) + 1)
            for score, other in zip(scores_RK[place, :NUM_OTHERS], pairs_RK[place, :NUM_OTHERS], strict=True)
            if other >= 0
        ]
        own = texts[pair]
        score, rank = round(float(judged_R["score"][place]), 4), int(judged_R["rank"][place])
        return Example(pair + 1, shortened(own.query), shortened(own.document), score, rank, tuple(others))

    def report(texts: dict[int, Pair]) -> Report:
        return replace(
            _numbers(judged_N, rule, state, searches),
            histograms=(
                score_histogram(
                    "Score of the pair's own document, and of the best other one in the sample",
                    {"own": judged_N["score"], "best other": scores_RK[:, 0]},
                    {"threshold": cut} if np.isfinite(cut) else {},
                ),
            ),
            examples={
                kind: tuple(example(int(place), texts) for place in chosen_R) for kind, chosen_R in chosen.items()
            },
        )

    return report, [int(pair) for pair in wanted if pair >= 0]


def _numbers(judged_N: np.ndarray, rule: Rule, state: State, searches: list[Search]) -> Report:
    """The report without pictures."""
    rank_N, score_N, num_kept = judged_N["rank"], judged_N["score"], int(rule.keeps(judged_N).sum())
    thresholds = [equal_threshold(judged_N, rule.k)]
    thresholds += [] if rule.threshold is None else [rule.threshold]
    agreements = [agreement(judged_N, rule.k, cut) for cut in thresholds if np.isfinite(cut)]
    kept_at = {str(top): float((rank_N < top).mean()) for top in TOPS}
    known = known_ranks(state, searches)
    last = state.num_pairs if known is None else known
    places = sorted({*TOPS, 50, 100, 1000, last})
    bounds = [0, *(place for place in places if place <= last and place < state.num_pairs), state.num_pairs]
    ranks = []
    for low, high in itertools.pairwise(bounds):
        count = int(((rank_N >= low) & (rank_N < high)).sum())
        name = f"{low + 1:,}" if high == low + 1 else f"{low + 1:,} to {high:,}"
        ranks.append((name, f"{count:,}", f"{count / state.num_pairs:.1%}"))
    facts: dict[str, Any] = {
        "pairs": state.num_pairs,
        "kept": num_kept,
        "dropped": state.num_pairs - num_kept,
        "part_kept": num_kept / state.num_pairs,
        "k": rule.k,
        "threshold": rule.threshold,
        "sample_size": min(state.sample_size, state.num_pairs),
        "seed": state.seed,
        "search": min(searches, key=lambda search: search.recall).report() | {"ranks_known_to": known},
        "teacher": state.teacher,
        "teacher_fingerprint": state.teacher_fingerprint,
        "teacher_max_length": state.max_length,
        "rank_quantiles": {str(q): float(np.quantile(rank_N, q)) for q in (0.25, 0.5, 0.75, 0.9, 0.99)},
        "score_quantiles": {str(q): float(np.quantile(score_N, q)) for q in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)},
        "kept_at": kept_at,
        "top_k_and_threshold": agreements,
    }
    tables = [Table("Place of the pair's own document (1 is the best)", ("place", "pairs", "part"), tuple(ranks))]
    for one in agreements:
        rows = (
            ("found among the top k", f"{one['both_keep']:,}", f"{one['only_top_k_keeps']:,}"),
            ("not found", f"{one['only_threshold_keeps']:,}", f"{one['both_drop']:,}"),
        )
        what = f"Top {rule.k} beside a threshold of {one['threshold']:.3f}, "
        what += f"which drops {one['dropped_of_top_k']:.1%} of what top {rule.k} keeps"
        tables.append(Table(what, ("pairs", "at or above the threshold", "below"), rows))
    return Report("filter", state.source.name, facts, tables=tuple(tables))


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


def _is_of(path: Path, state: State) -> bool:
    if not path.is_file():
        return False
    try:
        return State.parse(read_json(path, remedy=""), where=path).key == state.key
    except LongspanError:  # of another version, or torn: it is made anew
        return False


def _forget(out: Path) -> None:
    """Delete what was found out about other pairs, and the report, which an unfinished filter must not have."""
    for path in (out / REPORT, out / WORK / RANKS, *(out / WORK).glob(OF_A_SAMPLE)):
        if path.exists():
            path.unlink()


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
