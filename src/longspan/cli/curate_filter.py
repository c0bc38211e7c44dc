"""`longspan curate filter`: the consistency filter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cli.common import add_precision, add_searching, at_least_1, declare, load_embedder, usage_error
from longspan.cli.engine import add_engine, open_engine, say_throughput, show_with
from longspan.errors import LongspanError

if TYPE_CHECKING:
    from longspan.data.source import PairSource

SHOWN = ("pairs", "kept", "dropped", "part_kept")


def add(steps: Any) -> None:
    parser = declare(
        steps,
        "filter",
        _filter,
        "drop pairs whose document the teacher does not find",
        "  longspan curate filter pairs.jsonl --teacher all-MiniLM-L6-v2/ --out filtered\n"
        "  longspan curate filter sources.toml --teacher all-MiniLM-L6-v2/ --out filtered\n"
        "  longspan curate filter pairs.jsonl --teacher all-MiniLM-L6-v2/ --threshold 0.4 --out filtered\n"
        "  longspan curate filter pairs.jsonl --teacher gte-base/ --processes 8 --out filtered\n"
        "  longspan curate filter sources.toml --teacher gte-base/ --engine ray --ray-address head:6379 --out filtered",
    )
    parser.add_argument("source", nargs="+", help="a .toml file of [[source]] tables, or one source's files of rows")
    parser.add_argument("--teacher", required=True, help="model that judges: folder or hub id")
    parser.add_argument("--k", type=int, default=2, help="keep a pair if its document is in the top k (%(default)s)")
    parser.add_argument(
        "--threshold", type=float, help="keep a pair if its cosine is at least this, instead of by the top k"
    )
    parser.add_argument("--sample", type=int, default=1_000_000, help="pairs searched at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (%(default)s)")
    add_searching(parser, "sample")
    parser.add_argument("--name", help="name of the source made of files (default: the first file's name)")
    parser.add_argument("--query", metavar="COLUMN", help="column of the query (query)")
    parser.add_argument("--document", metavar="COLUMN", help="column of the document (document)")
    parser.add_argument(
        "--query-task", metavar="TASK", help="the teacher's task for queries (the source's: search_query)"
    )
    parser.add_argument("--document-task", metavar="TASK", help="its task for documents (search_document)")
    parser.add_argument("--max-length", type=at_least_1, help="the teacher reads at most this many tokens of a text")
    add_precision(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the result and its report; of a .toml, a folder per source"
    )
    add_engine(parser)


def _filter(parsed: argparse.Namespace) -> None:
    from longspan.curate.consistency import Rule, Searching, Teacher
    from longspan.curate.filtering import KEPT, filter_source
    from longspan.curate.report import write_overview
    from longspan.progress import Bars

    sources = _sources(parsed)
    folders = [parsed.out / source.name if _is_list(parsed) else parsed.out for source in sources]
    embedder = load_embedder(parsed.teacher, parsed.precision)
    reports = []
    with open_engine(parsed, embedder, "curate filter") as engine:
        for source, folder in zip(sources, folders, strict=True):
            with Bars(source.name) as bars:
                report = filter_source(
                    source,
                    Teacher(
                        embedder,
                        parsed.query_task or source.query_task,
                        parsed.document_task or source.document_task,
                        parsed.max_length,
                    ),
                    folder,
                    rule=Rule(parsed.k, parsed.threshold),
                    sample_size=parsed.sample,
                    seed=parsed.seed,
                    searching=Searching(parsed.search, parsed.recall),
                    cache=parsed.out / "vectors",
                    engine=engine,
                    device=str(embedder.device),
                    progress=show_with(bars, engine),
                )
            reports.append(report)
            name = f"{source.name}: " if _is_list(parsed) else ""
            print(f"{name}kept {report.facts['kept']:,} of {report.facts['pairs']:,} pairs: {folder / KEPT}")
        say_throughput(engine)
    if _is_list(parsed):
        write_overview(parsed.out, "filter", reports, SHOWN)


def _is_list(parsed: argparse.Namespace) -> bool:
    return all(name.endswith(".toml") for name in parsed.source)


def _sources(parsed: argparse.Namespace) -> list[PairSource]:
    from longspan.data.source import PairSource, check_names, read_sources

    values = {key: getattr(parsed, key) for key in ("name", "query", "document") if getattr(parsed, key) is not None}
    if not _is_list(parsed):
        name = Path(parsed.source[0]).name.split(".")[0].replace("*", "files")
        return [PairSource.parse({"name": name, "files": parsed.source, **values}, where="the command line (--name)")]
    if values:
        raise usage_error("names and columns stand in the sources file: leave their arguments out", "curate filter")
    sources = [source for name in parsed.source for source in read_sources(Path(name))]
    where = ", ".join(parsed.source)
    check_names(tuple(sources), where=where)
    if any(source.name in ("vectors", "report.json", "report.html") for source in sources):
        raise LongspanError("a source has the name of a part of the result", where=where, remedy="give it another")
    pairs = [source for source in sources if isinstance(source, PairSource)]
    if len(pairs) < len(sources):
        text = next(source.name for source in sources if not isinstance(source, PairSource))
        raise LongspanError(f"source {text!r} is running text, not pairs", where=where, remedy="leave it out")
    return pairs
