"""Publish a model as a folder that sentence-transformers and transformers load as they are, and prove it.

The folder is the one that longspan itself saves and loads (`model/folder.py`): stock classes, no custom code, no
`trust_remote_code`. What is added here is a model card, and a check that the other library gives the same vectors.

Axes: N texts, D width.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import write_text

PROBES = (
    "How do I read a CSV file?",
    "Straße, naïve café, 東京 — and a number: 3.14159",
    "def area(radius: float) -> float:\n    return math.pi * radius ** 2",
    "long context " * 150,
)
"""Texts on which the libraries are compared: short, Unicode, code, long."""

TOLERANCE = 1e-5
"""Largest difference of a coordinate of unit vectors in float32 that rounding explains."""


def publish(embedder: Embedder, folder: Path, *, card: str = "") -> None:
    """Write the folder, with `card` as the body of its README.md.

    Raises:
        LongspanError: the folder exists and holds something else than a model, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "modules.json").is_file():
        raise LongspanError("the folder is not empty and is not a model", where=folder, remedy="choose another folder")
    embedder.save(folder)
    write_text(folder / "README.md", _card(embedder, card))


def compare_with_sentence_transformers(embedder: Embedder, folder: Path) -> float:
    """Largest difference of any coordinate between this library's vectors and sentence-transformers', over probe texts.

    Texts are embedded one by one: transformers takes dynamic NTK from the longest text of a batch, so there a vector of
    a long batch depends on its neighbours (docs/numerics.md).

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
    for task, text in itertools.product(embedder.config.prefixes or {"": ""}, PROBES):
        ours = embedder.embed([text], task=task or None)
        other = theirs.encode([text], prompt_name=task or None)
        worst = max(worst, float(np.abs(ours - np.asarray(other)).max()))
    if worst > TOLERANCE:
        raise LongspanError(
            f"sentence-transformers gives other vectors: they differ by up to {worst:.2e}",
            where=folder,
            remedy="do not publish this folder; report the versions of torch, transformers and sentence-transformers",
        )
    return worst


def _card(embedder: Embedder, body: str) -> str:
    config = embedder.model.encoder.config
    parameters = sum(p.numel() for p in embedder.model.parameters())
    tasks = "\n".join(f"- `{name}`: `{prefix}`" for name, prefix in embedder.config.prefixes.items())
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, longspan, nomic_bert]
---

# A text embedder trained with longspan

{parameters:,} parameters, {embedder.dim} dimensions, texts of up to {embedder.config.max_length:,} tokens
({config.trained_length:,} in training, dynamic NTK beyond), {embedder.config.pooling} pooling.

Every text needs the prefix of its task:

{tasks}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
queries = model.encode(["how do I read a file?"], prompt_name="search_query")
documents = model.encode(["open() gives a file object."], prompt_name="search_document")
```

```python
from longspan import Embedder

embedder = Embedder.load("path/to/this/folder")
queries = embedder.embed(["how do I read a file?"], task="search_query")
```

{body}
"""
