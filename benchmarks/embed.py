"""Embedding on a CPU: longspan beside sentence-transformers, same weights, same texts, float32.

Texts are the documentation of the installed packages (the demo's held-out set). sentence-transformers runs at several
batch sizes, and its best counts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.record import compare, take_turns, write_record
from longspan.demo.collect import collect
from longspan.demo.teacher import teacher_folder
from longspan.embedder import Embedder
from longspan.evaluate.retrieval import RetrievalSet

ROUNDS = 3
BATCH_SIZES = (1, 8, 32)


def main() -> None:
    """Measure documents and short queries, and write a record."""
    with tempfile.TemporaryDirectory() as folder:
        collect(Path(folder))
        held_out = RetrievalSet.load(Path(folder) / "heldout")
    ours = Embedder.load(teacher_folder(), device="cpu")
    theirs = SentenceTransformer(str(teacher_folder()), device="cpu")
    sets = {"documents": list(held_out.corpus.values())[:256], "queries": list(held_out.queries.values())}
    result = {}
    for name, texts in sets.items():
        tokens = sum(min(count, ours.config.max_length) for count in ours.num_tokens(texts))
        candidates = {"longspan": lambda texts=texts: ours.embed(texts, truncate=True)}
        for size in BATCH_SIZES:
            candidates[f"sentence-transformers, batch {size}"] = lambda texts=texts, size=size: theirs.encode(
                texts, batch_size=size, show_progress_bar=False
            )
        difference = float(np.abs(ours.embed(texts, truncate=True) - np.asarray(theirs.encode(texts))).max())
        result[name] = compare(take_turns(candidates, ROUNDS), "longspan", tokens) | {
            "texts": len(texts),
            "largest_difference": difference,
        }
    write_record("embed-cpu-minilm", result)


if __name__ == "__main__":
    main()
