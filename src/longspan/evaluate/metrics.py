"""Measures of a ranking, equal to trec_eval's.

A run gives each query its documents, best first; qrels give each query the gain of its judged documents. Unjudged
documents have gain 0, and a document is relevant when its gain is above 0. Every function returns one value in [0, 1]
per query *of the qrels*: a query that the run lacks found nothing and gets 0, and queries without judgements are
not measured. Definitions are those of trec_eval (https://github.com/usnistgov/trec_eval), to which the names in the
docstrings refer; its gains are integers with relevance level 1, for which the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from longspan.errors import LongspanError

Run = Mapping[str, Sequence[str]]
"""Query id -> document ids, best first."""

Qrels = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> gain."""


def ndcg_at_k(run: Run, qrels: Qrels, k: int) -> dict[str, float]:
    """Normalised discounted cumulative gain of the first k (trec_eval `ndcg_cut_k`).

    The gain counts as it is (not 2**gain - 1) and is divided by log2(rank + 1); the ideal ranking holds all judged
    documents of the query. Negative gains count as 0.

    Raises:
        LongspanError: k below 1, or a document ranked twice for one query.
    """

    def measure(gains: list[float], judged: Mapping[str, float]) -> float:
        ideal = _discounted(sorted(judged.values(), reverse=True)[:k])
        return _discounted(gains[:k]) / ideal if ideal > 0 else 0.0

    return _per_query(run, qrels, k, measure)


def recall_at_k(run: Run, qrels: Qrels, k: int) -> dict[str, float]:
    """Part of the query's relevant documents that is among the first k (trec_eval `recall_k`).

    Raises:
        LongspanError: k below 1, or a document ranked twice for one query.
    """

    def measure(gains: list[float], judged: Mapping[str, float]) -> float:
        return _num_relevant(gains[:k]) / max(1, _num_relevant(judged.values()))

    return _per_query(run, qrels, k, measure)


def mrr_at_k(run: Run, qrels: Qrels, k: int) -> dict[str, float]:
    """One over the rank of the first relevant document, 0 when it is not among the first k (trec_eval `recip_rank`).

    Raises:
        LongspanError: k below 1, or a document ranked twice for one query.
    """

    def measure(gains: list[float], judged: Mapping[str, float]) -> float:
        return next((1 / rank for rank, gain in enumerate(gains[:k], start=1) if gain > 0), 0.0)

    return _per_query(run, qrels, k, measure)


def average_precision(run: Run, qrels: Qrels, k: int | None = None) -> dict[str, float]:
    """Mean, over the query's relevant documents, of the precision at the rank of each; 0 for those not ranked.

    Args:
        run: query id -> document ids, best first.
        qrels: query id -> document id -> gain.
        k: look at the first k only (trec_eval `map_cut_k`); None looks at all (`map`).

    Raises:
        LongspanError: k below 1, or a document ranked twice for one query.
    """

    def measure(gains: list[float], judged: Mapping[str, float]) -> float:
        found, total = 0, 0.0
        for rank, gain in enumerate(gains[:k], start=1):
            if gain > 0:
                found += 1
                total += found / rank
        return total / max(1, _num_relevant(judged.values()))

    return _per_query(run, qrels, k, measure)


def trec_order(scores: Mapping[str, float]) -> list[str]:
    """Rank documents as trec_eval does: by falling float32 score, equal scores by falling document id."""
    return sorted(scores, key=lambda document: (np.float32(scores[document]), document), reverse=True)


def mean(values: Mapping[str, float]) -> float:
    """Mean of a measure over its queries, summed exactly (NaN for none)."""
    return math.fsum(values.values()) / len(values) if values else math.nan


def _per_query(
    run: Run, qrels: Qrels, k: int | None, measure: Callable[[list[float], Mapping[str, float]], float]
) -> dict[str, float]:
    if k is not None and k < 1:
        raise LongspanError(f"cannot measure the first {k} documents", where="k", remedy="use a k of at least 1")
    return {query: measure(_gains(query, run.get(query, ()), judged), judged) for query, judged in qrels.items()}


def _gains(query: str, ranked: Sequence[str], judged: Mapping[str, float]) -> list[float]:
    if len(set(ranked)) < len(ranked):
        # Counting the same relevant document again would lift recall and nDCG above 1.
        raise LongspanError(
            "a document is ranked more than once", where=f"query {query}", remedy="keep its first place only"
        )
    return [judged.get(document, 0.0) for document in ranked]


def _discounted(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1) if gain > 0)


def _num_relevant(gains: Iterable[float]) -> int:
    return sum(gain > 0 for gain in gains)
