"""`longspan export`: publish a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from longspan.cli.common import declare, load_embedder


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "export",
        _export,
        "publish a model in the forms that other software loads, with a card",
        "  longspan export runs/finetune --out published --check\n"
        "  longspan export runs/finetune --out published --format onnx gguf --onnx float32 int8 --gguf f16 q8_0\n"
        "  longspan export runs/finetune --out published --results scifact.json --push me/my-embedder",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=("sentence-transformers", "nomic", "onnx", "gguf"),
        default=["sentence-transformers"],
        help="what the folder holds: sentence-transformers is always in it, the others come beside it (%(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--onnx",
        nargs="+",
        choices=("float32", "float16", "int8"),
        default=["float32", "int8"],
        help="precisions of the ONNX files (%(default)s)",
    )
    parser.add_argument(
        "--gguf",
        nargs="+",
        choices=("f32", "f16", "q8_0"),
        default=["f16"],
        help="precisions of the GGUF files (%(default)s)",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="for the card: what longspan evaluate --out wrote",
    )
    parser.add_argument("--licence", help="for the card: the licence of the weights, as apache-2.0")
    parser.add_argument("--check", action="store_true", help="load it with sentence-transformers and compare vectors")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to the hub")
    parser.add_argument("--private", action="store_true", help="with --push: only you can see a new repository")


def _export(parsed: argparse.Namespace) -> None:
    from longspan.export.history import is_run, read_history
    from longspan.export.model_card import CardFacts, read_results
    from longspan.export.publish import Forms, publish
    from longspan.export.push import check_hub_name, push

    if parsed.push is not None:
        check_hub_name(parsed.push)  # before the work
    forms = Forms(formats=tuple(parsed.format), onnx=tuple(parsed.onnx), gguf=tuple(parsed.gguf))
    facts = CardFacts(
        history=read_history(Path(parsed.model)) if is_run(Path(parsed.model)) else (),
        results=read_results(parsed.results),
        licence=parsed.licence,
    )
    embedder = load_embedder(parsed.model)
    notes = publish(
        embedder, parsed.out, forms=forms, facts=facts, tell=lambda name: print(f"  {name}", file=sys.stderr)
    )
    print(f"published: {parsed.out}")
    for note in notes:
        print(f"note: {note}")
    if parsed.check:
        from longspan.export.sentence_transformers import compare_with_sentence_transformers

        worst = compare_with_sentence_transformers(embedder, parsed.out)
        print(f"sentence-transformers gives the same vectors (largest difference {worst:.1e})")
    if parsed.push is not None:
        message = f"longspan export: {embedder.fingerprint[:12]}"
        print(f"uploaded: {push(parsed.out, parsed.push, private=parsed.private, message=message)}")
