"""Texts are read line by line or row by row, as often as they are asked for."""

import gzip
import io

import pyarrow as pa
import pytest
from pyarrow import parquet

from longspan.errors import LongspanError
from longspan.files import write_bytes, write_text
from longspan.output.texts import Text, open_inputs

TEXTS = ["plain", "Straße \u2028 \x0c 東京", 'with "quotes", commas\tand tabs']


def read(*places, **options) -> list[Text]:
    with open_inputs([str(place) for place in places], **options) as inputs:
        texts = list(inputs.read())
        assert list(inputs.read()) == texts
        return texts


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.md", "a.txt.gz"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_line_of_text_is_a_text(tmp_path, name, newline):
    content = newline.join(TEXTS).encode() + newline.encode()
    write_bytes(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    texts = read(tmp_path / name)
    assert [text.text for text in texts] == TEXTS
    assert texts[1].where == f"{tmp_path / name}:2"


def test_the_last_line_needs_no_end(tmp_path):
    write_text(tmp_path / "a.txt", "one\ntwo")
    write_text(tmp_path / "empty.txt", "")
    assert [text.text for text in read(tmp_path / "a.txt")] == ["one", "two"]
    assert read(tmp_path / "empty.txt") == []


def test_what_is_empty_is_named(tmp_path):
    write_text(tmp_path / "a.txt", "one\n \nthree\n")
    write_text(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": " "}\n')
    for name, what in (("a.txt", "the line is empty"), ("a.jsonl", "column 'text' is empty")):
        with pytest.raises(LongspanError, match=what) as caught:
            read(tmp_path / name)
        assert caught.value.where.endswith(f"{name}:2")


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert [text.text for text in read()] == ["one", "two"]
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\n"))
    with pytest.raises(LongspanError, match="the line is empty") as caught:
        read()
    assert caught.value.where == "standard input:2"


def test_a_column_of_rows_and_its_ids(tmp_path):
    write_text(tmp_path / "a.jsonl", '{"body": "one", "n": 1}\n{"body": "two\\nlines", "n": 2}\n')
    write_text(tmp_path / "b.csv", "body,n\nthree,3\n")
    parquet.write_table(pa.table({"n": [4], "body": ["four"]}), tmp_path / "c.parquet")
    texts = read(tmp_path / "a.jsonl", tmp_path / "b.csv", tmp_path / "c.parquet", column="body", id_column="n")
    assert [(text.text, text.id) for text in texts] == [
        ("one", "1"),
        ("two\nlines", "2"),
        ("three", "3"),
        ("four", "4"),
    ]
    assert texts == read(tmp_path, column="body", id_column="n"), "a folder is its files"
    for options, what, remedy in (
        ({"column": "n"}, "no text in column 'n'", "pass --column with one of: body, n"),
        ({"column": "body", "id_column": "m"}, "no id in column 'm'", "pass --id with one of: body, n"),
    ):
        with pytest.raises(LongspanError, match=what) as caught:
            read(tmp_path / "a.jsonl", **options)
        assert caught.value.where.endswith("a.jsonl:1")
        assert caught.value.remedy == remedy


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(LongspanError, match="no file"):
        read(tmp_path / "nothing.txt")
    (tmp_path / "bare").mkdir()
    with pytest.raises(LongspanError, match="holds no file that texts are read from"):
        read(tmp_path / "bare")
    write_bytes(tmp_path / "a.txt", b"fine\ncaf\xe9\n")
    with pytest.raises(LongspanError, match="not UTF-8"):
        read(tmp_path / "a.txt")
    write_text(tmp_path / "b.txt", "one\n")
    with pytest.raises(LongspanError, match="have no ids"):
        read(tmp_path / "b.txt", id_column="n")
