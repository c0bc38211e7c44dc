"""`longspan curate mine`: negatives for pairs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import add_precision, add_searching, declare, load_embedder, usage_error
from longspan.cli.engine import add_engine, open_engine, say_throughput, show_with


def add(steps: Any) -> None:
    parser = declare(
        steps,
        "mine",
        _mine,
        "give every pair hard negatives from a corpus, or random ones",
        "  longspan curate mine filtered/kept.jsonl --teacher all-MiniLM-L6-v2/ --guard 0.95 --out mined\n"
        "  longspan curate mine pairs.jsonl --corpus wiki.jsonl --corpus-column text --teacher gte-base/ --out mined\n"
        "  longspan curate mine beir/nq --split train --teacher gte-base/ --out mined\n"
        "  longspan curate mine pairs.jsonl --teacher gte-base/ --processes 8 --out mined\n"
        "  longspan curate mine nli.jsonl --random 7 --out mined",
    )
    parser.add_argument("files", nargs="+", help="files of pairs, or a folder in BEIR's or MTEB's form")
    parser.add_argument("--query", default="query", help="column of the query (%(default)s)")
    parser.add_argument("--document", default="document", help="column of the document (%(default)s)")
    parser.add_argument("--split", help="of a folder: which judgements")
    parser.add_argument("--corpus", nargs="+", metavar="FILE", help="where to search (the folder's, or all documents)")
    parser.add_argument("--corpus-column", default="document", help="column of the corpus's texts (%(default)s)")
    parser.add_argument("--k", type=int, default=20, help="negatives to keep (%(default)s)")
    parser.add_argument("--at-least", type=int, default=7, help="leave out pairs with fewer (%(default)s)")
    parser.add_argument("--guard", type=float, help="leave out candidates above this part of the positive's score")
    parser.add_argument("--margin", type=float, help="leave out candidates less than this below the positive's score")
    parser.add_argument("--reranker", metavar="MODEL", help="cross-encoder that judges the candidates again")
    parser.add_argument(
        "--rerank-margin", type=float, default=0.0, help="how far it must put them below the positive (%(default)s)"
    )
    parser.add_argument("--random", type=int, metavar="N", help="instead, N random negatives; no teacher is needed")
    parser.add_argument("--seed", type=int, default=0, help="of random negatives (%(default)s)")
    add_searching(parser, "corpus")
    parser.add_argument("--teacher", help="model that judges: folder or hub id")
    parser.add_argument("--query-task", default="search_query", help="task of the queries (%(default)s)")
    parser.add_argument("--document-task", default="search_document", help="task of the documents (%(default)s)")
    parser.add_argument("--max-length", type=int, help="the teacher reads at most this many tokens of a text")
    add_precision(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result and its report")
    add_engine(parser)


def _mine(parsed: argparse.Namespace) -> None:
    from longspan.curate.consistency import Teacher
    from longspan.curate.mining import MINED, draw_source, mine_source, read_pool
    from longspan.curate.negatives import Mining, cross_encoder
    from longspan.data.source import PairSource
    from longspan.progress import Bars

    values = {name: getattr(parsed, name) for name in ("k", "at_least", "guard", "margin", "search")}
    config = Mining.parse(values | {"target_recall": parsed.recall}, where="the command line")
    if (parsed.teacher is None) == (parsed.random is None):
        raise usage_error("give either --teacher or --random", "curate mine")
    name = Path(parsed.files[0]).name.split(".")[0].replace("*", "files")
    place = {"name": name, "files": tuple(parsed.files), "split": parsed.split}
    source = PairSource.parse(
        place | {"query": parsed.query, "document": parsed.document}, where="the command line (FILES)"
    )
    pool = read_pool(source, parsed.corpus or (), parsed.corpus_column)
    with Bars("mine") as bars:
        if parsed.teacher is None:
            report = draw_source(source, parsed.out, parsed.random, pool=pool, seed=parsed.seed, progress=bars.show)
        else:
            embedder = load_embedder(parsed.teacher, parsed.precision)
            with open_engine(parsed, embedder, "curate mine") as engine:
                report = mine_source(
                    source,
                    Teacher(embedder, parsed.query_task, parsed.document_task, parsed.max_length),
                    parsed.out,
                    config,
                    pool=pool,
                    reranker=cross_encoder(parsed.reranker, parsed.rerank_margin) if parsed.reranker else None,
                    engine=engine,
                    device=str(embedder.device),
                    progress=show_with(bars, engine),
                )
                say_throughput(engine)
    facts = report.facts
    print(f"{facts['mined']:,} of {facts['pairs']:,} pairs have negatives: {parsed.out / MINED}")
