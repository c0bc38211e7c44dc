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
from typing import Any

import numpy as np

from longspan.curate.neighbours import Exclude, rank_of, score_pairs, top_k
from longspan.data.plan import shuffled
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import atomic_path

SAMPLE_SIZE = 1_000_000
TOP_K = 2

QUERIES_PER_BLOCK = 2**14
"""Pairs ranked and saved at a time: what a kill costs at most."""

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
    device: str = "cpu",
    into: np.ndarray | None = None,
    blocks: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Rank every pair's own document among the documents of its sample.

    Memory is the document vectors of one sample, and a block of queries.

    Args:
        sample_size: most pairs in a sample.
        into: (N,) of `JUDGED`, where the result goes, such as a memory map; None: a new array.
        blocks: a folder of finished blocks: those that are there are read, the others are computed and put there.
        progress: called with the number of pairs judged since the last call; N in all.

    Returns:
        (N,) of `JUDGED`.

    Raises:
        LongspanError: no pairs, or a `sample_size` in which nothing could be found out.
    """
    check_sizes(len(vectors), 1, sample_size)
    judged_N = np.empty(len(vectors), dtype=JUDGED) if into is None else into
    for number in range(num_samples(len(vectors), sample_size)):
        sample = Sample.draw(number, vectors, sample_size, seed)
        documents_MD = None
        for start in range(0, len(sample.pairs_R), QUERIES_PER_BLOCK):
            part = slice(start, start + QUERIES_PER_BLOCK)
            path = None if blocks is None else blocks / f"sample-{number:05d}-{start:09d}.npy"
            if path is not None and path.is_file():
                block = np.load(path)
            else:
                if documents_MD is None:
                    documents_MD = vectors.take_documents(sample.documents_M)
                block = _judge_block(vectors, sample, documents_MD, part, device)
                if path is not None:
                    _save(path, block)
            judged_N[sample.pairs_R[part]] = block
            if progress is not None:
                progress(len(block))
    return judged_N


def _judge_block(
    vectors: PairVectors, sample: Sample, documents_MD: np.ndarray, part: slice, device: str
) -> np.ndarray:
    queries_RD = vectors.take_queries(vectors.query_N[sample.pairs_R[part]])
    own_R = sample.own_R[part]
    block = np.empty(len(own_R), dtype=JUDGED)
    block["rank"] = rank_of(queries_RD, documents_MD, own_R, device=device)
    block["score"] = score_pairs(queries_RD, documents_MD, own_R[:, None], device=device)[:, 0]
    return block


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
