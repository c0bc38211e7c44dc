"""Batches in the order of the plan, made ahead of time by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import numpy as np

from longspan.data.plan import Plan, PlannedBatch
from longspan.errors import LongspanError

Batch = TypeVar("Batch")
Collate = Callable[[int, PlannedBatch, slice], Batch]


class Loader(Generic[Batch]):
    """`Loader(plan, collate, rank=r, world_size=w)(first_step, last_step)` iterates over this process's batches.

    A rank takes its slice of the global batch, so any number of processes read the same examples in the same step.
    """

    def __init__(
        self, plan: Plan, collate: Collate[Batch], *, rank: int = 0, world_size: int = 1, ahead: int = 2
    ) -> None:
        if plan.batch_size % world_size:
            raise LongspanError(
                f"a batch of {plan.batch_size} does not divide among {world_size} processes",
                where="batch_size",
                remedy="choose a batch_size that is a multiple of the number of processes",
            )
        share = plan.batch_size // world_size
        self._plan = plan
        self._collate = collate
        self._part = slice(rank * share, (rank + 1) * share)
        self._ahead = ahead

    def batch(self, step: int) -> Batch:
        """This process's batch of one step."""
        return self._collate(step, self._plan(step), self._part)

    def rows(self, step: int) -> np.ndarray:
        """Which rows of its source this process's batch of one step is made of (int64)."""
        return self._plan(step).rows[self._part]

    def __call__(self, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        """Batches of steps `first_step` ... `last_step - 1`; an error in the thread is raised here."""
        ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=self._ahead)
        stop = threading.Event()

        def produce() -> None:
            try:
                for step in range(first_step, last_step):
                    if not _put(ready, (True, self.batch(step)), stop):
                        return
            except BaseException as error:  # handed over, whatever it is
                _put(ready, (False, error), stop)

        thread = threading.Thread(target=produce, name="longspan-loader", daemon=True)
        thread.start()
        try:
            for _ in range(first_step, last_step):
                fine, value = ready.get()
                if not fine:
                    raise value
                yield value
        finally:
            stop.set()
            thread.join()


def _put(ready: queue.Queue[tuple[bool, Any]], item: tuple[bool, Any], stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
