"""Where the vectors of texts are computed: in this process, in several of this machine, or on a cluster.

Nearly all the time of a curation step goes into its teacher. So a step hands blocks of texts to an *engine* and writes
what comes back; it does not know where that was computed. A block's vectors are the same whichever engine computes
them, because a block is never divided: the same texts share a teacher's batches everywhere.

Axes: M texts of a block, D width.
"""

from __future__ import annotations

import functools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch

from longspan.embedder import Embedder
from longspan.errors import LongspanError


class Block(NamedTuple):
    """Texts that are embedded together."""

    number: int
    """By which whoever asked knows it again: blocks come back in the order in which they are ready."""
    texts: list[str]
    task: str | None
    max_length: int | None
    """Longer texts are cut here, in tokens; None: where the teacher's own limit is."""
    dim: int | None = None
    """Keep the first coordinates (Matryoshka); None: all."""


class Embedded(NamedTuple):
    """What came of a block."""

    number: int
    vectors_MD: np.ndarray
    """float32, in the order of its texts."""
    num_cut: int
    """Texts that were longer than what was read of them."""
    num_tokens: int


class Throughput:
    """What an engine has done so far, and in how many seconds of wall clock."""

    def __init__(self) -> None:
        self.num_texts, self.num_tokens, self.seconds = 0, 0, 0.0

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        return f"{self.num_texts / seconds:,.0f} texts/s, {self.num_tokens / seconds:,.0f} tokens/s"


class Engine(ABC):
    """`with engine: for embedded in engine.embed(blocks): ...`; what it has started ends with the `with`."""

    def __init__(self) -> None:
        self.throughput = Throughput()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def embed(self, blocks: Iterable[Block]) -> Iterator[Embedded]:
        """The vectors of all blocks, in the order in which they are ready.

        Blocks are drawn as they are needed, so an endless number of them takes little memory.

        Raises:
            LongspanError: a text or a task that the teacher refuses; memory ran out; a worker died.
        """
        last = time.monotonic()
        for embedded in self._embed(blocks):
            last, before = time.monotonic(), last
            self.throughput.seconds += last - before
            self.throughput.num_texts += len(embedded.vectors_MD)
            self.throughput.num_tokens += embedded.num_tokens
            yield embedded

    @abstractmethod
    def _embed(self, blocks: Iterable[Block]) -> Iterator[Embedded]: ...


class LocalEngine(Engine):
    """This process: one block after the other."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self._embedder = embedder

    def _embed(self, blocks: Iterable[Block]) -> Iterator[Embedded]:
        for block in blocks:
            yield embed_block(self._embedder, block)


class Load(Protocol):
    """Loads a teacher onto a device: `functools.partial(Embedder.load, "gte-base/")` is one."""

    def __call__(self, *, device: str) -> Embedder: ...


@dataclass(frozen=True)
class RemoteTeacher:
    """What a worker is told of the teacher: how to load it, and how to know that it is the same.

    Attributes:
        load: can be pickled. Every worker calls it once.
        fingerprint: that of the teacher here; the vectors are kept under it.
    """

    load: Load
    fingerprint: str

    @classmethod
    def of(cls, path_or_id: str, embedder: Embedder) -> RemoteTeacher:
        """The teacher that `Embedder.load(path_or_id)` has loaded here."""
        place = os.path.abspath(path_or_id) if os.path.exists(path_or_id) else path_or_id
        load = functools.partial(Embedder.load, place, precision=embedder.precision)
        return cls(load, embedder.fingerprint)

    def loaded(self, device: str, num_threads: int) -> Embedder:
        """The teacher, in the process of a worker that has so many threads.

        Raises:
            LongspanError: it cannot be loaded, or is another one.
        """
        torch.set_num_threads(num_threads)
        embedder = self.load(device=device)
        if embedder.fingerprint != self.fingerprint:
            raise LongspanError(
                "a worker has loaded another teacher than the process that started it",
                where=embedder.name,
                remedy="have the same files and the same processor's arithmetic on all machines, "
                "and leave the teacher's folder alone while it is used",
            )
        return embedder


def embed_block(embedder: Embedder, block: Block) -> Embedded:
    """Embed a block with a teacher that is at hand.

    Raises:
        LongspanError: a text or a task that the teacher refuses; the GPU's memory ran out.
    """
    cut: list[int] = []
    tokens: list[int] = []
    try:
        vectors_MD = embedder.embed(
            block.texts,
            task=block.task,
            dim=block.dim,
            max_length=block.max_length,
            truncate=True,
            on_cut=cut.append,
            on_tokens=tokens.append,
        )
    except torch.OutOfMemoryError as error:
        raise LongspanError(
            f"the GPU's memory ran out: {str(error).splitlines()[0]}",
            where=embedder.name,
            remedy="run the same command again, which goes on where it was, with a smaller --max-length, "
            "fewer --processes to a GPU, or a GPU that nobody else uses",
        ) from None
    return Embedded(block.number, vectors_MD, sum(cut), sum(tokens))
