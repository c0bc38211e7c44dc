"""Vectors on disk, by text: computed once, in blocks, and used again wherever the same text comes back.

A store belongs to one model, task and length (its folder's name is their fingerprint) and holds blocks of two files:
the texts' hashes and their vectors. Blocks are whole or absent, so a killed run goes on after the last. In memory are
24 bytes for each text of the store, and the memory maps of a few blocks.

Axes: N texts asked for, M distinct texts, D width.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import atomic_path, sha256_json, sweep_unfinished

TEXTS_PER_BLOCK = 1024
"""Texts embedded and saved at a time: what a kill costs at most."""

OPEN_BLOCKS = 1024
"""Blocks whose memory maps stay open; a system allows a process some 65,000 maps."""

_HASH = np.dtype("S16")
_BLOCK_SHIFT = 32
"""A vector's number is that of its block, shifted by so many bits, and its row there."""
_PENDING, _PENDING_PART = 2**18, 64
"""So many texts, or one in so many if that is more, are found by a dict before they are sorted in among the others."""


class VectorBlocks:
    """The blocks of a store, for reading: a vector is known by its number."""

    def __init__(self, folder: Path, dim: int) -> None:
        """Read from `folder`, whose vectors have `dim` coordinates."""
        self.folder, self.dim = folder, dim
        self._map = functools.lru_cache(OPEN_BLOCKS)(self._open)

    def take(self, numbers_N: np.ndarray) -> np.ndarray:
        """The vectors of these numbers, float32 (N, D).

        Raises:
            LongspanError: a block is gone or torn.
        """
        vectors_ND = np.empty((len(numbers_N), self.dim), dtype=np.float32)
        order = np.argsort(numbers_N, kind="stable")
        blocks = numbers_N[order] >> _BLOCK_SHIFT
        bounds = [*np.flatnonzero(np.diff(blocks, prepend=-1)), len(order)]
        for start, end in itertools.pairwise(bounds):
            part = order[start:end]
            rows = numbers_N[part] & ((1 << _BLOCK_SHIFT) - 1)
            vectors_ND[part] = self._map(int(blocks[start]))[rows]
        return vectors_ND

    def holds(self, number: int, text: str) -> bool:
        """Whether the vector of a number is that of a text.

        Raises:
            LongspanError: its block is gone or torn.
        """
        return self.hashes(number >> _BLOCK_SHIFT)[number & ((1 << _BLOCK_SHIFT) - 1)] == _hash(text).rstrip(b"\0")

    def hashes(self, block: int) -> np.ndarray:
        """The hashes of a block's texts, as 16-byte strings.

        Raises:
            LongspanError: it is gone or torn.
        """
        path = self.path(block)
        try:
            hashes = np.load(path / "hashes.npy")
        except (OSError, ValueError, EOFError) as error:
            raise _torn(path, str(error)) from None
        vectors_MD = self._map(block)
        if vectors_MD.shape != (len(hashes), self.dim):
            raise _torn(path, f"{len(hashes)} texts and vectors of shape {vectors_MD.shape}")
        return hashes.astype(_HASH)

    def path(self, block: int) -> Path:
        """The folder of a block."""
        return self.folder / f"block-{block:06d}"

    def _open(self, block: int) -> np.ndarray:
        try:
            return np.load(self.path(block) / "vectors.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise _torn(self.path(block), str(error)) from None


class VectorStore:
    """The vectors of one model for one task, cut at one length.

    One process at a time may write to a store.
    """

    def __init__(self, folder: Path, embedder: Embedder, *, task: str | None, max_length: int | None = None) -> None:
        """Open (or begin) the store of these settings under `folder`.

        Raises:
            LongspanError: a block is torn.
        """
        key = sha256_json([embedder.fingerprint, task, max_length])[:16]
        self.blocks = VectorBlocks(folder / f"vectors-{key}", embedder.dim)
        self._embedder, self._task, self._max_length = embedder, task, max_length
        sweep_unfinished(self.blocks.folder)
        names = (path.name for path in self.blocks.folder.glob("block-[0-9]*"))
        numbers = sorted(int(name.removeprefix("block-")) for name in names)
        self._next = numbers[-1] + 1 if numbers else 0  # not how many there are: a person may have deleted one
        self._index = _Index()
        self._index.add_all([(self.blocks.hashes(number), number << _BLOCK_SHIFT) for number in numbers])

    def embed(
        self,
        texts: Sequence[str],
        progress: Callable[[int], None] | None = None,
        on_cut: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Vectors of N texts, float32 (N, D), computing only those that no earlier call has computed.

        Args:
            progress: called with the number of texts done since the last call; N in all.
            on_cut: called with the number of texts that were computed now and cut, where any were.
        """
        return self.blocks.take(self.numbers(texts, progress, on_cut))

    def numbers(
        self,
        texts: Sequence[str],
        progress: Callable[[int], None] | None = None,
        on_cut: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """The numbers of N texts' vectors in `blocks`, int64 (N,), computing vectors as `embed` does.

        Equal texts have equal numbers, and others different ones.
        """
        hashes = [_hash(text) for text in texts]
        numbers_N = self._index.find(hashes)
        missing = {hashes[n]: texts[n] for n in np.flatnonzero(numbers_N < 0).tolist()}
        if progress is not None:
            progress(len(texts) - len(missing))
        keys = list(missing)
        for start in range(0, len(keys), TEXTS_PER_BLOCK):
            part = keys[start : start + TEXTS_PER_BLOCK]
            self._add(part, [missing[key] for key in part], on_cut)
            if progress is not None:
                progress(len(part))
        return self._index.find(hashes) if missing else numbers_N

    def _add(self, keys: list[bytes], texts: list[str], on_cut: Callable[[int], None] | None) -> None:
        vectors_MD = self._embedder.embed(
            texts, task=self._task, max_length=self._max_length, truncate=True, on_cut=on_cut
        )
        with atomic_path(self.blocks.path(self._next)) as unfinished:
            unfinished.mkdir()
            np.save(unfinished / "hashes.npy", np.array(keys, dtype=_HASH))
            np.save(unfinished / "vectors.npy", vectors_MD)
        self._index.add(keys, self._next << _BLOCK_SHIFT)
        self._next += 1


class _Index:
    """Hash -> number: two sorted arrays, and a dict of the latest."""

    def __init__(self) -> None:
        self._keys_M = np.empty(0, dtype=_HASH)
        self._numbers_M = np.empty(0, dtype=np.int64)
        self._latest: dict[bytes, int] = {}

    def find(self, keys: list[bytes]) -> np.ndarray:
        """The numbers of N hashes, int64 (N,); -1 where there is none."""
        keys_N = np.array(keys, dtype=_HASH)
        numbers_N = np.full(len(keys), -1, dtype=np.int64)
        if len(self._keys_M):
            places_N = np.searchsorted(self._keys_M, keys_N).clip(max=len(self._keys_M) - 1)
            found_N = self._keys_M[places_N] == keys_N
            numbers_N[found_N] = self._numbers_M[places_N[found_N]]
        if self._latest:
            for n in np.flatnonzero(numbers_N < 0).tolist():
                numbers_N[n] = self._latest.get(keys[n], -1)
        return numbers_N

    def add(self, keys: list[bytes], first: int) -> None:
        """Add hashes with the numbers from `first` on."""
        self._latest |= {key: first + row for row, key in enumerate(keys)}
        if len(self._latest) >= max(_PENDING, len(self._keys_M) // _PENDING_PART):
            keys_M, numbers_M = np.array(list(self._latest), dtype=_HASH), list(self._latest.values())
            self._sort([self._keys_M, keys_M], [self._numbers_M, np.array(numbers_M, dtype=np.int64)])
            self._latest = {}

    def add_all(self, blocks: list[tuple[np.ndarray, int]]) -> None:
        """Add the hashes of whole blocks, each with the number of its first."""
        numbers = [np.arange(first, first + len(keys_M)) for keys_M, first in blocks]
        self._sort([self._keys_M, *(keys_M for keys_M, _ in blocks)], [self._numbers_M, *numbers])

    def _sort(self, keys: list[np.ndarray], numbers: list[np.ndarray]) -> None:
        keys_M = np.concatenate(keys)
        order = np.argsort(keys_M, kind="stable")
        self._keys_M, self._numbers_M = keys_M[order], np.concatenate(numbers)[order]


def _torn(block: Path, why: str) -> LongspanError:
    remedy = "delete this folder and run the same command again: its vectors are computed again"
    return LongspanError(f"a block of stored vectors is torn: {why}", where=block, remedy=remedy)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH.itemsize).digest()
