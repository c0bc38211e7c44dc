"""Shards give back what was written, and the manifest vouches for every byte of them."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data import shards
from longspan.data.manifest import MANIFEST, Manifest, read_manifest
from longspan.data.ragged import places_of, starts_of
from longspan.data.shards import VERIFIED, IdColumn, NegativesColumn, PreparedSource, verify_source
from longspan.data.writing import row_schema, write_shard
from longspan.errors import LongspanError
from tests.data.lists import id_lists, nested_id_lists

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(lambda ids: np.array(ids, dtype=np.int32))
SHARDS = st.lists(st.lists(IDS, max_size=5), min_size=1, max_size=4)


def in_memory(kind, arrays):
    return kind([lambda array=array: array for array in arrays], [len(array) for array in arrays])


def copied(column, found, longest: int) -> list[list[int]]:
    """The found sequences, each cut at `longest`, copied with a gap of one before each."""
    lengths = np.minimum(found.length_N, longest)
    places = starts_of(lengths + 1) + 1
    out = np.full(int((lengths + 1).sum()), -1, dtype=np.int64)
    column.copy(found, lengths, out, places)
    assert (np.delete(out, places_of(places, lengths)) == -1).all(), "nothing else is written"
    return [out[place : place + length].tolist() for place, length in zip(places, lengths, strict=True)]


@given(SHARDS, st.data())
def test_any_rows_of_a_column_are_found_and_copied_at_once(parts, data):
    column = in_memory(IdColumn, [id_lists(rows, pa.int32()) for rows in parts])
    rows = [row.tolist() for part in parts for row in part]
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12)) if rows else []
    longest = data.draw(st.integers(0, 7))
    found = column.find(np.array(wanted, dtype=np.int64))
    assert copied(column, found, longest) == [rows[row][:longest] for row in wanted]


@given(SHARDS)
def test_a_column_gives_back_every_row(parts):
    column = in_memory(IdColumn, [id_lists(rows, pa.int32()) for rows in parts])
    rows = [row for part in parts for row in part]
    assert len(column) == len(rows)
    assert column.lengths().tolist() == [len(row) for row in rows]
    for number, row in enumerate(rows):
        assert column[number].dtype == np.int32
        np.testing.assert_array_equal(column[number], row)
    with pytest.raises(IndexError):
        column[len(rows)]


@given(st.lists(st.lists(st.lists(IDS, max_size=4), max_size=4), min_size=1, max_size=3), st.data())
def test_negatives_give_back_every_list(parts, data):
    column = in_memory(NegativesColumn, [nested_id_lists(rows, pa.int32()) for rows in parts])
    rows = [lists for part in parts for lists in part]
    assert len(column) == len(rows)
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)) if rows else []
    counts = column.counts(np.array(wanted, dtype=np.int64))
    assert counts.tolist() == [len(rows[row]) for row in wanted]
    fewest = min(counts, default=0)
    numbers = [data.draw(st.permutations(range(len(rows[row]))))[:fewest] for row in wanted]
    numbers_NH = np.array(numbers, dtype=np.int64).reshape(len(wanted), fewest)
    found = column.find(np.array(wanted, dtype=np.int64), numbers_NH)
    expected = [rows[row][k].tolist() for row, chosen in zip(wanted, numbers, strict=True) for k in chosen]
    assert copied(column, found, 100) == expected


def test_a_shard_is_a_file_that_any_arrow_tool_opens(tmp_path):
    rows = [np.array([1, 2, 3], dtype=np.int32), np.array([4], dtype=np.int32)]
    shard = write_shard(tmp_path / "shard-00000.arrow", [id_lists(rows, pa.uint16())], row_schema("text", 320))
    table = pa.ipc.open_file(tmp_path / "shard-00000.arrow").read_all()
    assert table.to_pydict() == {"text": [[1, 2, 3], [4]]}
    assert (shard.file, shard.num_rows) == ("shard-00000.arrow", 2)
    assert shard.num_bytes == (tmp_path / "shard-00000.arrow").stat().st_size


def test_reading_a_prepared_source_copies_nothing(prepared):
    before = pa.total_allocated_bytes()
    source = PreparedSource(prepared / "faq")
    ids = source.ids("document")
    assert pa.total_allocated_bytes() == before, "memory-mapped"
    assert len(source) == len(ids) == 40
    assert ids[0].base is not None
    assert not ids[0].flags.writeable


# --- the manifest vouches ---------------------------------------------------------------------------------------------


@pytest.fixture
def source(prepared, tmp_path) -> Path:
    """A copy of a prepared source, to be damaged."""
    folder = tmp_path / "faq"
    folder.mkdir()
    for path in (prepared / "faq").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def refused(folder: Path) -> LongspanError:
    with pytest.raises(LongspanError) as caught:
        PreparedSource(folder)
    return caught.value


def test_every_flipped_byte_is_found(source):
    path = source / "shard-00002.arrow"
    whole = path.read_bytes()
    for place in [*range(0, len(whole), len(whole) // 25), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        error = refused(source)
        assert error.what.startswith("shard-00002.arrow is not what the manifest vouches for")
        assert error.where == str(path)
        assert error.remedy == f"delete {source} and prepare the source again"
    path.write_bytes(whole)
    assert len(PreparedSource(source)) == 40


@pytest.mark.parametrize("change", [lambda whole: whole[:-1], lambda whole: whole + b"\0", lambda whole: b""])
def test_a_shard_of_another_size_is_found(source, change):
    path = source / "shard-00000.arrow"
    path.write_bytes(change(path.read_bytes()))
    assert "shard-00000.arrow is not what the manifest vouches for" in refused(source).what


def test_a_missing_shard_is_found(source):
    (source / "shard-00001.arrow").unlink()
    error = refused(source)
    assert error.what == "shard-00001.arrow is missing"
    assert error.remedy == f"delete {source} and prepare the source again"


def test_a_shard_is_hashed_once_and_again_when_its_file_changes(source, monkeypatch):
    hashed = []
    original = shards.sha256_file
    monkeypatch.setattr(shards, "sha256_file", lambda path: hashed.append(path.name) or original(path))
    PreparedSource(source)
    hashed.clear()
    PreparedSource(source)
    assert hashed == []
    path = source / "shard-00001.arrow"
    path.touch()
    PreparedSource(source)
    assert hashed == ["shard-00001.arrow"]
    verify_source(source)
    assert len(hashed) == 1 + len(read_manifest(source).shards)


def test_verify_reads_even_what_seems_unchanged(source):
    PreparedSource(source)
    path = source / "shard-00001.arrow"
    status, whole = path.stat(), path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # bits that rot leave no trace
    PreparedSource(source)
    with pytest.raises(LongspanError, match=r"shard-00001\.arrow is not what the manifest vouches for"):
        verify_source(source)


def test_verify_tells_how_far_it_is(source):
    read: list[int] = []
    verify_source(source, read.append)
    assert sum(read) == sum(shard.num_bytes for shard in read_manifest(source).shards)


@pytest.mark.parametrize("noted", ["", "[1]", "{torn"])
def test_a_torn_note_of_what_was_verified_only_costs_time(source, noted):
    (source / VERIFIED).write_text(noted)
    assert len(PreparedSource(source)) == 40


def test_only_the_shards_that_are_read_are_opened(source, monkeypatch):
    opened = []
    original = shards._map
    monkeypatch.setattr(shards, "_map", lambda path, *stamp: opened.append(path.name) or original(path, *stamp))
    ids = PreparedSource(source).ids("query")
    assert opened == []
    assert ids[0].tolist()
    ids.find(np.array([39, 38]))
    assert opened == ["shard-00000.arrow", "shard-00004.arrow"]


def test_few_shards_stay_mapped_and_a_file_written_anew_is_read_anew(source):
    ids = PreparedSource(source).ids("query")
    assert [len(ids[row]) for row in range(40)] == ids.lengths().tolist()
    assert shards._map.cache_info().currsize <= shards.MAPPED_SHARDS
    path = source / "shard-00001.arrow"
    other = (source / "shard-00002.arrow").read_bytes()
    before = [ids[row].tolist() for row in range(9, 18)]
    swapped = json.loads((source / MANIFEST).read_text())
    swapped["shards"][1] = swapped["shards"][2] | {"file": path.name}
    (source / MANIFEST).write_text(json.dumps(swapped))
    path.unlink()
    path.write_bytes(other)
    changed = PreparedSource(source).ids("query")
    assert [changed[row].tolist() for row in range(9, 18)] == [ids[row].tolist() for row in range(18, 27)] != before


def test_two_shards_that_changed_places_are_found(source):
    a, b = source / "shard-00000.arrow", source / "shard-00001.arrow"
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)
    assert "shard-00000.arrow" in refused(source).what


def test_a_source_without_its_manifest_is_not_prepared(source):
    (source / MANIFEST).unlink()
    error = refused(source)
    assert error.what == "manifest.json is missing"
    assert "longspan prepare" in error.remedy


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda values: values | {"format": 99}, "the prepared data has format 99, this version of longspan reads 2"),
        (lambda values: values | {"rows": 3}, "unknown key 'rows'"),
        (lambda values: {key: value for key, value in values.items() if key != "shards"}, "missing key 'shards'"),
        (lambda values: values | {"num_rows": "many"}, "num_rows: "),
        (lambda values: [values], "Input should be a valid dictionary"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(source, change, what):
    path = source / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    error = refused(source)
    assert error.what.startswith(what)
    assert error.where == str(path)


def test_a_torn_manifest_is_refused_with_a_remedy_that_helps(source):
    path = source / MANIFEST
    path.write_bytes(path.read_bytes()[:-20])
    error = refused(source)
    assert error.what.startswith("manifest.json is not valid JSON")
    assert error.remedy == f"delete {source} and prepare the source again"


def test_the_fingerprint_follows_content_and_not_places(source):
    manifest = read_manifest(source)
    values = manifest.model_dump(mode="json")

    def fingerprint(**changes) -> str:
        return Manifest.parse(values | changes, where="-").fingerprint

    inputs = [{**values["inputs"][0], "file": "/elsewhere.jsonl"}]
    assert fingerprint(inputs=inputs, request="another") == manifest.fingerprint
    shards = [{**values["shards"][0], "sha256": "0" * 64}, *values["shards"][1:]]
    others = [
        fingerprint(shards=shards),
        fingerprint(shards=values["shards"][:-1]),
        fingerprint(weight=2.0),
        fingerprint(document_task="clustering"),
        fingerprint(query_task="clustering"),
        fingerprint(tokenizer="another"),
        fingerprint(name="another"),
    ]
    assert len({manifest.fingerprint, *others}) == len(others) + 1
