"""Vectors on disk, by text: computed once, in blocks, and used again wherever the same text comes back.

A store belongs to one model, task and length (its folder's name is their fingerprint) and holds blocks of two files:
the texts' hashes and their vectors, memory-mapped. Blocks are whole or absent, so a killed run goes on after the last.

Axes: N texts asked for, M distinct texts, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import atomic_path, sha256_json, sweep_unfinished

TEXTS_PER_BLOCK = 1024
"""Texts embedded and saved at a time: what a kill costs at most."""

_HASH = np.dtype("S16")


class VectorStore:
    """The vectors of one model for one task, cut at one length.

    One process at a time may write to a store.
    """

    def __init__(self, folder: Path, embedder: Embedder, *, task: str | None, max_length: int | None = None) -> None:
        """Open (or begin) the store of these settings under `folder`."""
        key = sha256_json([embedder.fingerprint, task, max_length])[:16]
        self._folder = folder / f"vectors-{key}"
        self._embedder, self._task, self._max_length = embedder, task, max_length
        sweep_unfinished(self._folder)
        self._blocks: list[np.ndarray] = []
        self._next = 0  # not the number of blocks: a person may have deleted one
        self._place: dict[bytes, tuple[int, int]] = {}
        for block in sorted(self._folder.glob("block-[0-9]*")):
            self._open(block)

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Vectors of N texts, float32 (N, D), computing only those that no earlier call has computed.

        Args:
            progress: called with the number of texts done since the last call; N in all.
        """
        hashes = [_hash(text) for text in texts]
        missing = {key: text for key, text in zip(hashes, texts, strict=True) if key not in self._place}
        if progress is not None:
            progress(len(texts) - len(missing))
        keys = list(missing)
        for start in range(0, len(keys), TEXTS_PER_BLOCK):
            part = keys[start : start + TEXTS_PER_BLOCK]
            self._add(part, [missing[key] for key in part])
            if progress is not None:
                progress(len(part))
        vectors_ND = np.empty((len(texts), self._embedder.dim), dtype=np.float32)
        for n, key in enumerate(hashes):
            block, row = self._place[key]
            vectors_ND[n] = self._blocks[block][row]
        return vectors_ND

    def _add(self, keys: list[bytes], texts: list[str]) -> None:
        vectors_MD = self._embedder.embed(texts, task=self._task, max_length=self._max_length, truncate=True)
        path = self._folder / f"block-{self._next:06d}"
        with atomic_path(path) as unfinished:
            unfinished.mkdir()
            np.save(unfinished / "hashes.npy", np.array(keys, dtype=_HASH))
            np.save(unfinished / "vectors.npy", vectors_MD)
        self._open(path)

    def _open(self, block: Path) -> None:
        try:
            # A fixed-width string drops trailing zero bytes, so keys are padded back on reading.
            keys = [key.ljust(_HASH.itemsize, b"\0") for key in np.load(block / "hashes.npy").tolist()]
            vectors_MD = np.load(block / "vectors.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise _torn(block, str(error)) from None
        if vectors_MD.shape != (len(keys), self._embedder.dim):
            raise _torn(block, f"{len(keys)} texts and vectors of shape {vectors_MD.shape}")
        self._place |= {key: (len(self._blocks), row) for row, key in enumerate(keys)}
        self._blocks.append(vectors_MD)
        self._next = int(block.name.removeprefix("block-")) + 1


def _torn(block: Path, why: str) -> LongspanError:
    remedy = "delete this folder: its vectors are computed again when they are needed"
    return LongspanError(f"a block of stored vectors is torn: {why}", where=block, remedy=remedy)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH.itemsize).digest()
