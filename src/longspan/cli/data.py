"""`longspan data`: the paper's data sets, and what prepared sources hold."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cli.common import EXIT_BAD_INPUT, at_least_1, console, declare
from longspan.errors import LongspanError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.table import Table

    from longspan.data.catalog import Entry, Fact
    from longspan.data.sample import SeenRow, SeenText
    from longspan.data.stats import ColumnStats, SourceStats, Stats

_WORDS_SHOWN = 60
_WIDTH_OF_FILES = 240


def add(commands: Any) -> None:
    data = commands.add_parser("data", help="the paper's data sets; what prepared sources hold")
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True)
    parser = declare(
        actions, "list", _list, "list the data sets of the paper", "  longspan data list --stage contrastive"
    )
    parser.add_argument("--stage", choices=("mlm", "contrastive", "finetune"), help="only the sets of one stage")
    parser = declare(
        actions,
        "show",
        _show,
        "show all that is known of a data set of the paper, and the table for `longspan prepare`",
        "  longspan data show gooaq\n"
        "  longspan data show gooaq --toml > gooaq.toml && longspan prepare gooaq.toml --tokenizer FILE --out data",
    )
    parser.add_argument("name", help="as `longspan data list` gives it")
    parser.add_argument("--toml", action="store_true", help="print only the [[source]] table")
    parser = declare(
        actions,
        "stats",
        _stats,
        "show counts, lengths, cuts, repeats and overlaps of prepared sources",
        "  longspan data stats data --length 512 --length 2048 --batch-size 16384 --out stats.html",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of prepared sources")
    parser.add_argument(
        "--length",
        type=at_least_1,
        action="append",
        default=[],
        metavar="N",
        help="show what a cut at N tokens takes away (may be given several times)",
    )
    parser.add_argument("--batch-size", type=at_least_1, metavar="N", help="count batches of N rows, as training draws")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write a page with plots (.html) or all numbers (.json)"
    )
    parser = declare(
        actions,
        "sample",
        _sample,
        "show rows of prepared sources as the model reads them",
        "  longspan data sample data --source gooaq --rows 5 --query-length 64 --document-length 256",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of prepared sources")
    parser.add_argument("--source", metavar="NAME", help="only this source")
    parser.add_argument("--rows", type=at_least_1, default=3, metavar="N", help="rows of each source (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (%(default)s)")
    parser.add_argument(
        "--query-length", type=at_least_1, default=2048, metavar="N", help="cut queries at N tokens (%(default)s)"
    )
    parser.add_argument(
        "--document-length", type=at_least_1, default=2048, metavar="N", help="cut documents at N tokens (%(default)s)"
    )
    parser.add_argument(
        "--row-length", type=at_least_1, default=2048, metavar="N", help="tokens of a packed row of text (%(default)s)"
    )
    parser.add_argument("--full", action="store_true", help="print long texts whole")
    parser = declare(
        actions,
        "verify",
        _verify,
        "compute the hashes of all shards anew and compare them with the manifests",
        "  longspan data verify data",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of prepared sources")


def _list(parsed: argparse.Namespace) -> None:
    from longspan.data.catalog import catalog

    entries = [entry for entry in catalog().values() if parsed.stage in (None, entry.stage)]
    table = _table("name", "stage", "#rows", "tasks", "licence", "where")
    for entry in entries:
        rows = "" if entry.num_rows is None else f"{entry.num_rows:,}"
        tasks = " / ".join(dict.fromkeys(task for task in (entry.query_task, entry.document_task) if task))
        table.add_row(entry.name, entry.stage, rows, tasks, entry.licence, entry.hub)
    _wide_console().print(table)
    totals = {
        stage: sum(entry.paper_rows or 0 for entry in entries if entry.stage == stage)
        for stage in ("contrastive", "finetune")
    }
    print("rows: the paper's counts, after consistency filtering; without one, what the hub has")
    print("".join(f"sum of {stage}: {total:,}\n" for stage, total in totals.items() if total), end="")


def _show(parsed: argparse.Namespace) -> None:
    from longspan.data.catalog import find_entry, source_of, source_toml

    entry = find_entry(parsed.name)
    if not parsed.toml:
        for label, value, fact in _facts(entry):
            if value is not None:
                recalled = fact is not None and fact not in entry.evidence
                print(f"{label:22} {value}{'  (recalled, not confirmed)' if recalled else ''}")
        for note in entry.notes:
            print(f"{'note':22} {note}")
        for fact, document in entry.evidence.items():
            print(f"{fact.replace('_', ' ') + ' read in':22} {document}")
        print()
    print(source_toml(source_of(entry)), end="")


def _facts(entry: Entry) -> Iterator[tuple[str, object, Fact | None]]:
    """Label, value, and which evidence there should be for it."""
    yield "name", entry.name, None
    yield "title", entry.title, None
    yield "stage", entry.stage, None
    yield "pair", entry.pair, None
    yield "form", entry.form, None
    if entry.text is None:
        tasks = f"{entry.query_task} / {entry.document_task}"
        yield "tasks", f"{tasks} ({'symmetric' if entry.symmetric else 'asymmetric'})", "tasks"
    if entry.negatives is not None:
        how = "mined: the top 20 by gte-base" if entry.mined_negatives else "drawn at random from the corpus"
        yield "negatives", f"{how} (section 4.2.4)", None
    yield "rows in the paper", _count(entry.paper_rows), "paper_rows"
    yield "rows before filtering", _count(entry.origin_rows), "origin"
    yield "rows on the hub", _count(entry.released_rows), "release"
    yield "hub", entry.hub, "release"
    yield "configuration", entry.config, "release"
    yield "split", entry.split, "release"
    yield "revision", entry.revision, "release"
    yield "columns", ", ".join(c for c in (entry.text, entry.query, entry.document, entry.negatives) if c), "release"
    yield "origin", entry.origin, "origin"
    yield "files there", entry.origin_files, "origin"
    yield "a row there", entry.origin_columns, "origin"
    yield "licence", entry.licence, "licence"


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def _stats(parsed: argparse.Namespace) -> None:
    from longspan.data.dataset import find_prepared
    from longspan.data.stats import collect_stats
    from longspan.data.stats_page import stats_page
    from longspan.files import write_json, write_text
    from longspan.progress import Bar

    if parsed.out is not None and parsed.out.suffix not in (".html", ".json"):
        raise LongspanError(
            "statistics are written as .html or .json", where=parsed.out, remedy="name the file so: --out stats.html"
        )
    num_rows = sum(manifest.num_rows for manifest in find_prepared(parsed.folder).values())
    with Bar("read", num_rows) as bar:
        stats = collect_stats(
            parsed.folder,
            lengths=sorted(set(parsed.length)),
            batch_size=parsed.batch_size,
            progress=bar.advance,
        )
    _print_stats(stats)
    if parsed.out is not None and parsed.out.suffix == ".json":
        write_json(parsed.out, stats.model_dump(mode="json"))
    elif parsed.out is not None:
        write_text(parsed.out, stats_page(stats))


def _print_stats(stats: Stats) -> None:
    cuts = [f"#over {cut.length:,}" for cut in stats.sources[0].columns[0].cuts]  # pairs, if any, come first
    lengths = ("#mean", "#p50", "#p90", "#p99", "#longest")
    table = _table("source", "#rows", "#share", "column", "task", *lengths, *cuts, "#repeated")
    for source in stats.sources:
        for number, column in enumerate(source.columns):
            first = [source.name, f"{source.num_rows:,}", _share(source)] if number == 0 else ["", "", ""]
            table.add_row(*first, *_column_cells(column, len(cuts)))
        if source.pair_repeats is not None:
            blank = [""] * (len(lengths) + len(cuts) + 1)
            table.add_row("", "", "", "pair", *blank, f"{source.pair_repeats.part:.2%}")
    out = _wide_console()
    out.print(table)
    print("tokens of sequences: prefix and special tokens counted; repeated: texts that have occurred before")
    if stats.sampled > 1:
        print(f"repeated and shared texts: estimated from one text in {stats.sampled}, all its copies")
    for epoch in stats.epoch_tokens:
        at = "" if epoch.length is None else f", cut at {epoch.length:,}"
        print(f"tokens of an epoch of {epoch.kind}{at}: {epoch.num_tokens:,}")
    if stats.overlaps:
        table = _table("column", "source", "source", "#shared texts", "#of the first", "#of the second")
        for overlap in stats.overlaps:
            parts = (f"{overlap.part_of_first:.2%}", f"{overlap.part_of_second:.2%}")
            table.add_row(overlap.column, overlap.first, overlap.second, f"{overlap.num_shared:,}", *parts)
        out.print(table)


def _share(source: SourceStats) -> str:
    if source.num_batches is None:
        return f"{source.share:.1%}"
    return f"{source.share:.1%} ({source.num_batches:,})"


def _column_cells(column: ColumnStats, num_cuts: int) -> list[str]:
    lengths = column.lengths
    numbers = (f"{lengths.mean:,.1f}", *(f"{n:,}" for n in (lengths.p50, lengths.p90, lengths.p99, lengths.longest)))
    cuts = [f"{cut.num_cut / sum(lengths.counts):.1%}" for cut in column.cuts] or [""] * num_cuts
    return [column.column, column.task or "", *numbers, *cuts, f"{column.repeats.part:.2%}"]


def _sample(parsed: argparse.Namespace) -> None:
    from longspan.data.dataset import find_prepared
    from longspan.data.sample import sample_pairs, sample_text

    manifests = find_prepared(parsed.folder).values()
    kinds = {manifest.kind for manifest in manifests if parsed.source in (None, manifest.name)}
    draw: dict[str, Any] = {"source": parsed.source, "num_rows": parsed.rows, "seed": parsed.seed}
    if "pairs" in kinds or not kinds:  # where there is nothing, this says so
        lengths = {"max_query_tokens": parsed.query_length, "max_document_tokens": parsed.document_length}
        for row in sample_pairs(parsed.folder, **draw, **lengths):
            _print_row(row, parsed.full)
    if "text" in kinds:
        for row in sample_text(parsed.folder, **draw, row_length=parsed.row_length):
            _print_row(row, parsed.full)


def _print_row(row: SeenRow, full: bool) -> None:
    from rich.text import Text

    out = console()
    name = "packed text" if row.source is None else row.source
    tasks = f", {' -> '.join(dict.fromkeys(row.tasks))}" if row.tasks else ""
    out.print(Text(f"{name}, row {row.row:,}{tasks}", style="bold"))
    for seen in row.texts:
        line = Text(f"  {seen.role:12} {seen.num_tokens:>6,} tokens  ", style="dim")
        line.append(_words(seen, full), style="not dim")
        if seen.num_lost:
            line.append(f" ✂ {seen.num_lost:,} tokens are cut off here", style="bold red not dim")
        line.append(f" {seen.pieces[1]}" if seen.pieces[1] else "", style="not dim")
        out.print(line, soft_wrap=True)
    if row.num_targets is not None:
        out.print(Text(f"  {row.num_targets:,} tokens to predict", style="dim"))
    out.print()


def _words(seen: SeenText, full: bool) -> str:
    """The text, or its two ends where it is long."""
    words = seen.pieces[0].split(" ")
    if full or len(words) <= _WORDS_SHOWN:
        return seen.pieces[0]
    half = _WORDS_SHOWN // 2
    return " ".join([*words[:half], f"… {len(words) - 2 * half:,} more words …", *words[-half:]])


def _verify(parsed: argparse.Namespace) -> int | None:
    from longspan.data.dataset import find_prepared
    from longspan.data.shards import verify_source
    from longspan.progress import Bar

    manifests = find_prepared(parsed.folder)
    if not manifests:
        raise LongspanError(
            "no prepared sources", where=parsed.folder, remedy="prepare some: longspan prepare SOURCE --out DIR"
        )
    broken: list[LongspanError] = []
    num_bytes = sum(shard.num_bytes for manifest in manifests.values() for shard in manifest.shards)
    with Bar("verify", num_bytes) as bar:
        for folder in manifests:
            try:
                verify_source(folder, progress=bar.advance)
            except LongspanError as error:
                broken.append(error)
    for error in broken:
        print(f"longspan: {error}", file=sys.stderr)
    if broken:
        return EXIT_BAD_INPUT
    num_shards = sum(len(manifest.shards) for manifest in manifests.values())
    print(f"{len(manifests):,} sources, {num_shards:,} shards, {num_bytes:,} bytes: all as the manifests say")
    return None


def _wide_console() -> Console:
    """For tables: where there is no terminal, their lines are as long as they need to be."""
    out = console()
    if not out.is_terminal:
        out.width = _WIDTH_OF_FILES
    return out


def _table(*columns: str) -> Table:
    """A plain table; the numbers of a column whose name begins with # stand to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        numbers = column.startswith("#")
        table.add_column(column.removeprefix("#"), justify="right" if numbers else "left", no_wrap=numbers)
    return table
