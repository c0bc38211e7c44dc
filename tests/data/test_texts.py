"""A source's columns become texts, wherever in the row they stand; a row that does not have them is named."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from longspan.data.parts import FilePart
from longspan.data.source import PairSource, TextSource
from longspan.data.texts import read_texts
from longspan.errors import LongspanError


def texts_of(path, **columns):
    source = PairSource(name="a", files=(str(path),), **columns)
    return [texts.columns for texts in read_texts(source, FilePart(str(path)))]


def pair(query, document, *negatives):
    return {"query": [query], "document": [document], "negatives": list(negatives)}


def test_places_of_a_json_array_are_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('["q1", "d1", ["n"]]\n["q2", "d2", []]\n')
    assert texts_of(tmp_path / "a.jsonl", query="0", document="1") == [pair("q1", "d1"), pair("q2", "d2")]
    assert texts_of(tmp_path / "a.jsonl", query="1", document="0", negatives="2")[0] == pair("d1", "q1", "n")


def test_places_of_a_list_are_named_behind_a_point(tmp_path):
    rows = [{"query": "q", "pos": ["d", "e"], "neg": ["n", "m"], "pos.1": "a column of its own"}]
    (tmp_path / "a.jsonl").write_text('{"set": ["a", "b"]}\n')
    (tmp_path / "b.jsonl").write_text('[["a", "b"], "c"]\n')
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    assert texts_of(tmp_path / "a.jsonl", query="set.0", document="set.1") == [pair("a", "b")]
    assert texts_of(tmp_path / "b.jsonl", query="1", document="0.1") == [pair("c", "b")]
    assert texts_of(tmp_path / "c.parquet", document="pos.0", negatives="neg") == [pair("q", "d", "n", "m")]
    assert texts_of(tmp_path / "c.parquet", document="pos.1") == [pair("q", "a column of its own")]


@pytest.mark.parametrize(
    ("line", "column", "what"),
    [
        ('["a"]', "1", "the row has no column '1'"),
        ('["a", "b"]', "document", "the row has no column 'document'"),
        ("[]", "0", "the row has no column '0'"),
        ('["a", 5]', "1", "'1' is not a text"),
        ('["a", ["b"]]', "1", "'1' is not a text"),
        ('["a", " "]', "1", "'1' is empty"),
        ('{"pos": []}', "pos.0", "'pos' lists 0 texts, and none at place 0 (from 0)"),
        ('{"pos": ["a"]}', "pos.1", "'pos' lists 1 texts, and none at place 1 (from 0)"),
        ('{"pos": ["a"]}', "pos.-1", "the row has no column 'pos.-1'"),
        ('{"pos": ["a"]}', "pos", "'pos' is not a text"),
        ('{"pos": "abc"}', "pos.0", "the row has no column 'pos.0'"),
        ('{"pos": [5]}', "pos.0", "'pos.0' is not a text"),
    ],
)
def test_a_row_without_the_column_is_named_with_file_and_line(tmp_path, line, column, what):
    path = tmp_path / "a.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(LongspanError) as caught:
        list(read_texts(TextSource(name="a", files=(str(path),), text=column), FilePart(str(path))))
    assert (caught.value.what, caught.value.where) == (what, f"{path}:2")
    assert caught.value.remedy
