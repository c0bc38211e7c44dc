"""Raw files to pieces: tokenised rows in the order of the files, in files that one process writes in a few seconds.

Pieces are what a killed preparation goes on from. How long they are has no influence on what is prepared.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from longspan.config import Config
from longspan.data.manifest import Lengths, Shard
from longspan.data.parts import FilePart, Part
from longspan.data.places import filesystem_of
from longspan.data.readers import Lines, Row, is_plain_lines, read_rows
from longspan.data.skipped import BrokenRow, OnError, Skipped, stop_on_error
from longspan.data.source import Source
from longspan.data.texts import Texts, read_texts, wordless
from longspan.data.workers import Advance
from longspan.data.writing import (
    CLUSTER,
    SCORES,
    id_lists,
    id_type,
    is_whole,
    nested_id_lists,
    score_lists,
    text_columns,
    text_lengths,
    write_shard,
)
from longspan.errors import LongspanError
from longspan.files import read_json, write_json
from longspan.text.tokenizer import Tokenizer

_BLOCK = 2**20


class PieceSize(NamedTuple):
    """Where pieces and batches end."""

    piece: int = 2**25
    """Bytes of a JSON Lines file, or characters of text, of a piece: some seconds of work, and 16 MiB of ids."""
    batch: int = 2**17
    """Characters tokenised at a time. The tokenizer's own notes take a hundred bytes for each token; this many stay in
    the processor's cache, and are enough for some twenty threads."""


@dataclass(frozen=True)
class Tools:
    """What all tasks of a source share.

    Attributes:
        folder: where pieces are written.
        stop: whether the first broken row ends everything; else broken rows are noted and left out.
    """

    folder: Path
    source: Source
    tokenizer: Tokenizer
    schema: pa.Schema
    stop: bool
    size: PieceSize


@dataclass(frozen=True)
class FileLines(FilePart):
    """Some lines of a file."""

    lines: Lines

    def read(self, source: Source, on_error: OnError) -> Iterator[tuple[int, Row]]:
        """See `Part`."""
        return read_rows(self.name, on_error, columns=source.columns, lines=self.lines)


class Stretch(NamedTuple):
    """What is read by one process in one go: a part of a source, or some lines of it."""

    part: Part
    part_number: int
    number: int
    """Within the part."""
    num_bytes: int
    """Size of the raw files."""
    max_rows: int | None = None


class SkippedRow(NamedTuple):
    """A row that was left out: its line of the side file, and what is to be done about it."""

    line: str
    remedy: str

    def as_error(self) -> LongspanError:
        """The error that it was."""
        row = Skipped(**json.loads(self.line))
        if row.line is None:
            return LongspanError(row.reason, where=row.file, remedy=self.remedy)
        return BrokenRow(row.reason, file=row.file, number=row.line, remedy=self.remedy, raw=row.raw)


class Piece(Config):
    """What is in a piece: the content of the receipt that is written after it."""

    rows: Shard
    lengths: dict[str, Lengths]
    skipped: tuple[SkippedRow, ...]
    end: int | None
    """Number of its last row within the part; None where there is none."""
    last: bool
    """Whether the stretch ends here."""


class Tokenised(NamedTuple):
    """A stretch that is done."""

    part_number: int
    number: int
    pieces: list[Piece]


def cut(tools: Tools, stretch: Stretch, advance: Advance) -> list[Stretch]:
    """Cut a whole part into stretches that can be read side by side, if it is of a kind that allows it.

    Raises:
        LongspanError: the file cannot be read.
    """
    del advance
    part = stretch.part
    if stretch.num_bytes <= tools.size.piece or type(part) is not FilePart or not is_plain_lines(part.name):
        return [stretch]
    try:
        cuts = list(_line_ranges(filesystem_of(part.name)[1], tools.size.piece))
    except OSError as error:
        raise LongspanError(
            f"the file cannot be read: {error.strerror}", where=part.name, remedy="check that it is there"
        ) from None
    return [
        Stretch(FileLines(part.name, lines), stretch.part_number, number, lines.end - lines.start)
        for number, lines in enumerate(cuts)
    ]


def tokenise(tools: Tools, stretch: Stretch, advance: Advance) -> Tokenised:
    """Write the pieces of a stretch, but for those that are there already.

    Raises:
        LongspanError: the file is missing or torn, a row is broken (if that is to stop everything), the disk is full.
    """
    pieces = list(_finished(tools, stretch))
    if not (pieces and pieces[-1].last):
        rows = _Rows(tools, stretch, pieces)
        while not (pieces and pieces[-1].last):
            pieces.append(_write_piece(tools, _path(tools.folder, stretch, len(pieces)), rows))
    advance(stretch.num_bytes)
    return Tokenised(stretch.part_number, stretch.number, pieces)


def _line_ranges(file: str, size: int) -> Iterator[Lines]:
    start, first, num_lines, place = 0, 1, 0, 0
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            begin = 0
            while (newline := block.find(b"\n", max(begin, start + size - 1 - place))) >= 0:
                num_lines += block.count(b"\n", begin, newline + 1)
                begin = newline + 1
                yield Lines(start, place + begin, first)
                start, first = place + begin, 1 + num_lines
            num_lines += block.count(b"\n", begin)
            place += len(block)
    if start < place:
        yield Lines(start, place, first)


class _Batch(NamedTuple):
    rows: pa.RecordBatch
    num_chars: int
    end: int | None
    """Number of its last row; None when nothing was left."""


class _Rows:
    """The rows of a stretch as batches of token ids; what is broken is noted, or ends everything."""

    def __init__(self, tools: Tools, stretch: Stretch, finished: Sequence[Piece]) -> None:
        """Begin behind the last of the pieces that are finished."""
        self._tools, self._stretch = tools, stretch
        self._left = math.inf if stretch.max_rows is None else stretch.max_rows
        self._left -= sum(piece.rows.num_rows for piece in finished)
        self._broken: list[tuple[int, int, LongspanError]] = []
        self._num_read = 0
        on_error: OnError = stop_on_error if tools.stop else self._note_unreadable
        self._texts = read_texts(tools.source, stretch.part, on_error)
        if finished and (end := finished[-1].end) is not None:
            self._texts = itertools.dropwhile(lambda texts: self._is_finished(texts, end), self._texts)

    def batches(self) -> Iterator[_Batch]:
        """The next batches; whoever leaves off goes on with another call."""
        while self._left > 0 and (batch := self._next_batch()).end is not None:
            self._left -= batch.rows.num_rows
            yield batch

    def _next_batch(self) -> _Batch:
        rows: list[Texts] = []
        num_chars = 0
        while len(rows) < self._left and num_chars < self._tools.size.batch:
            texts = next(self._texts, None)
            if texts is None:
                break
            rows.append(texts)
            num_chars += sum(map(len, itertools.chain.from_iterable(texts.columns.values())))
            self._num_read += 1
        end = rows[-1].number if rows else None
        return _Batch(self._encoded(rows), num_chars, end)

    def take_skipped(self) -> tuple[SkippedRow, ...]:
        """The broken rows since the last call, in the order of the file."""
        broken, self._broken = sorted(self._broken, key=lambda item: item[:2]), []
        return tuple(SkippedRow(Skipped.of(error).as_json(), error.remedy) for _, _, error in broken)

    def _is_finished(self, texts: Texts, end: int) -> bool:
        if texts.number > end:
            return False
        self._broken.clear()  # noted in an earlier piece
        return True

    def _note_unreadable(self, error: LongspanError) -> None:
        self._broken.append((self._num_read, 0, error))

    def _encoded(self, rows: list[Texts]) -> pa.RecordBatch:
        schema = self._tools.schema
        texts = {name: [row.columns[name] for row in rows] for name in text_columns(schema)}
        counts = {name: np.fromiter(map(len, lists), np.int64, len(rows)) for name, lists in texts.items()}
        flat = itertools.chain.from_iterable(itertools.chain.from_iterable(texts.values()))
        ids_T, lengths_S = self._tools.tokenizer.encode_flat(list(flat))
        if not lengths_S.all():
            return self._encoded(self._with_words(rows, counts, lengths_S))
        columns, first_text, first_id = [], 0, 0
        for name, counts_N in counts.items():
            lengths = lengths_S[first_text : first_text + int(counts_N.sum())]
            ids = ids_T[first_id : first_id + int(lengths.sum())]
            columns.append(_array(name, ids, lengths, counts_N, id_type(schema)))
            first_text += len(lengths)
            first_id += len(ids)
        if SCORES in schema.names:
            columns.append(score_lists([row.scores for row in rows]))
        if CLUSTER in schema.names:
            columns.append(pa.array([row.cluster for row in rows], type=pa.int32()))
        return pa.record_batch(columns, schema=schema)

    def _with_words(self, rows: list[Texts], counts: dict[str, np.ndarray], lengths_S: np.ndarray) -> list[Texts]:
        """The rows of which no text is without a token; the others are noted, or the first ends everything."""
        row_S = np.concatenate([np.repeat(np.arange(len(rows)), counts_N) for counts_N in counts.values()])
        column_S = np.repeat(list(counts), [int(counts_N.sum()) for counts_N in counts.values()])
        empty = dict(reversed([(int(row_S[text]), str(column_S[text])) for text in np.flatnonzero(lengths_S == 0)]))
        for row, column in sorted(empty.items()):
            error = wordless(self._tools.source, rows[row], column)
            if self._tools.stop:
                raise error
            self._broken.append((self._num_read - len(rows) + row, 1, error))
        return [texts for row, texts in enumerate(rows) if row not in empty]


def _array(column: str, ids_T: np.ndarray, lengths_S: np.ndarray, counts_N: np.ndarray, ids: pa.DataType) -> pa.Array:
    if column == "negatives":
        return nested_id_lists(ids_T, lengths_S, counts_N, ids)
    return id_lists(ids_T, lengths_S, ids)


def _write_piece(tools: Tools, path: Path, rows: _Rows) -> Piece:
    batches, num_chars, end, last = [], 0, None, True
    for batch in rows.batches():
        batches.append(batch.rows)
        num_chars += batch.num_chars
        end = batch.end
        if num_chars >= tools.size.piece:
            last = False
            break
    table = pa.Table.from_batches(batches, tools.schema)
    columns = {name: table.column(name).combine_chunks() for name in tools.schema.names}
    piece = Piece(
        rows=write_shard(path, list(columns.values()), tools.schema),
        lengths={name: Lengths.of(text_lengths(columns[name])) for name in text_columns(tools.schema)},
        skipped=rows.take_skipped(),
        end=end,
        last=last,
    )
    write_json(_receipt(path), piece.model_dump(mode="json"))
    return piece


def _finished(tools: Tools, stretch: Stretch) -> Iterator[Piece]:
    """The pieces that an earlier run has finished, up to the first that is missing or not whole."""
    for number in itertools.count():
        path = _path(tools.folder, stretch, number)
        if not _receipt(path).is_file():
            return
        piece = Piece.parse(read_json(_receipt(path), remedy=f"delete {path.parent}"), where=_receipt(path))
        if (tools.stop and piece.skipped) or not is_whole(path, piece.rows):
            return
        yield piece
        if piece.last:
            return


def _path(folder: Path, stretch: Stretch, number: int) -> Path:
    return folder / f"{stretch.part_number:05d}-{stretch.number:05d}-{number:05d}.arrow"


def _receipt(path: Path) -> Path:
    return path.with_suffix(".json")
