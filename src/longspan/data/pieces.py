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
from longspan.data.writing import id_lists, id_type, is_whole, nested_id_lists, text_lengths, write_shard
from longspan.errors import LongspanError
from longspan.files import read_json, write_json
from longspan.text.tokenizer import Tokenizer

_BLOCK = 2**20


class PieceSize(NamedTuple):
    """Where pieces and batches end."""

    piece: int = 2**25
    """Bytes of a JSON Lines file, or characters of text, of a piece: some seconds of work, and 16 MiB of ids."""
    batch: int = 2**20
    """Characters tokenised at a time: the tokenizer's own notes take a hundred bytes for each token."""


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
        self._texts = self._unread(after=finished[-1].end if finished else None)

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
            num_chars += sum(len(text) for column in texts.columns.values() for text in column)
        return self._encoded(rows, num_chars)

    def take_skipped(self) -> tuple[SkippedRow, ...]:
        """The broken rows since the last call, in the order of the file."""
        broken, self._broken = sorted(self._broken, key=lambda item: item[:2]), []
        return tuple(SkippedRow(Skipped.of(error).as_json(), error.remedy) for _, _, error in broken)

    def _unread(self, after: int | None) -> Iterator[Texts]:
        on_error: OnError = stop_on_error if self._tools.stop else self._note_unreadable
        for texts in read_texts(self._tools.source, self._stretch.part, on_error):
            if after is not None and texts.number <= after:
                self._broken.clear()  # noted in an earlier piece
                continue
            self._num_read += 1
            yield texts

    def _note_unreadable(self, error: LongspanError) -> None:
        self._broken.append((self._num_read, 0, error))

    def _encoded(self, batch: list[Texts], num_chars: int) -> _Batch:
        texts = [text for row in batch for column in row.columns.values() for text in column]
        flat = iter(self._tools.tokenizer.encode(texts))
        kept = []
        for number, row in enumerate(batch, self._num_read - len(batch)):
            ids = {name: list(itertools.islice(flat, len(column))) for name, column in row.columns.items()}
            empty = [name for name, lists in ids.items() if not all(map(len, lists))]
            if not empty:
                kept.append(ids)
                continue
            error = wordless(self._tools.source, row, empty[0])
            if self._tools.stop:
                raise error
            self._broken.append((number, 1, error))
        schema = self._tools.schema
        columns = [_array(name, [ids[name] for ids in kept], id_type(schema)) for name in schema.names]
        end = batch[-1].number if batch else None
        return _Batch(pa.record_batch(columns, schema=schema), num_chars, end)


def _array(column: str, rows: list[list[np.ndarray]], ids: pa.DataType) -> pa.Array:
    return nested_id_lists(rows, ids) if column == "negatives" else id_lists([sequence for [sequence] in rows], ids)


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
        lengths={name: Lengths.of(text_lengths(array)) for name, array in columns.items()},
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
