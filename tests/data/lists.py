"""Arrow columns of rows that a test writes one by one."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from longspan.data import writing


def id_lists(sequences: Sequence[np.ndarray], ids: pa.DataType) -> pa.Array:
    """A column of token id lists."""
    return writing.id_lists(*_flat(sequences), ids)


def nested_id_lists(rows: Sequence[Sequence[np.ndarray]], ids: pa.DataType) -> pa.Array:
    """A column of lists of token id lists."""
    flat = _flat([sequence for row in rows for sequence in row])
    return writing.nested_id_lists(*flat, np.array([len(row) for row in rows], dtype=np.int64), ids)


def _flat(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([np.empty(0, dtype=np.int32), *sequences])
    return ids, np.array([len(sequence) for sequence in sequences], dtype=np.int64)
