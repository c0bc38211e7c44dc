"""Death at a chosen moment, for tests of what is left then."""

import os
import signal
import sys
from typing import Any

CHANGES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")
"""Audit events of calls that change the file system."""


def die_before_change(folder: str, number: int) -> None:
    """From now on count this process's changes below `folder`; die by SIGKILL before the one of that number."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in CHANGES or not str(arguments[0]).startswith(folder):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
