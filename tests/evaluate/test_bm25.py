"""The BM25 baseline on a handful of sentences and on real sets."""

import sys
from pathlib import Path

import pytest

from longspan.errors import LongspanError
from longspan.evaluate.bm25 import evaluate_bm25
from longspan.evaluate.retrieval import RetrievalSet

CORPUS = {
    "a": "The wing has lift. The wing has drag.",
    "b": "A wing, and many other things that are far from what anyone would ask for here",
    "c": "Shock waves",
    "d": "",
    "e": "shock WAVES!",
}


def ask(query: str, relevant: str, corpus: dict[str, str] = CORPUS) -> RetrievalSet:
    return RetrievalSet("sentences", {"q": query}, corpus, {"q": {relevant: 1.0}})


@pytest.mark.parametrize(
    ("query", "relevant", "mrr"),
    [
        ("wing", "a", 1.0),  # twice in a short text
        ("WING?", "b", 1 / 2),
        ("the shock waves", "e", 1.0),  # equal scores: the larger id first, as in trec_eval
        ("the shock waves", "c", 1 / 2),
        ("wing", "c", 0.0),  # shares no word: not ranked
        ("it is the", "a", 0.0),  # stop words alone
        ("unheard words", "a", 0.0),
        ("", "a", 0.0),
    ],
)
def test_ranking_of_a_few_sentences(query: str, relevant: str, mrr: float) -> None:
    pytest.importorskip("bm25s")
    assert evaluate_bm25(ask(query, relevant)).metrics["mrr@100"] == mrr


def test_a_corpus_without_words_is_refused() -> None:
    pytest.importorskip("bm25s")
    with pytest.raises(LongspanError, match="no document has a word"):
        evaluate_bm25(ask("wing", "a", {"a": "of the", "b": "?"}))


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(LongspanError) as caught:
        evaluate_bm25(ask("wing", "a"))
    assert caught.value.remedy == "pip install 'longspan[demo]'"


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "ndcg", "recall"), [("mteb/scifact", 0.662, 0.876), ("retrieval/cranfield", 0.352, 0.704)]
)
def test_bm25_on_real_sets(shared_data: Path, name: str, ndcg: float, recall: float) -> None:
    """The figures as first measured: they pin the words, the stop words, the variant and its constants."""
    pytest.importorskip("bm25s")
    result = evaluate_bm25(RetrievalSet.load(shared_data / name))
    assert result.metrics["ndcg@10"] == pytest.approx(ndcg, abs=0.003)
    assert result.metrics["recall@100"] == pytest.approx(recall, abs=0.003)
    assert result.interval[0] < result.metrics["ndcg@10"] < result.interval[1]
