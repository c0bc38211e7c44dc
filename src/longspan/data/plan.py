"""Which rows are read in which step: a pure function, without memory.

`plan(step)` names one source and the rows of the *global* batch. It depends on the sources' sizes and weights, the
batch size, the seed and the step, and on nothing else: not on the number of processes, not on what was read before. So
resume is one integer, and any number of processes read the same examples in the same step.

One source per batch (paper, section 4.2.2) keeps the model from telling documents apart by their source. In an epoch
each row of a source is read once, except for the rest that does not fill a batch; other rows are left over in the next
epoch.

A batch may also come from one cluster of one source: each cluster is then to the plan what a source is otherwise, a
stretch of rows of which the rest that fills no batch is left over, other rows in every epoch. The batches of all
clusters and sources are mixed. The plan knows the sizes of the clusters, and nothing else of them.

Prepared rows lie in random order already. So it is enough to shuffle them anew within windows, whose borders move from
epoch to epoch: a batch then touches a few neighbouring shards instead of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longspan.errors import LongspanError

WINDOW = 2**20
"""Rows that are shuffled together: 2 ** 20 pairs are some 16 shards."""

_ROUNDS = 4
_MASK = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class PlannedSource:
    """What the plan must know of a source."""

    name: str
    num_rows: int
    weight: float = 1.0
    clusters: tuple[int, ...] = ()
    """Rows of each cluster, in their order, if a batch is to come from one; together `num_rows`."""
    is_sorted: bool = False
    """Whether the rows do not lie in random order, so that they have to be shuffled all together."""


@dataclass(frozen=True)
class PlannedBatch:
    """One step's global batch: the number of its source, and its rows in order (int64)."""

    source: int
    rows: np.ndarray


class Plan:
    """`Plan(sources, batch_size, seed)(step) -> PlannedBatch`.

    Args:
        window: how many rows are shuffled together; the rows of a batch come from one window, or from two neighbours.

    Attributes:
        steps_per_epoch: batches until every source has been read `weight` times.
        left_over: for each source the rows that one reading leaves over, other ones in every epoch.
    """

    def __init__(self, sources: Sequence[PlannedSource], batch_size: int, seed: int, *, window: int = WINDOW) -> None:
        self._window = window
        self.sources = tuple(sources)
        self.batch_size = batch_size
        self.seed = seed
        for source in self.sources:
            _check_filled(source, batch_size)
        self._parts = [_Parts(source.clusters or (source.num_rows,), batch_size) for source in self.sources]
        self._full = [int(parts.ends[-1]) for parts in self._parts]
        drawn = [max(1, round(source.weight * full)) for source, full in zip(self.sources, self._full, strict=True)]
        self._ends = np.cumsum(drawn)
        self.steps_per_epoch = int(self._ends[-1])
        self.left_over = [
            source.num_rows - full * batch_size for source, full in zip(self.sources, self._full, strict=True)
        ]

    def __call__(self, step: int) -> PlannedBatch:
        """The batch of a step (from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        slot = int(shuffled(np.array([position]), self.steps_per_epoch, (self.seed, epoch))[0])
        source = int(np.searchsorted(self._ends, slot, side="right"))
        number = slot - (int(self._ends[source - 1]) if source else 0)
        # A source with weight 2 is read twice in an epoch, in two different orders.
        reading, number = divmod(number, self._full[source])
        key = (self.seed, epoch, source + 1, reading)
        parts, window, first = self._parts[source], self._window, 0
        size = self.sources[source].num_rows
        if self.sources[source].clusters:
            # Of a weight that is no whole number only the first batches are read: not only those of the first clusters.
            number = int(shuffled(np.array([number]), self._full[source], (*key, -2))[0])
            part = int(np.searchsorted(parts.ends, number, side="right"))
            number -= int(parts.ends[part - 1]) if part else 0
            first, size, key = int(parts.firsts[part]), int(parts.sizes[part]), (*key, part)
        elif self.sources[source].is_sorted:
            window = size
        places = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        return PlannedBatch(source, first + _shuffled_in_windows(places, size, window, key))


class _Parts:
    """The stretches of rows that fill batches by themselves: sizes, first rows, and how many batches end with each."""

    def __init__(self, sizes: Sequence[int], batch_size: int) -> None:
        self.sizes = np.array(sizes, dtype=np.int64)
        self.firsts = np.cumsum(self.sizes) - self.sizes
        self.ends = np.cumsum(self.sizes // batch_size)


def _check_filled(source: PlannedSource, batch_size: int) -> None:
    if source.num_rows < batch_size:
        raise LongspanError(
            f"source {source.name!r} has {source.num_rows} rows and cannot fill a batch of {batch_size}",
            where=f"source {source.name}",
            remedy="use a smaller batch_size, leave the source out, or merge it with a similar one",
        )
    small = [size for size in source.clusters if size < batch_size]
    if small:
        raise LongspanError(
            f"{len(small)} of the {len(source.clusters)} clusters of source {source.name!r} cannot fill a batch of "
            f"{batch_size}: their {sum(small)} rows would never be read",
            where=f"source {source.name}",
            remedy=f"cluster it with --at-least {batch_size} (longspan curate cluster), or use a smaller batch_size",
        )


def _shuffled_in_windows(places: np.ndarray, size: int, window: int, key: Sequence[int]) -> np.ndarray:
    """A bijection of `range(size)` that moves every place within its window; the first window starts anywhere."""
    moved = np.empty_like(places)
    number = places // window
    for which in np.unique(number).tolist():
        here, first = number == which, which * window
        moved[here] = first + shuffled(places[here] - first, min(window, size - first), (*key, which))
    return (moved + _hash_ints((*key, -1)) % size) % size


def shuffled(places: np.ndarray, size: int, key: Sequence[int]) -> np.ndarray:
    """Where a keyed shuffle of `range(size)` puts each place: a bijection computed place by place.

    A four-round Feistel network on the smallest even number of bits that covers `size`; values outside are walked on
    until they fall inside. Memory is that of `places`, whatever the size.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = [np.uint64(_hash_ints((*key, round_number))) for round_number in range(_ROUNDS)]
    values = places.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low)
        values[outside] = (left << np.uint64(half)) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def random_generator(*key: int) -> np.random.Generator:
    """A random generator that is a pure function of a few integers, e.g. (seed, step, row)."""
    return np.random.Generator(np.random.Philox(key=_hash_ints(key)))


def keyed_hashes(values: np.ndarray, key: Sequence[int], others: np.ndarray | int = 0) -> np.ndarray:
    """Random uint64 numbers that are a pure function of a key and of one or two arrays of whole numbers (broadcast)."""
    hashed = _mix(values.astype(np.uint64) ^ np.uint64(_hash_ints(key)))
    return _mix(hashed ^ np.asarray(others).astype(np.uint64))


def _mix(values: Any) -> Any:
    # The finaliser of splitmix64, where every input bit changes about half of the output bits; for an int, or for an
    # array of uint64, which wraps around by itself.
    values = (values + 0x9E3779B97F4A7C15) & _MASK
    values = ((values ^ (values >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    values = ((values ^ (values >> 27)) * 0x94D049BB133111EB) & _MASK
    return values ^ (values >> 31)


def _hash_ints(key: Sequence[int]) -> int:
    state = 0
    for part in key:
        state = _mix(state ^ (part & _MASK))
    return state
