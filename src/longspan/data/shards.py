"""Prepared sources on disk: memory-mapped Arrow files of token ids, and the manifest that vouches for them.

A prepared source is a folder: `manifest.json` (written last: a folder without it is unfinished) and
`shard-NNNNN.arrow`. Rows hold token ids without prefixes and special tokens, uncut: prefixes and cuts belong to the
recipe. Any Arrow tool opens the shards.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from longspan.config import Config
from longspan.errors import LongspanError
from longspan.files import atomic_path, read_json, sha256_file, sha256_json
from longspan.text.tasks import Task

MANIFEST = "manifest.json"
FORMAT = 1

_IDS = pa.large_list(pa.int32())
PAIR_SCHEMA = pa.schema({"query": _IDS, "document": _IDS, "negatives": pa.large_list(_IDS)})
TEXT_SCHEMA = pa.schema({"text": _IDS})


class Shard(Config):
    """One Arrow file."""

    file: str
    num_rows: int
    num_bytes: int
    sha256: str


class InputFile(Config):
    """One raw file that went in."""

    file: str
    sha256: str
    num_rows: int
    """Rows kept."""
    num_skipped: int


class Manifest(Config):
    """What a prepared source holds."""

    format: int = FORMAT
    kind: Literal["pairs", "text"]
    name: str
    query_task: Task | None = None
    document_task: Task | None = None
    weight: float = 1.0
    num_rows: int
    num_tokens: dict[str, int]
    """Column -> tokens, without prefixes and special tokens."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    request: str
    """Fingerprint of what was asked for: source, input files, tokenizer."""
    inputs: tuple[InputFile, ...]
    shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """Changes whenever a row changes; the place of the raw files does not matter."""
        content = [self.kind, self.name, self.query_task, self.document_task, self.weight, self.tokenizer]
        return sha256_json([*content, [[shard.sha256, shard.num_rows] for shard in self.shards]])


def write_shard(path: Path, columns: Sequence[pa.Array], schema: pa.Schema) -> Shard:
    """Write one Arrow file of one record batch, atomically."""
    batch = pa.record_batch(list(columns), schema=schema)
    with atomic_path(path) as unfinished, pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, schema) as w:
        w.write_batch(batch)
    return Shard(file=path.name, num_rows=batch.num_rows, num_bytes=path.stat().st_size, sha256=sha256_file(path))


def id_lists(sequences: Sequence[np.ndarray]) -> pa.Array:
    """An Arrow column of token id lists."""
    offsets = np.fromiter(itertools.accumulate(map(len, sequences), initial=0), dtype=np.int64)
    values = np.concatenate(sequences) if sequences else np.empty(0, dtype=np.int32)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values, type=pa.int32()))


def nested_id_lists(rows: Sequence[Sequence[np.ndarray]]) -> pa.Array:
    """An Arrow column of lists of token id lists."""
    offsets = np.fromiter(itertools.accumulate(map(len, rows), initial=0), dtype=np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), id_lists([ids for row in rows for ids in row]))


class IdColumn:
    """A column of token id lists over several shards, as slices of memory-mapped arrays (nothing is copied)."""

    def __init__(self, arrays: Sequence[pa.LargeListArray]) -> None:
        self._offsets = [array.offsets.to_numpy() for array in arrays]
        self._values = [array.values.to_numpy() for array in arrays]
        self._starts = np.array([0, *itertools.accumulate(len(array) for array in arrays)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> np.ndarray:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        offsets, local = self._offsets[shard], row - self._starts[shard]
        return self._values[shard][offsets[local] : offsets[local + 1]]

    def lengths(self) -> np.ndarray:
        """Number of ids in every row, int64."""
        return np.concatenate([np.diff(offsets) for offsets in self._offsets])

    def counts(self, size: int) -> np.ndarray:
        """How often each id below `size` occurs, int64."""
        return np.sum([np.bincount(values, minlength=size) for values in self._values], axis=0)


class PreparedSource:
    """A prepared source, opened for reading.

    Raises:
        LongspanError: on opening, if the manifest or a shard is missing, has another size or another hash than the
            manifest says.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        if verify:
            for shard in self.manifest.shards:
                _verify(folder / shard.file, shard)
        self._batches = [_map(folder / shard.file) for shard in self.manifest.shards]

    def __len__(self) -> int:
        return self.manifest.num_rows

    def ids(self, column: str) -> IdColumn:
        """The token ids of `query`, `document` (pairs) or `text`."""
        return IdColumn([batch.column(column) for batch in self._batches])

    def negatives(self) -> NegativesColumn:
        """The token ids of every row's hard negatives."""
        return NegativesColumn([batch.column("negatives") for batch in self._batches])


class NegativesColumn:
    """A column of lists of token id lists."""

    def __init__(self, arrays: Sequence[pa.LargeListArray]) -> None:
        self._offsets = [array.offsets.to_numpy() for array in arrays]
        self._lists = [IdColumn([array.values]) for array in arrays]
        self._starts = np.array([0, *itertools.accumulate(len(array) for array in arrays)])

    def _place(self, row: int) -> tuple[int, int, int]:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        offsets, local = self._offsets[shard], row - self._starts[shard]
        return shard, int(offsets[local]), int(offsets[local + 1])

    def count(self, row: int) -> int:
        """How many negatives the row has."""
        _, start, end = self._place(row)
        return end - start

    def pick(self, row: int, numbers: Sequence[int]) -> list[np.ndarray]:
        """The row's negatives of the given numbers."""
        shard, start, _ = self._place(row)
        return [self._lists[shard][start + number] for number in numbers]


def read_manifest(folder: Path) -> Manifest:
    """Read a prepared source's manifest.

    Raises:
        LongspanError: it is missing (the source is not, or not completely, prepared) or of another format.
    """
    path = folder / MANIFEST
    remedy = _again(folder) if path.is_file() else "prepare the source first: longspan prepare SOURCE --out DIR"
    values = read_json(path, remedy=remedy)
    if isinstance(values, dict) and values.get("format") != FORMAT:
        raise LongspanError(
            f"the prepared data has format {values.get('format')}, this version of longspan reads {FORMAT}",
            where=path,
            remedy=_again(folder),
        )
    return Manifest.parse(values, where=path)


def _verify(path: Path, shard: Shard) -> None:
    if not path.is_file():
        raise LongspanError(f"{shard.file} is missing", where=path, remedy=_again(path.parent))
    size = path.stat().st_size
    if size != shard.num_bytes or sha256_file(path) != shard.sha256:
        raise LongspanError(
            f"{shard.file} is not what the manifest vouches for ({size} bytes, expected {shard.num_bytes}; "
            "or its content has changed)",
            where=path,
            remedy=_again(path.parent),
        )


def _again(folder: Path) -> str:
    return f"delete {folder} and prepare the source again"


def _map(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path), "r")).get_batch(0)
