"""Vectors on disk, by text: computed once, in blocks, and used again wherever the same text comes back.

A store belongs to one model, task and length (its folder's name is their fingerprint) and holds blocks of two files:
the texts' hashes and their vectors. Blocks are whole or absent, and which texts a block has depends on the order of the
texts alone, so a killed run computes those that are missing, and leaves the same files as one that was not killed. In
memory are 24 bytes for each text of the store, and the memory maps of a few blocks.

Axes: N texts asked for, M distinct texts, D width.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from longspan.curate.engine import Block, Engine, LocalEngine
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import atomic_path, sha256_json, sweep_unfinished

TEXTS_PER_BLOCK = 1024
"""Texts embedded and saved at a time: what a kill costs at most."""

OPEN_BLOCKS = 1024
"""Blocks whose memory maps stay open; a system allows a process some 65,000 maps."""

_TEXTS_PER_LOOK = 4096
"""Texts of a stream that are looked up at a time."""
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

    def __init__(
        self,
        folder: Path,
        embedder: Embedder,
        *,
        task: str | None,
        max_length: int | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Open (or begin) the store of these settings under `folder`.

        Args:
            engine: where the embedder's vectors are computed (default: in this process).

        Raises:
            LongspanError: a block is torn.
        """
        key = sha256_json([embedder.fingerprint, task, max_length])[:16]
        self.blocks = VectorBlocks(folder / f"vectors-{key}", embedder.dim)
        self._engine, self._task, self._max_length = engine or LocalEngine(embedder), task, max_length
        sweep_unfinished(self.blocks.folder)
        names = (path.name for path in self.blocks.folder.glob("block-[0-9]*"))
        numbers = sorted(int(name.removeprefix("block-")) for name in names)
        # The lowest numbers that are free: blocks get ready in any order, and a kill may have left gaps.
        self._free = itertools.filterfalse(frozenset(numbers).__contains__, itertools.count())
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
        self.fill(texts, progress, on_cut)
        return self._index.find([_hash(text) for text in texts])

    def fill(
        self,
        texts: Iterable[str],
        progress: Callable[[int], None] | None = None,
        on_cut: Callable[[int], None] | None = None,
    ) -> None:
        """Compute the vectors of a stream of texts that no earlier call has computed; `progress` as in `embed`."""
        begun = _Begun()
        for embedded in self._engine.embed(self._blocks(texts, begun, progress)):
            keys = begun.blocks[embedded.number]
            with atomic_path(self.blocks.path(embedded.number)) as unfinished:
                unfinished.mkdir()
                np.save(unfinished / "hashes.npy", np.array(keys, dtype=_HASH))
                np.save(unfinished / "vectors.npy", embedded.vectors_MD)
            self._index.add(keys, embedded.number << _BLOCK_SHIFT)
            begun.end(embedded.number)
            if on_cut is not None and embedded.num_cut:
                on_cut(embedded.num_cut)
            if progress is not None:
                progress(len(keys))

    def _blocks(self, texts: Iterable[str], begun: _Begun, progress: Callable[[int], None] | None) -> Iterator[Block]:
        """The texts that have no vector yet, in blocks."""
        waiting: dict[bytes, str] = {}
        stream = iter(texts)
        while part := list(itertools.islice(stream, _TEXTS_PER_LOOK)):
            # A whole part before the next `yield`: during that, blocks come back, from `begun` to the index.
            hashes, num_waiting = [_hash(text) for text in part], len(waiting)
            for n in np.flatnonzero(self._index.find(hashes) < 0).tolist():
                if hashes[n] not in begun.keys:
                    waiting.setdefault(hashes[n], part[n])
            if progress is not None:
                progress(len(part) - (len(waiting) - num_waiting))
            while len(waiting) >= TEXTS_PER_BLOCK:
                yield self._block(waiting, begun)
        if waiting:
            yield self._block(waiting, begun)

    def _block(self, waiting: dict[bytes, str], begun: _Begun) -> Block:
        number, keys = next(self._free), list(itertools.islice(waiting, TEXTS_PER_BLOCK))
        begun.add(number, keys)
        return Block(number, [waiting.pop(key) for key in keys], self._task, self._max_length)


class _Begun:
    """Blocks that are being computed: the hashes of their texts, by their numbers and all together."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[bytes]] = {}
        self.keys: set[bytes] = set()

    def add(self, number: int, keys: list[bytes]) -> None:
        self.blocks[number] = keys
        self.keys.update(keys)

    def end(self, number: int) -> None:
        self.keys.difference_update(self.blocks.pop(number))


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
