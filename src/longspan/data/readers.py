"""Kinds of files to rows: JSON Lines, Parquet, CSV, TSV and plain text, compressed or not, local or remote."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from longspan.data.compressed import TORN, bare_name, open_bytes
from longspan.data.places import is_local
from longspan.data.skipped import BrokenRow, OnError, stop_on_error
from longspan.errors import LongspanError

Row = dict[str, Any]
Columns = Sequence[str] | None

PARQUET = ".parquet"
PARQUET_BATCH = 1024
"""Rows of a Parquet file that are in memory at a time, beside the row group they are decoded from."""


class Lines(NamedTuple):
    """A stretch of a plain JSON Lines file that begins and ends with a line."""

    start: int
    end: int
    """Places of the first byte, and behind the last."""
    first: int
    """Number of the first line."""


def is_plain_lines(file: str) -> bool:
    """Whether a file can be read in stretches of lines: JSON Lines on this machine, not compressed."""
    return is_local(file) and _READERS.get(PurePosixPath(file).suffix.lower()) is _json_lines


def is_readable(file: str) -> bool:
    """Whether `read_rows` knows a file's kind (told by its name)."""
    return _kind(file) in (*_READERS, PARQUET)


def is_running_text(file: str) -> bool:
    """Whether a file holds one text rather than rows (told by its name)."""
    return _READERS.get(_kind(file)) is _text


def read_rows(
    file: str, on_error: OnError = stop_on_error, *, columns: Columns = None, lines: Lines | None = None
) -> Iterator[tuple[int, Row]]:
    """Rows of a file with their numbers (lines from 1; rows from 1 in Parquet), in order.

    The kind is told by the name: .jsonl / .ndjson, .parquet, .csv, .tsv, .txt / .md / .rst (one row, column `text`),
    each also with .gz, .bz2, .xz or .zst behind it. A line of JSON is an object, or an array, whose columns are then
    "0", "1", ...

    Args:
        columns: the columns that are needed. Parquet files that have them all are read without the others; every other
            row comes whole.
        lines: read only this stretch of a file that `is_plain_lines`.

    Raises:
        LongspanError: an unknown kind, a file that is missing or torn, or whatever `on_error` raises for a broken row.
    """
    kind = _kind(file)
    if not is_readable(file):
        raise LongspanError(
            f"files of kind {kind} are not read" if kind else "the file's name has no ending that tells its kind",
            where=file,
            remedy="convert it to .jsonl, .parquet, .csv, .tsv or .txt (.gz, .bz2, .xz or .zst may follow)",
        )
    try:
        with open_bytes(file) as stream:
            if lines is not None:
                stream.seek(lines.start)
                yield from _json_lines(file, _until(stream, lines.end), on_error, lines.first)
            elif kind == PARQUET:
                yield from _parquet(file, stream, columns)
            else:
                yield from _READERS[kind](file, stream, on_error)
    except TORN as error:
        raise LongspanError(
            f"the file cannot be read to its end: {error}",
            where=file,
            remedy="check that it is there and whole; download or copy it again",
        ) from None


def _json_lines(file: str, stream: Iterable[bytes], on_error: OnError, first: int = 1) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(stream, first):
        if not line.strip():
            continue
        try:
            row = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
            if b"\\ud" in line or b"\\uD" in line:
                json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no character
        except (ValueError, RecursionError) as error:  # also what is not UTF-8
            on_error(_broken(file, number, f"broken JSON: {error}", line))
            continue
        if isinstance(row, list):
            row = {str(place): value for place, value in enumerate(row)}
        elif not isinstance(row, dict):
            on_error(_broken(file, number, "the line is neither a JSON object nor an array", line))
            continue
        yield number, row


def _until(stream: BinaryIO, end: int) -> Iterator[bytes]:
    """The lines of a stream up to the place `end`."""
    place = stream.tell()
    while place < end and (line := stream.readline()):
        place += len(line)
        yield line


def _parquet(file: str, stream: BinaryIO, columns: Columns) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        whole = parquet.ParquetFile(stream)
        # All of them where one is missing, so that what is said about the row can name those that are there.
        wanted = list(columns) if columns is not None and set(columns) <= set(whole.schema_arrow.names) else None
        number = 0
        for group in range(whole.num_row_groups):
            for batch in whole.iter_batches(PARQUET_BATCH, row_groups=[group], columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise LongspanError(
            f"not a whole Parquet file: {error}", where=file, remedy="download or write it again"
        ) from None


def _comma_separated(file: str, stream: BinaryIO, on_error: OnError) -> Iterator[tuple[int, Row]]:
    # Strict: else a quotation mark that is never closed swallows the rest of the file.
    return _table(file, stream, on_error, delimiter=",", strict=True)


def _tab_separated(file: str, stream: BinaryIO, on_error: OnError) -> Iterator[tuple[int, Row]]:
    # Tab-separated files have no quoting in this field (BEIR's qrels, GLUE).
    return _table(file, stream, on_error, delimiter="\t", quoting=csv.QUOTE_NONE)


def _table(file: str, stream: BinaryIO, on_error: OnError, **dialect: Any) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)  # the default refuses documents of more than 131,072 characters
    # What is not UTF-8 comes as lone surrogates, so that only its row is broken.
    with _as_text(stream, errors="surrogateescape") as text:
        lines = csv.reader(text, **dialect)
        names = _fields(lines, file) or []
        if len(set(names)) < len(names):
            raise _broken(file, 1, f"two columns have one name: {', '.join(names)}")
        while True:
            try:
                fields = _fields(lines, file)
            except BrokenRow as error:
                on_error(error)
                continue
            if fields is None:
                return
            if len(fields) == len(names):
                yield lines.line_num, dict(zip(names, fields, strict=True))
            elif fields:  # an empty line has none
                what = f"the line has {len(fields)} fields, the first line names {len(names)}"
                on_error(_broken(file, lines.line_num, what, dialect["delimiter"].join(fields)))


def _fields(lines: Any, file: str) -> list[str] | None:
    """The next row of a `csv.reader`; None after the last."""
    try:
        fields = next(lines)
    except StopIteration:
        return None
    except csv.Error as error:
        raise _broken(file, lines.line_num, f"broken CSV: {error}") from None
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        raw = " ".join(fields).encode("utf-8", "surrogateescape")
        raise _broken(file, lines.line_num, "not UTF-8 text", raw) from None
    return fields


def _text(file: str, stream: BinaryIO, on_error: OnError) -> Iterator[tuple[int, Row]]:
    with _as_text(stream) as text:
        try:
            whole = text.read()
        except UnicodeDecodeError as error:
            on_error(_broken(file, 1, f"not UTF-8 text: {error}"))
            return
    yield 1, {"text": whole}


def _kind(file: str) -> str:
    return bare_name(file).suffix.lower()


_READERS: dict[str, Callable[[str, BinaryIO, OnError], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".txt": _text,
    ".md": _text,
    ".rst": _text,
}


def _as_text(stream: BinaryIO, errors: str | None = None) -> io.TextIOWrapper:
    # utf-8-sig leaves out the mark that some programs (Excel) put before the first line.
    return io.TextIOWrapper(stream, "utf-8-sig", errors, newline="")


def _broken(file: str, number: int, what: str, raw: bytes | str | None = None) -> BrokenRow:
    return BrokenRow(
        what,
        file=file,
        number=number,
        remedy="correct the line or take it out (longspan prepare --on-error skip leaves broken rows out)",
        raw=raw,
    )
