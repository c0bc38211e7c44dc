"""Retrieval scores of all-MiniLM-L6-v2 through longspan and through sentence-transformers, on the same set.

    python -m benchmarks.retrieval_scores ../shared/data/retrieval/cranfield [--length 256]

For tasks of mteb `benchmarks.mteb_speed` has the scores of both beside the times.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.record import write_record
from longspan.demo.teacher import load_teacher, teacher_folder
from longspan.evaluate.corpus import load_retrieval_set
from longspan.evaluate.retrieval import evaluate_retrieval


def main() -> None:
    """Measure, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--length", type=int, default=256, help="tokens that are read")
    parsed = parser.parse_args()
    ours, theirs = load_teacher(), SentenceTransformer(str(teacher_folder()), device="cpu")
    theirs.max_seq_length = parsed.length
    result: dict[str, Any] = {"length": parsed.length, "sets": {}}
    for place in parsed.data:
        one = load_retrieval_set(place)

        def embed(texts: Any, *, task: str) -> np.ndarray:
            return ours.embed(texts, task=task, max_length=parsed.length, truncate=True)

        def peer(texts: Any, *, task: str) -> np.ndarray:
            del task
            return np.asarray(theirs.encode(list(texts), show_progress_bar=False, normalize_embeddings=True))

        scores = {}
        for name, function in (("longspan", embed), ("sentence-transformers", peer)):
            measured = evaluate_retrieval(one, function)
            scores[name] = {"ndcg@10": measured.metrics["ndcg@10"], "interval": list(measured.interval)}
        scores["difference"] = scores["longspan"]["ndcg@10"] - scores["sentence-transformers"]["ndcg@10"]
        result["sets"][one.name] = {"queries": len(one.queries), "documents": len(one.corpus), **scores}
    write_record("retrieval-scores", result)


if __name__ == "__main__":
    main()
