"""Evaluation texts are found in training rows: equal ones, passages, and paraphrases where there is a teacher."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.curate.contamination import (
    ContaminationConfig,
    ContaminationIndex,
    Judge,
    decontaminate,
    read_benchmark,
)
from longspan.errors import LongspanError

LONG = " ".join(f"word{n}" for n in range(40))


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def found(texts: list[str], text: str, **options) -> list[tuple]:
    return [(m.number, m.how, pytest.approx(m.score)) for m in ContaminationIndex(texts, **options).matches(text)]


# --- what matches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["who wrote  the play `` hamlet '' ?", "WHO WROTE THE PLAY HAMLET", "Who wrote the play Ham let"]
)
def test_short_texts_match_if_they_are_equal(text):
    assert found(["Where is it then?", "Who wrote the play “Hamlet”?"], text) == [(1, "equal", 1.0)]


def test_short_texts_do_not_match_inside_others():
    assert found(["Who wrote the play Hamlet?"], "Who wrote the play Hamlet, and when was it first staged?") == []
    assert found([LONG], "word1 word2 word3 word4") == []


def test_texts_of_a_word_or_two_are_not_looked_for():
    index = ContaminationIndex(["yes", "not good", "not so good"])
    assert index.too_short.tolist() == [True, True, False]
    assert [index.matches(text) for text in ("Yes!", "not good")] == [[], []]


def test_a_passage_is_found_in_a_document_whichever_of_them_is_trained_on():
    passage = " ".join(LONG.split()[10:30])
    assert found([LONG], passage.upper()) == [(0, "ngrams", 1.0)]
    assert found([passage], f"Before. {LONG}, after.") == [(0, "ngrams", 1.0)]


def test_the_ratio_is_of_the_text_with_fewer_ngrams():
    half = " ".join([*LONG.split()[:26], *(f"other{n}" for n in range(13))])
    assert len(half.split()) - 12 == 27  # 14 of its 27 n-grams of 13 words are among LONG's 28
    assert found([LONG], half, ratio=0.5) == [(0, "ngrams", 14 / 27)]
    assert found([LONG], half, ratio=0.55) == []
    assert found([half], LONG, ratio=0.5) == [(0, "ngrams", 14 / 27)]


words = st.lists(st.sampled_from("abc"), min_size=1, max_size=14).map(" ".join)


@given(st.lists(words, max_size=5), words, st.integers(1, 4), st.sampled_from([0.25, 0.5, 1.0]))
def test_matches_are_those_of_the_definition(texts, text, n, ratio):
    def ngrams(words: str) -> set:
        own = words.split()
        return {tuple(own[i : i + n]) for i in range(len(own) - n + 1)}

    expected = []
    for number, other in enumerate(texts):
        fewer = min(len(ngrams(text)), len(ngrams(other)))
        if text == other and len(other.split()) >= 3:
            expected.append((number, "equal", 1.0))
        elif fewer and len(ngrams(text) & ngrams(other)) / fewer >= ratio:
            expected.append((number, "ngrams", len(ngrams(text) & ngrams(other)) / fewer))
    assert found(texts, text, ngram=n, ratio=ratio) == expected


# --- evaluation sets --------------------------------------------------------------------------------------------------


def test_layouts(tmp_path):
    write(tmp_path / "scifact/corpus.jsonl", [{"_id": "1", "title": "A title", "text": "and a text"}])
    write(tmp_path / "scifact/queries.jsonl", [{"_id": "1", "text": "a claim"}])
    (tmp_path / "scifact/qrels").mkdir()
    (tmp_path / "scifact/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t1\t1\n")
    texts = read_benchmark(str(tmp_path / "scifact"))
    assert [text[:2] + text[3:] for text in texts] == [
        ("scifact", "documents", "A title and a text"),
        ("scifact", "queries", "a claim"),
    ]
    [query] = read_benchmark(str(tmp_path / "scifact/queries.jsonl"))
    assert query == ("scifact/queries.jsonl", "queries", f"{tmp_path}/scifact/queries.jsonl:1", "a claim")
    write(tmp_path / "mrpc/test.jsonl", [{"sentence1": "one", "sentence2": "two", "label": 1, "idx": 9}])
    write(tmp_path / "mrpc/dev.jsonl", [{"sentence1": "three", "sentence2": "", "label": 0, "idx": 8}])
    assert [text[:2] + text[3:] for text in read_benchmark(str(tmp_path / "mrpc"))] == [
        ("mrpc/dev.jsonl", "sentence1", "three"),
        ("mrpc/test.jsonl", "sentence1", "one"),
        ("mrpc/test.jsonl", "sentence2", "two"),
    ]
    odd = write(tmp_path / "odd.jsonl", [{"claim": "a claim", "text": "not asked for"}])
    assert [text.text for text in read_benchmark(odd, ["claim"])] == ["a claim"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty", "has no files of rows"), ("numbers.jsonl", "no row has a column of text"), ("gone.jsonl", "no file")],
)
def test_sets_without_texts_are_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "numbers.jsonl", [{"label": 1}])
    with pytest.raises(LongspanError, match=message):
        read_benchmark(str(tmp_path / name))


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sets(tmp_path) -> list[str]:
    write(tmp_path / "beir/queries.jsonl", [{"_id": "1", "text": "Who wrote the play?"}, {"_id": "2", "text": "Why?"}])
    write(tmp_path / "beir/corpus.jsonl", [{"_id": "1", "title": "", "text": LONG}])
    return [str(tmp_path / "beir"), write(tmp_path / "bank/test.jsonl", [{"text": "when will my card come"}])]


ROWS = [
    {"query": "who wrote the play", "document": "somebody did", "n": 0},
    {"query": "why?", "document": "because it is so", "n": 1},
    {"query": "another one", "document": "no", "negatives": ["fine", f"so {LONG}"], "n": 2},
    {"query": "When will my card come?", "document": LONG, "n": 3},
]


def test_rows_are_kept_or_dropped_and_said_why(tmp_path, sets):
    files = [write(tmp_path / "a.jsonl", ROWS[:2]), write(tmp_path / "b.jsonl", ROWS[2:])]
    done: list[int] = []
    report = decontaminate(files, sets, tmp_path / "out", ContaminationConfig(), progress=done.append)
    assert read(tmp_path / "out/kept/a.jsonl") == ROWS[1:2]
    assert read(tmp_path / "out/kept/b.jsonl") == []
    dropped = read(tmp_path / "out/dropped.jsonl")
    assert [row["n"] for row in dropped] == [0, 2, 3]
    assert dropped[1]["contamination"] == [
        {
            "column": "negatives",
            "benchmark": "beir",
            "kind": "documents",
            "where": f"{sets[0]}/corpus.jsonl:1",
            "how": "ngrams",
            "score": 1.0,
        }
    ]
    assert [(found["benchmark"], found["column"]) for found in dropped[2]["contamination"]] == [
        ("bank/test.jsonl", "query"),
        ("beir", "document"),
    ]
    assert (report["rows"], report["kept"], report["dropped"], sum(done)) == (4, 1, 3, 4)
    assert report["files"] == {files[0]: {"rows": 2, "dropped": 1}, files[1]: {"rows": 2, "dropped": 2}}
    beir, bank = report["benchmarks"]["beir"], report["benchmarks"]["bank/test.jsonl"]
    assert (beir["rows_dropped"], bank["rows_dropped"]) == (3, 1)
    by = {"equal": 0, "ngrams": 0, "vectors": 0}
    assert beir["texts"] == {
        "documents": {"texts": 1, "too_short": 0, "met": 1, "met_by": by | {"equal": 1, "ngrams": 1}},
        "queries": {"texts": 2, "too_short": 1, "met": 1, "met_by": by | {"equal": 1}},
    }
    assert beir["first_match_in"] == {"query": 1, "negatives": 1, "document": 1}
    [example] = bank["examples"]
    assert (example["training"], example["evaluation"]) == ("When will my card come?", "when will my card come")
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    # What is left is clean.
    again = decontaminate([str(tmp_path / "out/kept/a.jsonl")], sets, tmp_path / "again", ContaminationConfig())
    assert again["dropped"] == 0


def test_columns_can_be_named(tmp_path, sets):
    file = write(tmp_path / "a.jsonl", [{"ask": "who wrote the play", "query": "when will my card come"}])
    report = decontaminate([file], sets, tmp_path / "out", ContaminationConfig(columns=("ask",)))
    assert {name: b["rows_dropped"] for name, b in report["benchmarks"].items()} == {"beir": 1, "bank/test.jsonl": 0}


def test_a_teacher_finds_paraphrases(tmp_path, make_embedder):
    # To this teacher, texts with the same first number are near each other.
    against = write(tmp_path / "eval.jsonl", [{"text": "what are 7 dwarfs"}, {"text": "who has 9 lives"}])
    rows = [{"query": "name 7 small men", "document": "there they are"}, {"query": "12 men", "document": "angry"}]
    file = write(tmp_path / "a.jsonl", rows)
    embedder = make_embedder()
    judge = Judge(embedder, 0.8, tmp_path / "vectors", task="classification", max_length=64)
    report = decontaminate([file], [against], tmp_path / "out", ContaminationConfig(), judge=judge)
    assert {(task, length) for _, task, length in embedder.embedded} == {("classification", 64)}
    [dropped] = read(tmp_path / "out/dropped.jsonl")
    [match] = dropped["contamination"]
    vectors = [embedder.vector(text, "classification", 64) for text in ("name 7 small men", "what are 7 dwarfs")]
    assert match["how"] == "vectors"
    assert match["score"] == pytest.approx(float(np.dot(*vectors)), abs=1e-4)
    [benchmark] = report["benchmarks"].values()
    assert benchmark["texts"]["text"]["met_by"] == {"equal": 0, "ngrams": 0, "vectors": 1}
    assert report["settings"]["teacher_fingerprint"] == embedder.fingerprint


@pytest.mark.parametrize(
    ("rows", "against", "message"),
    [([{"n": 1}], "beir", r"a.jsonl:1"), (ROWS[:1], "gone", "no file"), ([{"document": 1}], "beir", "has no text")],
)
def test_what_cannot_be_checked_is_refused(tmp_path, sets, rows, against, message):
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(LongspanError, match=message):
        decontaminate([file], [str(tmp_path / against)], tmp_path / "out", ContaminationConfig())
    assert not (tmp_path / "out/kept").exists()


# --- real data --------------------------------------------------------------------------------------------------------


def check(shared_data: Path, tmp_path: Path, file: str, *against: str, **options) -> dict:
    names = [str(shared_data / name) for name in against]
    config = ContaminationConfig(**options)
    return decontaminate([str(shared_data / file)], names, tmp_path / "out", config)["benchmarks"]


def test_squad_sentence_holds_the_questions_of_squad(shared_data, tmp_path):
    """Its README says so: the dev questions, lower-cased and tokenised."""
    options = {"columns": ("query",), "benchmark_columns": ("query",)}
    report = check(shared_data, tmp_path, "pairs/squad_sentence.jsonl.gz", "pairs/squad.jsonl.gz", **options)
    [benchmark] = report.values()
    assert benchmark["texts"]["query"]["met"] > 0.99 * benchmark["texts"]["query"]["texts"]


def test_banking77_rows_are_training_rows_of_banking77(shared_data, tmp_path):
    report = check(shared_data, tmp_path, "triplets/bge_examples.jsonl.gz", "mteb/banking77/train.jsonl.gz")
    dropped = read(tmp_path / "out/dropped.jsonl")
    assert [row["source"] for row in dropped] == ["Banking77Classification"] * 10
    assert report["banking77/train.jsonl.gz"]["first_match_in"] == {"query": 10}


def test_leval_reports_are_those_of_gov_report(shared_data, tmp_path):
    sets = ["longcontext/gov_report", "longcontext/big_patent"]
    report = check(shared_data, tmp_path, "pairs/leval_gov_report.jsonl.gz", *sets)
    assert {kind: counts["met"] for kind, counts in report["gov_report"]["texts"].items()} == {
        "documents": 13,
        "queries": 13,
    }
    assert report["big_patent"]["rows_dropped"] == 0


# --- the command ------------------------------------------------------------------------------------------------------


def test_command(tmp_path, monkeypatch, capsys, sets, small_embedder):
    from longspan.cli import main

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", ROWS)
    assert main(["curate", "decontaminate", "a.jsonl", "--against", *sets, "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "beir: met 1 of 1 documents, 1 of 2 queries; 3 rows dropped" in out
    assert "kept 1 of 4 rows: out/kept" in out
    small_embedder.save(tmp_path / "teacher")
    with_teacher = "curate decontaminate a.jsonl --teacher teacher --similarity -1 --out all --against bank/test.jsonl"
    assert main(with_teacher.split()) == 0
    assert "kept 0 of 4 rows" in capsys.readouterr().out
