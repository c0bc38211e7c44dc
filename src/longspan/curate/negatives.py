"""Hard negatives (paper, section 4.2.4): for each query, the documents nearest to it that are not its answer.

The paper takes the top 20 of the corpus without the positive; training then draws seven of them at random. Mined
negatives contain false ones, so guards beyond the paper can leave out candidates that score nearly as high as the
positive itself, by a part of its score, by a distance from it, or by the word of a second model.

Axes: N queries, M distinct documents, P positives, K negatives kept, D width. Inside a block: R queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from longspan.config import Config
from longspan.curate.approximate import TARGET_RECALL, Searcher
from longspan.curate.neighbours import Exclude, score_pairs
from longspan.errors import LongspanError

NUM_NEGATIVES = 20
SPARE = 2
"""With a guard, this many times as many candidates are looked at as are kept; more where it rejects more."""


class Mining(Config):
    """Which negatives are taken, and how they are searched."""

    k: int = NUM_NEGATIVES
    """Negatives to keep, at most."""
    at_least: int = 7
    """A pair with fewer is left out."""
    guard: float | None = None
    """Candidates may score at most this part of the positive's score; None: the paper's way."""
    margin: float | None = Field(default=None, ge=0)
    """Candidates must score at least so much less than the positive."""
    search: Literal["by size", "exact", "approximate"] = "by size"
    """Look at every document, or use an index (see `nearest`)."""
    target_recall: float = Field(default=TARGET_RECALL, gt=0, le=1)
    """The part of the true neighbours that an index is to find."""

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.k < 1 or not 0 <= self.at_least <= self.k:
            raise ValueError(
                f"{self.k} negatives are kept, and rows with fewer than {self.at_least} left out: keep at least 1, and "
                "at least as many as a row must have"
            )
        if self.guard is not None and self.guard <= 0:
            raise ValueError(f"guard {self.guard} leaves no candidate: use a part of the score, such as 0.95")
        return self


@dataclass(frozen=True)
class Reranker:
    """A second, slower judge of candidates.

    Attributes:
        name: by which a later run knows whether it is the same.
        score: (query, document) pairs -> a score for each, higher where the document answers the query better.
        margin: candidates must score at least so much less than the best positive, by this judge.
    """

    name: str
    score: Callable[[list[tuple[str, str]]], Sequence[float] | np.ndarray]
    margin: float = 0.0


class Texts(NamedTuple):
    """What a reranker reads."""

    queries: Sequence[str]
    corpus: Sequence[str]


class Negatives(NamedTuple):
    """The negatives of some queries.

    Attributes:
        scores_NK: float32, nearest first; -inf where there are no more.
        indices_NK: int64 documents; -1 there.
        positive_N: float32, the score of the best positive.
    """

    scores_NK: np.ndarray
    indices_NK: np.ndarray
    positive_N: np.ndarray


def mine_negatives(
    queries_RD: np.ndarray,
    corpus_MD: np.ndarray,
    positives: Exclude,
    config: Mining,
    *,
    searcher: Searcher | None = None,
    own: Exclude | None = None,
    reranker: Reranker | None = None,
    texts: Texts | None = None,
) -> Negatives:
    """The K nearest documents of each query that are none of its positives and pass the guards.

    Several positives: the best of them sets the limits. Where a guard rejects candidates, further ones are looked at
    until K are found or no document is left; a reranker is asked once, about `SPARE` times K candidates.

    Args:
        queries_RD, corpus_MD: the teacher's vectors, of length 1; the documents are distinct texts.
        positives: for each query, the documents that answer it (at least one).
        searcher: of the corpus; None: an exact one.
        own: for each query, documents that are neither positive nor negative, such as its own text.
        reranker: asked about what passes the guards; needs `texts`, of these queries and this corpus.

    Raises:
        LongspanError: as `nearest`.
    """
    if searcher is None:
        searcher = Searcher.open(queries_RD, corpus_MD, config.k, exact=True)
    positive_R = _best_positive(queries_RD, corpus_MD, positives)
    limit_R1 = _limit(positive_R, config)[:, None]
    exclude = positives if own is None else _joined(positives, own)
    guarded = config.guard is not None or config.margin is not None
    width = config.k if reranker is None else config.k * SPARE
    scores_RK = np.full((len(queries_RD), width), -np.inf, dtype=np.float32)
    indices_RK = np.full((len(queries_RD), width), -1, dtype=np.int64)
    pending, count = np.arange(len(queries_RD)), width * SPARE if guarded else width
    while len(pending):
        count = min(count, len(corpus_MD))
        scores_RC, indices_RC = searcher.find(queries_RD[pending], count, exclude.rows(pending))
        more_R = (indices_RC[:, -1] >= 0) & (count < len(corpus_MD))
        indices_RC = np.where(scores_RC <= limit_R1[pending], indices_RC, -1)
        scores_RK[pending], indices_RK[pending] = _first(scores_RC, indices_RC, width)
        pending, count = pending[more_R & (indices_RK[pending, -1] < 0)], count * SPARE
    if reranker is not None:
        assert texts is not None
        indices_RK = _reranked(indices_RK, positives, reranker, texts)
        scores_RK, indices_RK = _first(scores_RK, indices_RK, config.k)
    return Negatives(scores_RK, indices_RK, positive_R)


def random_negatives(
    num_documents: int, positives: Exclude, count: int, *, first_query: int = 0, seed: int = 0
) -> np.ndarray:
    """Documents drawn at random among those that are no positive, each set of them equally likely: (N, count) int64.

    What a query is given depends on the seed and its number alone. -1 where there are not so many documents.

    Args:
        first_query: number of the first of these queries.
    """
    num_queries = len(positives.offsets) - 1
    indices_NK = np.full((num_queries, count), -1, dtype=np.int64)
    for query in range(num_queries):
        taken_P = np.unique(positives.indices[positives.offsets[query] : positives.offsets[query + 1]])
        free = num_documents - len(taken_P)
        generator = np.random.default_rng((seed, first_query + query))
        drawn_K = generator.choice(free, size=min(count, free), replace=False)
        # The n-th free document is the n-th document, one later for every positive that stands before it.
        drawn_K += np.searchsorted(taken_P - np.arange(len(taken_P)), drawn_K, side="right")
        indices_NK[query, : len(drawn_K)] = drawn_K
    return indices_NK


def cross_encoder(model: str, margin: float = 0.0) -> Reranker:
    """A cross-encoder of sentence-transformers as a reranker.

    Raises:
        LongspanError: sentence-transformers is missing, or does not load the model.
    """
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise LongspanError(
            "a reranker needs sentence-transformers, which is not installed",
            where=model,
            remedy="pip install 'longspan[st]'",
        ) from None
    try:
        encoder = CrossEncoder(model)
    except (OSError, ValueError) as error:
        raise LongspanError(
            f"sentence-transformers does not load this reranker: {error}",
            where=model,
            remedy="name the folder or hub id of a cross-encoder",
        ) from None

    def score(pairs: list[tuple[str, str]]) -> np.ndarray:
        return np.asarray(encoder.predict(pairs, show_progress_bar=False))

    return Reranker(model, score, margin)


def _best_positive(queries_RD: np.ndarray, corpus_MD: np.ndarray, positives: Exclude) -> np.ndarray:
    owner_P = np.repeat(np.arange(len(queries_RD)), np.diff(positives.offsets))
    scores_P = score_pairs(queries_RD[owner_P], corpus_MD, positives.indices[:, None])[:, 0]
    return np.maximum.reduceat(scores_P, positives.offsets[:-1]) if len(scores_P) else scores_P


def _limit(positive_R: np.ndarray, config: Mining) -> np.ndarray:
    """The highest score that a negative may have: (R,) float32."""
    best_R = positive_R.astype(np.float64)
    limit_R = np.full(len(best_R), np.inf)
    if config.guard is not None:
        # Of a score below zero, a part is more than the whole.
        limit_R = np.where(best_R > 0, best_R * config.guard, best_R / config.guard)
    if config.margin is not None:
        limit_R = np.minimum(limit_R, best_R - config.margin)
    return limit_R.astype(np.float32)


def _first(scores_RC: np.ndarray, indices_RC: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` of each row that are not -1, in their order."""
    order_RC = np.argsort(indices_RC < 0, axis=1, kind="stable")[:, :count]
    indices_RK = np.full((len(indices_RC), count), -1, dtype=np.int64)
    scores_RK = np.full(indices_RK.shape, -np.inf, dtype=np.float32)
    indices_RK[:, : order_RC.shape[1]] = np.take_along_axis(indices_RC, order_RC, axis=1)
    scores_RK[:, : order_RC.shape[1]] = np.take_along_axis(scores_RC, order_RC, axis=1)
    return np.where(indices_RK < 0, np.float32(-np.inf), scores_RK), indices_RK


def _joined(one: Exclude, other: Exclude) -> Exclude:
    """Both, query by query."""
    owners = [np.repeat(np.arange(len(each.offsets) - 1), np.diff(each.offsets)) for each in (one, other)]
    order = np.argsort(np.concatenate(owners), kind="stable")
    return Exclude(one.offsets + other.offsets, np.concatenate([one.indices, other.indices])[order])


def _reranked(indices_RC: np.ndarray, positives: Exclude, reranker: Reranker, texts: Texts) -> np.ndarray:
    """Put -1 for the candidates that the reranker finds too near to the best positive, or better."""
    documents_R = [[*positives.indices[a:b], *row[row >= 0]] for a, b, row in _rows_of(positives, indices_RC)]
    pairs = [(texts.queries[n], texts.corpus[int(m)]) for n, row in enumerate(documents_R) for m in row]
    values = np.asarray(reranker.score(pairs), dtype=np.float64).reshape(-1)
    if len(values) != len(pairs) or not np.isfinite(values).all():
        raise LongspanError(
            f"for {len(pairs)} pairs the reranker gave {np.isfinite(values).sum()} finite scores",
            where=reranker.name,
            remedy="use a model that gives each pair of texts one score",
        )
    kept_RC, start = indices_RC.copy(), 0
    for row, documents in enumerate(documents_R):
        own = start + int(positives.offsets[row + 1] - positives.offsets[row])
        end = start + len(documents)
        good = values[own:end] <= values[start:own].max() - reranker.margin
        kept_RC[row, np.flatnonzero(indices_RC[row] >= 0)[~good]] = -1
        start = end
    return kept_RC


def _rows_of(positives: Exclude, indices_RC: np.ndarray) -> Any:
    return zip(positives.offsets[:-1], positives.offsets[1:], indices_RC, strict=True)
