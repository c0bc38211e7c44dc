"""Checkpoints written in the background: training waits only when the next one is due before the last one is done."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from longspan.train.checkpoint import Snapshot, write_checkpoint


class CheckpointWriter:
    """`with CheckpointWriter(folder, keep=2) as writer: writer.submit(snapshot)`; leaving waits for the last one.

    One thread at a time writes, so checkpoints appear in the order of their steps. Whoever waits with `idle` before
    taking a snapshot has only one of them in memory.

    Args:
        keep: see `write_checkpoint`.

    Attributes:
        failed: whether writing has failed; the next `submit` or `wait` raises the error.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.failed = False
        self._folder, self._keep = folder, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.wait()
        else:
            self.idle()  # what went wrong first is what matters

    def submit(self, snapshot: Snapshot) -> None:
        """Begin to write a checkpoint, as soon as the one before is written.

        Raises:
            LongspanError: the one before could not be written.
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="longspan-checkpoint", daemon=True)
        self._thread.start()

    def idle(self) -> None:
        """Until nothing is being written any more; an error is kept for `submit` and `wait`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Until everything that was submitted is on disk.

        Raises:
            LongspanError: it could not be written.
        """
        self.idle()
        if self._error is not None:
            raise self._error

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(self._folder, snapshot, keep=self._keep)
        except BaseException as error:  # handed over, whatever it is
            self._error, self.failed = error, True
