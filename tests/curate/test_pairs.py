"""Pairs are read as often as needed, with their whole rows, from wherever a source has them."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from longspan.curate.pairs import PairReader
from longspan.data.source import PairSource
from longspan.errors import LongspanError

ROWS = [{"query": f"q{n}", "document": f"d{n}", "id": n} for n in range(5)]


def reader(*files, **values) -> PairReader:
    return PairReader(PairSource.parse({"name": "s", "files": [str(file) for file in files], **values}, where="test"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_rows_come_whole_and_again(tmp_path, file):
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    pairs = reader(file, tmp_path / "rows.parquet")
    for _ in range(2):
        assert [pair.row for pair in pairs] == ROWS * 2
    assert [(pair.query, pair.document) for pair in reader(file, max_rows=2)] == [("q0", "d0"), ("q1", "d1")]
    swapped = list(reader(file, query="document", document="query"))
    assert (swapped[0].query, swapped[0].document) == ("d0", "q0")


def test_a_retrieval_set_is_read_by_its_judgements(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "d", "title": "", "text": "a text"}) + "\n")
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "a query"}) + "\n")
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    assert [(pair.query, pair.document) for pair in reader(tmp_path)] == [("a query", "a text")]


def test_relative_files_are_found_from_elsewhere(tmp_path, file, monkeypatch):
    monkeypatch.chdir(file.parent)
    source = reader(file.name).source
    monkeypatch.chdir("/")
    assert len(list(PairReader(source))) == 5


def test_the_fingerprint_is_that_of_the_pairs(tmp_path, file):
    before = reader(file).fingerprint()
    moved = file.rename(tmp_path / "moved.jsonl")
    assert reader(moved).fingerprint() == before
    assert reader(moved, max_rows=3).fingerprint() != before
    assert reader(moved, query="document", document="query").fingerprint() != before
    moved.write_text(moved.read_text().replace("q4", "q5"))
    assert reader(moved).fingerprint() != before


def test_a_text_is_found_in_what_a_column_lists(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text('{"query": "q", "pos": ["d", "e"]}\n["x", "y"]\n')
    assert next(iter(reader(path, document="pos.1")))[:2] == ("q", "e")
    assert [pair[:2] for pair in reader(path, document="pos.0", max_rows=1)] == [("q", "d")]
    with pytest.raises(LongspanError, match=r"'pos\.2' is missing or empty"):
        next(iter(reader(path, document="pos.2")))
    path.write_text('["x", "y"]\n')
    assert next(iter(reader(path, query="0", document="1")))[:2] == ("x", "y")


def test_a_row_without_a_text_is_named(file):
    file.write_text(file.read_text() + '{"query": "q", "document": ""}\n')
    with pytest.raises(LongspanError, match="'document' is missing or empty") as caught:
        list(reader(file))
    assert caught.value.where == f"{file}:6"
