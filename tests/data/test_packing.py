"""Packing loses no token, pads none, and never builds the stream."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.packing import PackedRows
from longspan.data.shards import IdColumn
from longspan.errors import LongspanError
from tests.data.lists import id_lists

CLS, SEP = 1_000_001, 1_000_002

LENGTHS = st.lists(st.lists(st.lists(st.integers(0, 30), max_size=6), min_size=1, max_size=3), min_size=1, max_size=3)
"""Lengths of documents, by column and shard."""


def columns_of(lengths) -> tuple[list[IdColumn], list[np.ndarray]]:
    """Columns of documents in which no id comes twice, and the documents."""
    first, columns, documents = 0, [], []
    for shards in lengths:
        arrays = []
        for shard in shards:
            rows = []
            for length in shard:
                rows.append(np.arange(first, first + length, dtype=np.int32))
                first += length
            arrays.append(id_lists(rows, pa.int32()))
            documents += rows
        columns.append(IdColumn([lambda array=array: array for array in arrays], [len(a) for a in arrays]))
    return columns, documents


@given(LENGTHS, st.integers(1, 40))
def test_the_rows_are_the_stream_cut_into_pieces(lengths, row_length):
    columns, documents = columns_of(lengths)
    stream = [i for document in documents for i in (CLS, *document.tolist(), SEP)]
    if len(stream) < row_length:
        with pytest.raises(LongspanError, match=f"the text has {len(stream)} tokens, less than one row of"):
            PackedRows(columns, row_length, CLS, SEP)
        return
    packed = PackedRows(columns, row_length, CLS, SEP)
    assert packed.num_rows == len(stream) // row_length
    rows = [packed.row(number) for number in range(packed.num_rows)]
    assert [i for ids, _ in rows for i in ids.tolist()] == stream[: packed.num_rows * row_length]
    for ids, parts in rows:
        assert ids.dtype == np.int32
        assert sum(parts) == len(ids) == row_length
        assert min(parts) > 0
        # A part ends where its document does, or with the row.
        ends = np.cumsum(parts) - 1
        assert (ids[ends[:-1]] == SEP).all()
        assert (ids[ends[:-1] + 1] == CLS).all()
        inside = np.delete(ids, ends)
        assert SEP not in inside.tolist()


@given(LENGTHS, st.integers(1, 40), st.data())
def test_rows_are_looked_up_in_any_order(lengths, row_length, data):
    columns, documents = columns_of(lengths)
    stream = [i for document in documents for i in (CLS, *document.tolist(), SEP)]
    if len(stream) < row_length:
        return
    packed = PackedRows(columns, row_length, CLS, SEP)
    number = data.draw(st.integers(0, packed.num_rows - 1))
    assert packed.row(number)[0].tolist() == stream[number * row_length : (number + 1) * row_length]


def test_text_that_fills_no_row_is_refused():
    columns, _ = columns_of([[[3]]])
    with pytest.raises(LongspanError) as caught:
        PackedRows(columns, 100, CLS, SEP)
    assert caught.value.what == "the text has 5 tokens, less than one row of 100"
    assert caught.value.where == "objective.row_length"
    assert caught.value.remedy == "use more text or shorter rows"
