"""What retrieval of all-MiniLM-L6-v2 is worth by text length, dimension and form of storage.

    python -m benchmarks.vector_forms ../shared/data/retrieval/cranfield [--lengths 32 64 128 256]

The model was not trained for vectors that are cut (Matryoshka), so this is what one loses without.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.record import write_record
from longspan.demo.teacher import load_teacher
from longspan.evaluate.corpus import load_retrieval_set
from longspan.evaluate.embedding import without_lengths
from longspan.evaluate.forms import forms_report, measure_forms
from longspan.evaluate.retrieval import EmbedFunction
from longspan.storage import FORMS


def main() -> None:
    """Measure, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--dims", type=int, nargs="+", default=[192, 96, 48])
    parsed = parser.parse_args()
    embedder, one = load_teacher(), load_retrieval_set(parsed.data)
    raw = without_lengths(embedder)

    def embed_at(length: int | None) -> EmbedFunction:
        def embed(texts: Sequence[str], *, task: str) -> np.ndarray:
            return raw.embed(texts, task=task, max_length=length, truncate=True)

        return embed

    scores = measure_forms(one, embedder, embed_at, lengths=parsed.lengths, dims=parsed.dims, forms=FORMS)
    write_record("vector-forms", forms_report(embedder, one, scores))


if __name__ == "__main__":
    main()
