"""`longspan export`: publish a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import declare, load_embedder


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "export",
        _export,
        "publish a model in a form that other software loads",
        "  longspan export runs/finetune --out published --check",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument(
        "--format", choices=("sentence-transformers",), default="sentence-transformers", help="(%(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--check", action="store_true", help="load it with sentence-transformers and compare vectors")


def _export(parsed: argparse.Namespace) -> None:
    from longspan.export.sentence_transformers import compare_with_sentence_transformers, publish

    embedder = load_embedder(parsed.model)
    publish(embedder, parsed.out)
    print(f"published: {parsed.out}")
    if parsed.check:
        worst = compare_with_sentence_transformers(embedder, parsed.out)
        print(f"sentence-transformers gives the same vectors (largest difference {worst:.1e})")
