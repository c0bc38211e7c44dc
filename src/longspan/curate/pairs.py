"""The pairs of a source as a curation step reads them: one at a time, as often as it needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from longspan.curate.rows import column_text
from longspan.data.layouts import source_parts
from longspan.data.parts import FilePart
from longspan.data.places import is_local
from longspan.data.readers import Row, read_rows
from longspan.data.skipped import stop_on_error
from longspan.data.source import PairSource
from longspan.files import sha256_json

_NOT_READ = {"name", "files", "positive_score", "negative_scores", "cluster"}
"""What a source says that changes no pair."""


class Pair(NamedTuple):
    """One pair, and the whole row that it stands in."""

    query: str
    document: str
    row: Row


class PairReader:
    """The pairs of one source, in an order that is always the same; none of them is kept in memory."""

    def __init__(self, source: PairSource) -> None:
        """
        Raises:
            LongspanError: a place is missing, or has another layout than the source says.
        """
        files = tuple(_absolute(file) for file in source.files)
        self.source = source.model_copy(update={"files": files})  # for whoever reads it again from elsewhere
        self._parts = source_parts(source)

    @property
    def files(self) -> list[str]:
        """All files that are read."""
        return [file for part in self._parts for file in part.files]

    def fingerprint(self) -> str:
        """What changes when a pair changes.

        Raises:
            LongspanError: a file cannot be read.
        """
        parts = [part.fingerprint(self.source) for part in self._parts]
        return sha256_json([parts, self.source.model_dump(mode="json", exclude=_NOT_READ)])

    def __iter__(self) -> Iterator[Pair]:
        """
        Raises:
            LongspanError: a file is torn, a row is broken, or lacks its query or document.
        """
        return itertools.islice(self._pairs(), self.source.max_rows)

    def _pairs(self) -> Iterator[Pair]:
        for part in self._parts:
            # Of files whole rows, not only the columns of the pair: they go on to the result as they came.
            whole = isinstance(part, FilePart)
            rows = read_rows(part.name) if whole else part.read(self.source, stop_on_error)
            for number, row in rows:
                where = f"{part.name}:{number}"
                query, document = (column_text(row, name, where) for name in (self.source.query, self.source.document))
                yield Pair(query, document, row)


def _absolute(file: str) -> str:
    return str(Path(file).absolute()) if is_local(file) and "://" not in file else file
