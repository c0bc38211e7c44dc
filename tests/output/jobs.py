"""Bulk embedding in a process of its own, which may be killed."""

import os
import signal
from pathlib import Path

from longspan.curate.engine import Engine, LocalEngine, RemoteTeacher
from longspan.curate.engine_pool import PoolEngine
from longspan.embedder import Embedder
from longspan.output import bulk, formats, survey
from longspan.output.texts import open_inputs
from tests.kill import die_before_change


def small_blocks() -> None:
    """Blocks of 7 texts, parts of 5 rows."""
    survey._TEXTS_PER_BLOCK, formats._ROWS_PER_PART = 7, 5  # pyright: ignore[reportAttributeAccessIssue]


def embed(model: str, files: list[str], out: str, settings: dict, moment: int = 0, processes: int = 1) -> None:
    """Embed; die before the change of that number below the folder of `out`, or, if negative, after so many blocks."""
    small_blocks()
    embedder = Embedder.load(model, device="cpu")
    engine: Engine = LocalEngine(embedder)
    if processes > 1:
        engine = PoolEngine(RemoteTeacher.of(model, embedder), processes, Path(out))
    left = -moment

    def progress(count: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if moment > 0:
        die_before_change(str(Path(out).parent), moment)
    with open_inputs(files) as inputs:
        bulk.embed_files(embedder, inputs, Path(out), bulk.Settings(**settings), engine=engine, progress=progress)
