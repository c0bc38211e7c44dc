"""`longspan embed`: vectors of files."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from longspan.cli.common import add_precision, at_least_1, declare, load_embedder, say_cut


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "embed",
        _embed,
        "vectors of lines or rows, as .npy, .jsonl or .parquet; killed, it goes on where it was",
        "  longspan embed runs/finetune queries.txt --task search_query --dim 128 --out queries.npy\n"
        "  longspan embed runs/finetune corpus/ --task search_document --storage int8 --index faiss --out corpus.npy\n"
        "  cat texts.txt | longspan embed runs/finetune --task clustering --out vectors.jsonl",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument(
        "files",
        nargs="*",
        help="text files (a text a line), .jsonl, .parquet, .csv, also compressed, or folders of them; default: stdin",
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write: .npy, .jsonl or .parquet")
    parser.add_argument("--task", help="what the texts are for: search_query, search_document, ...")
    parser.add_argument("--dim", type=int, help="keep the first DIM coordinates (Matryoshka) and normalise again")
    parser.add_argument("--column", default="text", help="column of the text in files of rows (%(default)s)")
    parser.add_argument("--id", metavar="COLUMN", help="column of a row's id, to be written to .jsonl and .parquet")
    parser.add_argument("--no-text", action="store_true", help="leave the texts out of .jsonl and .parquet")
    parser.add_argument("--max-length", type=int, help="longest text in tokens (default: the model's limit)")
    parser.add_argument("--truncate", action="store_true", help="cut longer texts instead of refusing them")
    parser.add_argument(
        "--storage",
        choices=("float32", "float16", "int8", "binary"),
        default="float32",
        help="how vectors are stored: 4, 2 or 1 bytes a dimension, or 1 bit (%(default)s)",
    )
    parser.add_argument(
        "--ranges",
        type=Path,
        metavar="FILE",
        help="int8: store by the ranges of this file that longspan embed has written (default: of a sample)",
    )
    parser.add_argument("--index", choices=("faiss", "usearch"), help="also write an index that this library opens")
    parser.add_argument(
        "--processes",
        type=at_least_1,
        default=1,
        metavar="N",
        help="each loads the model, onto a GPU of its own if there are GPUs, or else has its share of the cores",
    )
    add_precision(parser)


def _embed(parsed: argparse.Namespace) -> None:
    from longspan.output.bulk import Settings, embed_files
    from longspan.output.formats import check_output
    from longspan.output.index import index_file
    from longspan.output.texts import open_inputs
    from longspan.progress import Bar

    check_output(parsed.out)
    with contextlib.ExitStack() as stack:
        inputs = stack.enter_context(open_inputs(parsed.files, parsed.column, parsed.id))
        embedder = load_embedder(parsed.model, parsed.precision)
        settings = Settings(
            task=parsed.task,
            dim=parsed.dim,
            max_length=parsed.max_length,
            truncate=parsed.truncate,
            form=parsed.storage,
            ranges=_ranges(parsed),
            with_text=not parsed.no_text,
            index=parsed.index,
        )
        bars: list[Bar] = []

        def plan(num_texts: int, num_done: int) -> None:
            bars.append(stack.enter_context(Bar("embed", num_texts, done=num_done)))

        def advance(count: int) -> None:
            bars[0].advance(count)

        done = embed_files(
            embedder,
            inputs,
            parsed.out,
            settings,
            engine=_engine(parsed, embedder),
            on_plan=plan,
            progress=advance,
        )
    say_cut(done.num_cut, done.num_texts)
    print(f"{done.num_texts:,} vectors of {done.storage.dim} coordinates: {parsed.out}")
    if parsed.index is not None:
        print(f"index for {parsed.index}: {index_file(parsed.index, parsed.out)}")


def _ranges(parsed: argparse.Namespace) -> Any:
    from longspan.cli.common import usage_error
    from longspan.output.formats import read_description

    if parsed.ranges is None:
        return None
    ranges = read_description(parsed.ranges).storage.ranges
    if parsed.storage != "int8" or ranges is None:
        raise usage_error("--ranges is for --storage int8, and names a file of int8 vectors", "embed")
    return ranges


def _engine(parsed: argparse.Namespace, embedder: Any) -> Any:
    from longspan.curate.engine import LocalEngine, RemoteTeacher
    from longspan.curate.engine_pool import PoolEngine

    if parsed.processes == 1:
        return LocalEngine(embedder)
    return PoolEngine(RemoteTeacher.of(parsed.model, embedder), parsed.processes, parsed.out)
