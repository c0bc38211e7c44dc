"""Raw files to rows: JSON Lines, Parquet, CSV, TSV and plain text, compressed or not, local or any fsspec URL."""

from __future__ import annotations

import csv
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import fsspec

from longspan.errors import LongspanError

Row = dict[str, Any]
OnError = Callable[[LongspanError], None]
"""What to do with a broken row: raise the error (stop) or take note of it (skip)."""

COMPRESSIONS = (".gz", ".bz2", ".xz")
PARQUET_BATCH = 1024


def is_running_text(file: str) -> bool:
    """Whether a file holds one text rather than rows (told by its name)."""
    return _READERS.get(_kind(file)) is _text


def stop_on_error(error: LongspanError) -> None:
    """Refuse the whole file at its first broken row."""
    raise error


def find_files(patterns: tuple[str, ...]) -> list[str]:
    """The files that paths, globs and URLs name, sorted within each pattern.

    Raises:
        LongspanError: a pattern names nothing or a folder, or a file is named twice.
    """
    found = []
    for pattern in patterns:
        filesystem, path = _filesystem(pattern)
        matches = [path] if filesystem.isfile(path) else []  # a plain file's name may hold brackets too
        if not matches and any(mark in path for mark in "*?["):
            matches = sorted(match for match in filesystem.glob(path) if filesystem.isfile(match))
        if not matches:
            raise _no_file(pattern, filesystem.isdir(path))
        found += [filesystem.unstrip_protocol(match) if "://" in pattern else str(match) for match in matches]
    twice = [file for file, count in Counter(found).items() if count > 1]
    if twice:
        raise LongspanError("the file is named twice", where=twice[0], remedy="name each file once, or by one glob")
    return found


def read_rows(file: str, on_error: OnError = stop_on_error) -> Iterator[tuple[int, Row]]:
    """Rows of a file with their numbers (lines from 1; rows from 1 in Parquet), in order.

    The kind is told by the name: .jsonl / .ndjson, .parquet, .csv, .tsv, .txt / .md / .rst (one row, column `text`).

    Raises:
        LongspanError: an unknown kind, a file that is missing or torn, or whatever `on_error` raises for a broken row.
    """
    kind = _kind(file)
    if kind not in _READERS:
        raise LongspanError(
            f"files of kind {kind} are not read" if kind else "the file's name has no ending that tells its kind",
            where=file,
            remedy="convert it to .jsonl, .parquet, .csv, .tsv or .txt (compressed with .gz, .bz2 or .xz if you like)",
        )
    try:
        yield from _READERS[kind](file, on_error)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise LongspanError(
            f"the file cannot be read to its end: {error}",
            where=file,
            remedy="check that it is there and whole; download or copy it again",
        ) from None


def _filesystem(pattern: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(pattern)
    except (ValueError, ImportError) as error:
        raise LongspanError(
            f"this kind of place cannot be opened: {error}",
            where=pattern,
            remedy="install what it needs, or copy the files to this machine",
        ) from None


def _no_file(pattern: str, is_folder: bool) -> LongspanError:
    if is_folder:
        remedy = f"name its files, for example {pattern.rstrip('/')}/*.jsonl"
        return LongspanError(f"{pattern} is a folder, not a file", where=pattern, remedy=remedy)
    remedy = "check the path; globs like data/*.jsonl.gz are allowed"
    return LongspanError(f"no file {pattern}", where=pattern, remedy=remedy)


def _json_lines(file: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    with _open(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
                if b"\\ud" in line or b"\\uD" in line:
                    json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no character
            except (ValueError, RecursionError) as error:  # also what is not UTF-8
                on_error(_broken(file, number, f"broken JSON: {error}"))
                continue
            if not isinstance(row, dict):
                on_error(_broken(file, number, "the line is not a JSON object"))
                continue
            yield number, row


def _parquet(file: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    from pyarrow import parquet

    del on_error  # a Parquet file is whole or unreadable
    with _open(file, "rb") as stream:
        try:
            number = 0
            for batch in parquet.ParquetFile(stream).iter_batches(batch_size=PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise LongspanError(
                f"not a whole Parquet file: {error}", where=file, remedy="download or write it again"
            ) from None


def _comma_separated(file: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    # Strict: else a quotation mark that is never closed swallows the rest of the file.
    return _table(file, on_error, delimiter=",", strict=True)


def _tab_separated(file: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    # Tab-separated files have no quoting in this field (BEIR's qrels, GLUE).
    return _table(file, on_error, delimiter="\t", quoting=csv.QUOTE_NONE)


def _table(file: str, on_error: OnError, **dialect: Any) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)  # the default refuses documents of more than 131,072 characters
    # What is not UTF-8 comes as lone surrogates, so that only its row is broken.
    with _open(file, "rt", errors="surrogateescape") as stream:
        lines = csv.reader(stream, **dialect)
        names = _fields(lines, file) or []
        if len(set(names)) < len(names):
            raise _broken(file, 1, f"two columns have one name: {', '.join(names)}")
        while True:
            try:
                fields = _fields(lines, file)
            except LongspanError as error:
                on_error(error)
                continue
            if fields is None:
                return
            if len(fields) == len(names):
                yield lines.line_num, dict(zip(names, fields, strict=True))
            elif fields:  # an empty line has none
                what = f"the line has {len(fields)} fields, the first line names {len(names)}"
                on_error(_broken(file, lines.line_num, what))


def _fields(lines: Any, file: str) -> list[str] | None:
    """The next row of a `csv.reader`; None after the last."""
    try:
        fields = next(lines)
        "".join(fields).encode()
    except StopIteration:
        return None
    except csv.Error as error:
        raise _broken(file, lines.line_num, f"broken CSV: {error}") from None
    except UnicodeEncodeError:
        raise _broken(file, lines.line_num, "not UTF-8 text") from None
    return fields


def _text(file: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    with _open(file, "rt") as stream:
        try:
            text = stream.read()
        except UnicodeDecodeError as error:
            on_error(_broken(file, 1, f"not UTF-8 text: {error}"))
            return
    yield 1, {"text": text}


def _kind(file: str) -> str:
    bare = PurePosixPath(file)
    if bare.suffix.lower() in COMPRESSIONS:
        bare = bare.with_suffix("")
    return bare.suffix.lower()


_READERS: dict[str, Callable[[str, OnError], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".txt": _text,
    ".md": _text,
    ".rst": _text,
}


def _open(file: str, mode: str, errors: str | None = None) -> Any:
    # utf-8-sig leaves out the mark that some programs (Excel) put before the first line.
    options = {"encoding": "utf-8-sig", "newline": "", "errors": errors} if "t" in mode else {}
    return fsspec.open(file, mode, compression="infer", **options)


def _broken(file: str, number: int, what: str) -> LongspanError:
    return LongspanError(
        what,
        where=f"{file}:{number}",
        remedy="correct the line or take it out (longspan prepare --on-error skip leaves broken rows out)",
    )
