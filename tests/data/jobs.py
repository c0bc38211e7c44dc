"""What tests have done in processes of their own: preparing that can be killed, and work that ends badly."""

import os
import signal
import threading
from pathlib import Path

from longspan.data import prepare as module
from longspan.data.pieces import PieceSize
from longspan.data.source import PairSource
from longspan.data.workers import Advance
from longspan.errors import LongspanError
from longspan.text.tokenizer import Tokenizer
from tests.kill import die_before_change

SMALL = PieceSize(piece=1000, batch=300)
ROWS_PER_SHARD = 7


def prepare_pairs(raw: str, out: str, tokenizer: str, die_at_change: int = 0, workers: int = 1) -> None:
    """Prepare small pieces and shards; with `die_at_change`, die by SIGKILL before that change below `out`."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    module.ROWS_PER_SHARD, module.PIECE_SIZE = ROWS_PER_SHARD, SMALL
    if die_at_change:
        die_before_change(out, die_at_change)
    source = PairSource(name="faq", files=(raw,), negatives="negatives")
    module.prepare([source], Path(out), Tokenizer.load(tokenizer), workers=workers, on_error=lambda error: None)


# --- work of `Workers` -----------------------------------------------------------------------------------------------


def multiply(tools: int, task: int, advance: Advance) -> tuple[int, int]:
    """The product, and who computed it."""
    advance(task)
    return tools * task, os.getpid()


def refuse(tools: int, task: int, advance: Advance) -> int:
    """Find the third task broken."""
    if task == 3:
        raise LongspanError("three is broken", where="task 3", remedy="leave it out")
    return task


def die(tools: int, task: int, advance: Advance) -> None:
    """Die as a process does that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait_forever(tools: str, task: int, advance: Advance) -> None:
    """Say who waits, and wait."""
    (Path(tools) / str(os.getpid())).touch()
    advance(1)
    threading.Event().wait()
