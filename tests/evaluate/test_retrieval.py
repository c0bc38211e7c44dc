"""Reading retrieval sets, ranking with vectors, and intervals. Axes: N texts, D width."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longspan.errors import LongspanError
from longspan.evaluate.retrieval import (
    RetrievalResult,
    RetrievalSet,
    bootstrap_interval,
    compare,
    evaluate_retrieval,
    score_run,
)

CORPUS = [
    {"_id": "d1", "title": "Wings", "text": "lift and drag"},
    {"_id": "d2", "text": "heat"},
    {"_id": "d3", "title": "", "text": " shock waves "},
    {"_id": "d4", "title": None, "text": "caf\u00e9"},
]
QUERIES = [{"_id": "q1", "text": "lift"}, {"_id": "q2", "text": "waves"}, {"_id": "q3", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\nq2\td3\t1\nq1\td1\t2\nq1\td2\t0\nq3\td2\t0\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wind"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(lines(CORPUS), "utf-8")
    (folder / "queries.jsonl").write_text(lines(QUERIES), "utf-8")
    (folder / "qrels" / "test.tsv").write_text(QRELS, "utf-8")
    return folder


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def small_set(num_queries: int = 8, num_documents: int = 30) -> RetrievalSet:
    generator = np.random.default_rng(1)
    corpus = {f"{n}": f"document {n}" for n in range(num_documents)}
    qrels = {
        f"{query}": {f"{document}": float(generator.integers(1, 3)) for document in generator.integers(30, size=4)}
        for query in range(num_queries)
    }
    return RetrievalSet("small", {query: f"query {query}" for query in qrels}, corpus, qrels)


def coarse_vectors(texts: Sequence[str], *, task: str) -> np.ndarray:
    """Integer vectors that depend on the text alone; few values, so many scores are equal."""
    return np.array(
        [np.random.default_rng(list(text.encode())).integers(-1, 2, size=3) for text in texts], dtype=np.float32
    )


def result_of(values: Sequence[float], name: str = "small") -> RetrievalResult:
    per_query = {f"{number}": value for number, value in enumerate(values)}
    return RetrievalResult(name, {}, bootstrap_interval(values), per_query, 10)


def test_load_reads_beir_folders(folder: Path) -> None:
    loaded = RetrievalSet.load(folder)
    assert loaded == RetrievalSet(
        name="wind",
        queries={"q1": "lift", "q2": "waves"},
        corpus={"d1": "Wings lift and drag", "d2": "heat", "d3": "shock waves", "d4": "café"},
        qrels={"q1": {"d1": 2.0, "d2": 0.0}, "q2": {"d3": 1.0}},
    )


def test_load_reads_gzip_another_split_and_files_from_windows(folder: Path) -> None:
    expected = RetrievalSet.load(folder)
    for name in ("corpus.jsonl", "queries.jsonl"):
        content = b"\xef\xbb\xbf" + (folder / name).read_bytes().replace(b"\n", b"\r\n") + b"\r\n"
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        (folder / name).unlink()
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    assert RetrievalSet.load(folder, split="dev") == expected
    (folder / "qrels" / "dev.tsv").rename(folder / "qrels.tsv")
    assert RetrievalSet.load(folder) == expected


def rewrite(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


@pytest.mark.parametrize(
    ("spoil", "what", "where"),
    [
        (lambda folder: (folder / "corpus.jsonl").unlink(), "no corpus.jsonl or corpus.jsonl.gz", "wind"),
        (lambda folder: (folder / "qrels/test.tsv").unlink(), "no qrels/test.tsv or qrels.tsv", "wind"),
        (rewrite("queries.jsonl.gz", b""), "both queries.jsonl and queries.jsonl.gz", "wind"),
        (rewrite("corpus.jsonl", lines(CORPUS[:1]) + '{"_id": \n'), "broken JSON", "corpus.jsonl:2"),
        (rewrite("corpus.jsonl", "5\n"), "neither a JSON object", "corpus.jsonl:1"),
        (rewrite("corpus.jsonl", lines([CORPUS[0], {"_id": "d2"}])), "field 'text' is missing", "corpus.jsonl:2"),
        (rewrite("corpus.jsonl", lines([{"text": "x"}])), "field '_id' is missing", "corpus.jsonl:1"),
        (rewrite("corpus.jsonl", lines([{"_id": 7, "text": "x"}])), "'_id' is 7 and not a string", "corpus.jsonl:1"),
        (rewrite("queries.jsonl", lines([QUERIES[0], QUERIES[0]])), "'q1' is there a second time", "queries.jsonl:2"),
        (rewrite("queries.jsonl", lines(QUERIES[:1]).encode() + b"\xff\n"), "'utf-8' codec", "queries.jsonl:2"),
        (rewrite("qrels/test.tsv", QRELS.replace("d3", "d9")), "document 'd9' is judged", "test.tsv:2"),
        (rewrite("qrels/test.tsv", QRELS.replace("q2", "q9")), "query 'q9' is judged", "test.tsv:2"),
        (rewrite("qrels/test.tsv", QRELS.split("\n", 1)[1]), "first line is not a header", "test.tsv:1"),
        (rewrite("qrels/test.tsv", QRELS + "q1 0 d1 1\n"), "has 1 fields", "test.tsv:6"),
        (rewrite("qrels/test.tsv", QRELS + "q1\td3\tnan\n"), "'nan' is not a finite number", "test.tsv:6"),
        (rewrite("qrels/test.tsv", QRELS + "q1\td1\t1\n"), "judged otherwise above", "test.tsv:6"),
        (rewrite("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t0\n"), "no query has a relevant", "test.tsv"),
        (rewrite("qrels/test.tsv", ""), "no query has a relevant", "test.tsv"),
    ],
)
def test_load_names_what_is_broken_and_where(
    folder: Path, spoil: Callable[[Path], object], what: str, where: str
) -> None:
    spoil(folder)
    with pytest.raises(LongspanError) as caught:
        RetrievalSet.load(folder)
    assert what in caught.value.what
    assert caught.value.where.endswith(where)
    assert caught.value.remedy


def test_load_refuses_a_missing_folder_and_a_torn_gzip_file(folder: Path) -> None:
    with pytest.raises(LongspanError, match="not a folder"):
        RetrievalSet.load(folder / "nowhere")
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(lines(CORPUS).encode())[:-12])
    with pytest.raises(LongspanError, match="cannot be read"):
        RetrievalSet.load(folder)


@pytest.mark.parametrize(
    ("queries", "qrels", "message"),
    [
        ({}, {}, "no query has a relevant document"),
        ({"q": "x"}, {}, "'q' has a text or a judgement but not both"),
        ({"q": "x"}, {"q": {"d": 1.0}, "p": {"d": 1.0}}, "'p' has a text or a judgement but not both"),
        ({"q": "x"}, {"q": {"d": 0.0}}, "'q' has no relevant document"),
        ({"q": "x"}, {"q": {"d": 1.0, "e": 1.0}}, "judged for 'e', which is not in the corpus"),
    ],
)
def test_a_set_made_by_hand_is_checked_too(
    queries: dict[str, str], qrels: dict[str, dict[str, float]], message: str
) -> None:
    with pytest.raises(LongspanError, match=message):
        RetrievalSet("hand", queries, {"d": "text"}, qrels)


def test_evaluate_by_hand(folder: Path) -> None:
    asked: list[tuple[str, list[str]]] = []

    def embed(texts: Sequence[str], *, task: str) -> np.ndarray:
        asked.append((task, sorted(texts)))
        words = ["lift", "waves", "heat"]
        return np.array([[word in text for word in words] for text in texts], dtype=np.float32)

    result = evaluate_retrieval(RetrievalSet.load(folder), embed, k_values=[1])
    assert asked == [
        ("search_query", ["lift", "waves"]),
        ("search_document", ["Wings lift and drag", "café", "heat", "shock waves"]),
    ]
    assert result.metrics.keys() == {f"{name}@{k}" for name in ("ndcg", "recall", "mrr") for k in (1, 10, 100)} | {
        "map"
    }
    assert set(result.metrics.values()) == {1.0}
    assert (result.name, result.num_documents, result.per_query) == ("wind", 4, {"q1": 1.0, "q2": 1.0})
    assert json.loads(json.dumps(result.as_json()))["interval"] == [1.0, 1.0]


def test_evaluate_equals_pytrec_eval_with_many_ties() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    small = small_set()
    result = evaluate_retrieval(small, coarse_vectors)
    queries_ND = coarse_vectors(list(small.queries.values()), task="search_query")
    documents_MD = coarse_vectors(list(small.corpus.values()), task="search_document")
    scores_NM = (queries_ND @ documents_MD.T).tolist()
    run = {
        query: dict(zip(small.corpus, scores_M, strict=True))
        for query, scores_M in zip(small.queries, scores_NM, strict=True)
    }
    qrels = {query: {document: int(gain) for document, gain in judged.items()} for query, judged in small.qrels.items()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10,100", "map"}).evaluate(run)
    assert result.per_query == pytest.approx({query: values["ndcg_cut_10"] for query, values in theirs.items()})
    for name, measure in [("recall@10", "recall_10"), ("recall@100", "recall_100"), ("map", "map")]:
        assert result.metrics[name] == pytest.approx(np.mean([values[measure] for values in theirs.values()]))
    assert len({score for scores in scores_NM for score in scores}) < 10  # ties there were


def test_documents_with_the_id_of_the_query_can_be_left_out() -> None:
    texts = {"a": "one", "b": "two"}
    same = RetrievalSet("same", texts, texts | {"c": "three"}, {"a": {"b": 1.0}, "b": {"c": 1.0}})

    def embed(texts: Sequence[str], *, task: str) -> np.ndarray:
        places = {"one": [3, 0, 0], "two": [2, 2, 0], "three": [0, 1, 1]}
        return np.array([places[text] for text in texts], dtype=np.float32)

    assert evaluate_retrieval(same, embed).metrics["mrr@10"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert evaluate_retrieval(same, embed, ignore_same_id=True).metrics["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((2, 3, 1)), r"8 texts gave an array of shape \(2, 3, 1\)"),
        (np.ones((3, 3)), r"8 texts gave an array of shape \(3, 3\)"),
        (np.full((8, 3), np.nan), "not a finite float32"),
    ],
)
def test_evaluate_refuses_what_embed_should_not_return(vectors: np.ndarray, message: str) -> None:
    def embed(texts: Sequence[str], *, task: str) -> np.ndarray:
        return vectors if task == "search_query" else np.ones((len(texts), 3), dtype=np.float32)

    with pytest.raises(LongspanError, match=message):
        evaluate_retrieval(small_set(), embed)


def test_a_depth_that_is_less_than_a_cut_off_is_refused() -> None:
    with pytest.raises(LongspanError, match="50 ranked documents cannot be measured at 100"):
        evaluate_retrieval(small_set(), coarse_vectors, depth=50)


def test_a_query_without_a_ranking_counts_as_a_failure() -> None:
    small = small_set(num_queries=4)
    best = {query: sorted(judged, key=lambda document: -judged[document]) for query, judged in small.qrels.items()}
    assert score_run(small, best).metrics["ndcg@10"] == 1.0
    del best["2"]
    assert score_run(small, best).metrics["ndcg@10"] == 0.75


def test_bootstrap_interval_is_seeded_and_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(3).uniform(size=400)
    low, high = bootstrap_interval(values.tolist(), resamples=4000)
    half = 1.96 * values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)
    assert bootstrap_interval(values.tolist(), resamples=4000) == (low, high)
    assert bootstrap_interval(values.tolist(), resamples=4000, seed=1) != (low, high)
    narrow = bootstrap_interval(values.tolist(), resamples=4000, confidence=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


def test_compare_pairs_the_queries() -> None:
    generator = np.random.default_rng(0)
    base_N = generator.uniform(0.1, 0.9, size=200)
    better_N = base_N + generator.uniform(0.0, 0.02, size=200)
    result, baseline = result_of(better_N.tolist()), result_of(base_N.tolist())
    assert result.interval[0] < baseline.interval[1]  # each by itself cannot tell them apart
    comparison = compare(result, baseline)
    assert comparison.difference == pytest.approx(better_N.mean() - base_N.mean())
    assert 0 < comparison.interval[0] < comparison.difference < comparison.interval[1] < 0.02
    assert comparison.num_queries == 200
    shuffled = RetrievalResult("small", {}, (0, 1), dict(reversed(baseline.per_query.items())), 10)
    assert compare(result, shuffled).difference == pytest.approx(comparison.difference)


@pytest.mark.parametrize("other", [result_of([0.5, 0.5], "another"), result_of([0.5, 0.5, 0.5])])
def test_compare_refuses_different_queries(other: RetrievalResult) -> None:
    with pytest.raises(LongspanError, match="not of the same queries"):
        compare(result_of([0.5, 0.5]), other)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("mteb/scifact", "test", (300, 5183, 339)),
        ("mteb/scifact", "train", (809, 5183, 919)),
        ("retrieval/cranfield", "test", (225, 1398, 1611)),
        ("longcontext/qmsum", "test", (272, 35, 272)),
    ],
)
def test_real_sets_load_whole(shared_data: Path, name: str, split: str, counts: tuple[int, int, int]) -> None:
    loaded = RetrievalSet.load(shared_data / name, split=split)
    assert (len(loaded.queries), len(loaded.corpus), sum(map(len, loaded.qrels.values()))) == counts
    assert loaded.name == Path(name).name
