"""`longspan curate decontaminate`: rows without texts of evaluation sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import add_precision, at_least_1, declare, load_embedder


def add(steps: Any) -> None:
    parser = declare(
        steps,
        "decontaminate",
        _decontaminate,
        "drop training rows that hold texts of evaluation sets",
        "  longspan curate decontaminate pairs.jsonl --against beir/scifact banking77/test.jsonl --out clean\n"
        "  longspan curate decontaminate pairs.jsonl --against beir/nq/queries.jsonl --ratio 0.8 --out clean",
    )
    parser.add_argument("files", nargs="+", help="files of training rows")
    parser.add_argument(
        "--against",
        nargs="+",
        required=True,
        metavar="SET",
        help="evaluation sets: folders in BEIR's layout, other folders of rows, or files",
    )
    parser.add_argument("--ngram", type=at_least_1, default=13, help="words of an n-gram (%(default)s)")
    parser.add_argument(
        "--ratio",
        type=float,
        default=0.5,
        help="part of the n-grams of the text with fewer that has to be in the other (%(default)s)",
    )
    parser.add_argument("--columns", nargs="+", help="text columns of the training rows (the usual ones)")
    parser.add_argument("--against-columns", nargs="+", help="text columns of the evaluation sets (the usual ones)")
    parser.add_argument("--teacher", help="model that finds paraphrases too: folder or hub id")
    parser.add_argument(
        "--similarity", type=float, default=0.95, help="the teacher's cosine from which on texts match (%(default)s)"
    )
    parser.add_argument("--task", default="classification", help="the teacher's task for all texts (%(default)s)")
    parser.add_argument("--max-length", type=int, help="the teacher reads at most this many tokens of a text")
    add_precision(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result and its report")


def _decontaminate(parsed: argparse.Namespace) -> None:
    from longspan.curate.contamination import ContaminationConfig, Judge, decontaminate
    from longspan.curate.rows import KEPT, count_rows
    from longspan.data.places import find_files
    from longspan.progress import Bar

    config = ContaminationConfig.parse(
        {
            "ngram": parsed.ngram,
            "ratio": parsed.ratio,
            "columns": parsed.columns,
            "benchmark_columns": parsed.against_columns,
        },
        where="the command line (--ngram, --ratio)",
    )
    judge = None
    if parsed.teacher is not None:
        teacher = load_embedder(parsed.teacher, parsed.precision)
        judge = Judge(teacher, parsed.similarity, parsed.out / "vectors", parsed.task, parsed.max_length)
    files = find_files(tuple(parsed.files))
    with Bar("decontaminate", count_rows(files)) as bar:
        report = decontaminate(files, parsed.against, parsed.out, config, judge=judge, progress=bar.advance)
    for name, benchmark in report["benchmarks"].items():
        met = ", ".join(
            f"{counts['met']:,} of {counts['texts']:,} {kind}" for kind, counts in benchmark["texts"].items()
        )
        print(f"{name}: met {met}; {benchmark['rows_dropped']:,} rows dropped")
    print(f"kept {report['kept']:,} of {report['rows']:,} rows: {parsed.out / KEPT}")
