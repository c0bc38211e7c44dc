"""How many of oneDNN's kernels a process keeps.

On a CPU oneDNN makes a kernel for every shape of a matrix product. Tokens are packed, so nearly every batch has another
number of rows, and one kernel after another is kept, with room that grows with its rows (some megabytes for 2,048): in
oneDNN's own cache, and in a second one of the layer that torch reaches it through. By themselves both keep 1,024, which
is a server, or a training run, that grows by a gigabyte in minutes (docs/performance.md).
"""

from __future__ import annotations

import os

SETTINGS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Environment variables of the two caches; read by them at the first product."""
KERNELS = 32
"""Kept in each: those of eight numbers of rows, for an encoder's four products. All layers of a batch share theirs. To
make a kernel anew costs a fraction of a millisecond, which only the shortest queries notice."""


def bound_kernel_caches() -> None:
    """Keep few kernels, unless the environment says how many. Without effect after the process's first product."""
    for name in SETTINGS:
        os.environ.setdefault(name, str(KERNELS))
