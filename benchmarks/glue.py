"""GLUE of all-MiniLM-L6-v2 with few trials: does finetuning reach sensible scores for a model of this size?

    python -m benchmarks.glue DATA [--tasks cola mrpc rte] [--seeds 3] [--epochs 3] [--precision bfloat16]
                                    [--out FOLDER]

DATA holds the tasks as `longspan evaluate --suite glue` reads them. Batch 16, learning rate 3e-5, no MNLI checkpoint.
On two cores an epoch of CoLA takes about 2 minutes, of MRPC and RTE about 4 each: 90 minutes for 3 tasks, 3 seeds and
3 epochs; on a GPU 5 minutes. Killed, it goes on from --out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.record import write_record
from longspan.demo.teacher import teacher_folder
from longspan.evaluate.glue import GlueProtocol, run_glue
from longspan.progress import Bars


def main() -> None:
    """Finetune, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["cola", "mrpc", "rte"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("glue-results"))
    parsed = parser.parse_args()
    protocol = GlueProtocol(
        batch_sizes=(16,), lrs=(3e-5,), seeds=tuple(range(parsed.seeds)), epochs=parsed.epochs, from_mnli=False,
        precision=parsed.precision,
    )  # fmt: skip
    began = time.perf_counter()
    with Bars("glue") as bars:
        results = run_glue(
            str(teacher_folder()), parsed.out, data=parsed.data, tasks=parsed.tasks, protocol=protocol,
            progress=bars.show,
        )  # fmt: skip
    write_record("glue", {"seconds": round(time.perf_counter() - began), **results.as_json(), "model": "MiniLM-L6"})


if __name__ == "__main__":
    main()
