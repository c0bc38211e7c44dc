"""What goes over a network is tried again: which errors may pass by themselves, and how long to wait for that."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from longspan.errors import LongspanError

ATTEMPTS = 6
FIRST_WAIT = 0.5
"""Seconds before the second attempt; doubled each time."""
LONGEST_WAIT = 30.0

_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_ABOUT_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_TRANSIENT_STATUS = (408, 425, 429)

T = TypeVar("T")
_generator = random.Random()  # its own, so that nobody's seeded draws depend on the network


def with_retries(action: Callable[[], T], *, where: str, progress: Callable[[], int] = lambda: 0) -> T:
    """The result of `action`, which is tried up to `ATTEMPTS` times while its errors are transient.

    Between attempts it waits with exponential backoff, shortened by chance by up to a half, so that many processes
    that fail together do not come again together.

    Args:
        progress: how far the action has come; an attempt that comes further than all before begins the count anew.

    Raises:
        LongspanError: the last attempt failed too. Errors that last go through as they are.
    """
    attempt, furthest = 0, 0
    while True:
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            if progress() > furthest:
                attempt, furthest = 0, progress()
            elif attempt == ATTEMPTS - 1:
                raise LongspanError(
                    f"{ATTEMPTS} attempts have failed, the last with: {type(error).__name__}: {error}",
                    where=where,
                    remedy="check the network and that place, then run the same command again",
                ) from error
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
        time.sleep(longest * _generator.uniform(0.5, 1.0))
        attempt += 1


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, (LongspanError, *_LASTING)):
        return False
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in _TRANSIENT_STATUS
    if isinstance(error, OSError):
        return error.errno not in _ABOUT_THE_DISK
    # What Python itself raises is a mistake, not trouble on the way; what network libraries raise may be.
    return type(error).__module__ != "builtins"
