"""Texts are read line by line or row by row; vectors come back from every kind of file as they were written."""

import gzip
import io
import json

import numpy as np
import pytest

from longspan.errors import LongspanError
from longspan.files import write_bytes, write_text
from longspan.output import check_output, read_texts, write_vectors

TEXTS = ["plain", "Straße \u2028 \x0c 東京", 'with "quotes", commas\tand tabs']
VECTORS = np.array([[1.0, -0.25, 1e-30], [np.float32(1 / 3), 7.5e7, 0.0], [-1.0, 2.0, 3.0]], dtype=np.float32)


def read_back(path):
    """Texts (None where the kind of file holds none) and vectors."""
    if path.suffix == ".npy":
        return None, np.load(path)
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    else:
        from pyarrow import parquet

        rows = parquet.read_table(path).to_pylist()
    return [row["text"] for row in rows], np.array([row["vector"] for row in rows], dtype=np.float32)


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl", "out.parquet", "new/folder/out.npy"])
def test_vectors_come_back_bitwise(tmp_path, name):
    path = tmp_path / name
    check_output(path)
    write_vectors(path, TEXTS, VECTORS)
    texts, vectors_ND = read_back(path)
    assert texts in (None, TEXTS)
    assert vectors_ND.dtype == np.float32
    assert np.array_equal(vectors_ND, VECTORS)
    write_vectors(path, TEXTS[:1], VECTORS[:1])  # over itself
    assert len(read_back(path)[1]) == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_parquet_keeps_the_width_of_vectors(tmp_path):
    from pyarrow import parquet, types

    write_vectors(tmp_path / "none.parquet", [], np.empty((0, 3), dtype=np.float32))
    kind = parquet.read_schema(tmp_path / "none.parquet").field("vector").type
    assert types.is_fixed_size_list(kind)
    assert (kind.list_size, str(kind.value_type)) == (3, "float")


@pytest.mark.parametrize(
    ("name", "kind"), [("out.csv", r"as \.csv"), ("out", "a file without ending"), ("x.npy.gz", r"\.gz")]
)
def test_other_kinds_are_refused_before_any_work(tmp_path, name, kind):
    with pytest.raises(LongspanError, match=f"vectors are not written {kind}|{kind}") as caught:
        check_output(tmp_path / name)
    assert ".npy, .jsonl or .parquet" in caught.value.remedy


def test_a_place_that_cannot_be_written(tmp_path):
    write_text(tmp_path / "file", "")
    with pytest.raises(LongspanError, match=r"cannot write out\.npy"):
        write_vectors(tmp_path / "file" / "out.npy", TEXTS, VECTORS)


def test_texts_and_vectors_that_do_not_match_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="argument"):
        write_vectors(tmp_path / "out.jsonl", TEXTS[:2], VECTORS)
    assert not list(tmp_path.iterdir())


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.md", "a.txt.gz"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_line_of_text_is_a_text(tmp_path, name, newline):
    content = newline.join(TEXTS).encode() + newline.encode()
    write_bytes(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    assert read_texts([str(tmp_path / name)], "text") == TEXTS


def test_the_last_line_needs_no_end(tmp_path):
    write_text(tmp_path / "a.txt", "one\ntwo")
    write_text(tmp_path / "empty.txt", "")
    assert read_texts([str(tmp_path / "a.txt")], "text") == ["one", "two"]
    assert read_texts([str(tmp_path / "empty.txt")], "text") == []


def test_an_empty_line_is_named(tmp_path):
    write_text(tmp_path / "a.txt", "one\n \nthree\n")
    with pytest.raises(LongspanError, match="the line is empty") as caught:
        read_texts([str(tmp_path / "a.txt")], "text")
    assert caught.value.where.endswith("a.txt:2")


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert read_texts([], "text") == ["one", "two"]
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\n"))
    with pytest.raises(LongspanError, match="the line is empty") as caught:
        read_texts([], "text")
    assert caught.value.where == "standard input:2"


def test_a_column_of_rows(tmp_path):
    write_text(tmp_path / "a.jsonl", '{"body": "one", "n": 1}\n{"body": "two\\nlines", "n": 2}\n')
    write_text(tmp_path / "b.csv", "body,n\nthree,3\n")
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv")]
    assert read_texts(files, "body") == ["one", "two\nlines", "three"]
    with pytest.raises(LongspanError, match="no text in column 'n'") as caught:
        read_texts(files, "n")
    assert caught.value.where.endswith("a.jsonl:1")
    assert caught.value.remedy == "pass --column with one of: body, n"


def test_a_missing_file(tmp_path):
    with pytest.raises(LongspanError, match="no file"):
        read_texts([str(tmp_path / "nothing.txt")], "text")


def test_a_file_that_is_not_unicode(tmp_path):
    write_bytes(tmp_path / "a.txt", b"caf\xe9\n")
    with pytest.raises(LongspanError, match="not UTF-8"):
        read_texts([str(tmp_path / "a.txt")], "text")
