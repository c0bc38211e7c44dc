"""The demo's road at a size that a test can walk: `python tiny.py OUT`."""

import sys
from pathlib import Path

from rich.console import Console

from longspan.demo.collect import Sizes
from longspan.demo.report import report
from longspan.demo.road import Road, Scale
from longspan.stages import run_stages

SHAPE = {
    "encoder.width": 32,
    "encoder.num_heads": 2,
    "encoder.num_layers": 1,
    "encoder.inner_width": 64,
    "objective.row_length": 64,
    "objective.micro_batch_tokens": 256,
    "batch_size": 4,
    "max_steps": 12,
    "checkpoint_every": 3,
}
CONTRASTIVE = {"batch_size": 4, "max_steps": 12, "checkpoint_every": 3, "objective.chunk_tokens": 256}
FINETUNE = CONTRASTIVE | {"max_steps": 6}
SCALE = Scale(
    max_pairs={"docstring": 60, "code": 60, "name": 40, "long": 24},
    sizes=Sizes(
        read_bytes=4_000_000, min_pairs=100, min_long=1, num_queries=10, num_distractors=20, text_bytes=100_000
    ),
    vocab_size=600,
    teacher_tokens=24,
    sample_size=20,
    training={"mlm": SHAPE, "contrastive": CONTRASTIVE, "finetune": FINETUNE},
    num_long_searched=2,
)


def walk(out: Path) -> None:
    """Go the whole road, or what is left of it."""
    console = Console()
    done = run_stages(Road(out, console, SCALE).stages(), out, console)
    report(done, out, console)


if __name__ == "__main__":
    walk(Path(sys.argv[1]))
