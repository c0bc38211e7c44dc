"""One process at a time works on a run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from longspan.errors import LongspanError

LOCK = "lock"
"""A file of the run directory: its lock is what counts; what is in it says who took it last."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else may work on the run in `folder` while the body runs; a process that dies gives the lock back.

    A file system that knows no locks is trusted.

    Raises:
        LongspanError: another process works on it: names its machine and number.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot make the run directory: {error.strerror}"
        raise LongspanError(what, where=folder, remedy="choose another --out") from None
    with open(folder / LOCK, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise _in_use(stream.name) from None
        stream.truncate(0)
        stream.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        stream.flush()
        yield


def _in_use(path: str) -> LongspanError:
    try:
        owner = json.loads(Path(path).read_text("utf-8"))
        who = f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):  # it is about to write who it is
        who = "another process"
    return LongspanError(
        f"{who} is working on this run",
        where=path,
        remedy="wait until it has finished, or stop it (SIGTERM: it saves a checkpoint first)",
    )
