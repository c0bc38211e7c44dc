"""Token ids to Arrow files.

Axes: N rows, S sequences of all rows, T tokens of all sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from longspan.data.manifest import Shard
from longspan.files import atomic_path, sha256_file

_SMALL_VOCABULARY = 2**16
"""A vocabulary of at most so many ids fits 16 bits."""


SCORES = "scores"
"""Column of a teacher's scores, float32: of the document, then of the negatives in their order."""


CLUSTER = "cluster"
"""Column of the number of a row's cluster, int32."""


def row_schema(kind: str, vocab_size: int, *, scores: bool = False, cluster: bool = False) -> pa.Schema:
    """The columns of a prepared source ("pairs" or "text"); ids are uint16 where the vocabulary fits, else int32."""
    ids = pa.large_list(pa.uint16() if vocab_size <= _SMALL_VOCABULARY else pa.int32())
    if kind == "text":
        return pa.schema({"text": ids})
    columns: dict[str, pa.DataType] = {"query": ids, "document": ids, "negatives": pa.large_list(ids)}
    columns |= {SCORES: pa.large_list(pa.float32())} if scores else {}
    return pa.schema(columns | ({CLUSTER: pa.int32()} if cluster else {}))


def text_columns(schema: pa.Schema) -> list[str]:
    """The columns of a `row_schema` that hold token ids."""
    return [name for name in schema.names if name not in (SCORES, CLUSTER)]


def write_shard(path: Path, columns: Sequence[pa.Array], schema: pa.Schema) -> Shard:
    """Write one Arrow file of one record batch, atomically.

    Raises:
        LongspanError: the disk is full or the place cannot be written.
    """
    batch = pa.record_batch(list(columns), schema=schema)
    with atomic_path(path) as unfinished, pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, schema) as w:
        w.write_batch(batch)
    return Shard(file=path.name, num_rows=batch.num_rows, num_bytes=path.stat().st_size, sha256=sha256_file(path))


def map_shard(path: Path) -> pa.RecordBatch:
    """The record batch of a file of `write_shard`, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path), "r")).get_batch(0)


def id_lists(ids_T: np.ndarray, lengths_S: np.ndarray, ids: pa.DataType) -> pa.Array:
    """An Arrow column of token id lists, of S sequences laid end to end; `ids` is the type of an id."""
    return _lists(pa.array(ids_T.astype(ids.to_pandas_dtype())), lengths_S)


def nested_id_lists(ids_T: np.ndarray, lengths_S: np.ndarray, counts_N: np.ndarray, ids: pa.DataType) -> pa.Array:
    """An Arrow column of lists of token id lists: row n lists the next `counts[n]` of the sequences."""
    return _lists(id_lists(ids_T, lengths_S, ids), counts_N)


def score_lists(scores: Sequence[Sequence[float]]) -> pa.Array:
    """An Arrow column of lists of scores."""
    return pa.array(scores, type=pa.large_list(pa.float32()))


def _lists(values: pa.Array, lengths_N: np.ndarray) -> pa.Array:
    offsets = np.zeros(len(lengths_N) + 1, dtype=np.int64)
    np.cumsum(lengths_N, out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def id_type(schema: pa.Schema) -> pa.DataType:
    """The type of an id in a `row_schema`."""
    return schema.field(0).type.value_type


def text_lengths(column: pa.LargeListArray) -> np.ndarray:
    """The number of ids of every text of a column of `id_lists` or `nested_id_lists`, int64."""
    texts = column.flatten() if pa.types.is_large_list(column.type.value_type) else column
    return np.diff(texts.offsets.to_numpy())


def is_whole(path: Path, shard: Shard) -> bool:
    """Whether a file is there and is what `write_shard` said of it."""
    return path.is_file() and path.stat().st_size == shard.num_bytes and sha256_file(path) == shard.sha256
