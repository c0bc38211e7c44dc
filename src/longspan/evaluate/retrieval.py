"""Retrieval: does a query's vector lie nearest to the documents that were judged relevant to it?

Axes: N queries, M documents, D width, K documents kept per query.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longspan.curate.neighbours import Exclude, top_k
from longspan.data.judged import JudgedFiles, beir_files, read_judgements, texts_by_id, unknown_text
from longspan.errors import LongspanError
from longspan.evaluate import metrics
from longspan.evaluate.significance import ROUNDS, bootstrap_intervals

K_VALUES = (1, 10, 100)
"""Cut-offs that are reported unless told otherwise."""

DEPTH = 1000
"""Documents ranked per query, as BEIR and MTEB do; average precision looks at this many."""


class EmbedFunction(Protocol):
    """Anything that turns texts into vectors; `Embedder.embed` is one."""

    def __call__(self, texts: Sequence[str], *, task: str) -> np.ndarray:
        """Embed N texts for the task "search_query" or "search_document": (N, D) float32."""
        ...


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, a corpus and judgements.

    Attributes:
        name: what reports call it.
        queries: query id -> text.
        corpus: document id -> text.
        qrels: query id -> document id -> gain, above 0 for a relevant document; the same queries as `queries`.

    Raises:
        LongspanError: there is no query; or a query without a relevant document, a judgement without its query or
            its document.
    """

    name: str
    queries: dict[str, str]
    corpus: dict[str, str]
    qrels: dict[str, dict[str, float]]

    def __post_init__(self) -> None:
        if not self.queries:
            raise _broken("no query has a relevant document", self.name, "check that the qrels belong to these queries")
        if different := self.queries.keys() ^ self.qrels.keys():
            query = min(different)
            raise _broken(f"query {query!r} has a text or a judgement but not both", self.name, "give both or neither")
        for query, judged in self.qrels.items():
            if not any(gain > 0 for gain in judged.values()):
                raise _broken(f"query {query!r} has no relevant document", self.name, "leave that query out")
            if unknown := judged.keys() - self.corpus.keys():
                what = f"query {query!r} is judged for {min(unknown)!r}, which is not in the corpus"
                raise _broken(what, self.name, "add that document, or leave out the judgement")

    @classmethod
    def load(cls, folder: str | Path, *, split: str = "test") -> RetrievalSet:
        """Read a folder in BEIR's layout (https://github.com/beir-cellar/beir).

        That is `corpus.jsonl` (`_id`, optional `title`, `text`), `queries.jsonl` (`_id`, `text`), both also as
        `.jsonl.gz`, and `qrels/<split>.tsv` or `qrels.tsv` (a header line, then query id, document id, gain). A
        document's text is its title, one space and its text. Only queries with a relevant document are kept, with
        all their judgements.

        Args:
            folder: the folder; its last part becomes the name.
            split: which file of `qrels/`, where there is that folder.

        Raises:
            LongspanError: a file is missing or there twice, a line is broken (named as file:line), a judgement names an
                unknown query or document, or no query has a relevant document.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise _broken("the retrieval set is not a folder", folder, "name a folder in BEIR's layout")
        files = beir_files(str(folder), split)
        corpus, queries = texts_by_id(files.corpus), texts_by_id(files.queries)
        judged = {
            query: gains for query, gains in _read_qrels(files, queries, corpus).items() if max(gains.values()) > 0
        }
        if not judged:
            remedy = "check that the qrels belong to these queries"
            raise _broken("no query has a relevant document", files.qrels[0], remedy)
        kept = {query: text for query, text in queries.items() if query in judged}
        return cls(folder.resolve().name, kept, corpus, {query: judged[query] for query in kept})


@dataclass(frozen=True)
class RetrievalResult:
    """What a ranking of one retrieval set is worth.

    Attributes:
        name: the retrieval set.
        metrics: mean over queries, in [0, 1], under "ndcg@10", "recall@100", "mrr@10", "map" and so on.
        interval: 95 % bootstrap interval (low, high) of the mean nDCG@10 over queries.
        per_query: nDCG@10 of every query.
        num_documents: size of the corpus.
        intervals: such an interval for every one of `metrics`.
        values: every one of `metrics` -> query -> its value.
    """

    name: str
    metrics: dict[str, float]
    interval: tuple[float, float]
    per_query: dict[str, float]
    num_documents: int
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        return asdict(self) | {"interval": list(self.interval), "intervals": intervals}


@dataclass(frozen=True)
class Comparison:
    """How much better one system is than another on the same queries.

    Attributes:
        difference: mean of the per-query differences in nDCG@10.
        interval: 95 % paired bootstrap interval (low, high); the difference is significant when 0 lies outside.
        num_queries: queries compared.
    """

    difference: float
    interval: tuple[float, float]
    num_queries: int


@dataclass(frozen=True)
class SetVectors:
    """The vectors of a retrieval set, so that they can be searched in several ways.

    Attributes:
        queries_ND: in the order of `RetrievalSet.queries`.
        documents_MD: in falling order of their ids.
    """

    queries_ND: np.ndarray
    documents_MD: np.ndarray


def evaluate_retrieval(
    retrieval_set: RetrievalSet,
    embed: EmbedFunction,
    *,
    k_values: Sequence[int] = K_VALUES,
    depth: int = DEPTH,
    ignore_same_id: bool = False,
    seed: int = 0,
) -> RetrievalResult:
    """Embed queries and corpus (`embed_set`), rank by inner product, and measure (`score_vectors`).

    Raises:
        LongspanError: `embed` returned the wrong shape or values that are not finite; a k or depth that is too small.
    """
    vectors = embed_set(retrieval_set, embed)
    return score_vectors(
        retrieval_set, vectors, k_values=k_values, depth=depth, ignore_same_id=ignore_same_id, seed=seed
    )


def embed_set(retrieval_set: RetrievalSet, embed: EmbedFunction) -> SetVectors:
    """The vectors of queries and corpus; of length 1 if cosine similarity is meant.

    Raises:
        LongspanError: `embed` returned the wrong shape.
    """
    queries, corpus = retrieval_set.queries, retrieval_set.corpus
    queries_ND = _embed(embed, list(queries.values()), "search_query")
    return SetVectors(queries_ND, _embed(embed, [corpus[one] for one in _in_order(retrieval_set)], "search_document"))


def score_vectors(
    retrieval_set: RetrievalSet,
    vectors: SetVectors,
    *,
    k_values: Sequence[int] = K_VALUES,
    depth: int = DEPTH,
    ignore_same_id: bool = False,
    seed: int = 0,
) -> RetrievalResult:
    """Rank by inner product, and measure.

    The ranking is exact, with equal scores in trec_eval's order, so the measures equal pytrec_eval's on these vectors.

    Args:
        retrieval_set: what to search.
        vectors: of it.
        k_values: further cut-offs for nDCG, recall and MRR beside 10 and 100.
        depth: documents ranked per query; "map" is average precision over these.
        ignore_same_id: never rank a document for the query of the same id, as BEIR does. Right where queries are
            documents of the corpus (ArguAna, Quora), wrong where both are merely numbered.
        seed: of the bootstrap.

    Raises:
        LongspanError: values that are not finite; a k or depth that is too small.
    """
    documents, queries = _in_order(retrieval_set), list(retrieval_set.queries)
    exclude = None
    if ignore_same_id:
        place = {document: index for index, document in enumerate(documents)}
        exclude = Exclude.of([[place[query]] if query in place else [] for query in queries])
    _, indices_NK = top_k(vectors.queries_ND, vectors.documents_MD, min(depth, len(documents)), exclude=exclude)
    run = {
        query: [documents[index] for index in indices_K if index >= 0]
        for query, indices_K in zip(queries, indices_NK.tolist(), strict=True)
    }
    return score_run(retrieval_set, run, k_values=k_values, depth=depth, seed=seed)


def score_run(
    retrieval_set: RetrievalSet,
    run: metrics.Run,
    *,
    k_values: Sequence[int] = K_VALUES,
    depth: int = DEPTH,
    seed: int = 0,
) -> RetrievalResult:
    """Measure a ranking, whoever made it.

    Args:
        retrieval_set: the judgements.
        run: query id -> document ids, best first; a query that is missing found nothing.
        k_values: further cut-offs for nDCG, recall and MRR beside 10 and 100.
        depth: average precision looks at this many documents; at least the largest cut-off.
        seed: of the bootstrap.

    Raises:
        LongspanError: a k below 1, a depth below a cut-off, or a document ranked twice for one query.
    """
    cuts = sorted({10, 100, *k_values})
    if depth < cuts[-1]:
        raise LongspanError(
            f"{depth} ranked documents cannot be measured at {cuts[-1]}", where="depth", remedy="rank at least as many"
        )
    qrels = retrieval_set.qrels
    values = {f"ndcg@{k}": metrics.ndcg_at_k(run, qrels, k) for k in cuts}
    values |= {f"recall@{k}": metrics.recall_at_k(run, qrels, k) for k in cuts}
    values |= {f"mrr@{k}": metrics.mrr_at_k(run, qrels, k) for k in cuts}
    values["map"] = metrics.average_precision(run, qrels, depth)
    intervals = bootstrap_intervals({name: list(of.values()) for name, of in values.items()}, seed=seed)
    return RetrievalResult(
        name=retrieval_set.name,
        metrics={name: metrics.mean(of) for name, of in values.items()},
        interval=intervals["ndcg@10"],
        per_query=values["ndcg@10"],
        num_documents=len(retrieval_set.corpus),
        intervals=intervals,
        values=values,
    )


def compare(result: RetrievalResult, baseline: RetrievalResult, *, seed: int = 0) -> Comparison:
    """Compare two systems query by query (`result` minus `baseline`).

    Pairing removes the spread between easy and hard queries, which is most of what widens the two single intervals.

    Raises:
        LongspanError: the results are not of the same queries.
    """
    if result.name != baseline.name or result.per_query.keys() != baseline.per_query.keys():
        raise LongspanError(
            f"results on {result.name} and {baseline.name} are not of the same queries",
            where="compare",
            remedy="evaluate both systems on the same retrieval set",
        )
    differences = [value - baseline.per_query[query] for query, value in result.per_query.items()]
    difference = math.fsum(differences) / len(differences)
    return Comparison(difference, bootstrap_interval(differences, seed=seed), len(differences))


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = ROUNDS, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean (see `bootstrap_intervals`).

    Args:
        values: one per query; at least one.
        seed: the same seed gives the same interval.
        resamples: how many times to draw as many values with replacement.
        confidence: part of the resampled means inside the interval.
    """
    one = bootstrap_intervals({"mean": values}, seed=seed, resamples=resamples, confidence=confidence)
    return one["mean"]


def _in_order(retrieval_set: RetrievalSet) -> list[str]:
    """Documents in falling order of ids: a tie that goes to the lower index is then a tie in trec_eval's order."""
    return sorted(retrieval_set.corpus, reverse=True)


def _embed(embed: EmbedFunction, texts: list[str], task: str) -> np.ndarray:
    vectors = embed(texts, task=task)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise LongspanError(
            f"{len(texts)} texts gave an array of shape {vectors.shape}",
            where=f"embed, task {task}",
            remedy="return one row per text",
        )
    return vectors


def _read_qrels(
    files: JudgedFiles, queries: Mapping[str, str], corpus: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    qrels: dict[str, dict[str, float]] = {}
    for one in read_judgements(files.qrels):
        if one.query not in queries:
            raise unknown_text(one, "query", one.query)
        if one.document not in corpus:
            raise unknown_text(one, "document", one.document)
        if qrels.setdefault(one.query, {}).setdefault(one.document, one.score) != one.score:
            what = f"document {one.document!r} of query {one.query!r} was judged otherwise above"
            raise _broken(what, f"{one.file}:{one.number}", "keep one")
    return qrels


def _broken(what: str, where: str | Path, remedy: str) -> LongspanError:
    return LongspanError(what, where=where, remedy=remedy)
