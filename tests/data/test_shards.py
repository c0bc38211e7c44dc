"""Shards give back what was written, and the manifest vouches for every byte of them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.shards import (
    MANIFEST,
    TEXT_SCHEMA,
    IdColumn,
    Manifest,
    NegativesColumn,
    PreparedSource,
    id_lists,
    nested_id_lists,
    read_manifest,
    write_shard,
)
from longspan.errors import LongspanError

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(lambda ids: np.array(ids, dtype=np.int32))
SHARDS = st.lists(st.lists(IDS, max_size=5), min_size=1, max_size=4)


@given(SHARDS)
def test_a_column_gives_back_every_row(shards):
    column = IdColumn([id_lists(rows) for rows in shards])
    rows = [row for shard in shards for row in shard]
    assert len(column) == len(rows)
    assert column.lengths().tolist() == [len(row) for row in rows]
    for number, row in enumerate(rows):
        assert column[number].dtype == np.int32
        np.testing.assert_array_equal(column[number], row)
    with pytest.raises(IndexError):
        column[len(rows)]


@given(st.lists(st.lists(st.lists(IDS, max_size=4), max_size=4), min_size=1, max_size=3), st.data())
def test_negatives_give_back_every_list(shards, data):
    column = NegativesColumn([nested_id_lists(rows) for rows in shards])
    for number, lists in enumerate(lists for shard in shards for lists in shard):
        assert column.count(number) == len(lists)
        order = data.draw(st.permutations(range(len(lists))))
        for got, expected in zip(column.pick(number, order), order, strict=True):
            np.testing.assert_array_equal(got, lists[expected])


def test_a_shard_is_a_file_that_any_arrow_tool_opens(tmp_path):
    rows = [np.array([1, 2, 3], dtype=np.int32), np.array([4], dtype=np.int32)]
    shard = write_shard(tmp_path / "shard-00000.arrow", [id_lists(rows)], TEXT_SCHEMA)
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
        (lambda values: values | {"format": 99}, "the prepared data has format 99, this version of longspan reads 1"),
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
