"""One's own corpus: pairs, and folders in two forms."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from longspan.errors import LongspanError
from longspan.evaluate.corpus import load_retrieval_set
from longspan.evaluate.retrieval import RetrievalSet

PAIRS = [("capital of France", "Paris"), ("birds", "wings"), ("capital of France", "Paris is it"), ("flight", "wings")]


def write_pairs(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_pairs_become_queries_and_a_corpus_of_distinct_texts(tmp_path: Path) -> None:
    found = load_retrieval_set(write_pairs(tmp_path / "faq.jsonl", [{"query": q, "document": d} for q, d in PAIRS]))
    assert found.name == "faq"
    assert list(found.queries.values()) == ["capital of France", "birds", "flight"]
    assert list(found.corpus.values()) == ["Paris", "wings", "Paris is it"]
    answers = {found.queries[q]: {found.corpus[d] for d in judged} for q, judged in found.qrels.items()}
    assert answers == {"capital of France": {"Paris", "Paris is it"}, "birds": {"wings"}, "flight": {"wings"}}


@pytest.mark.parametrize(
    ("row", "what"),
    [({"query": "a"}, "no text under 'document'"), ({"query": " ", "document": "b"}, "no text under 'query'")],
)
def test_a_broken_pair_is_named(tmp_path: Path, row: dict[str, object], what: str) -> None:
    file = write_pairs(tmp_path / "faq.jsonl", [{"query": "a", "document": "b"}, row])
    with pytest.raises(LongspanError, match=what) as caught:
        load_retrieval_set(file)
    assert caught.value.where == f"{file}:2"


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LongspanError, match="holds no pairs"):
        load_retrieval_set(write_pairs(tmp_path / "faq.jsonl", []))


def test_folders_of_both_forms_hold_the_same(tmp_path: Path) -> None:
    tables = {
        "corpus": [{"_id": "d1", "title": "Wings", "text": "lift"}, {"_id": "d2", "text": "heat"}],
        "queries": [{"_id": "q1", "text": "fly"}, {"_id": "q2", "text": "unjudged"}],
    }
    for form in ("beir", "hub"):
        for name, rows in tables.items():
            path = tmp_path / form / "set" / (f"{name}.jsonl" if form == "beir" else f"{name}/test.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_pairs(path, list(rows))
    (tmp_path / "beir" / "set" / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    (tmp_path / "hub" / "set" / "qrels").mkdir()
    write_pairs(tmp_path / "hub" / "set" / "qrels" / "test.jsonl", [{"query-id": "q1", "corpus-id": "d1", "score": 1}])
    expected = RetrievalSet("set", {"q1": "fly"}, {"d1": "Wings lift", "d2": "heat"}, {"q1": {"d1": 1.0}})
    assert load_retrieval_set(tmp_path / "beir" / "set") == expected
    assert load_retrieval_set(tmp_path / "hub" / "set") == expected
