"""Pieces to shards: the rows of a source in random order, each shard gathered by itself.

Place p of the source holds row `shuffled(p)` of the raw files, by a keyed bijection that is computed place by place. So
no process ever holds more than one shard, and the order depends on the number of rows and the seed alone.

Rows that have clusters are sorted by them, in random order inside each: a batch of one cluster is then read from one
place, and a plan needs to know no more than the sizes of the clusters. Their order is a file of 8 bytes for each row.
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
from longspan.data.writing import CLUSTER, is_whole, map_shard, write_shard
from longspan.files import atomic_path, read_json, write_json

ORDER = "order.npy"


class Order(NamedTuple):
    """Which shards are to be made of which pieces.

    Attributes:
        pieces: files of the folder, in the order of the raw files.
        starts: how many rows lie before each piece, and before the end.
        sizes: of the clusters, in the order of their numbers, where rows have them; then `folder/order.npy` says which
            row each place holds.
    """

    folder: Path
    pieces: tuple[str, ...]
    starts: tuple[int, ...]
    rows_per_shard: int
    seed: int
    sizes: tuple[int, ...] = ()

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


def sorted_by_cluster(order: Order) -> Order:
    """The order in which clusters come one after the other; leaves it in its folder.

    Raises:
        LongspanError: the disk is full.
    """
    pieces = (map_shard(order.folder / piece).column(CLUSTER).to_numpy() for piece in order.pieces)
    cluster_N = np.concatenate([np.empty(0, dtype=np.int32), *pieces])
    row_N = shuffled(np.arange(order.num_rows), order.num_rows, (order.seed,))
    row_N = row_N[np.argsort(cluster_N[row_N], kind="stable")]
    with atomic_path(order.folder / ORDER) as unfinished, open(unfinished, "wb") as stream:
        np.save(stream, row_N)
    _, counts = np.unique(cluster_N, return_counts=True)
    return order._replace(sizes=tuple(counts.tolist()))


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
    if order.sizes:
        rows = np.load(order.folder / ORDER, mmap_mode="r")[places]
    else:
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
