"""`longspan curate long`: pairs with long documents."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import at_least_1, declare


def add(steps: Any) -> None:
    parser = declare(
        steps,
        "long",
        _long,
        "make pairs with long documents: title -> body, abstract -> full text, heading -> section",
        "  longspan curate long wikipedia/*.parquet --tokenizer bert-base-uncased --out long\n"
        "  longspan curate long papers.jsonl --tokenizer runs/mlm --kinds abstract-body --long-share 0.8 --out long",
    )
    parser.add_argument("files", nargs="+", help="files of documents: title, abstract, body or text, sections")
    parser.add_argument("--tokenizer", required=True, help="counts the tokens: tokenizer file, model folder or hub id")
    parser.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="title-body, abstract-body, heading-section, heading-body (all but the last)",
    )
    parser.add_argument(
        "--min-tokens", type=at_least_1, default=512, metavar="N", help="leave out shorter documents (%(default)s)"
    )
    parser.add_argument("--max-tokens", type=at_least_1, metavar="N", help="leave out longer documents")
    parser.add_argument(
        "--long-tokens", type=at_least_1, default=2048, metavar="N", help="a long document has more (%(default)s)"
    )
    parser.add_argument(
        "--long-share", type=float, metavar="PART", help="leave out short ones until this part of the pairs is long"
    )
    for column in ("title", "abstract", "body", "sections"):
        parser.add_argument(f"--{column}", metavar="COLUMN", help=f"column of the {column}")
    parser.add_argument("--document-task", metavar="TASK", help="its prefix is counted (search_document)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result and its report")


def _long(parsed: argparse.Namespace) -> None:
    from longspan.curate.long_pairs import PAIRS, LongPairsConfig, make_long_pairs
    from longspan.curate.rows import count_rows
    from longspan.data.places import find_files
    from longspan.progress import Bar
    from longspan.text.tokenizer import Tokenizer

    given = {name: getattr(parsed, name) for name in LongPairsConfig.model_fields if hasattr(parsed, name)}
    values = {name: value for name, value in given.items() if value is not None}
    config = LongPairsConfig.parse(values, where="the command line (--kinds, --min-tokens, --long-share ...)")
    tokenizer = Tokenizer.load(parsed.tokenizer)
    files = find_files(tuple(parsed.files))
    with Bar("long pairs", count_rows(files)) as bar:
        report = make_long_pairs(files, tokenizer, parsed.out, config, progress=bar.advance)
    for kind, counts in report["kinds"].items():
        left_out = ", ".join(f"{count:,} x {reason}" for reason, count in counts["left_out"].items())
        print(f"{kind}: {counts['pairs']:,} pairs" + (f"; left out: {left_out}" if left_out else ""))
    share = report["lengths"][f"share_over_{config.long_tokens}"]
    print(f"{report['pairs']:,} pairs, {share:.1%} over {config.long_tokens:,} tokens: {parsed.out / PAIRS}")
