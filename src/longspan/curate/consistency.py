"""Consistency filtering of weakly supervised pairs (paper, section 4.2.1).

A pair is kept if a teacher, searching with the query among the documents of a sample, finds the pair's own document
among the first k (the paper: samples of one million pairs, k = 2). Identical documents count once: a paragraph that
answers five questions is one document. The rule that the paper rejected, a threshold on the cosine of the two sides, is
here for comparison.

Axes: N pairs, R pairs of one sample, M distinct documents of one sample, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longspan.curate.approximate import TARGET_RECALL, Search, Searcher, check_recall
from longspan.curate.neighbours import Exclude, rank_of, score_pairs, top_k
from longspan.data.plan import shuffled
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import atomic_path, read_json, write_json

SAMPLE_SIZE = 1_000_000
TOP_K = 2

QUERIES_PER_BLOCK = 2**14
"""Pairs ranked and saved at a time: what a kill costs at most."""

DEPTH = 20
"""Neighbours that are looked for in a large sample at least: ranks are known up to there."""

INDEX, SEARCH = ".faiss", ".json"
"""Of a sample, beside its finished blocks: its index, and how it is searched."""

JUDGED = np.dtype([("rank", np.int32), ("score", np.float32)])
"""What is known of a judged pair: how many distinct documents of its sample score above its own, and its own score."""


@dataclass(frozen=True)
class Teacher:
    """A model that judges pairs, and how it reads them."""

    embedder: Embedder
    query_task: str = "search_query"
    document_task: str = "search_document"
    max_length: int | None = None
    """Texts are cut here, in tokens; None: at the model's own limit."""


@dataclass(frozen=True)
class Searching:
    """How a pair's own document is looked for.

    Attributes:
        way: look at every document of a sample, or use an index (by size: see `nearest`).
        target_recall: the part of the true neighbours that an index is to find.
        depth: neighbours that are looked for in a large sample. A rank is then at most this, which means "at least".

    Raises:
        LongspanError: the target is no part.
    """

    way: Literal["by size", "exact", "approximate"] = "by size"
    target_recall: float = TARGET_RECALL
    depth: int = DEPTH

    def __post_init__(self) -> None:
        check_recall(self.target_recall)

    @property
    def exact(self) -> bool | None:
        """As `Searcher.open` understands it."""
        return {"by size": None, "exact": True, "approximate": False}[self.way]


@dataclass(frozen=True)
class PairVectors:
    """The vectors of N pairs, wherever they lie: each is known by a number.

    Attributes:
        query_N, document_N: int64, which vector is the query's and which the document's. Identical documents have one
            number, and others different ones.
        take_queries, take_documents: numbers (X,) -> float32 (X, D), of length 1.
    """

    query_N: np.ndarray
    document_N: np.ndarray
    take_queries: Callable[[np.ndarray], np.ndarray]
    take_documents: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, queries_ND: np.ndarray, documents_ND: np.ndarray, texts: Sequence[str]) -> PairVectors:
        """Of vectors in memory; identical documents are known by their N texts."""
        first: dict[str, int] = {}
        numbers_N = np.array([first.setdefault(text, n) for n, text in enumerate(texts)], dtype=np.int64)
        return cls(np.arange(len(texts)), numbers_N, queries_ND.__getitem__, documents_ND.__getitem__)

    def __len__(self) -> int:
        return len(self.query_N)


@dataclass(frozen=True)
class Sample:
    """Pairs that are judged together.

    Attributes:
        pairs_R: their numbers, ascending.
        documents_M: the vectors' numbers of their distinct documents.
        own_R: which of these is each pair's own.
        of_M: for each document the first pair that it belongs to.
    """

    pairs_R: np.ndarray
    documents_M: np.ndarray
    own_R: np.ndarray
    of_M: np.ndarray

    @classmethod
    def draw(cls, number: int, vectors: PairVectors, sample_size: int, seed: int) -> Sample:
        """Sample `number` of the pairs, shuffled by `seed` and cut into samples of nearly equal size."""
        pairs_R = np.sort(sample_pairs(number, len(vectors), sample_size, seed))
        documents_M, first_M, own_R = np.unique(vectors.document_N[pairs_R], return_index=True, return_inverse=True)
        return cls(pairs_R, documents_M, own_R, pairs_R[first_M])


def num_samples(num_pairs: int, sample_size: int) -> int:
    """How many samples cover so many pairs."""
    return math.ceil(num_pairs / sample_size)


def sample_pairs(number: int, num_pairs: int, sample_size: int, seed: int) -> np.ndarray:
    """The pairs of a sample in random order, int64 (R,).

    Each pair is in one sample, and none is judged against much fewer others than the rest.
    """
    count = num_samples(num_pairs, sample_size)
    start, stop = number * num_pairs // count, (number + 1) * num_pairs // count
    return shuffled(np.arange(start, stop), num_pairs, (seed,))


def judge(
    vectors: PairVectors,
    *,
    sample_size: int = SAMPLE_SIZE,
    seed: int = 0,
    searching: Searching | None = None,
    device: str = "cpu",
    into: np.ndarray | None = None,
    blocks: Path | None = None,
    on_search: Callable[[Search], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Rank every pair's own document among the documents of its sample.

    Memory is the document vectors of one sample, their index where there is one, and a block of queries.

    An index can miss documents that score above a pair's own, never invent one: a rank that it gives is at most the
    true one, so that every pair that an exact search keeps is kept.

    Args:
        sample_size: most pairs in a sample.
        searching: how (default: exactly in samples of usual size, see `Searching`).
        into: (N,) of `JUDGED`, where the result goes, such as a memory map; None: a new array.
        blocks: a folder of finished blocks: those that are there are read, the others are computed and put there.
        on_search: told how each sample was searched.
        progress: called with the number of pairs judged since the last call; N in all.

    Returns:
        (N,) of `JUDGED`.

    Raises:
        LongspanError: no pairs, or a `sample_size` in which nothing could be found out.
    """
    check_sizes(len(vectors), 1, sample_size)
    searching = searching or Searching()
    judged_N = np.empty(len(vectors), dtype=JUDGED) if into is None else into
    for number in range(num_samples(len(vectors), sample_size)):
        sample = Sample.draw(number, vectors, sample_size, seed)
        name = None if blocks is None else blocks / f"sample-{number:05d}"
        opened = None
        for start in range(0, len(sample.pairs_R), QUERIES_PER_BLOCK):
            part = slice(start, start + QUERIES_PER_BLOCK)
            path = None if name is None else name.with_name(f"{name.name}-{start:09d}.npy")
            if path is not None and path.is_file():
                block = np.load(path)
            else:
                if opened is None:
                    opened = _Opened.of(vectors, sample, searching, device, name)
                block = opened.judge(part)
                if path is not None:
                    _save(path, block)
            judged_N[sample.pairs_R[part]] = block
            if progress is not None:
                progress(len(block))
        if on_search is not None:
            on_search(opened.searcher.search if opened else _known_search(name))
    return judged_N


@dataclass(frozen=True)
class _Opened:
    """A sample that is being judged: its documents' vectors, and how they are searched."""

    vectors: PairVectors
    sample: Sample
    depth: int
    device: str
    documents_MD: np.ndarray
    searcher: Searcher

    @classmethod
    def of(cls, vectors: PairVectors, sample: Sample, searching: Searching, device: str, name: Path | None) -> _Opened:
        documents_MD = vectors.take_documents(sample.documents_M)
        searcher = Searcher.open(
            _Queries(vectors, sample),
            documents_MD,
            searching.depth,
            exact=searching.exact,
            target_recall=searching.target_recall,
            device=device,
            index_file=None if name is None else name.with_suffix(INDEX),
        )
        if name is not None:
            write_json(name.with_suffix(SEARCH), searcher.search.report())
        return cls(vectors, sample, searching.depth, device, documents_MD, searcher)

    def judge(self, part: slice) -> np.ndarray:
        """Rank and score of some of the sample's pairs."""
        queries_RD = self.vectors.take_queries(self.vectors.query_N[self.sample.pairs_R[part]])
        own_R = self.sample.own_R[part]
        block = np.empty(len(own_R), dtype=JUDGED)
        block["score"] = score_pairs(queries_RD, self.documents_MD, own_R[:, None], device=self.device)[:, 0]
        if self.searcher.search.ranks_all:
            block["rank"] = rank_of(queries_RD, self.documents_MD, own_R, device=self.device)
        else:
            scores_RK, _ = self.searcher.find(queries_RD, self.depth)
            block["rank"] = (scores_RK > block["score"][:, None]).sum(axis=1)
        return block


@dataclass(frozen=True)
class _Queries:
    """The queries of a sample, read when they are needed."""

    vectors: PairVectors
    sample: Sample

    def __len__(self) -> int:
        return len(self.sample.pairs_R)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors.take_queries(self.vectors.query_N[self.sample.pairs_R[rows]])


def _known_search(name: Path | None) -> Search:
    """How a sample was searched whose blocks were all there."""
    assert name is not None  # without a folder nothing is there
    return Search(**read_json(name.with_suffix(SEARCH), remedy="delete the folder of unfinished ranks"))


def _save(path: Path, block: np.ndarray) -> None:
    with atomic_path(path) as unfinished, open(unfinished, "wb") as stream:
        np.save(stream, block)


def nearest_wrong(
    vectors: PairVectors, sample: Sample, pairs_R: np.ndarray, k: int, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The documents of a sample nearest to the queries of some of its pairs, their own left out.

    Args:
        pairs_R: numbers of R pairs of the sample.

    Returns:
        scores (R, k) float32, best first, and a pair (R, k) that each document belongs to; -inf and -1 where there are
        no more documents.
    """
    own_R = sample.own_R[np.searchsorted(sample.pairs_R, pairs_R)]
    scores_RK, found_RK = top_k(
        vectors.take_queries(vectors.query_N[pairs_R]),
        vectors.take_documents(sample.documents_M),
        k,
        exclude=Exclude(np.arange(len(own_R) + 1), own_R),
        device=device,
    )
    return scores_RK, np.where(found_RK >= 0, sample.of_M[found_RK], -1)


@dataclass(frozen=True)
class Rule:
    """Which judged pairs are kept.

    Attributes:
        k: those whose own document is among the first k.
        threshold: instead, those whose own document scores at least this.

    Raises:
        LongspanError: the threshold is no cosine.
    """

    k: int = TOP_K
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            what = f"{self.threshold} is no cosine"
            raise LongspanError(what, where="threshold", remedy="use one between -1 and 1")

    def keeps(self, judged_N: np.ndarray) -> np.ndarray:
        """bool (N,)."""
        return judged_N["rank"] < self.k if self.threshold is None else judged_N["score"] >= self.threshold


def equal_threshold(judged_N: np.ndarray, k: int) -> float:
    """The threshold that keeps as many pairs as top-k does: the lowest score that it lets through.

    Equal scores at the threshold are all kept. Infinite where top-k keeps nothing.
    """
    num_kept = int((judged_N["rank"] < k).sum())
    if not num_kept:
        return math.inf
    place = len(judged_N) - num_kept
    return float(np.partition(judged_N["score"], place)[place])


def agreement(judged_N: np.ndarray, k: int, threshold: float) -> dict[str, Any]:
    """How the two rules agree: counts, and the part of what top-k keeps that the threshold drops."""
    found_N, above_N = judged_N["rank"] < k, judged_N["score"] >= threshold
    both, found, above = int((found_N & above_N).sum()), int(found_N.sum()), int(above_N.sum())
    return {
        "threshold": threshold,
        "both_keep": both,
        "only_top_k_keeps": found - both,
        "only_threshold_keeps": above - both,
        "both_drop": len(judged_N) - found - above + both,
        "dropped_of_top_k": (found - both) / found if found else 0.0,
    }


def check_sizes(num_pairs: int, k: int, sample_size: int) -> None:
    """Refuse settings with which nothing could be kept or nothing dropped.

    Raises:
        LongspanError: there are no pairs, or these are such settings.
    """
    if not num_pairs:
        raise LongspanError("there are no pairs to filter", where="the pairs", remedy="check the files of pairs")
    if k < 1:
        raise LongspanError(f"k {k} would drop every pair", where="k", remedy="ask for at least 1")
    if sample_size <= k:
        raise LongspanError(
            f"in a sample of {sample_size} every document is among the first {k}: nothing could be dropped",
            where="sample_size",
            remedy=f"use samples of much more than {k} pairs",
        )
