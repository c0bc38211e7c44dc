"""Shards hold every row once, in the order that the seed and the number of rows give, whatever the pieces were."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.data.plan import shuffled
from longspan.data.shuffle import Order, ShardTask, gather_shard
from longspan.data.writing import map_shard, row_schema, write_shard
from tests.data.lists import id_lists, nested_id_lists

SCHEMA = row_schema("pairs", 320)


def write_pieces(folder, counts: list[int]) -> tuple[str, ...]:
    """Pieces of rows that are told by their number."""
    names, first = [], 0
    for number, count in enumerate(counts):
        rows = range(first, first + count)
        columns = [
            id_lists([np.full(1 + row % 3, row) for row in rows], pa.uint16()),
            id_lists([np.full(1 + row % 5, row) for row in rows], pa.uint16()),
            nested_id_lists([[np.full(1 + k, row) for k in range(row % 4)] for row in rows], pa.uint16()),
        ]
        names.append(write_shard(folder / f"{number}.arrow", columns, SCHEMA).file)
        first += count
    return tuple(names)


@settings(max_examples=12)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any), st.integers(1, 40), st.integers(0, 5))
def test_shards_hold_the_rows_in_the_order_of_the_seed(tmp_path_factory, counts, rows_per_shard, seed):
    folder = tmp_path_factory.mktemp("shuffle")
    starts = tuple(np.cumsum([0, *counts]).tolist())
    order = Order(folder, write_pieces(folder, counts), starts, rows_per_shard, seed)
    told: list[int] = []
    found = []
    for number in reversed(range(order.num_shards)):
        path = folder / f"shard-{number}.arrow"
        assert gather_shard(None, ShardTask(order, path, number), told.append)[0] == number
        found = map_shard(path).to_pylist() + found
    num_rows = sum(counts)
    assert sum(told) == num_rows
    assert [row["query"][0] for row in found] == shuffled(np.arange(num_rows), num_rows, (seed,)).tolist()
    for row in found:
        n = row["query"][0]
        assert row == {
            "query": [n] * (1 + n % 3),
            "document": [n] * (1 + n % 5),
            "negatives": [[n] * (1 + k) for k in range(n % 4)],
        }


def test_a_finished_shard_is_kept_and_a_damaged_one_made_again(tmp_path):
    order = Order(tmp_path, write_pieces(tmp_path, [10]), (0, 10), 5, 0)
    path = tmp_path / "shard-00000.arrow"
    task = ShardTask(order, path, 0)
    first = gather_shard(None, task, lambda done: None)
    stamp = path.stat().st_mtime_ns
    assert gather_shard(None, task, lambda done: None) == first
    assert path.stat().st_mtime_ns == stamp
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert gather_shard(None, task, lambda done: None) == first
    assert path.read_bytes() == content
