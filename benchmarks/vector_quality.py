"""What storage costs in quality: nDCG@10 of all-MiniLM-L6-v2 with its documents in every form, by bytes a vector.

    LONGSPAN_SHARED_DATA=... python -m benchmarks.vector_quality

On SciFact and Cranfield, which `LONGSPAN_SHARED_DATA` names the folder of. int8 is calibrated on 4,096 documents at
most. Each difference to float32 has its 95 % paired bootstrap interval over the queries.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import write_record
from longspan.curate.stored import nearest_stored
from longspan.demo.teacher import teacher_folder
from longspan.embedder import Embedder
from longspan.evaluate.retrieval import RetrievalResult, RetrievalSet, compare, score_run
from longspan.storage import FORMS, Form, Storage, Stored

SETS = ("mteb/scifact", "retrieval/cranfield")
DEPTH, SAMPLE = 100, 4096
FINER: dict[Form, tuple[Form, ...]] = {
    "float32": (),
    "float16": (),
    "int8": ("float32",),
    "binary": ("binary", "int8", "float32"),
}
"""What each form is scored again by."""
DIMS = (384, 256, 128)


def main() -> None:
    """Measure and write a record."""
    shared = Path(os.environ["LONGSPAN_SHARED_DATA"])
    embedder = Embedder.load(teacher_folder(), device="cpu")
    torch.set_num_threads(2)
    write_record(
        "vector-quality", {Path(name).name: _quality(embedder, RetrievalSet.load(shared / name)) for name in SETS}
    )


def _quality(embedder: Embedder, retrieval_set: RetrievalSet) -> list[dict[str, Any]]:
    documents = sorted(retrieval_set.corpus, reverse=True)
    full_MD = embedder.embed([retrieval_set.corpus[name] for name in documents], truncate=True)
    queries_ND = embedder.embed(list(retrieval_set.queries.values()), truncate=True)
    rows: list[dict[str, Any]] = []
    baseline: RetrievalResult | None = None
    for dim in DIMS:
        vectors_MD, asked_ND = _cut(full_MD, dim), _cut(queries_ND, dim)
        sample_MD = vectors_MD[np.random.default_rng(0).permutation(len(vectors_MD))[:SAMPLE]]
        storages = {form: Storage.of(form, sample_MD) for form in FORMS}
        stored = {form: Stored(storages[form], storages[form].encode(vectors_MD)) for form in FORMS}
        for form in FORMS:
            for finer in (None, *FINER[form]):
                second = None if finer is None else stored[finer]
                _, indices_NK = nearest_stored(asked_ND, stored[form], DEPTH, finer=second)
                run = {
                    query: [documents[index] for index in indices_K if index >= 0]
                    for query, indices_K in zip(retrieval_set.queries, indices_NK.tolist(), strict=True)
                }
                result = score_run(retrieval_set, run, depth=DEPTH)
                baseline = baseline or result
                difference = compare(result, baseline)
                rows.append(
                    {
                        "dim": dim,
                        "form": form,
                        "scored_again_by": finer,
                        "bytes": storages[form].bytes_per_vector,
                        "ndcg@10": round(result.metrics["ndcg@10"], 4),
                        "difference": round(difference.difference, 4),
                        "interval": [round(value, 4) for value in difference.interval],
                    }
                )
    return rows


def _cut(vectors_ND: np.ndarray, dim: int) -> np.ndarray:
    cut_ND = vectors_ND[:, :dim]
    return cut_ND / np.linalg.norm(cut_ND, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
