"""Raw files to rows: JSON Lines, Parquet, CSV, TSV and plain text, compressed or not, local or any fsspec URL."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any

import fsspec

from longspan.errors import LongspanError

Row = dict[str, Any]
OnError = Callable[[LongspanError], None]
"""What to do with a broken row: raise the error (stop) or take note of it (skip)."""

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
PARQUET_BATCH = 1024


def stop_on_error(error: LongspanError) -> None:
    """Refuse the whole file at its first broken row."""
    raise error


def find_files(patterns: tuple[str, ...]) -> list[str]:
    """The files that paths, globs and URLs name, sorted within each pattern.

    Raises:
        LongspanError: a pattern names nothing.
    """
    found = []
    for pattern in patterns:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        matches = sorted(filesystem.glob(path)) if any(mark in path for mark in "*?[") else [path]
        matches = [match for match in matches if filesystem.isfile(match)]
        if not matches:
            raise LongspanError(
                f"no file {pattern}", where=pattern, remedy="check the path; globs like data/*.jsonl.gz are allowed"
            )
        found += [filesystem.unstrip_protocol(match) if "://" in pattern else str(match) for match in matches]
    return found


def read_rows(file: str, on_error: OnError = stop_on_error) -> Iterator[tuple[int, Row]]:
    """Rows of a file with their numbers (lines from 1; rows from 1 in Parquet), in order.

    The kind is told by the name: .jsonl / .ndjson, .parquet, .csv, .tsv, .txt / .md / .rst (one row, column `text`).

    Raises:
        LongspanError: an unknown kind, or whatever `on_error` raises for a broken row.
    """
    bare = file
    for ending in COMPRESSIONS:
        bare = bare.removesuffix(ending)
    kind = bare.rpartition(".")[2].lower()
    readers = {
        "jsonl": _json_lines,
        "ndjson": _json_lines,
        "parquet": _parquet,
        "csv": _table,
        "tsv": _table,
        "txt": _text,
        "md": _text,
        "rst": _text,
    }
    if kind not in readers:
        raise LongspanError(
            f"files of kind .{kind} are not read",
            where=file,
            remedy="convert it to .jsonl, .parquet, .csv, .tsv or .txt (compressed with .gz if you like)",
        )
    yield from readers[kind](file, on_error)


def _json_lines(file: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    with _open(file, "rb") as stream:
        try:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    on_error(_broken(file, number, f"broken JSON: {error}"))
                    continue
                if not isinstance(row, dict):
                    on_error(_broken(file, number, "the line is not a JSON object"))
                    continue
                yield number, row
        except EOFError as error:
            raise LongspanError(
                f"the compressed file ends too early: {error}", where=file, remedy="download or copy it again"
            ) from None


def _parquet(file: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    from pyarrow import parquet

    del on_error  # a Parquet file is whole or unreadable
    with fsspec.open(file, "rb") as stream:
        try:
            number = 0
            for batch in parquet.ParquetFile(stream).iter_batches(batch_size=PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except pa.ArrowInvalid as error:
            raise LongspanError(
                f"not a whole Parquet file: {error}", where=file, remedy="download or write it again"
            ) from None


def _table(file: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    delimiter = "\t" if ".tsv" in file else ","
    # A tab-separated file has no quoting in this field (BEIR's qrels, GLUE); a comma-separated one has.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    with _open(file, "rt") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter, quoting=quoting)
        for row in reader:
            if None in row or None in row.values():
                on_error(
                    _broken(file, reader.line_num, f"the line does not have {len(reader.fieldnames or [])} fields")
                )
                continue
            yield reader.line_num, row


def _text(file: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    with _open(file, "rt") as stream:
        try:
            yield 1, {"text": stream.read()}
        except UnicodeDecodeError as error:
            on_error(_broken(file, 1, f"not UTF-8 text: {error}"))


def _open(file: str, mode: str) -> Any:
    options = {"encoding": "utf-8", "newline": ""} if "t" in mode else {}
    return fsspec.open(file, mode, compression="infer", **options)


def _broken(file: str, number: int, what: str) -> LongspanError:
    return LongspanError(
        what, where=f"{file}:{number}", remedy="correct the line, or pass --on-error skip to leave broken rows out"
    )
