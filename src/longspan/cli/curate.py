"""`longspan curate`: better data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cli.common import declare, load_embedder
from longspan.errors import LongspanError

if TYPE_CHECKING:
    from longspan.curate.consistency import Teacher


def add(commands: Any) -> None:
    curate = commands.add_parser("curate", help="better data: consistency filter, hard negatives")
    steps = curate.add_subparsers(title="steps", metavar="STEP", required=True)
    parser = declare(
        steps,
        "filter",
        _filter,
        "drop pairs whose document the teacher does not find",
        "  longspan curate filter pairs.jsonl --teacher all-MiniLM-L6-v2/ --out filtered",
    )
    parser.add_argument("--k", type=int, default=2, help="keep a pair if its document is in the top k (%(default)s)")
    parser.add_argument("--sample", type=int, default=1_000_000, help="pairs searched at a time (%(default)s)")
    _shared_arguments(parser)
    parser = declare(
        steps,
        "mine",
        _mine,
        "give every pair hard negatives from the other pairs' documents",
        "  longspan curate mine filtered/kept.jsonl --teacher all-MiniLM-L6-v2/ --guard 0.95 --out mined",
    )
    parser.add_argument("--k", type=int, default=20, help="negatives to keep (%(default)s)")
    parser.add_argument("--at-least", type=int, default=7, help="leave out pairs with fewer (%(default)s)")
    parser.add_argument("--guard", type=float, help="leave out candidates above this part of the positive's score")
    _shared_arguments(parser)


def _shared_arguments(parser: Any) -> None:
    parser.add_argument("files", nargs="+", help="files of rows with the columns query and document")
    parser.add_argument("--teacher", required=True, help="model that judges: folder or hub id")
    parser.add_argument("--query-task", default="search_query", help="task of the queries (%(default)s)")
    parser.add_argument("--document-task", default="search_document", help="task of the documents (%(default)s)")
    parser.add_argument("--max-length", type=int, help="the teacher reads at most this many tokens of a text")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result and its report")


def _filter(parsed: argparse.Namespace) -> None:
    from longspan.curate.consistency import filter_pairs
    from longspan.progress import Bar

    rows = _pair_rows(parsed, ("kept.jsonl", "dropped.jsonl"))
    with Bar("filter", 2 * len(rows)) as bar:
        report = filter_pairs(
            rows, _teacher(parsed), parsed.out, k=parsed.k, sample_size=parsed.sample, progress=bar.advance
        )
    print(f"kept {report['kept']:,} of {report['pairs']:,} pairs: {parsed.out / 'kept.jsonl'}")


def _mine(parsed: argparse.Namespace) -> None:
    from longspan.curate.negatives import mine_pairs
    from longspan.progress import Bar

    rows = _pair_rows(parsed, ("mined.jsonl", "dropped.jsonl"))
    with Bar("mine", 2 * len(rows)) as bar:
        report = mine_pairs(
            rows,
            _teacher(parsed),
            parsed.out,
            k=parsed.k,
            at_least=parsed.at_least,
            guard=parsed.guard,
            progress=bar.advance,
        )
    print(f"{report['mined']:,} of {report['pairs']:,} pairs have negatives: {parsed.out / 'mined.jsonl'}")


def _pair_rows(parsed: argparse.Namespace, written: Sequence[str]) -> list[dict[str, Any]]:
    from longspan.data.readers import find_files, read_rows

    rows = []
    for file in find_files(tuple(parsed.files)):
        if Path(file).resolve() in [(parsed.out / name).resolve() for name in written]:
            raise LongspanError("this file would be overwritten", where=file, remedy="choose another --out")
        for number, row in read_rows(file):
            for column in ("query", "document"):
                if not isinstance(row.get(column), str) or not row[column].strip():
                    raise LongspanError(
                        f"{column!r} is missing or empty",
                        where=f"{file}:{number}",
                        remedy="every row needs the columns query and document",
                    )
            rows.append(row)
    return rows


def _teacher(parsed: argparse.Namespace) -> Teacher:
    from longspan.curate.consistency import Teacher

    return Teacher(load_embedder(parsed.teacher), parsed.query_task, parsed.document_task, parsed.max_length)
