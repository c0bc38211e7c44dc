"""Vectors of files that need not fit into memory: read, embedded and written in blocks, and gone on with after a kill.

Beside the file that is asked for grows a folder `NAME.part`: what is being embedded (`plan.json`), the vectors of all
texts as a `.npy` file of its final size, filled in wherever a block is ready, and a byte for each block that is in it.
The same command finds that folder and computes the blocks that are missing; so whatever kills it, the file is made of
the same bytes. A folder of other texts, another model or other settings is refused. In memory are a few blocks.

Axes: N texts, S stored values of a vector.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field

from longspan.config import Config
from longspan.curate.engine import Block, Engine, LocalEngine
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import read_json, sha256_json, sweep_unfinished, write_json
from longspan.output.formats import Description, check_output, write_output
from longspan.output.index import IndexLibrary, check_index, write_index
from longspan.output.survey import Survey, survey
from longspan.output.texts import Inputs, Text
from longspan.storage import Form, Ranges, Storage, Stored
from longspan.train.lock import locked

PART = ".part"
"""Ending of the folder of what is not finished."""

_PLAN, _VECTORS, _DONE = "plan.json", "vectors.npy", "done"
_FLAG = b"\x01"


class Settings(Config):
    """What is made of the texts.

    Attributes are as in `Embedder.embed`, and:
    """

    task: str | None = None
    dim: int | None = Field(default=None, ge=1)
    max_length: int | None = None
    truncate: bool = False
    form: Form = "float32"
    """How vectors are stored."""
    ranges: Ranges | None = None
    """Of int8; None: calibrated on a sample of the texts."""
    with_text: bool = True
    """Whether .jsonl and .parquet hold the texts too."""
    index: IndexLibrary | None = None
    """For which library an index is written beside the vectors."""


class _Plan(Config):
    """What a part folder belongs to."""

    key: str
    """Hash of the model, the settings and the texts."""
    storage: Storage


@dataclass(frozen=True)
class Embedded:
    """What was written.

    Attributes:
        num_texts: vectors in the file.
        num_cut: texts that were longer than what was read of them, of those that this call embedded.
        storage: the form of the vectors.
    """

    num_texts: int
    num_cut: int
    storage: Storage


def embed_files(
    embedder: Embedder,
    inputs: Inputs,
    out: Path,
    settings: Settings,
    *,
    engine: Engine | None = None,
    on_plan: Callable[[int, int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """Embed all texts and write their vectors to `out`, with their description beside it (see `Description`).

    Args:
        out: .npy, .jsonl or .parquet.
        engine: where vectors are computed (default: in this process).
        on_plan: called once with the number of texts, and of those that are embedded already.
        progress: called with the number of texts embedded since the last call.

    Raises:
        LongspanError: no texts, or one that is refused; a task or dim that the model does not have; a folder
            `NAME.part` of something else; no room on the disk.
    """
    check_output(out)
    if settings.index is not None:
        check_index(settings.index, out, settings.form, settings.dim or embedder.dim)
    embedder.check_task(settings.task)
    embedder.check_dim(settings.dim)
    found = survey(
        inputs.read(),
        embedder,
        task=settings.task,
        max_length=settings.max_length,
        truncate=settings.truncate,
        with_sample=settings.form == "int8" and settings.ranges is None,
    )
    if not found.num_texts:
        where = ", ".join(inputs.files)
        raise LongspanError("there are no texts", where=where, remedy="name files that hold text")
    folder = out.with_name(out.name + PART)
    with locked(folder):
        sweep_unfinished(folder)
        storage = _plan(embedder, settings, found, folder)
        with _Rows(folder, found, storage) as rows:
            missing = rows.missing()
            if on_plan is not None:
                on_plan(found.num_texts, found.num_texts - sum(found.end(b) - found.starts[b] for b in missing))
            num_cut = _fill(rows, missing, inputs, settings, engine or LocalEngine(embedder), progress)
        if settings.index is not None:
            vectors = Stored(storage, np.load(folder / _VECTORS, mmap_mode="r"))
            write_index(settings.index, out, vectors, folder)
        about = Description(
            model=Path(embedder.name).name,
            fingerprint=embedder.fingerprint,
            task=settings.task,
            num_vectors=found.num_texts,
            storage=storage,
            texts=found.digest,
        )
        write_output(out, about, folder, _VECTORS, inputs.read, settings.with_text)
        shutil.rmtree(folder)
    return Embedded(found.num_texts, num_cut, storage)


def _plan(embedder: Embedder, settings: Settings, found: Survey, folder: Path) -> Storage:
    """Begin the folder, or find that it is of this task; how its vectors are stored."""
    asked = settings.model_dump(mode="json", exclude={"with_text", "index", "truncate"})
    key = sha256_json([embedder.fingerprint, asked, found.digest, found.starts])
    path = folder / _PLAN
    if path.exists():
        remedy = f"delete the folder {folder.name}, or choose another --out"
        plan = _Plan.parse(read_json(path, remedy=remedy), where=path)
        if plan.key != key:
            what = "an unfinished file of other texts, another model or other settings is in the way"
            raise LongspanError(what, where=folder, remedy=remedy)
        return plan.storage
    ranges = settings.ranges
    if settings.form == "int8" and ranges is None:
        options = settings.model_dump(include={"task", "dim", "max_length"})
        ranges = Ranges.of(embedder.embed(found.sample, truncate=True, **options))
    dim = settings.dim or embedder.dim
    storage = Storage.parse({"form": settings.form, "dim": dim, "ranges": ranges}, where=folder)
    write_json(path, _Plan(key=key, storage=storage).model_dump(mode="json"))
    return storage


class _Rows:
    """The vectors on disk, and which blocks of them are there."""

    def __init__(self, folder: Path, found: Survey, storage: Storage) -> None:
        path, done = folder / _VECTORS, folder / _DONE
        if not path.exists():
            done.unlink(missing_ok=True)
            _allocate(path, (found.num_texts, storage.width), storage.dtype)
        self.found, self._storage = found, storage
        # Written by its place and not through a memory map, whose pages would count as this process's memory.
        self._first = path.stat().st_size - found.num_texts * storage.bytes_per_vector
        self._vectors = os.open(path, os.O_RDWR)
        self._done = os.open(done, os.O_RDWR | os.O_CREAT, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._vectors)
        os.close(self._done)

    def missing(self) -> list[int]:
        """Blocks that are not there, ascending."""
        flags = os.pread(self._done, len(self.found.starts), 0)
        return [block for block in range(len(self.found.starts)) if flags[block : block + 1] != _FLAG]

    def write(self, block: int, vectors_MD: np.ndarray) -> None:
        """Put a block in its place; only when it is on the disk is it said to be."""
        content = memoryview(self._storage.encode(vectors_MD).tobytes())
        place = self._first + self.found.starts[block] * self._storage.bytes_per_vector
        while content:
            written = os.pwrite(self._vectors, content, place)
            content, place = content[written:], place + written
        os.fsync(self._vectors)
        os.pwrite(self._done, _FLAG, block)
        os.fsync(self._done)


def _allocate(path: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
    """A `.npy` file of this shape, with its room on the disk."""
    unfinished = path.with_name(".unfinished-" + path.name)
    with open(unfinished, "wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        size = stream.tell() + shape[0] * shape[1] * dtype.itemsize
        stream.flush()
        try:
            # A full disk is found now, and not after days.
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free
            raise LongspanError(
                f"no room for {size / 2**20:,.0f} MiB of vectors: {error.strerror} ({free / 2**20:,.0f} MiB free)",
                where=path,
                remedy="free some disk space, choose another --out, or a smaller --storage or --dim",
            ) from None
    os.replace(unfinished, path)


def _fill(
    rows: _Rows,
    missing: list[int],
    inputs: Inputs,
    settings: Settings,
    engine: Engine,
    progress: Callable[[int], None] | None,
) -> int:
    """Compute the missing blocks; how many texts were cut."""
    if not missing:
        return 0
    num_cut = 0
    with engine:
        for embedded in engine.embed(_blocks(rows.found, missing, inputs.read(), settings)):
            rows.write(embedded.number, embedded.vectors_MD)
            num_cut += embedded.num_cut
            if progress is not None:
                progress(len(embedded.vectors_MD))
    return num_cut


def _blocks(found: Survey, missing: list[int], texts: Iterator[Text], settings: Settings) -> Iterator[Block]:
    place = 0
    for number in missing:
        start, end = found.starts[number], found.end(number)
        part = list(itertools.islice(texts, start - place, end - place))
        place = end
        if len(part) < end - start:
            raise LongspanError(
                "the files have changed while they were embedded", where=part[-1].where if part else "the end of them",
                remedy="leave them alone, and run the same command again",
            )  # fmt: skip
        yield Block(number, [text.text for text in part], settings.task, settings.max_length, settings.dim)
