"""Vectors by processes of this machine: each loads the teacher once, onto a GPU of its own where there are GPUs.

The processes end with the one that started them, even if that is killed (see `longspan.data.workers`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from longspan.curate.engine import Block, Embedded, Engine, RemoteTeacher, embed_block
from longspan.data.workers import Advance, Workers, num_cores, worker_number
from longspan.embedder import Embedder


class PoolEngine(Engine):
    """So many processes; worker n computes on GPU n modulo their number, or with its share of the cores.

    Args:
        count: processes, at least 2.
        where: what an error names when a process dies.
    """

    def __init__(self, teacher: RemoteTeacher, count: int, where: Path) -> None:
        super().__init__()
        self._teacher, self._count, self._where = teacher, count, where
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        tools = _Tools(
            self._teacher,
            num_threads=max(1, num_cores() // self._count),
            num_gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        )
        self._workers = self._open.enter_context(Workers(self._count, tools, self._where))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._open.__exit__(kind, error, tb)

    def _embed(self, blocks: Iterable[Block]) -> Iterator[Embedded]:
        return self._workers.run(_work, blocks, _done)


class _Tools:
    """What a worker has: everything to load the teacher with, and, from its first block on, the teacher."""

    def __init__(self, teacher: RemoteTeacher, num_threads: int, num_gpus: int) -> None:
        self._teacher, self._num_threads, self._num_gpus = teacher, num_threads, num_gpus

    @functools.cached_property
    def embedder(self) -> Embedder:
        return self._teacher.loaded(device_of(worker_number(), self._num_gpus), self._num_threads)


def device_of(worker: int, num_gpus: int) -> str:
    """The device of a worker (from 0): the GPUs in turn, or the CPU."""
    return f"cuda:{worker % num_gpus}" if num_gpus else "cpu"


def _work(tools: _Tools, block: Block, advance: Advance) -> Embedded:
    return embed_block(tools.embedder, block)


def _done(count: int) -> None:
    """Blocks are counted when they have been written."""
