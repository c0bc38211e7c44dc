"""`longspan prepare`: raw data to shards."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cli.common import at_least_1, declare, usage_error
from longspan.errors import LongspanError

if TYPE_CHECKING:
    from longspan.data.readers import OnError
    from longspan.data.source import Source
    from longspan.text.tokenizer import Tokenizer


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "prepare",
        _prepare,
        "raw data to tokenised, memory-mapped shards with a manifest",
        "  longspan prepare sources.toml --tokenizer bert-base-uncased --out data\n"
        "  longspan prepare faq.jsonl --query question --document answer --tokenizer runs/mlm --out data\n"
        "  longspan prepare books/*.txt --text text --train-tokenizer 30522 --out data",
    )
    parser.add_argument("source", nargs="+", help="a .toml file of [[source]] tables, or data files (one source)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared sources")
    parser.add_argument("--name", help="name of the source made of data files (default: the first file's name)")
    parser.add_argument("--query", metavar="COLUMN", help="column of the query (query)")
    parser.add_argument("--document", metavar="COLUMN", help="column of the document (document)")
    parser.add_argument("--negatives", metavar="COLUMN", help="column that lists negatives")
    parser.add_argument("--query-task", metavar="TASK", help="task of the queries (search_query)")
    parser.add_argument("--document-task", metavar="TASK", help="task of the documents (search_document)")
    parser.add_argument("--text", metavar="COLUMN", help="prepare running text for MLM from this column, not pairs")
    tokenizer = parser.add_mutually_exclusive_group()
    tokenizer.add_argument("--tokenizer", help="tokenizer file, model folder or hub id (default: the one in --out)")
    tokenizer.add_argument(
        "--train-tokenizer", type=at_least_1, metavar="SIZE", help="train a WordPiece vocabulary first"
    )
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="what to do with a broken row (%(default)s)"
    )


def _prepare(parsed: argparse.Namespace) -> None:
    from longspan.data.prepare import prepare
    from longspan.data.readers import stop_on_error

    sources = _sources(parsed)
    skipped: list[LongspanError] = []
    on_error = stop_on_error if parsed.on_error == "stop" else skipped.append
    tokenizer = _prepare_tokenizer(parsed, sources, on_error)
    skipped.clear()  # rows that are skipped in training the vocabulary are met again
    for source in sources:
        [manifest] = prepare([source], parsed.out, tokenizer, on_error=on_error)
        tokens = ", ".join(f"{count:,} {column}" for column, count in manifest.num_tokens.items() if count)
        num_skipped = sum(file.num_skipped for file in manifest.inputs)
        left_out = f", {num_skipped:,} skipped" if num_skipped else ""
        print(f"{manifest.name}: {manifest.num_rows:,} rows{left_out}, tokens: {tokens}")
    for error in skipped[:10]:
        print(f"skipped {error.where}: {error.what}", file=sys.stderr)
    if len(skipped) > 10:
        print(f"... and {len(skipped) - 10:,} more", file=sys.stderr)


def _prepare_tokenizer(parsed: argparse.Namespace, sources: list[Source], on_error: OnError) -> Tokenizer:
    from longspan.data.prepare import TOKENIZER_FILE
    from longspan.text.tokenizer import Tokenizer

    path = parsed.out / TOKENIZER_FILE
    if parsed.train_tokenizer and not path.is_file():
        return Tokenizer.train(_all_texts(sources, on_error), parsed.train_tokenizer)
    if parsed.tokenizer is None and not path.is_file():
        raise LongspanError(
            "there is no tokenizer yet",
            where=path,
            remedy="pass --tokenizer FILE_OR_MODEL, or --train-tokenizer SIZE to make one from these texts",
        )
    if parsed.train_tokenizer:
        print(f"longspan: {path} is there already and is used; nothing is trained", file=sys.stderr)
    return Tokenizer.load(parsed.tokenizer or path)


def _sources(parsed: argparse.Namespace) -> list[Source]:
    from longspan.data.source import PairSource, TextSource, check_names, read_sources

    keys = ("query", "document", "negatives", "query_task", "document_task")
    of_pairs = {key: getattr(parsed, key) for key in keys if getattr(parsed, key) is not None}
    if all(name.endswith(".toml") for name in parsed.source):
        if parsed.name or parsed.text or of_pairs:
            raise usage_error(
                "names, columns and tasks stand in the sources file: leave their arguments out", "prepare"
            )
        sources = [source for name in parsed.source for source in read_sources(Path(name))]
        check_names(tuple(sources), where=", ".join(parsed.source))
        return sources
    name = parsed.name or Path(parsed.source[0]).name.split(".")[0].replace("*", "files")
    values: dict[str, Any] = {"name": name, "files": parsed.source}
    if parsed.text is None:
        return [PairSource.parse(values | of_pairs, where="the command line (--name, --query-task ...)")]
    if of_pairs:
        raise usage_error(f"--text prepares running text, which has no {next(iter(of_pairs))}", "prepare")
    return [TextSource.parse(values | {"text": parsed.text}, where="the command line (--name, --text)")]


def _all_texts(sources: list[Source], on_error: OnError) -> Iterator[str]:
    from longspan.data.prepare import read_texts
    from longspan.data.readers import find_files

    for source in sources:
        files = find_files(source.files)
        row = None
        for row in (row for file in files for row in read_texts(source, file, on_error)):
            # Not the negatives: they are documents of other rows.
            yield from (text for name, column in row.columns.items() if name != "negatives" for text in column)
        if row is None:
            raise LongspanError(
                f"source {source.name!r} has no rows to learn words from",
                where=", ".join(files),
                remedy="check its files and columns",
            )
