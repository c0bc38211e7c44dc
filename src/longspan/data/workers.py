"""Tasks on all cores: worker processes that end with their parent, and errors that come back in words."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from longspan.errors import LongspanError

Advance = Callable[[int], None]
"""Called with how much more of a task is done."""
Work = Callable[[Any, Any, Advance], Any]
"""`work(tools, task, advance) -> result`: a function of a module, so that another process can find it."""

_TICK = 0.2
"""Seconds between two looks at how far the workers are."""
_QUEUED_PER_WORKER = 4


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """`with Workers(4, tools, where=path) as workers: results = workers.run(work, tasks, advance)`.

    Args:
        count: processes; with 1, the work is done in this one.
        tools: what all tasks share; every process gets a copy.
        where: what an error names when a process dies.

    In a worker process the tokenizer has one thread.
    """

    def __init__(self, count: int, tools: Any, where: Path) -> None:
        self._count, self._tools, self._where = count, tools, where
        if count == 1:
            return
        context = multiprocessing.get_context("spawn")
        # Only this process holds the other end: when it closes it or dies, every worker sees the end of the pipe.
        reader, self._lifeline = context.Pipe(duplex=False)
        self._reader = reader
        self._done = context.Value("q", 0)
        self._reported = 0
        # Not in the arguments: they go through a pipe as a process starts, which holds 64 KiB. If the process dies
        # before it has read them all, this one would wait for ever to write the rest.
        packed = pickle.dumps(tools)
        self._parcel = tempfile.NamedTemporaryFile(prefix="longspan-")  # noqa: SIM115  # closed in __exit__
        self._parcel.write(packed)
        self._parcel.flush()
        arguments = (reader, self._done, context.Value("i", 0), self._parcel.name)
        self._executor = ProcessPoolExecutor(count, context, initializer=_begin, initargs=arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._count == 1:
            return
        if kind is not None:
            self._lifeline.close()  # nobody waits for tasks that have begun
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._lifeline.close()
        self._reader.close()
        self._parcel.close()

    def run(self, work: Work, tasks: Iterable[Any], advance: Advance) -> Iterator[Any]:
        """The results of all tasks, in the order in which they are ready.

        Raises:
            LongspanError: whatever a task raises; a worker process has died.
        """
        if self._count == 1:
            for task in tasks:
                yield work(self._tools, task, advance)
            return
        left = iter(tasks)
        pending: set[Future[Any]] = set()
        try:
            while True:
                free = _QUEUED_PER_WORKER * self._count - len(pending)
                pending |= {self._executor.submit(_call, work, task) for task in itertools.islice(left, free)}
                if not pending:
                    return
                done, pending = wait(pending, timeout=_TICK, return_when=FIRST_COMPLETED)
                self._report(advance)
                for future in done:
                    yield _result(future)
        except BrokenProcessPool:
            raise LongspanError(
                "a worker process died, perhaps because memory ran out",
                where=self._where,
                remedy="run the same command again: it goes on where it was; with fewer workers (--workers, "
                "--processes) it needs less memory. "
                "A script of your own has to start them below if __name__ == '__main__':",
            ) from None

    def _report(self, advance: Advance) -> None:
        done = self._done.value
        if done > self._reported:
            advance(done - self._reported)
            self._reported = done


class _Failure(NamedTuple):
    """A LongspanError on its way between processes."""

    what: str
    where: str
    remedy: str


class _Process(NamedTuple):
    tools: Any
    advance: Advance
    number: int


_processes: list[_Process] = []
"""In a worker process: itself."""


def worker_number() -> int:
    """Which of the workers this process is, from 0; 0 also in a process that does its work itself."""
    return _processes[0].number if _processes else 0


def _begin(lifeline: Connection, done: Any, started: Any, parcel: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()

    def advance(count: int) -> None:
        with done.get_lock():
            done.value += count

    with started.get_lock():
        number = started.value
        started.value += 1
    _processes.append(_Process(pickle.loads(Path(parcel).read_bytes()), advance, number))


def _end_with_parent(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)


def _call(work: Work, task: Any) -> Any:
    [process] = _processes
    try:
        return work(process.tools, task, process.advance)
    except LongspanError as error:
        return _Failure(error.what, error.where, error.remedy)


def _result(future: Future[Any]) -> Any:
    result = future.result()
    if isinstance(result, _Failure):
        raise LongspanError(result.what, where=result.where, remedy=result.remedy)
    return result
