"""Files of vectors: .npy, .jsonl and .parquet, each with its description beside it.

Vectors are written as they are stored: of "binary" the bytes, of "int8" the integers, which mean nothing without the
ranges. These, and whatever else a reader has to know, are in the description, `NAME.json` beside the file `NAME`.

Axes: N texts, S stored values of a vector.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longspan.config import Config
from longspan.errors import LongspanError
from longspan.files import atomic_path, read_json, write_json
from longspan.output.texts import Text
from longspan.storage import Storage

DESCRIPTION = ".json"
"""What is put behind a file's name for the name of its description."""

_KINDS = (".npy", ".jsonl", ".parquet")
_ROWS_PER_PART = 4096
"""Rows in memory at a time; of a Parquet file, a row group."""


class Description(Config):
    """What a file of vectors holds."""

    version: int = 1
    model: str
    fingerprint: str
    """Of everything that a vector depends on (`Embedder.fingerprint`)."""
    task: str | None
    num_vectors: int
    storage: Storage
    texts: str
    """SHA-256 of the texts, each with its length before it."""


def read_description(out: Path) -> Description:
    """The description of a file of vectors.

    Raises:
        LongspanError: there is none, or it is of another version.
    """
    path = out.with_name(out.name + DESCRIPTION)
    remedy = "longspan embed writes it beside the vectors: keep the two together"
    return Description.parse(read_json(path, remedy=remedy), where=path)


def check_output(path: Path) -> None:
    """Refuse a place or a kind of file that cannot be written, before any work is done.

    Raises:
        LongspanError: the name does not end in .npy, .jsonl or .parquet, or a file stands where a folder has to be.
    """
    if path.suffix not in _KINDS:
        raise LongspanError(
            f"vectors are not written as {path.suffix or 'a file without ending'}",
            where=path,
            remedy="end the name in .npy, .jsonl or .parquet",
        )
    in_the_way = next((parent for parent in path.absolute().parents if parent.exists() and not parent.is_dir()), None)
    if in_the_way is not None:
        what = f"cannot write {path.name}: {in_the_way.name} is a file, not a folder"
        raise LongspanError(what, where=path, remedy="choose another place")


def write_output(
    out: Path, about: Description, folder: Path, array_name: str, read: Callable[[], Iterable[Text]], with_text: bool
) -> None:
    """Write the description, and then the file.

    Args:
        folder: on the same disk, where files grow until they are whole.
        array_name: of the vectors in it as they are stored, a `.npy` file; it becomes the file if that is what is asked
            for.
        read: gives the texts.
        with_text: whether .jsonl and .parquet hold the texts.

    Raises:
        LongspanError: the disk is full, or the place cannot be written.
    """
    with placed(folder, out.with_name(out.name + DESCRIPTION)) as unfinished:
        write_json(unfinished, about.model_dump(mode="json"))
    if out.suffix == ".npy":
        os.replace(folder / array_name, out)
        return
    with placed(folder, out) as unfinished:
        parts = _parts(read(), folder / array_name)
        if out.suffix == ".jsonl":
            _write_json_lines(unfinished, parts, with_text)
        else:
            _write_parquet(unfinished, parts, about.storage, with_text)


@contextlib.contextmanager
def placed(folder: Path, out: Path) -> Iterator[Path]:
    """As `atomic_path(out)`, but what a kill leaves is in `folder`, where it is swept away.

    Raises:
        LongspanError: the disk is full, or the place cannot be written.
    """
    with atomic_path(folder / out.name) as unfinished:
        yield unfinished
    os.replace(folder / out.name, out)


def _parts(texts: Iterable[Text], array_file: Path) -> Iterator[tuple[list[Text], np.ndarray]]:
    stream = iter(texts)
    for start in itertools.count(0, _ROWS_PER_PART):
        # Mapped anew for each part: the pages of a map that stays count as this process's memory.
        part_MS = np.array(np.load(array_file, mmap_mode="r")[start : start + _ROWS_PER_PART])
        if not len(part_MS):
            return
        yield list(itertools.islice(stream, len(part_MS))), part_MS


def _write_json_lines(path: Path, parts: Iterable[tuple[list[Text], np.ndarray]], with_text: bool) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        for texts, part_MS in parts:
            for text, vector in zip(texts, part_MS.tolist(), strict=True):
                row = _row(text, with_text) | {"vector": vector}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _row(text: Text, with_text: bool) -> dict[str, Any]:
    return ({} if text.id is None else {"id": text.id}) | ({"text": text.text} if with_text else {})


def _write_parquet(
    path: Path, parts: Iterable[tuple[list[Text], np.ndarray]], storage: Storage, with_text: bool
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    writer = None
    for texts, part_MS in parts:
        rows = [_row(text, with_text) for text in texts]
        columns: dict[str, Any] = {name: pa.array([row[name] for row in rows], pa.string()) for name in rows[0]}
        if storage.form == "binary":
            kind = pa.binary(storage.width)
            columns["vector"] = pa.FixedSizeBinaryArray.from_buffers(
                kind, len(part_MS), [None, pa.py_buffer(np.ascontiguousarray(part_MS))]
            )
        else:
            columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(part_MS.reshape(-1)), storage.width)
        table = pa.table(columns)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
