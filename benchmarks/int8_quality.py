"""What int8 costs in quality: all-MiniLM-L6-v2, its vectors and its retrieval in int8 beside float32.

On the demo's held-out set, and on Cranfield and SciFact where `LONGSPAN_SHARED_DATA` names their folder; or on those of
them that are named.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.record import write_record
from longspan.demo.collect import collect
from longspan.demo.teacher import teacher_folder
from longspan.embedder import Embedder
from longspan.evaluate.retrieval import RetrievalSet, evaluate_retrieval
from longspan.model.inference import Precision

SHARED = ("retrieval/cranfield", "mteb/scifact")


def main() -> None:
    """Measure and write a record."""
    sets, wanted = {}, sys.argv[1:]
    if not wanted or "heldout" in wanted:
        with tempfile.TemporaryDirectory() as folder:
            collect(Path(folder))
            sets["heldout"] = RetrievalSet.load(Path(folder) / "heldout")
    if shared := os.environ.get("LONGSPAN_SHARED_DATA"):
        named = {Path(name).name: Path(shared) / name for name in SHARED}
        sets |= {name: RetrievalSet.load(path) for name, path in named.items() if not wanted or name in wanted}
    write_record("int8-quality", {name: _quality(retrieval_set) for name, retrieval_set in sets.items()})


def _quality(retrieval_set: RetrievalSet) -> dict[str, object]:
    exact_ND, exact_ndcg = _vectors_and_ndcg(retrieval_set, "float32")
    near_ND, near_ndcg = _vectors_and_ndcg(retrieval_set, "int8")
    cosine_N = (exact_ND * near_ND).sum(axis=1)
    return {
        "texts": len(cosine_N),
        "cosine_smallest": round(float(cosine_N.min()), 5),
        "cosine_mean": round(float(cosine_N.mean()), 5),
        "ndcg@10": {"float32": round(exact_ndcg, 5), "int8": round(near_ndcg, 5)},
        "ndcg_loss_percent": round(100 * (1 - near_ndcg / exact_ndcg), 3),
    }


def _vectors_and_ndcg(retrieval_set: RetrievalSet, precision: Precision) -> tuple[np.ndarray, float]:
    embedder = Embedder.load(teacher_folder(), device="cpu", precision=precision)
    vectors: list[np.ndarray] = []

    def embed(texts: Sequence[str], *, task: str) -> np.ndarray:
        vectors.append(embedder.embed(texts, task=task, truncate=True))
        return vectors[-1]

    result = evaluate_retrieval(retrieval_set, embed)
    return np.concatenate(vectors), result.metrics["ndcg@10"]


if __name__ == "__main__":
    main()
