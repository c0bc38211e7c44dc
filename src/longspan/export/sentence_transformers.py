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
from longspan.files import atomic_path, write_text
from longspan.model.folder import check_replaceable, write_model
from longspan.model.published_config import model_type

PROBES = (
    "How do I read a CSV file?",
    "Straße, naïve café, 東京 — and a number: 3.14159",
    "def area(radius: float) -> float:\n    return math.pi * radius ** 2",
    "long context " * 150,
)
"""Texts on which the libraries are compared: short, Unicode, code, long. One past the trained length comes on top."""

TOLERANCE = 1e-5
"""Largest difference of a coordinate of unit vectors in float32 that rounding explains."""


def publish(embedder: Embedder, folder: Path, *, card: str = "") -> None:
    """Write the folder, with `card` as the body of its README.md.

    Raises:
        LongspanError: the folder holds something else than a published model, or cannot be written.
    """
    check_replaceable(folder)
    with atomic_path(folder) as unfinished:
        write_model(unfinished, embedder.exact_encoder(), embedder.tokenizer, embedder.config)
        write_text(unfinished / "README.md", _card(embedder, card))


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


def _card(embedder: Embedder, body: str) -> str:
    config, prefixes = embedder.model.encoder.config, embedder.config.prefixes
    parameters = sum(weight.numel() for weight in embedder.model.encoder.state_dict().values())
    tasks = "\n".join(f"- `{name}`: `{prefix}`" for name, prefix in prefixes.items())
    needs = f"Every text needs the prefix of its task:\n\n{tasks}" if prefixes else "Texts need no prefix."
    theirs = [f", prompt_name={name!r}" for name in prefixes] or [""]
    ours = [f", task={name!r}" for name in prefixes] or [""]
    encode = "\n".join(f'vectors = model.encode(["how do I read a file?"]{task})' for task in theirs)
    embed = "\n".join(f'vectors = embedder.embed(["how do I read a file?"]{task})' for task in ours)
    reaches_further = config.max_length > config.trained_length and config.rope_scaling == "dynamic"
    beyond = ", dynamic NTK beyond" if reaches_further else ""
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, longspan, {model_type(config, "the card")}]
---

# A text embedder trained with longspan

{parameters:,} parameters, {embedder.dim} dimensions, texts of up to {embedder.config.max_length:,} tokens
({config.trained_length:,} in training{beyond}), {embedder.config.pooling} pooling.

{needs}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
{encode}
```

```python
from longspan import Embedder

embedder = Embedder.load("path/to/this/folder")
{embed}
```

{body}
"""
