"""Requests to stop: Ctrl-C and SIGTERM become a flag that is read between steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Give the body a function that says whether it was asked to stop; the same signal twice stops at once."""
    received: set[int] = set()

    def note(number: int, frame: Any) -> None:
        # Not any second signal: torchrun passes SIGTERM on when Ctrl-C has reached its processes already.
        if number in received:
            raise KeyboardInterrupt
        received.add(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
