"""Memory that the C library keeps for the next chunk.

Training on a CPU makes and frees the same large tensors in every chunk. glibc gives each of them back to the operating
system, which hands out fresh pages for the next one, and clears them: a quarter of the time of a step, and several
times that on virtual machines that return unused memory to their host. Kept, the pages are used again. The process then
stays as large as it once was, which in training is what it will be again in the next step.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of glibc's options (`malloc.h`)."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; returns whether the C library can do that (glibc).

    Another allocator that was loaded in glibc's place is not concerned.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
