"""What tests have done in processes of their own: teachers that they load, and work that is killed."""

import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from longspan.curate import vectors
from longspan.curate.engine import RemoteTeacher
from longspan.curate.engine_pool import PoolEngine
from longspan.embedder import Embedder

TEXTS = [f"text {n}" for n in range(40)]
TEXTS_PER_BLOCK = 2
DEATH = "die"


class FragileEmbedder(Embedder):
    """Dies at a certain text, as a process does that the system kills because memory ran out."""

    def embed(self, texts, **options):
        if DEATH in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(texts, **options)


def load_fragile(folder: Path, *, device: str) -> Embedder:
    """A published model that dies of a certain text."""
    return FragileEmbedder.load(folder, device=device)


class SlowEmbedder:
    """Two workers begin together, and one of them is likely to be the slower one; each leaves a file of its name."""

    dim, fingerprint, name = 3, "slow", "slow"

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.embedded: list[str] = []

    def embed(self, texts, *, on_tokens, **options):
        if self.folder is not None:
            (self.folder / str(os.getpid())).touch()
            while len(list(self.folder.iterdir())) < 2:
                time.sleep(0.01)
            time.sleep(0.02 + 0.06 * (os.getpid() % 2))
        self.embedded += texts
        on_tokens(len(texts))
        return np.array([[len(text), int(text.split()[1]), 1] for text in texts], dtype=np.float32)


def load_slow(folder: Path, *, device: str) -> SlowEmbedder:
    """The teacher of `fill_slowly`."""
    return SlowEmbedder(folder)


def fill_slowly(store: str, seen: str) -> None:
    """Fill a store by a pool of two, so that somebody has the time to kill this process."""
    vectors.TEXTS_PER_BLOCK = TEXTS_PER_BLOCK
    load: Any = functools.partial(load_slow, Path(seen))
    teacher: Any = SlowEmbedder()
    with PoolEngine(RemoteTeacher(load, teacher.fingerprint), 2, Path(store)) as engine:
        vectors.VectorStore(Path(store), teacher, task=None, engine=engine).fill(TEXTS)
