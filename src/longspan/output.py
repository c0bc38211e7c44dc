"""Texts in and vectors out, for the command line.

Axes: N texts, D coordinates.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longspan.data.places import find_files
from longspan.data.readers import is_running_text, read_rows
from longspan.errors import LongspanError
from longspan.files import atomic_path


def check_output(path: Path) -> None:
    """Refuse a kind of file that cannot be written, before any work is done.

    Raises:
        LongspanError: the name does not end in .npy, .jsonl or .parquet.
    """
    if path.suffix not in (".npy", ".jsonl", ".parquet"):
        raise LongspanError(
            f"vectors are not written as {path.suffix or 'a file without ending'}",
            where=path,
            remedy="end the name in .npy, .jsonl or .parquet",
        )


def read_texts(files: Sequence[str], column: str) -> list[str]:
    """The texts of files, or of standard input where there are none: a line of plain text, or a row's column.

    Raises:
        LongspanError: a missing file, an empty line, or a row without the column.
    """
    if not files:
        return _lines("standard input", sys.stdin.read())
    texts = []
    for file in find_files(tuple(files)):
        for number, row in read_rows(file):
            if is_running_text(file):
                texts += _lines(file, row["text"])
                continue
            if not isinstance(row.get(column), str):
                raise LongspanError(
                    f"the row has no text in column {column!r}",
                    where=f"{file}:{number}",
                    remedy=f"pass --column with one of: {', '.join(row)}",
                )
            texts.append(row[column])
    return texts


def write_vectors(path: Path, texts: Sequence[str], vectors_ND: np.ndarray) -> None:
    """Write vectors (with their texts in .jsonl and .parquet), atomically.

    Raises:
        LongspanError: the disk is full, or the place cannot be written.
    """
    with atomic_path(path) as unfinished:
        if path.suffix == ".npy":
            with open(unfinished, "wb") as stream:
                np.save(stream, vectors_ND)
        elif path.suffix == ".jsonl":
            with open(unfinished, "w", encoding="utf-8") as stream:
                for text, vector_D in zip(texts, vectors_ND, strict=True):
                    row = {"text": text, "vector": [float(x) for x in vector_D]}
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            _write_parquet(unfinished, texts, vectors_ND)


def _write_parquet(path: Path, texts: Sequence[str], vectors_ND: np.ndarray) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1])
    parquet.write_table(pa.table({"text": list(texts), "vector": vectors}), path)


def _lines(file: str, text: str) -> list[str]:
    # Not splitlines(), which also cuts at rarer characters (U+2028, form feed) that a line may hold.
    lines = re.split(r"\r\n|\r|\n", text)
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise LongspanError("the line is empty", where=f"{file}:{number}", remedy="leave empty lines out")
    return lines
