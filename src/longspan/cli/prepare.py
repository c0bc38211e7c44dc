"""`longspan prepare`: raw data to shards."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from longspan.cli.common import at_least_1, declare, usage_error
from longspan.errors import LongspanError

if TYPE_CHECKING:
    from longspan.data.skipped import OnError
    from longspan.data.source import Source
    from longspan.progress import Bar
    from longspan.text.tokenizer import Tokenizer

_WORTH_A_BAR = 10
"""Megabytes, or thousands of rows, from which on a bar is shown."""


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "prepare",
        _prepare,
        "raw data to tokenised, memory-mapped shards with a manifest",
        "  longspan prepare sources.toml --tokenizer bert-base-uncased --out data\n"
        "  longspan prepare faq.jsonl --query question --document answer --tokenizer runs/mlm --out data\n"
        "  longspan prepare books/*.txt --text text --train-tokenizer 30522 --out data\n"
        "  longspan prepare beir/scifact --split train --tokenizer runs/mlm --out data",
    )
    parser.add_argument(
        "source", nargs="+", help="a .toml file of [[source]] tables, or one source's data files or folder"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared sources")
    parser.add_argument("--name", help="name of the source made of data files (default: the first file's name)")
    parser.add_argument("--query", metavar="COLUMN", help="column of the query (query)")
    parser.add_argument("--document", metavar="COLUMN", help="column of the document (document)")
    parser.add_argument("--negatives", metavar="COLUMN", help="column that lists negatives")
    parser.add_argument(
        "--scores",
        action="store_true",
        help="keep the teacher's scores that longspan curate mine has written, for distillation",
    )
    parser.add_argument(
        "--cluster", metavar="COLUMN", help="column of the pair's cluster, as longspan curate cluster writes it"
    )
    parser.add_argument("--query-task", metavar="TASK", help="task of the queries (search_query)")
    parser.add_argument("--document-task", metavar="TASK", help="task of the documents (search_document)")
    parser.add_argument(
        "--layout", help="how the rows lie in a folder: files, text, hub, release, beir, mteb (told from it)"
    )
    parser.add_argument("--config", help="configuration of a data set in the hub's or MTEB's layout")
    parser.add_argument("--split", help="split of a data set in a folder (the only one, or train)")
    parser.add_argument("--max-rows", type=at_least_1, metavar="COUNT", help="take only the first rows of the source")
    parser.add_argument("--text", metavar="COLUMN", help="prepare running text for MLM from this column, not pairs")
    tokenizer = parser.add_mutually_exclusive_group()
    tokenizer.add_argument("--tokenizer", help="tokenizer file, model folder or hub id (default: the one in --out)")
    tokenizer.add_argument(
        "--train-tokenizer", type=at_least_1, metavar="SIZE", help="train a WordPiece vocabulary first"
    )
    parser.add_argument("--workers", type=at_least_1, metavar="COUNT", help="processes (default: one for each core)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the rows (%(default)s)")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="broken rows: stop at the first, or leave them out and list them (%(default)s)",
    )


def _prepare(parsed: argparse.Namespace) -> None:
    from longspan.data.prepare import prepare
    from longspan.data.skipped import SKIPPED, stop_on_error

    sources = _sources(parsed)
    # What is skipped is told at the end, from the file that keeps it.
    on_error = stop_on_error if parsed.on_error == "stop" else lambda error: None
    tokenizer = _prepare_tokenizer(parsed, sources, on_error)
    for source in sources:
        with _Bars() as bars:
            [manifest] = prepare(
                [source],
                parsed.out,
                tokenizer,
                on_error=on_error,
                progress=bars.show,
                workers=parsed.workers,
                seed=parsed.seed,
            )
        tokens = ", ".join(f"{count:,} {column}" for column, count in manifest.num_tokens.items() if count)
        num_skipped = sum(file.num_skipped for file in manifest.inputs)
        left_out = f", {num_skipped:,} skipped" if num_skipped else ""
        print(f"{manifest.name}: {manifest.num_rows:,} rows{left_out}, tokens: {tokens}")
    for source in sources:
        _report_skipped(parsed.out / source.name / SKIPPED)


class _Bars:
    """A bar for each thing that `prepare` does, unless it is done in a moment."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._what, self._shown = "", 0
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def show(self, what: str, done: int, total: int) -> None:
        """See `longspan.data.prepare.Progress`."""
        from longspan.progress import Bar

        name, unit = (f"{what} (MB)", 10**6) if what.endswith("tokenising") else (f"{what} (thousand rows)", 1000)
        if what != self._what:
            self._open.close()
            self._what, self._shown = what, 0
            self._bar = self._open.enter_context(Bar(name, total // unit)) if total >= _WORTH_A_BAR * unit else None
        if self._bar is not None:
            self._bar.advance(done // unit - self._shown)
            self._shown = done // unit


def _report_skipped(path: Path) -> None:
    from longspan.data.skipped import summary_of_skipped

    if not path.is_file():
        return
    print(f"skipped rows of {path.parent.name}, kept in {path}:", file=sys.stderr)
    for line in summary_of_skipped(path):
        print(f"  {line}", file=sys.stderr)


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
    from longspan.data.source import (
        NEGATIVE_SCORES,
        POSITIVE_SCORE,
        PairSource,
        TextSource,
        check_names,
        read_sources,
    )

    keys = ("query", "document", "negatives", "cluster", "query_task", "document_task")
    of_pairs = {key: getattr(parsed, key) for key in keys if getattr(parsed, key) is not None}
    if parsed.scores:
        of_pairs |= {"positive_score": POSITIVE_SCORE, "negative_scores": NEGATIVE_SCORES}
    of_any = {key: getattr(parsed, key) for key in ("name", "layout", "config", "split", "max_rows")}
    of_any = {key: value for key, value in of_any.items() if value is not None}
    if all(name.endswith(".toml") for name in parsed.source):
        if parsed.text or of_any or of_pairs:
            raise usage_error(
                "names, columns, tasks and layouts stand in the sources file: leave their arguments out", "prepare"
            )
        sources = [source for name in parsed.source for source in read_sources(Path(name))]
        check_names(tuple(sources), where=", ".join(parsed.source))
        return sources
    name = Path(parsed.source[0]).name.split(".")[0].replace("*", "files")
    values: dict[str, Any] = {"name": name, "files": parsed.source, **of_any}
    if parsed.text is None:
        return [PairSource.parse(values | of_pairs, where="the command line (--name, --query-task ...)")]
    if of_pairs:
        raise usage_error(f"--text prepares running text, which has no {next(iter(of_pairs))}", "prepare")
    return [TextSource.parse(values | {"text": parsed.text}, where="the command line (--name, --text)")]


def _all_texts(sources: list[Source], on_error: OnError) -> Iterator[str]:
    from longspan.data.layouts import source_parts
    from longspan.data.texts import read_texts

    for source in sources:
        parts = source_parts(source)
        row = None
        rows = (row for part in parts for row in read_texts(source, part, on_error))
        for row in itertools.islice(rows, source.max_rows):
            # Not the negatives: they are documents of other rows.
            yield from (text for name, column in row.columns.items() if name != "negatives" for text in column)
        if row is None:
            raise LongspanError(
                f"source {source.name!r} has no rows to learn words from",
                where=", ".join(part.name for part in parts),
                remedy="check its files and columns",
            )
