"""Retrieval sets in BEIR's and MTEB's form are sources of pairs: each query with what was judged relevant to it."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from longspan.data.judged import JudgedFiles, texts_by_id
from longspan.data.layouts import layout_of, source_parts
from longspan.data.skipped import stop_on_error
from longspan.data.source import PairSource, TextSource
from longspan.errors import LongspanError

CORPUS = [
    {"_id": "d1", "title": "Wings", "text": "lift and drag"},
    {"_id": "d2", "title": "", "text": "heat"},
    {"_id": "d3", "text": "café"},
]
QUERIES = [{"_id": "q1", "text": "naïve lift"}, {"_id": "q2", "text": "東京"}]
JUDGED = [("q2", "d3", 1), ("q1", "d1", 2), ("q1", "d2", 0)]
PAIRS = [("東京", "café"), ("naïve lift", "Wings lift and drag")]


def lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def qrels(judged) -> bytes:
    return ("query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in judged)).encode()


def judged_rows(judged) -> list[dict]:
    return [{"query-id": q, "corpus-id": d, "score": s} for q, d, s in judged]


def place(folder: Path, files: Mapping[str, bytes | list[dict]]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            parquet.write_table(pa.Table.from_pylist(content), path)
    return str(folder)


def beir(folder: Path, judged=JUDGED, **more: bytes) -> str:
    return place(
        folder,
        {"corpus.jsonl": lines(CORPUS), "queries.jsonl": lines(QUERIES), "qrels/train.tsv": qrels(judged)} | more,
    )


def source_of(folder: str, **fields) -> PairSource:
    return PairSource.parse({"name": "set", "files": [folder], **fields}, where="-")


def pairs_of(folder: str, on_error=stop_on_error, **fields) -> list[tuple[str, str]]:
    source = source_of(folder, **fields)
    rows = [row for part in source_parts(source) for _, row in part.read(source, on_error)]
    return [(row["query"], row["document"]) for row in rows]


# --- BEIR -------------------------------------------------------------------------------------------------------------


def test_a_folder_of_beir_is_a_source_of_pairs(tmp_path):
    folder = beir(tmp_path)
    assert layout_of(folder) == "beir"
    assert pairs_of(folder) == PAIRS
    source = source_of(folder)
    [part] = source_parts(source)
    assert part.name == f"{folder}/qrels/train.tsv"
    assert [number for number, _ in part.read(source, stop_on_error)] == [2, 3], "numbers of the lines"


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(-1, 3)), unique_by=lambda one: one[:2], max_size=12
    ),
    st.sampled_from([0.5, 1, 2, 3]),
)
def test_pairs_are_the_judgements_from_the_threshold_on_in_their_order(tmp_path_factory, judged, threshold):
    folder = place(
        tmp_path_factory.mktemp("beir"),
        {
            "corpus.jsonl": lines({"_id": f"d{n}", "title": f"t{n}", "text": f"document {n}"} for n in range(7)),
            "queries.jsonl": lines({"_id": f"q{n}", "text": f"query {n}"} for n in range(5)),
            "qrels.tsv": qrels([(f"q{q}", f"d{d}", score) for q, d, score in judged]),
        },
    )
    expected = [(f"query {q}", f"t{d} document {d}") for q, d, score in judged if score >= threshold]
    assert pairs_of(folder, min_score=threshold) == expected


def test_the_split_is_the_one_that_is_named(tmp_path):
    folder = beir(tmp_path, **{"qrels/test.tsv": qrels(JUDGED[:1])})
    assert pairs_of(folder) == PAIRS, "for training, train"
    assert pairs_of(folder, split="test") == PAIRS[:1]
    with pytest.raises(LongspanError, match="there is no split 'dev'"):
        pairs_of(folder, split="dev")


def test_only_texts_that_are_judged_are_held(tmp_path):
    folder = beir(tmp_path)
    assert texts_by_id((f"{folder}/corpus.jsonl",), {"d3"}) == {"d3": "café"}
    assert list(texts_by_id((f"{folder}/corpus.jsonl",))) == ["d1", "d2", "d3"]


def test_a_judgement_without_its_text_is_a_broken_row(tmp_path):
    judged = [("q1", "d1", 1), ("q9", "d1", 1), ("q1", "d9", 1), ("q1", "d9", 0), ("q2", "d3", "many"), ("q2", "d3", 1)]
    folder = beir(tmp_path, judged)
    skipped: list[LongspanError] = []
    assert pairs_of(folder, skipped.append) == [PAIRS[1], PAIRS[0]]
    assert {error.where.rpartition(":")[2]: error.what for error in skipped} == {
        "3": "the query 'q9' is judged but has no text",
        "4": "the document 'd9' is judged but has no text",
        "6": "the score 'many' is not a finite number",
    }
    with pytest.raises(LongspanError, match="score 'many'"):
        pairs_of(folder)


def test_a_change_in_any_of_the_tables_changes_the_fingerprint(tmp_path):
    folder = beir(tmp_path)
    source = source_of(folder)

    def fingerprint() -> str:
        return source_parts(source)[0].fingerprint(source)

    seen = {fingerprint()}
    assert fingerprint() in seen
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
        seen.add(fingerprint())
    assert len(seen) == 4


def test_a_retrieval_set_is_no_running_text(tmp_path):
    source = TextSource(name="t", files=(beir(tmp_path),))
    with pytest.raises(LongspanError, match="for running text name the file of its corpus"):
        source_parts(source)


# --- MTEB -------------------------------------------------------------------------------------------------------------

CONFIGS = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: qrels/test.jsonl
  - split: train
    path: qrels/train.jsonl
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus.jsonl
- config_name: queries
  data_files:
  - split: queries
    path: queries.jsonl
---
"""


def test_mteb_with_a_readme(tmp_path):
    files = {"corpus.jsonl": lines(CORPUS), "queries.jsonl": lines(QUERIES), "README.md": CONFIGS.encode()}
    tables = {f"qrels/{split}.jsonl": lines(judged_rows(JUDGED[n:])) for n, split in enumerate(["train", "test"])}
    folder = place(tmp_path, files | tables)
    assert layout_of(folder) == "mteb"
    assert pairs_of(folder) == PAIRS
    assert pairs_of(folder, split="test") == PAIRS[1:]


@pytest.mark.parametrize("judgements", ["qrels", "default", "data"])
def test_mteb_in_folders_of_parquet(tmp_path, judgements):
    identified = [{"id": row["_id"], "text": row["text"], "title": row.get("title")} for row in CORPUS]
    files: dict = {
        "corpus/corpus-00000-of-00002.parquet": identified[:2],
        "corpus/corpus-00001-of-00002.parquet": identified[2:],
        "queries/queries-00000-of-00001.parquet": QUERIES,
        f"{judgements}/test-00000-of-00001.parquet": judged_rows(JUDGED),
    }
    folder = place(tmp_path, files)
    assert layout_of(folder) == "mteb"
    assert pairs_of(folder) == PAIRS


def test_mteb_in_several_languages(tmp_path):
    files = {}
    for language in ("de", "fr"):
        files[f"{language}-corpus/test-00000-of-00001.parquet"] = CORPUS
        files[f"{language}-queries/test-00000-of-00001.parquet"] = QUERIES
        files[f"{language}-qrels/test-00000-of-00001.parquet"] = judged_rows(JUDGED if language == "de" else JUDGED[1:])
    folder = place(tmp_path, files)
    assert layout_of(folder) == "mteb"
    assert pairs_of(folder, config="de") == PAIRS
    assert pairs_of(folder, config="fr") == PAIRS[1:]
    with pytest.raises(LongspanError, match="there is no table qrels or default or data") as caught:
        pairs_of(folder)
    assert "de-qrels" in caught.value.remedy


def test_judgements_in_several_files_have_growing_numbers(tmp_path):
    folder = beir(tmp_path)
    (tmp_path / "more.tsv").write_bytes(qrels([("q1", "d3", 1)]))
    part = JudgedFiles(
        (f"{folder}/corpus.jsonl",), (f"{folder}/queries.jsonl",), (f"{folder}/qrels/train.tsv", f"{folder}/more.tsv")
    )
    assert [number for number, _ in part.read(source_of(folder), stop_on_error)] == [1, 2, 3]


# --- real ones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [("mteb/scifact", "train", 919), ("mteb/scifact", "test", 339), ("retrieval/cranfield", None, 1611)],
)
def test_real_sets_are_sources(shared_data, name, split, count):
    pairs = pairs_of(str(shared_data / name), split=split)
    assert len(pairs) == count
    assert all(query.strip() and document.strip() for query, document in pairs)
