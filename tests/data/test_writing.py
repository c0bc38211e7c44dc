"""What is written is what was given, in files that any Arrow tool opens and that their hash vouches for."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.writing import (
    id_type,
    is_whole,
    map_shard,
    row_schema,
    text_lengths,
    write_shard,
)
from longspan.errors import LongspanError
from longspan.files import sha256_file
from tests.data.lists import id_lists, nested_id_lists

IDS = st.lists(st.integers(0, 2**16 - 1), max_size=6).map(lambda ids: np.array(ids, dtype=np.int32))
TYPES = st.sampled_from([pa.uint16(), pa.int32()])


@given(st.lists(IDS, max_size=6), TYPES)
def test_lists_of_ids(sequences, ids):
    column = id_lists(sequences, ids)
    assert column.type == pa.large_list(ids)
    assert column.to_pylist() == [sequence.tolist() for sequence in sequences]
    assert text_lengths(column).tolist() == [len(sequence) for sequence in sequences]


@given(st.lists(st.lists(IDS, max_size=4), max_size=4), TYPES)
def test_nested_lists_of_ids(rows, ids):
    column = nested_id_lists(rows, ids)
    assert column.type == pa.large_list(pa.large_list(ids))
    assert column.to_pylist() == [[sequence.tolist() for sequence in row] for row in rows]
    assert text_lengths(column).tolist() == [len(sequence) for row in rows for sequence in row]


@pytest.mark.parametrize(("vocab_size", "expected"), [(320, pa.uint16()), (65_536, pa.uint16()), (65_537, pa.int32())])
def test_ids_take_two_bytes_where_the_vocabulary_fits(vocab_size, expected):
    pairs, text = row_schema("pairs", vocab_size), row_schema("text", vocab_size)
    assert pairs.names == ["query", "document", "negatives"]
    assert pairs.field("negatives").type == pa.large_list(pa.large_list(expected))
    assert text.names == ["text"]
    assert id_type(pairs) == id_type(text) == expected


@pytest.fixture
def written(tmp_path):
    """A file of two texts, and what was said of it."""
    rows = [np.array([1, 2, 65_535], dtype=np.int32), np.array([4], dtype=np.int32)]
    path = tmp_path / "new" / "shard-00000.arrow"
    return path, write_shard(path, [id_lists(rows, pa.uint16())], row_schema("text", 320))


def test_a_written_file_is_opened_by_any_arrow_tool(written):
    path, shard = written
    assert pa.ipc.open_file(path).read_all().to_pydict() == {"text": [[1, 2, 65_535], [4]]}
    assert (shard.file, shard.num_rows) == ("shard-00000.arrow", 2)
    assert (shard.num_bytes, shard.sha256) == (path.stat().st_size, sha256_file(path))
    assert [child.name for child in path.parent.iterdir()] == ["shard-00000.arrow"]


def test_a_mapped_file_is_not_copied(written):
    before = pa.total_allocated_bytes()
    assert map_shard(written[0]).column("text").to_pylist() == [[1, 2, 65_535], [4]]
    assert pa.total_allocated_bytes() == before


@pytest.mark.parametrize("damage", ["bit", "shorter", "gone"])
def test_what_was_damaged_is_not_whole(written, damage):
    path, shard = written
    assert is_whole(path, shard)
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-1] if damage == "shorter" else content[:-1] + bytes([content[-1] ^ 1]))
    assert not is_whole(path, shard)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LongspanError, match="file is a file, not a folder"):
        write_shard(tmp_path / "file" / "a.arrow", [id_lists([], pa.uint16())], row_schema("text", 320))
