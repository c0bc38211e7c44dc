"""Pieces to shards: the rows of a source in random order, each shard gathered by itself.

Place p of the source holds row `shuffled(p)` of the raw files, by a keyed bijection that is computed place by place. So
no process ever holds more than one shard, and the order depends on the number of rows and the seed alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from longspan.data.manifest import Shard
from longspan.data.plan import shuffled
from longspan.data.workers import Advance
from longspan.data.writing import is_whole, map_shard, write_shard
from longspan.files import read_json, write_json


class Order(NamedTuple):
    """Which shards are to be made of which pieces.

    Attributes:
        pieces: files of the folder, in the order of the raw files.
        starts: how many rows lie before each piece, and before the end.
    """

    folder: Path
    pieces: tuple[str, ...]
    starts: tuple[int, ...]
    rows_per_shard: int
    seed: int

    @property
    def num_rows(self) -> int:
        """Rows of the source."""
        return self.starts[-1]

    @property
    def num_shards(self) -> int:
        """Shards of the source."""
        return -(-self.num_rows // self.rows_per_shard)


class ShardTask(NamedTuple):
    """One shard to be made: its file and its number."""

    order: Order
    path: Path
    number: int


def gather_shard(tools: object, task: ShardTask, advance: Advance) -> tuple[int, Shard]:
    """Write a shard, unless an earlier run has finished it; its number and its entry in the manifest.

    Raises:
        LongspanError: the disk is full.
    """
    del tools
    order, path = task.order, task.path
    receipt = order.folder / f"{path.stem}.json"
    shard = None
    if receipt.is_file():
        shard = Shard.parse(read_json(receipt, remedy=f"delete {order.folder}"), where=receipt)
    if shard is None or not is_whole(path, shard):
        batch = _gathered(order, task.number)
        shard = write_shard(path, batch.columns, batch.schema)
        write_json(receipt, shard.model_dump(mode="json"))
    advance(shard.num_rows)
    return task.number, shard


def _gathered(order: Order, number: int) -> pa.RecordBatch:
    first = number * order.rows_per_shard
    places = np.arange(first, min(first + order.rows_per_shard, order.num_rows))
    rows = shuffled(places, order.num_rows, (order.seed,))
    ascending = np.argsort(rows)
    back = np.empty_like(ascending)
    back[ascending] = np.arange(len(rows))
    parts = pa.Table.from_batches(_parts(order, rows[ascending]))
    columns = [column.combine_chunks().take(pa.array(back)) for column in parts.columns]
    return pa.record_batch(columns, schema=parts.schema)


def _parts(order: Order, rows: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The given rows (ascending) piece by piece; only one piece is mapped at a time."""
    bounds = np.searchsorted(rows, order.starts)
    pieces: Sequence[tuple[str, int]] = list(zip(order.pieces, order.starts[:-1], strict=True))
    for (piece, start), (begin, end) in zip(pieces, itertools.pairwise(bounds.tolist()), strict=True):
        if begin < end:
            yield map_shard(order.folder / piece).take(pa.array(rows[begin:end] - start))
