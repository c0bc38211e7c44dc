"""The check that sentence-transformers gives our vectors from a published folder.

The folder is the one that longspan itself saves and loads (`model/folder.py`): stock classes, no custom code, no
`trust_remote_code`. `longspan parity` compares more libraries, on more texts.

Axes: N texts, D width.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from longspan.embedder import Embedder
from longspan.errors import LongspanError

PROBES = (
    "How do I read a CSV file?",
    "Straße, naïve café, 東京 — and a number: 3.14159",
    "def area(radius: float) -> float:\n    return math.pi * radius ** 2",
    "long context " * 150,
)
"""Texts on which the libraries are compared: short, Unicode, code, long. One past the trained length comes on top."""

TOLERANCE = 1e-5
"""Largest difference of a coordinate of unit vectors in float32 that rounding explains."""


def compare_with_sentence_transformers(embedder: Embedder, folder: Path) -> float:
    """Largest difference of any coordinate between this library's vectors and sentence-transformers', over probe texts.

    Texts are embedded one by one: transformers takes dynamic NTK from the longest text of a batch, so there a vector of
    a long batch depends on its neighbours (docs/numerics.md). Both libraries cut what is too long for the model.

    Raises:
        LongspanError: sentence-transformers is not installed, or the difference is more than rounding.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise LongspanError(
            "sentence-transformers is not installed", where="the check", remedy="pip install 'longspan[st]'"
        ) from None
    theirs = SentenceTransformer(str(folder), device="cpu")
    worst = 0.0
    for task, text in itertools.product(embedder.config.prefixes or {"": ""}, [*PROBES, _long_probe(embedder)]):
        theirs.encode(["a"])  # at a short text transformers forgets the longest text that it has seen
        ours = embedder.embed([text], task=task or None, truncate=True)
        other = theirs.encode([text], prompt_name=task or None)
        worst = max(worst, float(np.abs(ours - np.asarray(other)).max()))
    if worst > TOLERANCE:
        raise LongspanError(
            f"sentence-transformers gives other vectors: they differ by up to {worst:.2e}",
            where=folder,
            remedy="do not publish this folder; report the versions of torch, transformers and sentence-transformers",
        )
    return worst


def _long_probe(embedder: Embedder) -> str:
    return "word " * (embedder.model.encoder.config.trained_length + 1)
