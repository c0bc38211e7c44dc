"""Scores of all-MiniLM-L6-v2 on tasks of mteb: through longspan, through sentence-transformers, and as published.

    python -m benchmarks.mteb_scores ../shared/data/mteb [--tasks STSBenchmark] [--precision float32]

Both go through `mteb.evaluate`, on the same files. How long they take is measured by `benchmarks.mteb_speed`.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import mteb
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.record import write_record
from longspan.demo.teacher import teacher_folder
from longspan.embedder import Embedder
from longspan.evaluate.mteb_encoder import MtebEncoder
from longspan.evaluate.mteb_tasks import find_task_files, read_task, tasks_by_name

PUBLISHED = {"STSBenchmark": 0.8203, "Banking77Classification": 0.8, "SciFact": 0.645}
"""Main scores of the model on mteb's leaderboard."""
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure, and write a record for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with a folder per task")
    parser.add_argument("--tasks", nargs="+", default=list(PUBLISHED))
    parser.add_argument("--precision", choices=tuple(TYPES), default="float32")
    parsed = parser.parse_args()
    warnings.filterwarnings("ignore", message="The task .* is superseded by")
    logging.getLogger("mteb").setLevel(logging.ERROR)
    folder, precision = teacher_folder(), parsed.precision
    models = {
        "longspan": MtebEncoder(Embedder.load(folder, device="cpu", precision=precision)),
        "sentence-transformers": SentenceTransformer(
            str(folder), device="cpu", model_kwargs={"dtype": TYPES[precision]}
        ),
    }
    for name in parsed.tasks:
        (task,) = tasks_by_name([name])
        read_task(task, find_task_files(task, parsed.data))
        kwargs = {"batch_size": 32, "show_progress_bar": False}
        scores = {
            who: mteb.evaluate(
                model, task, cache=None, co2_tracker=False, show_progress_bar=False, encode_kwargs=kwargs
            )
            .task_results[0]
            .get_score()
            for who, model in models.items()
        }
        difference = scores["longspan"] - scores["sentence-transformers"]
        result = {"task": name, "precision": precision, "scores": scores, "difference": difference}
        write_record("mteb-scores", result | {"published": PUBLISHED.get(name)})


if __name__ == "__main__":
    main()
