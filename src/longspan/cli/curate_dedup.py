"""`longspan curate dedup`: rows without their copies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import at_least_1, declare, usage_error


def add(steps: Any) -> None:
    parser = declare(
        steps,
        "dedup",
        _dedup,
        "drop exact and near duplicates, within a file and across files; the first copy stays",
        "  longspan curate dedup squad.jsonl nq.jsonl --out unique\n"
        "  longspan curate dedup books.jsonl --on text --threshold 0.7 --out unique\n"
        "  longspan curate dedup pairs.jsonl --on query=0.9 document=0.8 --out unique",
    )
    parser.add_argument("files", nargs="+", help="files of rows; of copies the one in the first file stays")
    parser.add_argument(
        "--on",
        nargs="+",
        metavar="COLUMN[=SIMILARITY]",
        help="a row is a copy if it is one in all these columns (query=1 document)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.8, help="Jaccard similarity of near duplicates' n-grams (%(default)s)"
    )
    parser.add_argument("--ngram", type=at_least_1, default=5, help="words of an n-gram (%(default)s)")
    parser.add_argument("--exact", action="store_true", help="only rows that are equal but for case and spaces")
    parser.add_argument("--workers", type=at_least_1, default=1, help="processes, each with a file (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result and its report")


def _dedup(parsed: argparse.Namespace) -> None:
    from longspan.curate.dedup import deduplicate
    from longspan.curate.rows import KEPT, count_rows
    from longspan.curate.sketches import DedupConfig, sketch
    from longspan.data.places import find_files
    from longspan.progress import Bar

    columns = _columns(parsed.on or ["query=1", "document"], parsed.threshold)
    values = {"columns": columns, "near": not parsed.exact, "ngram": parsed.ngram}
    config = DedupConfig.parse(values, where="the command line (--on, --threshold)")
    files = find_files(tuple(parsed.files))
    num_rows = count_rows(files)
    with Bar("sketch", num_rows) as bar:
        sketches = sketch(files, config, parsed.out, workers=parsed.workers, progress=bar.advance)
    with Bar("compare", num_rows) as bar:
        report = deduplicate(sketches, parsed.out, progress=bar.advance)
    print(
        f"kept {report['kept']:,} of {report['rows']:,} rows: {parsed.out / KEPT} "
        f"(dropped: {report['dropped_exact']:,} exact and {report['dropped_near']:,} near duplicates)"
    )


def _columns(on: list[str], threshold: float) -> dict[str, float]:
    columns = {}
    for item in on:
        column, equals, similarity = item.partition("=")
        try:
            columns[column] = float(similarity) if equals else threshold
        except ValueError:
            raise usage_error(f"--on {item}: {similarity!r} is not a similarity", "curate dedup") from None
    return columns
