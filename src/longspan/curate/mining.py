"""Negatives for the files of a source: pairs in, pairs with their negatives and a report out.

The distinct texts of the queries and of the corpus are in memory; vectors and results are memory-mapped files. What is
finished stays until the result is whole, so that a run that was killed goes on after the last block of queries.

Axes: N pairs, Q distinct queries, M distinct documents of the corpus, K negatives kept, D width.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longspan.curate.approximate import Searcher
from longspan.curate.consistency import Teacher
from longspan.curate.engine import Engine
from longspan.curate.negatives import Mining, Reranker, Texts, mine_negatives, random_negatives
from longspan.curate.neighbours import Exclude, score_pairs
from longspan.curate.pairs import PairReader
from longspan.curate.report import Example, Other, Report, evenly, score_histogram, shortened, write_report
from longspan.curate.rows import column_text, json_lines
from longspan.curate.vectors import VectorStore
from longspan.data.judged import JudgedFiles, texts_by_id
from longspan.data.layouts import source_parts
from longspan.data.places import find_files, is_local
from longspan.data.readers import read_rows
from longspan.data.source import NEGATIVE_SCORES, POSITIVE_SCORE, PairSource
from longspan.errors import LongspanError
from longspan.files import atomic_path, read_json, sha256_json, sweep_unfinished, write_json
from longspan.progress import Tell, counted

MINED, DROPPED = "mined.jsonl", "dropped.jsonl"
WORK = "mining"
"""Folder, beside the result, of what is finished; deleted when the result is whole."""
STATE, DONE = "state.json", "done.json"

QUERIES_PER_BLOCK = 2**14
"""Queries searched and saved at a time: what a kill costs at most."""
VECTORS_PER_COPY = 2**14
NUM_SHOWN = 3
"""Negatives shown with an example."""


@dataclass(frozen=True)
class Pool:
    """Pairs and the corpus in which they are mined; equal texts are one.

    Attributes:
        queries: Q texts.
        corpus: M texts: the corpus that was given, then the pairs' documents that are not in it.
        query_N, document_N: which of these each pair has.
        positives: for each query, the documents that answer it.
        own: for each query, the document that is the same text, if there is one: found, it would say nothing.
    """

    queries: list[str]
    corpus: list[str]
    query_N: np.ndarray
    document_N: np.ndarray
    positives: Exclude
    own: Exclude

    @classmethod
    def of(cls, pairs: Iterable[Sequence[Any]], corpus: Iterable[str] = ()) -> Pool:
        """Gather the distinct texts; a pair begins with its query and its document."""
        queries: dict[str, int] = {}
        documents = {text: number for number, text in enumerate(dict.fromkeys(corpus))}
        numbers = [
            (queries.setdefault(pair[0], len(queries)), documents.setdefault(pair[1], len(documents))) for pair in pairs
        ]
        query_N, document_N = np.array(numbers, dtype=np.int64).reshape(-1, 2).T
        answers: list[list[int]] = [[] for _ in queries]
        for query, document in dict.fromkeys(numbers):
            answers[query].append(document)
        own = [[documents[text]] if text in documents else [] for text in queries]
        return cls(list(queries), list(documents), query_N, document_N, Exclude.of(answers), Exclude.of(own))

    def fingerprint(self) -> str:
        """What changes when a text or a pair changes."""
        digest = hashlib.blake2b(digest_size=16)
        for texts in (self.queries, self.corpus):
            for text in texts:
                content = text.encode("utf-8", "surrogatepass")
                digest.update(len(content).to_bytes(8, "little") + content)
        return digest.hexdigest() + sha256_json([self.query_N.tolist(), self.document_N.tolist()])[:16]


def read_pool(source: PairSource, corpus_files: Sequence[str] = (), column: str = "document") -> Pool:
    """The pairs of a source, and the corpus: that of `corpus_files` or of a retrieval set, or the pairs' documents.

    Args:
        corpus_files: paths, globs or URLs of rows.
        column: of their texts.

    Raises:
        LongspanError: a file is missing or broken, or a row has no text.
    """
    return Pool.of(PairReader(source), _corpus(source, corpus_files, column))


def mine_source(
    source: PairSource,
    teacher: Teacher,
    out: Path,
    config: Mining | None = None,
    *,
    pool: Pool | None = None,
    reranker: Reranker | None = None,
    cache: Path | None = None,
    engine: Engine | None = None,
    device: str = "cpu",
    progress: Tell | None = None,
) -> Report:
    """Give the pairs of a source their `negatives`, `positive_score` and `negative_scores`: `out/mined.jsonl`.

    A query that stands in several rows has several positives, and none of them becomes its negative. Rows left with
    fewer than `at_least` negatives are written to `out/dropped.jsonl` instead.

    Args:
        pool: the source's, with another corpus than the source implies (see `read_pool`).
        cache: where the teacher's vectors are kept for reuse (default: `out/vectors`).
        engine: where they are computed (default: in this process).
        device: where vectors are compared if the search is exact: "cpu", or a CUDA device.
        progress: told of "embedding", "searching" and "writing".

    Returns:
        The report, as it stands in `out/report.json` and `out/report.html`.

    Raises:
        LongspanError: a file is missing, broken or would be overwritten; or the corpus has not even `at_least` other
            documents.
    """
    config, tell = config or Mining(), progress or _silent
    reader = _reader(source, out)
    pool = pool or read_pool(source)
    _check_corpus(pool, config.at_least, out)
    work = out / WORK
    judge = [reranker.name, reranker.margin] if reranker else None
    asked = [teacher.query_task, teacher.document_task, teacher.max_length]
    _prepare(work, [pool.fingerprint(), teacher.embedder.fingerprint, asked, config.model_dump(mode="json"), judge])
    queries_QD, corpus_MD = _vectors(pool, teacher, cache or out / "vectors", work, engine, tell)
    searcher = Searcher.open(
        queries_QD,
        corpus_MD,
        config.k,
        exact={"by size": None, "exact": True, "approximate": False}[config.search],
        target_recall=config.target_recall,
        device=device,
        index_file=work / "index.faiss",
    )
    found = _Found.open(work, len(pool.queries), config.k)
    tell("searching", found.done, len(pool.queries))
    for start in range(found.done, len(pool.queries), QUERIES_PER_BLOCK):
        rows = np.arange(start, min(start + QUERIES_PER_BLOCK, len(pool.queries)))
        texts = Texts(pool.queries[start : start + QUERIES_PER_BLOCK], pool.corpus)
        negatives = mine_negatives(
            np.asarray(queries_QD[rows]),
            corpus_MD,
            pool.positives.rows(rows),
            config,
            searcher=searcher,
            own=pool.own.rows(rows),
            reranker=reranker,
            texts=texts,
        )
        found.save(rows, *negatives)
        tell("searching", found.done, len(pool.queries))
    positive_N = _own_scores(pool, queries_QD, corpus_MD)
    counts = _write(reader, pool, found, config.at_least, out, tell, positive_N)
    examples = _examples(pool, found, queries_QD, corpus_MD)
    facts = _facts(pool, counts) | {
        "nearest_above_positive": float((found.scores_QK[:, 0] > found.positive_Q).mean()),
        **config.model_dump(exclude={"search", "target_recall"}),
        "reranker": reranker.name if reranker else None,
        "search": searcher.search.report(),
        "teacher": teacher.embedder.name,
        "teacher_fingerprint": teacher.embedder.fingerprint,
        "teacher_precision": teacher.embedder.precision,
        "teacher_max_length": teacher.max_length,
    }
    series = {
        "best positive": found.positive_Q,
        "nearest negative": found.scores_QK[:, 0],
        "farthest negative": found.scores_QK[:, -1],
    }
    histogram = score_histogram("scores by the teacher", series)
    report = Report("hard negatives", source.name, facts, (histogram,), examples=examples)
    write_report(out, report)
    shutil.rmtree(work, ignore_errors=True)
    return report


def draw_source(
    source: PairSource,
    out: Path,
    count: int,
    *,
    pool: Pool | None = None,
    seed: int = 0,
    progress: Tell | None = None,
) -> Report:
    """Give the pairs of a source random `negatives` from the corpus, as the paper does where mining did not help.

    Raises:
        LongspanError: as `mine_source`, with `count` for `at_least`.
    """
    tell = progress or _silent
    reader = _reader(source, out)
    pool = pool or read_pool(source)
    if count < 1:
        raise LongspanError(f"{count} negatives are none", where="count", remedy="ask for at least 1")
    _check_corpus(pool, count, out)
    work = out / WORK
    _prepare(work, [pool.fingerprint(), "random", count, seed])
    found = _Found.open(work, len(pool.queries), count)
    for start in range(found.done, len(pool.queries), QUERIES_PER_BLOCK):
        rows = np.arange(start, min(start + QUERIES_PER_BLOCK, len(pool.queries)))
        indices_RK = random_negatives(len(pool.corpus), pool.positives.rows(rows), count, first_query=start, seed=seed)
        nothing = np.full(indices_RK.shape, np.nan, dtype=np.float32)
        found.save(rows, nothing, indices_RK, nothing[:, 0])
        tell("drawing", found.done, len(pool.queries))
    counts = _write(reader, pool, found, count, out, tell)
    report = Report("random negatives", source.name, _facts(pool, counts) | {"random": count, "seed": seed})
    write_report(out, report)
    shutil.rmtree(work, ignore_errors=True)
    return report


@dataclass
class _Found:
    """The negatives of all queries, in files; the first `done` of them are final."""

    scores_QK: np.ndarray
    indices_QK: np.ndarray
    positive_Q: np.ndarray
    done: int
    file: Path

    @classmethod
    def open(cls, work: Path, num_queries: int, k: int) -> _Found:
        file = work / DONE
        done = read_json(file, remedy="delete its folder")["done"] if file.is_file() else 0
        shapes = {"scores": (num_queries, k), "indices": (num_queries, k), "positive": (num_queries,)}
        arrays = [
            np.lib.format.open_memmap(
                work / f"{name}.npy",
                "r+" if file.is_file() else "w+",
                dtype=np.int64 if name == "indices" else np.float32,
                shape=shape,
            )
            for name, shape in shapes.items()
        ]
        return cls(*arrays, done=done, file=file)

    def save(self, rows: np.ndarray, scores_RK: np.ndarray, indices_RK: np.ndarray, positive_R: np.ndarray) -> None:
        for whole, part in (
            (self.scores_QK, scores_RK),
            (self.indices_QK, indices_RK),
            (self.positive_Q, positive_R),
        ):
            whole[rows[0] : rows[-1] + 1] = part
            whole.flush()  # pyright: ignore[reportAttributeAccessIssue]
        self.done = int(rows[-1]) + 1
        write_json(self.file, {"done": self.done})  # after the flush: what it counts is on the disk


@dataclass
class _Counts:
    mined: int = 0
    dropped: int = 0
    negatives: int = 0


def _corpus(source: PairSource, files: Sequence[str], column: str) -> Iterable[str]:
    if files:
        for file in find_files(tuple(files)):
            for number, row in read_rows(file):
                yield column_text(row, column, f"{file}:{number}")
        return
    for part in source_parts(source):
        if isinstance(part, JudgedFiles):
            yield from texts_by_id(part.corpus).values()


def _reader(source: PairSource, out: Path) -> PairReader:
    reader = PairReader(source)
    written = [(out / name).resolve() for name in (MINED, DROPPED)]
    for file in reader.files:
        if is_local(file) and Path(file.removeprefix("file://")).resolve() in written:
            raise LongspanError("this file would be overwritten", where=file, remedy="choose another --out")
    return reader


def _check_corpus(pool: Pool, at_least: int, out: Path) -> None:
    if not pool.queries:
        raise LongspanError("there are no pairs to mine", where=out, remedy="check the files of pairs")
    if len(pool.corpus) <= at_least:
        raise LongspanError(
            f"{len(pool.corpus)} distinct documents cannot give {at_least} negatives to each query",
            where=out,
            remedy="mine in a larger corpus or ask for fewer negatives",
        )


def _prepare(work: Path, depends_on: Any) -> None:
    """Keep what an earlier run has finished if it depends on the same things, and forget it otherwise."""
    key = sha256_json(depends_on)
    file = work / STATE
    if not file.is_file() or read_json(file, remedy="delete its folder") != {"key": key}:
        shutil.rmtree(work, ignore_errors=True)
        write_json(file, {"key": key})
    sweep_unfinished(work)


def _vectors(
    pool: Pool, teacher: Teacher, cache: Path, work: Path, engine: Engine | None, tell: Tell
) -> list[np.ndarray]:
    """queries_QD and corpus_MD, memory-mapped, each in one piece and in the pool's order."""
    advance, laid_out = counted(tell, "embedding", len(pool.queries) + len(pool.corpus)), []
    sides = (("queries", pool.queries, teacher.query_task), ("corpus", pool.corpus, teacher.document_task))
    for name, texts, task in sides:
        store = VectorStore(cache, teacher.embedder, task=task, max_length=teacher.max_length, engine=engine)
        numbers = store.numbers(texts, advance)
        path = work / f"{name}.npy"
        if not path.is_file():
            with atomic_path(path) as unfinished:
                whole = np.lib.format.open_memmap(
                    unfinished, "w+", dtype=np.float32, shape=(len(texts), teacher.embedder.dim)
                )
                for start in range(0, len(texts), VECTORS_PER_COPY):
                    whole[start : start + VECTORS_PER_COPY] = store.blocks.take(
                        numbers[start : start + VECTORS_PER_COPY]
                    )
                del whole
        laid_out.append(np.load(path, mmap_mode="r"))
    return laid_out


def _own_scores(pool: Pool, queries_QD: np.ndarray, corpus_MD: np.ndarray) -> np.ndarray:
    """The teacher's score of every pair, float32 (N,): of several positives of a query each has its own."""
    score_N = np.empty(len(pool.query_N), dtype=np.float32)
    for start in range(0, len(score_N), QUERIES_PER_BLOCK):
        block = slice(start, start + QUERIES_PER_BLOCK)
        queries_RD = np.asarray(queries_QD[pool.query_N[block]])
        score_N[block] = score_pairs(queries_RD, corpus_MD, pool.document_N[block, None])[:, 0]
    return score_N


def _write(
    reader: PairReader,
    pool: Pool,
    found: _Found,
    at_least: int,
    out: Path,
    tell: Tell,
    positive_N: np.ndarray | None = None,
) -> _Counts:
    counts, num_pairs = _Counts(), len(pool.query_N)
    indices_QK, scores_QK = np.asarray(found.indices_QK), np.asarray(found.scores_QK)  # a memmap is slow by the row
    with json_lines(out / MINED) as mine, json_lines(out / DROPPED) as drop:
        for number, pair in enumerate(reader):
            if number >= num_pairs or pair.document != pool.corpus[pool.document_N[number]]:
                raise LongspanError(
                    "the source has changed while it was mined", where=f"pair {number + 1}", remedy="run it again"
                )
            query = pool.query_N[number]
            indices_K = indices_QK[query]
            indices_K = indices_K[indices_K >= 0].tolist()
            row = pair.row | {"negatives": [pool.corpus[m] for m in indices_K]}
            if positive_N is not None:
                row[POSITIVE_SCORE] = round(float(positive_N[number]), 4)
                row[NEGATIVE_SCORES] = [round(s, 4) for s in scores_QK[query, : len(indices_K)].tolist()]
            counts.negatives += len(indices_K)
            if len(indices_K) >= at_least:
                counts.mined += 1
                mine(row)
            else:
                counts.dropped += 1
                drop(row)
            tell("writing", number + 1, num_pairs)
    return counts


def _facts(pool: Pool, counts: _Counts) -> dict[str, Any]:
    num_pairs = len(pool.query_N)
    return {
        "pairs": num_pairs,
        "mined": counts.mined,
        "dropped": counts.dropped,
        "queries": len(pool.queries),
        "documents": len(pool.corpus),
        "negatives_per_pair": counts.negatives / num_pairs,
    }


def _examples(
    pool: Pool, found: _Found, queries_QD: np.ndarray, corpus_MD: np.ndarray
) -> dict[str, tuple[Example, ...]]:
    """Some pairs with their nearest negatives: those that may be false, and the others."""
    chosen_E = evenly(np.arange(len(pool.query_N)))
    query_E, document_E = pool.query_N[chosen_E], pool.document_N[chosen_E]
    scores_E = score_pairs(queries_QD[query_E], corpus_MD, document_E[:, None])[:, 0]
    kinds: dict[str, list[Example]] = {"nearest negative above the positive": [], "nearest negative below it": []}
    for number, query, document, score in zip(chosen_E, query_E, document_E, scores_E, strict=True):
        nearest = zip(found.indices_QK[query, :NUM_SHOWN], found.scores_QK[query, :NUM_SHOWN], strict=True)
        others = tuple(Other(shortened(pool.corpus[m]), float(value)) for m, value in nearest if m >= 0)
        above, below = kinds.values()
        (above if others and others[0].score > score else below).append(
            Example(
                row=int(number) + 1,
                query=shortened(pool.queries[query]),
                document=shortened(pool.corpus[document]),
                score=float(score),
                others=others,
            )
        )
    return {kind: tuple(examples) for kind, examples in kinds.items()}


def _silent(what: str, done: int, total: int) -> None:
    pass
