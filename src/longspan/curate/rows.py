"""Rows on their way through a curation step: which file they come from, and the files of what is kept and dropped."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from longspan.data.compressed import bare_name
from longspan.data.places import is_local
from longspan.data.readers import Row, read_rows
from longspan.data.texts import Unfit, value_of
from longspan.errors import LongspanError
from longspan.files import atomic_path

KEPT, DROPPED, REPORT = "kept", "dropped.jsonl", "report.json"
"""What a step writes: a folder with one file per file that it has read, the rows that it left out, and its report."""


def result_names(files: Sequence[str]) -> dict[str, str]:
    """For every file the name of its result in the folder of kept rows.

    Raises:
        LongspanError: two files have one name, so that their rows would be mixed.
    """
    names = {file: f"{bare_name(file).stem}.jsonl" for file in files}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        both = [file for file in files if names[file] == twice[0]]
        raise LongspanError(
            f"the results of {' and '.join(both)} would have one name", where=both[1], remedy="rename one of the files"
        )
    return names


def refuse_to_overwrite(files: Sequence[str], out: Path) -> None:
    """Raise a LongspanError if a step that writes to `out` would replace one of the files that it reads."""
    for file in files:
        if is_local(file):
            path = Path(file.removeprefix("file://")).resolve()
            if path == (out / DROPPED).resolve() or path.is_relative_to((out / KEPT).resolve()):
                raise LongspanError("this file would be overwritten", where=file, remedy="choose another --out")


def count_rows(files: Sequence[str]) -> int:
    """The rows of all files.

    Raises:
        LongspanError: a file is missing or has a broken row.
    """
    return sum(1 for file in files for _ in read_rows(file))


def column_text(row: Row, column: str, where: str) -> str:
    """The text in a column, or, of a column "pos.0", in what the column "pos" lists (see `value_of`).

    Raises:
        LongspanError: there is none, or an empty one.
    """
    try:
        text = value_of(row, column)
    except Unfit:
        text = None
    if not isinstance(text, str) or not text.strip():
        raise LongspanError(
            f"{column!r} is missing or empty",
            where=where,
            remedy=f"the row has the columns: {', '.join(map(str, row))}",
        )
    return text


@contextlib.contextmanager
def json_lines(path: Path) -> Iterator[Callable[[Row], None]]:
    """Give the body a function that writes one row as a line of `path`; the file is whole or absent.

    Raises:
        LongspanError: a row holds something that JSON does not know; or as `atomic_path`.
    """
    with atomic_path(path) as unfinished, open(unfinished, "w", encoding="utf-8") as stream:

        def write(row: Row) -> None:
            try:
                line = json.dumps(row, ensure_ascii=False)
            except TypeError as error:
                raise LongspanError(
                    f"a row cannot be written as JSON: {error}", where=path, remedy="leave that column out"
                ) from None
            stream.write(line + "\n")

        yield write


def excerpt(text: Any, width: int = 160) -> str:
    """The beginning of a text, on one line, as reports show it."""
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
