"""Documents packed into rows of equal length for masked language modelling (paper, section 4.1.1).

All documents stand one after another as one stream, each as [CLS] document [SEP]; row r is the r-th stretch of it. So a
short document is followed by the next until the row is full, a long one goes on in the next row, and no token is
wasted. The stream is never built: a row is looked up in the memory-mapped shards.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from longspan.data.shards import IdColumn
from longspan.errors import LongspanError


class PackedRows:
    """Rows of `length` tokens over the documents of several columns.

    Attributes:
        num_rows: whole rows; the rest of the stream that does not fill a row is left out.
    """

    def __init__(self, columns: Sequence[IdColumn], length: int, cls_id: int, sep_id: int) -> None:
        self.length = length
        self._columns = columns
        self._cls, self._sep = np.array([cls_id], dtype=np.int32), np.array([sep_id], dtype=np.int32)
        self._firsts = np.array([0, *itertools.accumulate(map(len, columns))])
        lengths = np.concatenate([column.lengths() for column in columns]) + 2
        self._ends = np.cumsum(lengths)
        num_tokens = int(lengths.sum())
        self.num_rows = num_tokens // length
        if not self.num_rows:
            raise LongspanError(
                f"the text has {num_tokens} tokens, less than one row of {length}",
                where="objective.row_length",
                remedy="use more text or shorter rows",
            )

    def row(self, number: int) -> tuple[np.ndarray, list[int]]:
        """The ids of a row (int32, `length`), and the lengths of the documents (or parts of them) in it."""
        start, end = number * self.length, (number + 1) * self.length
        document = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        while start < end:
            whole = self._document(document)
            inside = start - (int(self._ends[document]) - len(whole))
            pieces.append(whole[inside : inside + end - start])
            start += len(pieces[-1])
            document += 1
        return np.concatenate(pieces), [len(piece) for piece in pieces]

    def _document(self, number: int) -> np.ndarray:
        column = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return np.concatenate([self._cls, self._columns[column][number - int(self._firsts[column])], self._sep])
