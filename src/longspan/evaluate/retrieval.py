"""Retrieval: does a query's vector lie nearest to the documents that were judged relevant to it?

Axes: N queries, M documents, D width, K documents kept per query.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longspan.curate.neighbours import Exclude, top_k
from longspan.errors import LongspanError
from longspan.evaluate import metrics

K_VALUES = (1, 10, 100)
"""Cut-offs that are reported unless told otherwise."""

DEPTH = 1000
"""Documents ranked per query, as BEIR and MTEB do; average precision looks at this many."""

RESAMPLES = 10_000
"""Bootstrap resamples behind every interval."""


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
                raise _broken(f"query {query!r} is judged for {min(unknown)!r}, which is not in the corpus", self.name)

    @classmethod
    def load(cls, folder: str | Path, *, split: str = "test") -> RetrievalSet:
        """Read a folder in BEIR's layout (https://github.com/beir-cellar/beir).

        That is `corpus.jsonl` (`_id`, optional `title`, `text`), `queries.jsonl` (`_id`, `text`), both also as
        `.jsonl.gz`, and `qrels/<split>.tsv` or `qrels.tsv` (a header line, then query id, document id, gain). A
        document's text is its title, one space and its text. Only queries with a relevant document are kept, with
        all their judgements.

        Args:
            folder: the folder; its last part becomes the name.
            split: which file of `qrels/`.

        Raises:
            LongspanError: a file is missing or there twice, a line is broken (named as file:line), a judgement names an
                unknown query or document, or no query has a relevant document.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise _broken("the retrieval set is not a folder", folder, "name a folder in BEIR's layout")
        corpus = _read_texts(_find(folder, "corpus.jsonl", "corpus.jsonl.gz"))
        queries = _read_texts(_find(folder, "queries.jsonl", "queries.jsonl.gz"))
        path = _find(folder, f"qrels/{split}.tsv", "qrels.tsv")
        judged = {
            query: gains for query, gains in _read_qrels(path, queries, corpus).items() if max(gains.values()) > 0
        }
        if not judged:
            raise _broken("no query has a relevant document", path, "check that the qrels belong to these queries")
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
    """

    name: str
    metrics: dict[str, float]
    interval: tuple[float, float]
    per_query: dict[str, float]
    num_documents: int

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return asdict(self) | {"interval": list(self.interval)}


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


def evaluate_retrieval(
    retrieval_set: RetrievalSet,
    embed: EmbedFunction,
    *,
    k_values: Sequence[int] = K_VALUES,
    depth: int = DEPTH,
    ignore_same_id: bool = False,
    seed: int = 0,
) -> RetrievalResult:
    """Embed queries and corpus, rank by inner product, and measure.

    The ranking is exact, with equal scores in trec_eval's order, so the measures equal pytrec_eval's on these vectors.

    Args:
        retrieval_set: what to search.
        embed: makes vectors; of length 1 if cosine similarity is meant.
        k_values: further cut-offs for nDCG, recall and MRR beside 10 and 100.
        depth: documents ranked per query; "map" is average precision over these.
        ignore_same_id: never rank a document for the query of the same id, as BEIR does. Right where queries are
            documents of the corpus (ArguAna, Quora), wrong where both are merely numbered.
        seed: of the bootstrap.

    Raises:
        LongspanError: `embed` returned the wrong shape or values that are not finite; a k or depth that is too small.
    """
    # In falling order of ids a tie that goes to the lower index is a tie in trec_eval's order.
    documents = sorted(retrieval_set.corpus, reverse=True)
    queries = list(retrieval_set.queries)
    queries_ND = _embed(embed, [retrieval_set.queries[query] for query in queries], "search_query")
    documents_MD = _embed(embed, [retrieval_set.corpus[document] for document in documents], "search_document")
    exclude = None
    if ignore_same_id:
        place = {document: index for index, document in enumerate(documents)}
        exclude = Exclude.of([[place[query]] if query in place else [] for query in queries])
    _, indices_NK = top_k(queries_ND, documents_MD, min(depth, len(documents)), exclude=exclude)
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
    per_query = metrics.ndcg_at_k(run, qrels, 10)
    means = {f"ndcg@{k}": metrics.mean(metrics.ndcg_at_k(run, qrels, k)) for k in cuts}
    means |= {f"recall@{k}": metrics.mean(metrics.recall_at_k(run, qrels, k)) for k in cuts}
    means |= {f"mrr@{k}": metrics.mean(metrics.mrr_at_k(run, qrels, k)) for k in cuts}
    means["map"] = metrics.mean(metrics.average_precision(run, qrels, depth))
    return RetrievalResult(
        name=retrieval_set.name,
        metrics=means,
        interval=bootstrap_interval(list(per_query.values()), seed=seed),
        per_query=per_query,
        num_documents=len(retrieval_set.corpus),
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
    values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: one per query; at least one.
        seed: the same seed gives the same interval.
        resamples: how many times to draw as many values with replacement.
        confidence: part of the resampled means inside the interval.
    """
    generator = np.random.default_rng(seed)
    values_N = np.asarray(values, dtype=np.float64)
    # One resample at a time: all at once would need queries x resamples numbers.
    means = [values_N[generator.integers(len(values_N), size=len(values_N))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _embed(embed: EmbedFunction, texts: list[str], task: str) -> np.ndarray:
    vectors = embed(texts, task=task)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise LongspanError(
            f"{len(texts)} texts gave an array of shape {vectors.shape}",
            where=f"embed, task {task}",
            remedy="return one row per text",
        )
    return vectors


def _find(folder: Path, *names: str) -> Path:
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise _broken(f"there is no {' or '.join(names)}", folder, "put that file there (BEIR's layout)")
    if len(found) > 1:
        raise _broken(f"there are both {' and '.join(names)}", folder, "keep the one you mean")
    return found[0]


def _read_texts(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, line in _read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise _broken(f"the line is not JSON: {error}", where) from None
        if not isinstance(row, dict):
            raise _broken("the line is not a JSON object", where)
        identity = _field(row, "_id", where)
        if identity in texts:
            raise _broken(f"_id {identity!r} is there a second time", where, "keep one line per _id")
        title = _field(row, "title", where) if row.get("title") is not None else ""
        texts[identity] = f"{title} {_field(row, 'text', where)}".strip()
    return texts


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise _broken(f"the field {name!r} is missing", where)
    if not isinstance(row[name], str):
        raise _broken(f"the field {name!r} is {json.dumps(row[name])[:40]} and not a string", where)
    return row[name]


def _read_qrels(path: Path, queries: Mapping[str, str], corpus: Mapping[str, str]) -> dict[str, dict[str, float]]:
    qrels: dict[str, dict[str, float]] = {}
    lines = _read_lines(path)
    for where, line in lines:
        if line.strip():
            _check_header(line, where)
            break
    for where, line in lines:
        if not line.strip():
            continue
        query, document, gain = _judgement(line, where)
        if query not in queries:
            raise _broken(f"the query {query!r} is judged but has no text", where, "add it to the queries")
        if document not in corpus:
            raise _broken(f"the document {document!r} is judged but has no text", where, "add it to the corpus")
        if qrels.setdefault(query, {}).setdefault(document, gain) != gain:
            raise _broken(f"document {document!r} of query {query!r} was judged otherwise above", where, "keep one")
    return qrels


def _check_header(line: str, where: str) -> None:
    fields = line.rstrip("\r\n").split("\t")
    if len(fields) == 3 and _number(fields[2]) is None:
        return
    raise _broken(
        f"the first line is not a header: {line.strip()[:60]!r}",
        where,
        "begin the file with the line query-id, corpus-id, score, separated by tabs",
    )


def _judgement(line: str, where: str) -> tuple[str, str, float]:
    fields = line.rstrip("\r\n").split("\t")
    if len(fields) != 3:
        raise _broken(f"the line has {len(fields)} fields separated by tabs instead of 3", where)
    gain = _number(fields[2])
    if gain is None:
        raise _broken(f"the score {fields[2]!r} is not a finite number", where)
    return fields[0], fields[1], gain


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file:line, line) of a UTF-8 file, plain or gzipped."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                yield f"{path}:{number}", line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _broken(f"the line is not UTF-8: {error}", f"{path}:{number}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(f"the file cannot be read: {error}", f"{path}:{number + 1}", "fetch the file again") from None


def _broken(what: str, where: str | Path, remedy: str = "mend that line, or fetch the data again") -> LongspanError:
    return LongspanError(what, where=where, remedy=remedy)
