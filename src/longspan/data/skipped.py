"""Rows that are broken: named with their place, and kept beside what was made of the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from longspan.errors import LongspanError

OnError = Callable[[LongspanError], None]
"""What to do with a broken row: raise the error (stop) or take note of it (skip)."""

SKIPPED = "skipped.jsonl"
"""Name of the side file of a prepared source: one JSON object `{file, line, reason, raw}` a line."""
RAW_LIMIT = 2000
"""Characters of a broken row that are kept."""
_EXAMPLES = 3


class BrokenRow(LongspanError):
    """A row that cannot be used.

    Args:
        file, number: where it is: the line, or the row of a Parquet file, from 1.
        raw: what is there, as far as it is known.
    """

    def __init__(self, what: str, *, file: str, number: int, remedy: str, raw: bytes | str | None = None) -> None:
        super().__init__(what, where=f"{file}:{number}", remedy=remedy)
        self.file, self.number, self.raw = file, number, raw


class Skipped(NamedTuple):
    """A row that was left out. Fields as in the side file; `raw` is cut at `RAW_LIMIT` characters."""

    file: str
    line: int | None
    reason: str
    raw: str | None

    @classmethod
    def of(cls, error: LongspanError) -> Skipped:
        """What an error says of its row; one that is no `BrokenRow` may name it as file:line."""
        if isinstance(error, BrokenRow):
            raw = error.raw.decode("utf-8", "backslashreplace") if isinstance(error.raw, bytes) else error.raw
            return cls(error.file, error.number, error.what, None if raw is None else raw[:RAW_LIMIT])
        file, colon, number = error.where.rpartition(":")
        if colon and number.isdecimal():
            return cls(file, int(number), error.what, None)
        return cls(error.where, None, error.what, None)

    def as_json(self) -> str:
        """One line of the side file."""
        # Lone surrogates, which are no UTF-8, stay escapes.
        return json.dumps(self._asdict(), ensure_ascii=True) + "\n"


def stop_on_error(error: LongspanError) -> None:
    """Refuse the whole file at its first broken row."""
    raise error


def summary_of_skipped(path: Path) -> list[str]:
    """What a side file says, in a few lines: how many rows for which reason, and the first places of each.

    Raises:
        LongspanError: the file cannot be read.
    """
    counts: Counter[str] = Counter()
    places: dict[str, list[str]] = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                reason = _kind_of(row["reason"])
                counts[reason] += 1
                known = places.setdefault(reason, [])
                if len(known) < _EXAMPLES:
                    known.append(row["file"] if row["line"] is None else f"{row['file']}:{row['line']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LongspanError(
            f"the list of skipped rows cannot be read: {error}", where=path, remedy="prepare the source again"
        ) from None
    return [
        f"{count:,} x {reason}: {', '.join(places[reason])}{', ...' if count > _EXAMPLES else ''}"
        for reason, count in counts.most_common()
    ]


def _kind_of(reason: str) -> str:
    # "broken JSON: Expecting value: line 1 column 7": what stands behind the first colon differs from row to row.
    return reason.partition(": ")[0]
