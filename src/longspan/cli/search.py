"""`longspan search`: find passages."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import add_precision, at_least_1, declare, load_embedder, say_cut


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "search",
        _search,
        "find the passages of files that answer a query",
        "  longspan search runs/finetune notes/*.md 'how do I reset the password?'",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument("files", nargs="+", help="files to search: .txt, .md, .jsonl, .parquet, .csv")
    parser.add_argument("query", help="what to look for")
    parser.add_argument("--k", type=at_least_1, default=5, help="passages to show (%(default)s)")
    parser.add_argument("--cache", type=Path, help="keep vectors in this folder and use them again")
    add_precision(parser)


def _search(parsed: argparse.Namespace) -> None:
    from longspan.progress import Bar
    from longspan.search import Index, read_passages

    passages = read_passages(parsed.files)
    embedder = load_embedder(parsed.model, parsed.precision)
    cut: list[int] = []
    with Bar("index", len(passages)) as bar:
        index = Index.build(embedder, passages, cache=parsed.cache, progress=bar.advance, on_cut=cut.append)
    say_cut(sum(cut), len(passages))
    for hit in index.search(parsed.query, parsed.k):
        print(f"{hit.score:.3f}  {hit.passage.where}\n       {' '.join(hit.passage.text.split())[:300]}")
