"""Evaluation speed: tasks of mteb through longspan and through sentence-transformers, same model, data and machine.

    python -m benchmarks.mteb_speed ../shared/data/mteb [--tasks STSBenchmark] [--rounds 1]
        [--precisions float32 bfloat16] [--batch-sizes 8 32]

Both go through `mteb.evaluate` with the data read in advance, and take turns. What is timed is the whole evaluation:
embedding, and what mteb does with the vectors. How much of it is which is in the record, because only the first can
differ; so is what a float32 machine of this matrix rate could reach at best, which bounds every ratio.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import mteb
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.record import gemm_rate, write_record
from longspan.demo.teacher import teacher_folder
from longspan.embedder import Embedder
from longspan.evaluate.mteb_encoder import MtebEncoder
from longspan.evaluate.mteb_tasks import find_task_files, read_task, tasks_by_name
from longspan.model.encoder import Encoder

TASKS = ("STSBenchmark", "Banking77Classification", "SciFact")
BATCH_SIZES = (8, 32, 128)
PEERS_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Arithmetic in which sentence-transformers computes too; what longspan does in another is compared with float32."""


def main() -> None:
    """Measure every task with every candidate, and write a record."""
    parsed = _arguments()
    warnings.filterwarnings("ignore", message="The task .* is superseded by")
    logging.getLogger("mteb").setLevel(logging.ERROR)
    ours = {name: Embedder.load(teacher_folder(), device="cpu", precision=name) for name in parsed.precisions}
    theirs = {
        name: SentenceTransformer(str(teacher_folder()), device="cpu", model_kwargs={"dtype": PEERS_TYPES[name]})
        for name in parsed.precisions
        if name in PEERS_TYPES
    }
    rate = gemm_rate()
    result: dict[str, Any] = {"gemm_gflops": round(rate, 1), "tasks": {}}
    for name in parsed.tasks:
        result["tasks"][name] = _task(name, parsed, ours, theirs, rate)
    write_record("mteb-speed", result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with a folder per task")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=["float32", "bfloat16"],
        help="of longspan; of the other library too, or float32",
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES), help="of the other library")
    return parser.parse_args()


def _task(
    name: str,
    parsed: argparse.Namespace,
    ours: dict[str, Embedder],
    theirs: dict[str, SentenceTransformer],
    rate: float,
) -> dict[str, Any]:
    (task,) = tasks_by_name([name])
    read_task(task, find_task_files(task, parsed.data))
    mine: dict[str, list[dict[str, float]]] = {precision: [] for precision in ours}
    others: dict[str, dict[int, list[dict[str, float]]]] = {
        precision: {size: [] for size in parsed.batch_sizes} for precision in theirs
    }
    recorder = _Recorder(next(iter(ours.values())))
    for number in range(parsed.rounds):
        for precision, embedder in ours.items():
            encoder = recorder if embedder is recorder.embedder and number == 0 else MtebEncoder(embedder)
            mine[precision].append(_evaluated(encoder, task, 32))
        for precision, model in theirs.items():
            for size in parsed.batch_sizes:
                others[precision][size].append(_evaluated(model, task, size))
    measured = {
        precision: _compared(rows, others.get(precision, others["float32"])) for precision, rows in mine.items()
    }
    best = min(others["float32"].values(), key=_median)
    return {"precisions": measured, "floor": _floor(recorder, mine["float32"], best, rate)}


def _compared(mine: list[dict[str, float]], others: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    """Ours beside the other library at each batch size, and the ratio to its best."""
    best = min(others, key=lambda size: _median(others[size]))
    return {
        "longspan": _told(mine),
        "sentence_transformers": {f"batch {size}": _told(rows) for size, rows in others.items()},
        "best_batch": best,
        "ratio": _ratios(others[best], mine, "seconds"),
        "ratio_of_embedding": _ratios(others[best], mine, "embedding"),
    }


def _told(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "score": rows[0]["score"],
        "seconds": [round(row["seconds"], 2) for row in rows],
        "seconds_embedding": [round(row["embedding"], 2) for row in rows],
    }


def _median(rows: list[dict[str, float]]) -> float:
    return statistics.median(row["seconds"] for row in rows)


def _evaluated(model: Any, task: Any, batch_size: int) -> dict[str, float]:
    began = time.perf_counter()
    outcome = mteb.evaluate(
        model,
        task,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
    ).task_results[0]
    seconds = time.perf_counter() - began
    phases = outcome.evaluation_phases or []
    # In a search mteb's clock for the corpus holds the ranking too, which is small beside it.
    embedding = sum(p["end"] - p["start"] for p in phases if p["name"].startswith(("Encoding", "Searching")))
    return {"score": outcome.get_score(), "seconds": seconds, "embedding": embedding}


def _ratios(theirs: list[dict[str, float]], ours: list[dict[str, float]], key: str) -> dict[str, float]:
    ratios = [other[key] / mine[key] for other, mine in zip(theirs, ours, strict=True)]
    return {
        "median": round(statistics.median(ratios), 2),
        "min": round(min(ratios), 2),
        "max": round(max(ratios), 2),
    }


def _floor(
    encoder: _Recorder, mine: list[dict[str, float]], best: list[dict[str, float]], rate: float
) -> dict[str, float]:
    """What float32 allows: the matrix products of the distinct texts at the rate of one large product, nothing else.

    `ratio`: how many times as fast as the best of the others an evaluation would then be.
    """
    lengths = encoder.lengths()
    seconds = _operations(encoder.embedder.model.encoder, lengths) / rate / 1e9
    rest = statistics.median(row["seconds"] - row["embedding"] for row in mine)
    return {
        "texts": encoder.num_texts,
        "distinct_texts": len(lengths),
        "tokens": sum(lengths),
        "seconds_of_matrix_products": round(seconds, 2),
        "seconds_beside_embedding": round(rest, 2),
        "ratio": round(_median(best) / (seconds + rest), 2),
    }


class _Recorder(MtebEncoder):
    """Remembers the texts on their way through."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self.embedder = embedder
        self.num_texts = 0
        self._distinct: list[tuple[str, str]] = []

    def lengths(self) -> list[int]:
        """Tokens of every text that went to the model."""
        longest = self.protocol.max_length
        return [min(self.embedder.num_tokens([text], task=task)[0], longest) for task, text in self._distinct]

    def _embed(self, texts: Any, task: Any, what: str) -> Any:
        self.num_texts += len(texts)
        return super()._embed(texts, task, what)

    def _embed_distinct(self, texts: list[str], task: Any, advance: Any) -> Any:
        self._distinct += [(task, text) for text in texts]
        return super()._embed_distinct(texts, task, advance)


def _operations(encoder: Encoder, lengths: list[int]) -> float:
    """Multiplications and additions of the linear layers and of attention."""
    config = encoder.config
    inner = config.inner_width * (3 if config.activation in ("swiglu", "geglu") else 2)
    weights = config.num_layers * config.width * (4 * config.width + inner)
    attention = 4 * config.num_layers * config.width
    return float(sum(2 * weights * n + attention * n * n for n in lengths))


if __name__ == "__main__":
    main()
