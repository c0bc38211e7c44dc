"""The texts of files, one at a time: a line of plain text, or a row's column."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from longspan.data.compressed import open_bytes
from longspan.data.places import find_files, inside, is_folder, list_files
from longspan.data.readers import is_readable, is_running_text, read_rows
from longspan.errors import LongspanError

STDIN = "standard input"


class Text(NamedTuple):
    """A text, and where it is (`file:line`)."""

    text: str
    where: str
    id: str | None
    """What the row is called, where an id was asked for."""


@dataclass(frozen=True)
class Inputs:
    """Files of texts, which can be read several times.

    Attributes:
        files: each of a kind that `read_rows` knows.
        column: of the text, in files of rows.
        id_column: of what a row is called; None: not asked for.
        names: what a file is called in messages, where that is not its path.
    """

    files: tuple[str, ...]
    column: str = "text"
    id_column: str | None = None
    names: tuple[tuple[str, str], ...] = ()

    def read(self) -> Iterator[Text]:
        """All texts, in the order of the files.

        Raises:
            LongspanError: a missing or torn file, an empty text, or a row without the column.
        """
        names = dict(self.names)
        for file in self.files:
            name = names.get(file, file)
            yield from self._lines(file, name) if is_running_text(file) else self._rows(file, name)

    def _lines(self, file: str, name: str) -> Iterator[Text]:
        if self.id_column is not None:
            raise LongspanError(
                "lines of plain text have no ids", where=name, remedy="leave the id out, or name a file of rows"
            )
        # newline=None cuts at the three kinds of line ends; not splitlines(), which also cuts at rarer characters
        # (U+2028, form feed) that a line may hold.
        with open_bytes(file) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline=None) as stream:
            number = 0
            try:
                for number, line in enumerate(stream, 1):
                    yield _checked(line.removesuffix("\n"), f"{name}:{number}", "the line is empty")
            except UnicodeDecodeError as error:
                what, where = f"not UTF-8 text: {error}", f"{name}:{number + 1}"
                raise LongspanError(what, where=where, remedy="convert the file to UTF-8") from None

    def _rows(self, file: str, name: str) -> Iterator[Text]:
        columns = [self.column, *([] if self.id_column is None else [self.id_column])]
        for number, row in read_rows(file, columns=columns):
            where = f"{name}:{number}"
            if not isinstance(row.get(self.column), str):
                raise LongspanError(
                    f"the row has no text in column {self.column!r}",
                    where=where,
                    remedy=f"pass --column with one of: {', '.join(row)}",
                )
            text = _checked(row[self.column], where, f"column {self.column!r} is empty")
            if self.id_column is None:
                yield text
                continue
            if not isinstance(row.get(self.id_column), str | int):
                raise LongspanError(
                    f"the row has no id in column {self.id_column!r}",
                    where=where,
                    remedy=f"pass --id with one of: {', '.join(row)}",
                )
            yield text._replace(id=str(row[self.id_column]))


@contextlib.contextmanager
def open_inputs(places: Sequence[str], column: str = "text", id_column: str | None = None) -> Iterator[Inputs]:
    """The texts of files, globs, URLs and folders (every readable file below); of standard input where none is named.

    Standard input is copied to a temporary file, because texts are read more than once.

    Raises:
        LongspanError: there is no such place, or a folder without a readable file.
    """
    if places:
        files = tuple(file for place in places for file in _files(place))
        yield Inputs(files, column, id_column)
        return
    with tempfile.TemporaryDirectory(prefix="longspan-") as folder:
        path = Path(folder) / "stdin.txt"
        with open(path, "w", encoding="utf-8", newline="") as stream:
            shutil.copyfileobj(sys.stdin, stream)
        yield Inputs((str(path),), column, id_column, ((str(path), STDIN),))


def _files(place: str) -> list[str]:
    if not is_folder(place):
        return find_files((place,))
    files = [inside(place, name) for name in list_files(place) if is_readable(name)]
    if not files:
        raise LongspanError(
            "the folder holds no file that texts are read from",
            where=place,
            remedy="name a folder of .jsonl, .parquet, .csv, .tsv, .txt or .md files",
        )
    return files


def _checked(text: str, where: str, what: str) -> Text:
    if not text.strip():
        raise LongspanError(what, where=where, remedy="leave empty texts out: they have no meaning to embed")
    return Text(text, where, None)
