"""The manifest counts lengths rightly, and is read only if it is of the format that this version knows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.manifest import FORMAT, LENGTH_EDGES, MANIFEST, InputFile, Lengths, Manifest, Shard, read_manifest
from longspan.errors import LongspanError

LENGTHS = st.lists(st.integers(1, 40_000), max_size=20)


@given(LENGTHS)
def test_a_histogram_counts_by_upper_edges(lengths):
    counted = Lengths.of(np.array(lengths, dtype=np.int64))
    assert (counted.num_texts, counted.num_tokens) == (len(lengths), sum(lengths))
    assert counted.longest == max(lengths, default=0)
    assert len(counted.histogram) == len(LENGTH_EDGES) + 1
    for edge, up_to in zip(LENGTH_EDGES, np.cumsum(counted.histogram), strict=False):
        assert up_to == sum(length <= edge for length in lengths), "what a cut at this length leaves whole"
    assert sum(counted.histogram) == len(lengths)


@given(st.lists(LENGTHS, max_size=4))
def test_parts_add_up_to_the_whole(parts):
    whole = Lengths.of(np.array([length for part in parts for length in part], dtype=np.int64))
    assert Lengths.total(Lengths.of(np.array(part, dtype=np.int64)) for part in parts) == whole


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        kind="text",
        name="books",
        num_rows=2,
        seed=0,
        columns={"text": Lengths.of(np.array([3, 5]))},
        tokenizer="t",
        request="r",
        inputs=(InputFile(file="a.jsonl", sha256="0", num_rows=2, num_skipped=0),),
        shards=(Shard(file="shard-00000.arrow", num_rows=2, num_bytes=10, sha256="1"),),
    )


def test_a_manifest_is_read_as_it_was_written(tmp_path, manifest):
    (tmp_path / MANIFEST).write_text(json.dumps(manifest.model_dump(mode="json")))
    assert read_manifest(tmp_path) == manifest
    assert manifest.num_tokens == {"text": 8}
    assert manifest.format == FORMAT == 2


def test_the_fingerprint_is_that_of_the_rows(manifest):
    moved = (InputFile(file="b.jsonl", sha256="0", num_rows=2, num_skipped=0),)
    same = [{"inputs": moved}, {"licence": "CC0"}, {"request": "x"}]
    other = [{"name": "x"}, {"tokenizer": "x"}, {"shards": ()}, {"weight": 2.0}, {"query_task": "clustering"}]
    for change in same:
        assert manifest.model_copy(update=change).fingerprint == manifest.fingerprint
    for change in other:
        assert manifest.model_copy(update=change).fingerprint != manifest.fingerprint


def test_the_first_format_is_refused_with_what_to_do(tmp_path):
    (tmp_path / MANIFEST).write_text('{"format": 1, "kind": "pairs"}')
    with pytest.raises(LongspanError) as caught:
        read_manifest(tmp_path)
    assert caught.value.what == "the prepared data has format 1, this version of longspan reads 2"
    assert caught.value.where == str(tmp_path / MANIFEST)
    assert caught.value.remedy == f"delete {tmp_path} and prepare the source again"


def test_a_folder_without_a_manifest_is_unfinished(tmp_path):
    with pytest.raises(LongspanError, match=r"manifest\.json is missing") as caught:
        read_manifest(tmp_path)
    assert "prepare the source first" in caught.value.remedy
