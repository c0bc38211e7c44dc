"""Rows to texts: the columns that a source asks for, checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from longspan.data.parts import Part
from longspan.data.readers import Row
from longspan.data.skipped import BrokenRow, OnError, stop_on_error
from longspan.data.source import Source, TextSource

_CORRECT_OR_SKIP = "correct the row, or pass --on-error skip to leave such rows out"


class Texts(NamedTuple):
    """One row's texts by column (`query`, `document` and `negatives`, or `text`), and where the row stands.

    Attributes:
        scores: a teacher's, of the document and then of the negatives, where the source has them.
        cluster: number of the pair's cluster, where the source has them.
    """

    file: str
    number: int
    columns: dict[str, list[str]]
    scores: tuple[float, ...] = ()
    cluster: int | None = None


def read_texts(source: Source, part: Part, on_error: OnError = stop_on_error) -> Iterator[Texts]:
    """The rows of one of a source's parts, each with all the texts that the source asks for.

    Raises:
        LongspanError: a file is missing or torn, or whatever `on_error` raises for a broken row, a missing column or an
            empty text.
    """
    wanted = _wanted(source)
    for number, row in part.read(source, on_error):
        try:
            columns = {name: read(row, column) for name, column, read in wanted}
            scores, cluster = _scores(source, row, columns), _cluster(source, row)
        except Unfit as unfit:
            on_error(_broken_row(unfit.what, part.name, number, unfit.remedy, row))
            continue
        yield Texts(part.name, number, columns, scores, cluster)


def wordless(source: Source, texts: Texts, column: str) -> BrokenRow:
    """The error for a row of which a text has characters and no token."""
    what = f"{getattr(source, column)!r} holds no word"
    return _broken_row(what, texts.file, texts.number, _CORRECT_OR_SKIP, texts.columns)


def _broken_row(what: str, file: str, number: int, remedy: str, row: Mapping[str, Any]) -> BrokenRow:
    raw = json.dumps(row, ensure_ascii=False, default=str)
    return BrokenRow(what, file=file, number=number, remedy=remedy, raw=raw)


class Unfit(Exception):
    """A row lacks what is asked of it: what is wrong, and what to do about it where rows are prepared."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


def _wanted(source: Source) -> list[tuple[str, str, Callable[[Row, str], list[str]]]]:
    """Name, column, and how it is read, of everything that a source asks of a row."""
    if isinstance(source, TextSource):
        return [("text", source.text, _text)]
    negatives = ("negatives", "", _none) if source.negatives is None else ("negatives", source.negatives, _texts)
    return [("query", source.query, _text), ("document", source.document, _text), negatives]


def _scores(source: Source, row: Row, columns: dict[str, list[str]]) -> tuple[float, ...]:
    if isinstance(source, TextSource) or source.positive_score is None or source.negative_scores is None:
        return ()
    positive, negatives = value_of(row, source.positive_score), value_of(row, source.negative_scores)
    scores = (positive, *negatives) if isinstance(negatives, list) else ()
    if len(scores) != 1 + len(columns["negatives"]):
        raise Unfit(
            f"{source.negative_scores!r} does not list a score for each of the {len(columns['negatives'])} negatives",
            "mine the pairs again (longspan curate mine), which writes scores beside negatives",
        )
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in scores):
        raise Unfit("a score is not a number", _CORRECT_OR_SKIP)
    return tuple(map(float, scores))


def _cluster(source: Source, row: Row) -> int | None:
    if isinstance(source, TextSource) or source.cluster is None:
        return None
    cluster = value_of(row, source.cluster)
    if not isinstance(cluster, int) or isinstance(cluster, bool) or not 0 <= cluster < 2**31:
        raise Unfit(f"{source.cluster!r} is not the number of a cluster", _CORRECT_OR_SKIP)
    return cluster


def _none(row: Row, column: str) -> list[str]:
    del row, column
    return []


def _text(row: Row, column: str) -> list[str]:
    return [_checked(value_of(row, column), column)]


def value_of(row: Row, column: str) -> Any:
    """What a row has in a column; of a column "pos.0" that it does not have, the first of what its column "pos" lists.

    Raises:
        Unfit: it has neither, or the list is too short.
    """
    if column in row:
        return row[column]
    name, dot, place = column.rpartition(".")
    values = row.get(name) if dot and place.isdecimal() else None
    if not isinstance(values, list):
        raise Unfit(
            f"the row has no column {column!r}",
            f"its columns are: {', '.join(map(str, row))}; name the right one in the source",
        )
    if int(place) >= len(values):
        raise Unfit(f"{name!r} lists {len(values)} texts, and none at place {place} (from 0)", _CORRECT_OR_SKIP)
    return values[int(place)]


def _texts(row: Row, column: str) -> list[str]:
    texts = row.get(column)
    if not isinstance(texts, list):
        raise Unfit(f"column {column!r} does not list texts", f'write it as a list: "{column}": ["...", "..."]')
    return [_checked(text, column) for text in texts]


def _checked(text: Any, column: str) -> str:
    if text is not None and not isinstance(text, str):
        raise Unfit(f"{column!r} is not a text", _CORRECT_OR_SKIP)
    if not text or text.isspace():
        raise Unfit(f"{column!r} is empty", _CORRECT_OR_SKIP)
    return text
