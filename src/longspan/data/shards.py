"""Prepared sources on disk, opened for reading: memory-mapped Arrow files of token ids.

A prepared source is a folder: `manifest.json` (written last: a folder without it is unfinished) and
`shard-NNNNN.arrow`. Rows hold token ids without prefixes and special tokens, uncut: prefixes and cuts belong to the
recipe. Any Arrow tool opens the shards.

Opening costs nothing that grows with the data: a shard is mapped when a row of it is first asked for, and its hash is
computed once. After that, size and time of the file vouch for it (`verified.json`), as in any build tool;
`longspan data verify` computes all hashes anew.

Axes: N rows asked for, H negatives of each, T tokens.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from longspan.data.manifest import Shard, prepare_again, read_manifest
from longspan.data.ragged import places_of
from longspan.data.writing import SCORES
from longspan.errors import LongspanError
from longspan.files import read_json, sha256_file, write_json

VERIFIED = "verified.json"
"""Beside the manifest: size and modification time of every shard whose hash was found right."""

MAPPED_SHARDS = 34
"""How many shards stay mapped, all sources together; a batch touches at most two windows of the plan."""

Progress = Callable[[int], None]
"""Called with the number of bytes read since the last call."""


class PreparedSource:
    """A prepared source, opened for reading.

    Raises:
        LongspanError: on opening, if the manifest or a shard is missing, or a shard has another size or another hash
            than the manifest says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        _verify_what_changed(folder, self.manifest.shards)
        self._paths = [(folder / shard.file, *_stamp(folder / shard.file)) for shard in self.manifest.shards]
        self._sizes = [shard.num_rows for shard in self.manifest.shards]

    def __len__(self) -> int:
        return self.manifest.num_rows

    def ids(self, column: str) -> IdColumn:
        """The token ids of `query`, `document` (pairs) or `text`."""
        return IdColumn(self._columns(column), self._sizes)

    def negatives(self) -> NegativesColumn:
        """The token ids of every row's hard negatives."""
        return NegativesColumn(self._columns("negatives"), self._sizes)

    def scores(self) -> ScoresColumn:
        """A teacher's scores of every row's document and negatives.

        Raises:
            LongspanError: the source was prepared without.
        """
        if not self.manifest.scores:
            raise LongspanError(
                f"source {self.manifest.name!r} has no scores of a teacher",
                where=self.folder,
                remedy="mine negatives with one (longspan curate mine ... --teacher MODEL) and prepare the result with "
                "--scores into a new folder",
            )
        return ScoresColumn(self._columns(SCORES), self._sizes)

    def _columns(self, column: str) -> list[Callable[[], pa.LargeListArray]]:
        return [functools.partial(_column, column, *place) for place in self._paths]


class Found(NamedTuple):
    """Where N sequences of token ids stand: number of the shard, first place in its flat values, length (int64)."""

    shard_N: np.ndarray
    start_N: np.ndarray
    length_N: np.ndarray


class _Lists:
    """Lists over several shards; a shard is opened when a row of it is asked for."""

    def __init__(self, shards: Sequence[Callable[[], pa.LargeListArray]], sizes: Sequence[int]) -> None:
        self._shards = shards
        self._firsts = np.array([0, *itertools.accumulate(sizes)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def _open(self, shard: int) -> tuple[np.ndarray, np.ndarray, Any]:
        """Offsets of the rows, flat token ids, and what the rows list."""
        array = self._shards[shard]()
        inner = array.values
        flat = inner.values if pa.types.is_large_list(inner.type) else inner
        return _numbers(array.offsets), _numbers(flat), inner

    def _place(self, row: int) -> tuple[int, int]:
        """The shard of a row, and its number there."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        shard = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return shard, row - int(self._firsts[shard])

    def _by_shard(self, rows_N: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each shard that is touched: its number, which of the N rows stand in it, and their numbers there."""
        shard_N = np.searchsorted(self._firsts, rows_N, side="right") - 1
        for shard, which in _groups(shard_N):
            yield shard, which, rows_N[which] - self._firsts[shard]

    def copy(self, found: Found, lengths_N: np.ndarray, out_T: np.ndarray, places_N: np.ndarray) -> None:
        """Write the first `lengths[n]` ids of every sequence to `out[places[n]:]`."""
        for shard, which in _groups(found.shard_N):
            _, values, _ = self._open(shard)
            lengths = lengths_N[which]
            out_T[places_of(places_N[which], lengths)] = values.take(places_of(found.start_N[which], lengths))


class IdColumn(_Lists):
    """A column of token id lists over several shards, as slices of memory-mapped arrays (nothing is copied)."""

    def __getitem__(self, row: int) -> np.ndarray:
        shard, local = self._place(row)
        offsets, values, _ = self._open(shard)
        return values[offsets[local] : offsets[local + 1]]

    def find(self, rows_N: np.ndarray) -> Found:
        """Where the sequences of the given rows stand."""
        start_N, length_N = np.empty(len(rows_N), dtype=np.int64), np.empty(len(rows_N), dtype=np.int64)
        shard_N = np.empty(len(rows_N), dtype=np.int64)
        for shard, which, local in self._by_shard(rows_N):
            offsets, _, _ = self._open(shard)
            shard_N[which], start_N[which] = shard, offsets[local]
            length_N[which] = offsets[local + 1] - offsets[local]
        return Found(shard_N, start_N, length_N)

    def lengths(self) -> np.ndarray:
        """Number of ids in every row, int64."""
        return np.concatenate([np.diff(self._open(shard)[0]) for shard in range(len(self._shards))])

    def by_shard(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The flat ids and the lengths (int64) of every shard in turn."""
        for shard in range(len(self._shards)):
            offsets, values, _ = self._open(shard)
            yield values, np.diff(offsets)

    def counts(self, size: int) -> np.ndarray:
        """How often each id below `size` occurs, int64."""
        return np.sum([np.bincount(values, minlength=size) for values, _ in self.by_shard()], axis=0)


class NegativesColumn(_Lists):
    """A column of lists of token id lists."""

    def counts(self, rows_N: np.ndarray) -> np.ndarray:
        """How many negatives each of the rows has, int64."""
        count_N = np.empty(len(rows_N), dtype=np.int64)
        for shard, which, local in self._by_shard(rows_N):
            offsets, _, _ = self._open(shard)
            count_N[which] = offsets[local + 1] - offsets[local]
        return count_N

    def find(self, rows_N: np.ndarray, numbers_NH: np.ndarray) -> Found:
        """Where the negatives of the given numbers stand; those of the first row first (N * H sequences)."""
        shape = numbers_NH.shape
        start_NH, length_NH = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        shard_NH = np.empty(shape, dtype=np.int64)
        for shard, which, local in self._by_shard(rows_N):
            offsets, _, inner = self._open(shard)
            inner_offsets = _numbers(inner.offsets)
            place = offsets[local][:, None] + numbers_NH[which]
            shard_NH[which], start_NH[which] = shard, inner_offsets[place]
            length_NH[which] = inner_offsets[place + 1] - inner_offsets[place]
        return Found(shard_NH.ravel(), start_NH.ravel(), length_NH.ravel())


class ScoresColumn(_Lists):
    """A column of lists of scores: of the document, then of the negatives."""

    def take(self, rows_N: np.ndarray, numbers_NH: np.ndarray) -> np.ndarray:
        """The scores of the rows' documents and of their negatives of the given numbers, float32 (N, 1 + H)."""
        scores_NC = np.empty((len(rows_N), 1 + numbers_NH.shape[1]), dtype=np.float32)
        for shard, which, local in self._by_shard(rows_N):
            offsets, values, _ = self._open(shard)
            first = offsets[local][:, None]
            scores_NC[which] = values[np.concatenate([first, first + 1 + numbers_NH[which]], axis=1)]
        return scores_NC


def verify_source(folder: Path, progress: Progress | None = None) -> None:
    """Compute the hash of every shard anew, and remember which files were found right.

    Raises:
        LongspanError: a shard is missing or is not what the manifest vouches for.
    """
    shards = read_manifest(folder).shards
    for shard in shards:
        _check_size(folder / shard.file, shard)
        _check_hash(folder / shard.file, shard)
        if progress is not None:
            progress(shard.num_bytes)
    remember_verified(folder, shards)


def remember_verified(folder: Path, shards: Sequence[Shard]) -> None:
    """Note size and time of shards whose content is known to be right; a folder may be read-only."""
    stamps = {shard.file: list(_stamp(folder / shard.file)) for shard in shards}
    if read_stamps(folder) != stamps:
        try:
            write_json(folder / VERIFIED, stamps)
        except LongspanError:
            return  # read-only data: hashes are computed again next time


def read_stamps(folder: Path) -> dict[str, Any]:
    """What `remember_verified` noted."""
    path = folder / VERIFIED
    try:
        stamps = read_json(path, remedy="delete it") if path.is_file() else {}
    except LongspanError:
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _verify_what_changed(folder: Path, shards: Sequence[Shard]) -> None:
    stamps = read_stamps(folder)
    for shard in shards:
        path = folder / shard.file
        _check_size(path, shard)
        if stamps.get(shard.file) != list(_stamp(path)):
            _check_hash(path, shard)
    remember_verified(folder, shards)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _check_size(path: Path, shard: Shard) -> None:
    if not path.is_file():
        raise LongspanError(f"{shard.file} is missing", where=path, remedy=prepare_again(path.parent))
    if path.stat().st_size != shard.num_bytes:
        raise _not_vouched(path, shard)


def _check_hash(path: Path, shard: Shard) -> None:
    if sha256_file(path) != shard.sha256:
        raise _not_vouched(path, shard)


def _not_vouched(path: Path, shard: Shard) -> LongspanError:
    size = path.stat().st_size
    why = "its content has changed" if size == shard.num_bytes else f"{size:,} bytes, expected {shard.num_bytes:,}"
    return LongspanError(
        f"{shard.file} is not what the manifest vouches for ({why})",
        where=path,
        remedy=prepare_again(path.parent),
    )


def _numbers(array: pa.Array) -> np.ndarray:
    """An Arrow array of whole numbers without nulls, as it lies in memory."""
    # Not `to_numpy`: its first call imports pandas where that is installed, which takes longer than the first batch.
    dtype, values = np.dtype(array.type.to_pandas_dtype()), array.buffers()[1]
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(values, dtype, count=len(array), offset=array.offset * dtype.itemsize)


def _groups(shard_N: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each distinct number, and where it stands."""
    if not len(shard_N):
        return
    order = np.argsort(shard_N, kind="stable")
    ordered = shard_N[order]
    edges = np.flatnonzero(np.diff(ordered)) + 1
    for which in np.split(order, edges):
        yield int(shard_N[which[0]]), which


def _column(column: str, path: Path, size: int, modified: int) -> Any:
    return _map(path, size, modified).column(column)


@functools.lru_cache(maxsize=MAPPED_SHARDS)
def _map(path: Path, size: int, modified: int) -> pa.RecordBatch:
    # Size and time are part of the key: a file that was written anew is another file.
    return pa.ipc.open_file(pa.memory_map(str(path), "r")).get_batch(0)
