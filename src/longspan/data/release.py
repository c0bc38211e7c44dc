"""The form in which the original authors have published their training data: numbered shards with an index.

A release is a folder of `shard-00000.jsonl.gz`, ..., with `counts.json` (file -> number of rows) and `offsets.json.gz`
(file -> row -> [start, end], in bytes of the decompressed shard). A record has its texts and, under
`metadata.objective`, which of its columns make a pair (`paired`) or a pair with negatives (`triplet`).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from longspan.data.cache import open_file
from longspan.data.parts import files_fingerprint
from longspan.data.places import inside, list_files
from longspan.data.readers import Row, read_rows
from longspan.data.skipped import BrokenRow, OnError
from longspan.data.source import PairSource, Source
from longspan.errors import LongspanError
from longspan.files import atomic_path, write_json

COUNTS, OFFSETS = "counts.json", "offsets.json.gz"
ROWS_PER_SHARD = 100_000
"""As the original release has it."""

_SHARD = ".jsonl.gz"


@dataclass(frozen=True)
class ReleaseShard:
    """One shard, which has to have as many rows as its release says."""

    name: str
    num_rows: int

    @property
    def files(self) -> tuple[str, ...]:
        """The shard."""
        return (self.name,)

    def read(self, source: Source, on_error: OnError) -> Iterator[tuple[int, Row]]:
        """See `Part`. Rows stand in order, so that the offsets are not needed (nor their mistakes inherited)."""
        num_rows = 0

        def broken(error: LongspanError) -> None:
            nonlocal num_rows
            num_rows += 1
            on_error(error)

        for number, row in read_rows(self.name, broken):
            if isinstance(source, PairSource) and not _declares(row, source):
                broken(_undeclared(row, source, self.name, number))
                continue
            num_rows += 1
            yield number, row
        if num_rows != self.num_rows:
            raise LongspanError(
                f"the shard has {num_rows:,} rows and {COUNTS} says {self.num_rows:,}",
                where=self.name,
                remedy="get the shard again; where it is the count that is wrong, name the shards as files = ...",
            )

    def fingerprint(self, source: Source) -> str:
        """See `Part`."""
        return files_fingerprint(self.files, source)


def release_shards(folder: str) -> list[ReleaseShard]:
    """The shards of a release.

    Raises:
        LongspanError: there is no index, it cannot be read, or its shards are not those of the folder.
    """
    counts = _counts(inside(folder, COUNTS))
    there = {name for name in list_files(folder) if name.endswith(_SHARD) and "/" not in name}
    if different := sorted(there ^ counts.keys()):
        what = "is not there" if different[0] in counts else f"is not in {COUNTS}"
        remedy = f"get the whole release again ({len(counts)} shards in {COUNTS}, {len(there)} in the folder)"
        raise LongspanError(f"{different[0]} {what}", where=folder, remedy=remedy)
    return [ReleaseShard(inside(folder, name), counts[name]) for name in sorted(counts)]


def write_release(
    rows: Iterable[Mapping[str, Any]], folder: Path, *, rows_per_shard: int = ROWS_PER_SHARD, place: str = ""
) -> int:
    """Write rows as a release that this and the original loader read; the same rows give the same bytes.

    Args:
        rows: `query`, `document` and, if mined, `negatives`; other columns go along.
        folder: made; absent until all is written.
        place: where it will be published, e.g. "bucket/name": the original loader looks up its shards by that.

    Returns:
        The number of rows.

    Raises:
        LongspanError: the folder is there already, or a row has no text where it needs one.
    """
    if folder.exists():
        raise LongspanError("there is something of that name already", where=folder, remedy="choose another folder")
    counts: dict[str, int] = {}
    numbered = enumerate(rows, 1)
    with atomic_path(folder) as unfinished:
        unfinished.mkdir()
        with _compressed(unfinished / OFFSETS) as offsets:
            offsets.write(b"{")
            while shard := list(itertools.islice(numbered, rows_per_shard)):
                name = f"shard-{len(counts):05d}{_SHARD}"
                key = str(PurePosixPath(place) / name)
                ends = _write_shard(unfinished / name, shard)
                spans = {str(row): span for row, span in enumerate(itertools.pairwise([0, *ends]))}
                offsets.write(f"{', ' if counts else ''}{json.dumps(key)}: {json.dumps(spans)}".encode())
                counts[key] = len(shard)
            offsets.write(b"}")
        write_json(unfinished / COUNTS, counts)
    return sum(counts.values())


def _counts(place: str) -> dict[str, int]:
    """File name -> rows."""
    try:
        with open_file(place) as stream:
            counts = json.loads(stream.read())
    except (OSError, ValueError, RecursionError) as error:
        raise LongspanError(f"{COUNTS} cannot be read: {error}", where=place, remedy="get it again") from None
    if isinstance(counts, dict) and isinstance(counts.get("count_per_file"), dict):
        counts = counts["count_per_file"]  # an earlier form, which also has the total
    if not isinstance(counts, dict) or not all(type(count) is int and count >= 0 for count in counts.values()):
        raise LongspanError(f"{COUNTS} is not a table of files and counts", where=place, remedy="get it again")
    return {PurePosixPath(file).name: count for file, count in counts.items()}  # the original names bucket and folder


def _declares(row: Row, source: PairSource) -> bool:
    metadata = row.get("metadata")
    objective = metadata.get("objective") if isinstance(metadata, dict) else None
    if not isinstance(objective, dict):
        return False
    if source.negatives is not None:
        return list(source.columns) in (objective.get("triplet") or [])
    declared = [*(objective.get("paired") or []), *(objective.get("triplet") or [])]
    return any(columns[:2] == [source.query, source.document] for columns in declared)


def _undeclared(row: Row, source: PairSource, file: str, number: int) -> BrokenRow:
    metadata = row.get("metadata")
    objective = metadata.get("objective") if isinstance(metadata, dict) else None
    return BrokenRow(
        f"the record's objective does not pair the columns {', '.join(source.columns)}",
        file=file,
        number=number,
        remedy=f"name columns that it pairs: {json.dumps(objective, ensure_ascii=False)}",
        raw=json.dumps(row, ensure_ascii=False),
    )


def _write_shard(path: Path, rows: list[tuple[int, Mapping[str, Any]]]) -> list[int]:
    """Write one shard; returns where each row ends, in bytes before compression."""
    ends = []
    with _compressed(path) as stream:
        end = 0
        for number, row in rows:
            end += stream.write(_line(row, number))
            ends.append(end)
    return ends


def _line(row: Mapping[str, Any], number: int) -> bytes:
    texts = [row.get("query"), row.get("document"), *row.get("negatives", [])]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise LongspanError(
            "the row has an empty text or none", where=f"row {number}", remedy="give it a query and a document"
        )
    triplet = [["query", "document", "negatives"]] if "negatives" in row else []
    objective = {"self": [], "paired": [["query", "document"]], "triplet": triplet}
    metadata = row.get("metadata", {}) | {"objective": objective}
    try:
        return (json.dumps({**row, "metadata": metadata}, ensure_ascii=False) + "\n").encode()
    except (UnicodeEncodeError, TypeError) as error:
        raise LongspanError(
            f"the row cannot be written: {error}", where=f"row {number}", remedy="correct or leave out that row"
        ) from None


@contextlib.contextmanager
def _compressed(path: Path) -> Iterator[BinaryIO]:
    # Without a time and a name inside, equal content is equal bytes.
    with (
        open(path, "wb") as below,
        gzip.GzipFile("", "wb", fileobj=below, mtime=0) as stream,
        io.BufferedWriter(stream, 2**18) as buffered,
    ):
        yield buffered
