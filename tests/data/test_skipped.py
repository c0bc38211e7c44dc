"""Rows that are left out are kept: their place, the reason, and what was there."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.skipped import RAW_LIMIT, BrokenRow, Skipped, stop_on_error, summary_of_skipped
from longspan.errors import LongspanError


def broken(what="'text' is empty", file="a.jsonl", number=3, raw=None) -> BrokenRow:
    return BrokenRow(what, file=file, number=number, remedy="mend it", raw=raw)


@given(st.text(), st.integers(1), st.one_of(st.none(), st.text(), st.binary()))
def test_one_line_of_json_holds_whatever_was_there(file, number, raw):
    skipped = Skipped.of(broken(file=file, number=number, raw=raw))
    line = skipped.as_json()
    assert line.endswith("\n")
    assert "\n" not in line[:-1]
    assert line.isascii()
    assert Skipped(**json.loads(line)) == skipped == pickle.loads(pickle.dumps(skipped))
    assert (skipped.file, skipped.line, skipped.reason) == (file, number, "'text' is empty")
    if isinstance(raw, str):
        assert skipped.raw == raw


def test_bytes_that_are_no_text_stay_to_be_seen_and_long_ones_are_cut():
    assert Skipped.of(broken(raw=b"caf\xe9 \xe6\x9d\xb1")).raw == "caf\\xe9 東"
    assert Skipped.of(broken(raw="x" * 10_000)).raw == "x" * RAW_LIMIT


@pytest.mark.parametrize(
    ("where", "file", "line"),
    [("a.jsonl:7", "a.jsonl", 7), ("s3://b/a.jsonl:7", "s3://b/a.jsonl", 7), ("s3://b/a", "s3://b/a", None)],
)
def test_an_error_that_only_names_a_place_is_taken_at_its_word(where, file, line):
    assert Skipped.of(LongspanError("x", where=where, remedy="y")) == Skipped(file, line, "x", None)


def test_a_broken_row_is_an_error_with_its_place():
    error = broken()
    assert error.where == "a.jsonl:3"
    with pytest.raises(BrokenRow):
        stop_on_error(error)


def test_the_summary_counts_by_reason_and_names_the_first_places(tmp_path):
    rows = [broken("broken JSON: Expecting value", number=number) for number in range(1, 6)]
    rows += [broken(number=9), LongspanError("no line", where="b.txt", remedy="-")]
    path = tmp_path / "skipped.jsonl"
    path.write_text("".join(Skipped.of(row).as_json() for row in rows))
    assert summary_of_skipped(path) == [
        "5 x broken JSON: a.jsonl:1, a.jsonl:2, a.jsonl:3, ...",
        "1 x 'text' is empty: a.jsonl:9",
        "1 x no line: b.txt",
    ]


@pytest.mark.parametrize("content", ["{", '{"file": "a"}\n', "[]\n"])
def test_a_broken_list_is_named(tmp_path, content):
    (tmp_path / "skipped.jsonl").write_text(content)
    with pytest.raises(LongspanError, match="the list of skipped rows cannot be read"):
        summary_of_skipped(tmp_path / "skipped.jsonl")
