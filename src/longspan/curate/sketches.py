"""What may be a copy: a sketch of every row, the first of the two passes that find duplicates.

A sketch is a hash of the row's normalised texts, and MinHash band keys of their word n-grams (Broder, 1997; banding:
Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4). Rows that share a band key are candidates;
`dedup.py` decides about them.

Axes: N rows, H MinHash slots, B bands.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from longspan.config import Config
from longspan.curate.ngrams import NgramHasher, normalised, words
from longspan.curate.rows import (
    column_text,
    refuse_to_overwrite,
    result_names,
)
from longspan.data.places import filesystem_of
from longspan.data.readers import read_rows
from longspan.data.workers import Workers
from longspan.errors import LongspanError
from longspan.files import atomic_path, sha256_json, sweep_unfinished

ROWS_PER_BLOCK = 2**12
"""Rows sketched and saved at a time: what a kill costs at most. Also bounds the memory of this pass."""

TARGET_RECALL = 0.995
"""Bands are chosen so that a row just at the threshold becomes a candidate at least this often, if any choice can."""

SKETCHES = "sketches"
"""Folder of the sketches, beside the result; it goes when the duplicates are decided."""

EXACT_KEYS = 2
"""How many of a row's keys are the hash of its texts; the others are those of its bands."""
_FACTOR = np.uint64(0xD6E8FEB86659FD93)

Progress = Callable[[int], None]
"""Called with the number of rows done since the last call; N in all."""


class DedupConfig(Config):
    """What counts as a copy."""

    columns: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={"query": 1.0, "document": 0.8}, min_length=1
    )
    """Column -> smallest Jaccard similarity of two near duplicates. A row is a copy if it is one in every column.

    Queries have to be equal unless told otherwise: "when did it begin" and "why did it begin" are different questions.
    """
    near: bool = True
    """Also near duplicates; otherwise only rows that are equal after normalisation."""
    ngram: int = Field(default=5, ge=1)
    """Words of an n-gram; punctuation marks and symbols count as words."""
    num_hashes: int = Field(default=128, ge=1)
    """MinHash slots per text."""
    seed: int = Field(default=1, ge=0)
    """Of the MinHash functions."""

    @property
    def bands(self) -> tuple[int, int]:
        """Number of bands and slots in each: as many slots as leave the recall at the threshold at its target."""
        at_threshold = math.prod(self.columns.values())
        for slots in range(self.num_hashes, 0, -1):
            num_bands = self.num_hashes // slots
            if 1 - (1 - at_threshold**slots) ** num_bands >= TARGET_RECALL:
                return num_bands, slots
        return self.num_hashes, 1

    def recall(self, similarity: float) -> float:
        """The probability that two rows become candidates, given the product s of their similarities in all columns.

        With r slots a band and b bands: 1 - (1 - s^r)^b.
        """
        num_bands, slots = self.bands
        return 1 - (1 - similarity**slots) ** num_bands


@dataclass(frozen=True)
class Sketches:
    """The first pass over some files.

    Attributes:
        files: in the order that decides which copy is the first.
        blocks: for each file its sketches, memory-mapped: uint64, two exact keys and B band keys per row.
        folder: where they are.
    """

    config: DedupConfig
    files: tuple[str, ...]
    blocks: tuple[tuple[np.ndarray, ...], ...]
    folder: Path

    @property
    def num_rows(self) -> int:
        return sum(len(block) for blocks in self.blocks for block in blocks)

    def column(self, number: int) -> np.ndarray:
        """One key of all rows, uint64 (N,)."""
        parts = [block[:, number] for blocks in self.blocks for block in blocks]
        return np.concatenate([np.empty(0, np.uint64), *parts])


def sketch(
    files: Sequence[str],
    config: DedupConfig,
    out: Path,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> Sketches:
    """Make, or go on making, the sketches of all rows, in blocks under `out`.

    Args:
        workers: processes, each with a file at a time. Their number changes no bit of the result.

    Raises:
        LongspanError: a file is missing or broken, a row lacks a text, a result would overwrite a file, or `rensa` is
            needed and not installed.
    """
    result_names(files)
    refuse_to_overwrite(files, out)
    if config.near:
        _rensa()
    folder = out / SKETCHES
    tasks = [(file, folder / _file_key(file, config)) for file in files]
    with Workers(min(workers, len(tasks)) or 1, Sketcher(config), folder) as pool:
        for _ in pool.run(_sketch_file, tasks, progress or _ignore):
            pass
    paths = [sorted(place.glob("block-*.npy")) for _, place in tasks]
    blocks = tuple(tuple(np.load(path, mmap_mode="r") for path in own) for own in paths)
    return Sketches(config, tuple(files), blocks, folder)


class Sketcher:
    """What a process needs to sketch rows."""

    def __init__(self, config: DedupConfig) -> None:
        self.config = config
        self._hasher = NgramHasher(config.ngram)

    def block(self, texts_NC: list[list[str]]) -> np.ndarray:
        """uint64 (N, 2 + B): the keys of N rows of texts."""
        exact = [digest([normalised(text) for text in texts]) for texts in texts_NC]
        keys = np.frombuffer(b"".join(exact), "<u8").reshape(-1, EXACT_KEYS)
        if not self.config.near:
            return keys
        num_bands, slots = self.config.bands
        bands_NB = np.zeros((len(texts_NC), num_bands), np.uint64)
        for column in zip(*texts_NC, strict=True):
            slots_NH = self._min_hashes(column)[:, : num_bands * slots].astype(np.uint64)
            bands_NB = bands_NB * _FACTOR + _folded(slots_NH.reshape(len(column), num_bands, slots))
        return np.concatenate([keys, bands_NB], axis=1)

    def ngrams(self, text: str) -> np.ndarray:
        """Hashes of the word n-grams of a text, each once: uint64 (G,)."""
        return self._hasher.hashes(words(text, signs=True))

    def _min_hashes(self, texts: Sequence[str]) -> np.ndarray:
        """uint32 (N, H)."""
        sets = [self.ngrams(text) for text in texts]
        offsets = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
        matrix = _rensa().RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(sets), offsets, self.config.num_hashes, self.config.seed
        )
        return np.array(matrix.to_rows(), dtype=np.uint32)


def digest(texts: Sequence[str]) -> bytes:
    """What texts share exactly when they are equal: 16 bytes."""
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8 * EXACT_KEYS).digest()


def _folded(slots_NBR: np.ndarray) -> np.ndarray:
    """One uint64 for the slots of a band. Bands that fall together by chance cost a comparison and no more."""
    folded_NB = np.zeros(slots_NBR.shape[:2], np.uint64)
    for slot in range(slots_NBR.shape[2]):
        folded_NB = (folded_NB ^ slots_NBR[:, :, slot]) * _FACTOR
        folded_NB ^= folded_NB >> np.uint64(32)
    return folded_NB


def _sketch_file(sketcher: Sketcher, task: tuple[str, Path], advance: Progress) -> None:
    file, folder = task
    sweep_unfinished(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(file, columns=tuple(sketcher.config.columns))
    for number in itertools.count():
        path = folder / f"block-{number:06d}.npy"
        texts = [
            [column_text(row, column, f"{file}:{line}") for column in sketcher.config.columns]
            for line, row in itertools.islice(rows, ROWS_PER_BLOCK)
        ]
        if not texts:
            return
        if not path.is_file():
            with atomic_path(path) as unfinished, open(unfinished, "wb") as stream:
                np.save(stream, sketcher.block(texts))
        advance(len(texts))


def _file_key(file: str, config: DedupConfig) -> str:
    """Names a file's sketches: another name, size or time of change, and they are made anew."""
    filesystem, path = filesystem_of(file)
    return sha256_json([file, str(filesystem.checksum(path)), config.model_dump(mode="json"), ROWS_PER_BLOCK])[:16]


def _rensa() -> Any:
    try:
        import rensa
    except ImportError:
        raise LongspanError(
            "near duplicates need the package rensa",
            where="curate dedup",
            remedy="pip install 'longspan[dedup]', or look for exact duplicates only (--exact)",
        ) from None
    return rensa


def _ignore(count: int) -> None:
    pass
