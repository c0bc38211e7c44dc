"""`longspan embed`: vectors of files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import add_precision, declare, load_embedder, say_cut
from longspan.errors import LongspanError


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "embed",
        _embed,
        "vectors of lines or rows, as .npy, .jsonl or .parquet",
        "  longspan embed runs/finetune queries.txt --task search_query --dim 128 --out queries.npy\n"
        "  cat texts.txt | longspan embed runs/finetune --task clustering --out vectors.jsonl",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument("files", nargs="*", help="text files (a text a line), .jsonl, .parquet, .csv; default: stdin")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .npy, .jsonl or .parquet")
    parser.add_argument("--task", help="what the texts are for: search_query, search_document, ...")
    parser.add_argument("--dim", type=int, help="keep the first DIM coordinates (Matryoshka) and normalise again")
    parser.add_argument("--column", default="text", help="column of the text in files of rows (%(default)s)")
    parser.add_argument("--max-length", type=int, help="longest text in tokens (default: the model's limit)")
    parser.add_argument("--truncate", action="store_true", help="cut longer texts instead of refusing them")
    add_precision(parser)


def _embed(parsed: argparse.Namespace) -> None:
    from longspan.output import check_output, read_texts, write_vectors
    from longspan.progress import Bar

    check_output(parsed.out)
    texts = read_texts(parsed.files, parsed.column)
    if not texts:
        where = ", ".join(parsed.files) or "standard input"
        raise LongspanError("there are no texts", where=where, remedy="name files that hold text")
    embedder = load_embedder(parsed.model, parsed.precision)
    cut: list[int] = []
    with Bar("embed", len(texts)) as bar:
        vectors = embedder.embed(
            texts,
            task=parsed.task,
            dim=parsed.dim,
            max_length=parsed.max_length,
            truncate=parsed.truncate,
            progress=bar.advance,
            on_cut=cut.append,
        )
    write_vectors(parsed.out, texts, vectors)
    say_cut(sum(cut), len(texts))
    print(f"{len(texts):,} vectors of {vectors.shape[1]} coordinates: {parsed.out}")
