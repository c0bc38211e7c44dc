"""The command line: `longspan COMMAND ...`. Each command is a few lines that call the library.

Nothing heavy is imported until a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan import __version__
from longspan.errors import LongspanError

if TYPE_CHECKING:
    from rich.console import Console

    from longspan.curate.consistency import Teacher
    from longspan.data.readers import OnError
    from longspan.data.source import Source
    from longspan.embedder import Embedder
    from longspan.text.tokenizer import Tokenizer

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130
DEMO_FOLDER = "longspan-demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 2 for something the user can mend, 130 when interrupted."""
    _share_processors()
    parsed = build_parser().parse_args(arguments)
    try:
        status = parsed.command(parsed)
        sys.stdout.flush()  # so that a closed pipe shows here and not at the interpreter's exit
        return status or 0
    except LongspanError as error:
        return _failed(error)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _failed(_system_error(error))
    except KeyboardInterrupt:
        print("\nlongspan: interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED


def _failed(error: LongspanError) -> int:
    print(f"longspan: {error}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _system_error(error: OSError) -> LongspanError:
    where = error.filename if isinstance(error.filename, str | Path) else "this machine"
    return LongspanError(
        f"the system refused: {error.strerror or error}", where=where, remedy="check the path and your rights to it"
    )


def _share_processors() -> None:
    # OpenMP's threads spin while they wait for one another. On a machine that does something else too, the spinning
    # takes the very time that the awaited thread needs: five times slower was measured (docs/performance.md). Read by
    # OpenMP when torch is first imported; whoever sets it keeps it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="longspan",
        description="From raw text to a long-context text embedder: prepare, train, curate, evaluate, search, publish.",
        epilog="Start with: longspan demo. Help for a command: longspan COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"longspan {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_demo, _add_prepare, _add_curate, _add_recipe, _add_train, _add_evaluate, _add_embed, _add_search):
        add(commands)
    _add_export(commands)
    return parser


def _command(
    commands: Any, name: str, handler: Callable[[argparse.Namespace], int | None], text: str, example: str
) -> Any:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=handler)
    return parser


# --- demo ------------------------------------------------------------------------------------------------------------


def _add_demo(commands: Any) -> None:
    parser = _command(commands, "demo", _demo, "the whole road on real text, on a CPU, in minutes", "  longspan demo")
    parser.add_argument("--out", type=Path, default=Path(DEMO_FOLDER), help="where everything is kept (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of going on where it was interrupted")


def _demo(parsed: argparse.Namespace) -> None:
    from longspan.demo.report import report
    from longspan.demo.road import Road
    from longspan.demo.stages import clear, run_stages

    if parsed.fresh:
        clear(parsed.out)
    console = _console()
    done = run_stages(Road(parsed.out, console).stages(), parsed.out, console)
    report(done, parsed.out, console)


# --- prepare ---------------------------------------------------------------------------------------------------------


def _add_prepare(commands: Any) -> None:
    parser = _command(
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
        "--train-tokenizer", type=_at_least_1, metavar="SIZE", help="train a WordPiece vocabulary first"
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
            raise _usage("names, columns and tasks stand in the sources file: leave their arguments out", "prepare")
        sources = [source for name in parsed.source for source in read_sources(Path(name))]
        check_names(tuple(sources), where=", ".join(parsed.source))
        return sources
    name = parsed.name or Path(parsed.source[0]).name.split(".")[0].replace("*", "files")
    values: dict[str, Any] = {"name": name, "files": parsed.source}
    if parsed.text is None:
        return [PairSource.parse(values | of_pairs, where="the command line (--name, --query-task ...)")]
    if of_pairs:
        raise _usage(f"--text prepares running text, which has no {next(iter(of_pairs))}", "prepare")
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


# --- curate ----------------------------------------------------------------------------------------------------------


def _add_curate(commands: Any) -> None:
    curate = commands.add_parser("curate", help="better data: consistency filter, hard negatives")
    steps = curate.add_subparsers(title="steps", metavar="STEP", required=True)
    parser = _command(
        steps,
        "filter",
        _filter,
        "drop pairs whose document the teacher does not find",
        "  longspan curate filter pairs.jsonl --teacher all-MiniLM-L6-v2/ --out filtered",
    )
    parser.add_argument("--k", type=int, default=2, help="keep a pair if its document is in the top k (%(default)s)")
    parser.add_argument("--sample", type=int, default=1_000_000, help="pairs searched at a time (%(default)s)")
    _add_curate_arguments(parser)
    parser = _command(
        steps,
        "mine",
        _mine,
        "give every pair hard negatives from the other pairs' documents",
        "  longspan curate mine filtered/kept.jsonl --teacher all-MiniLM-L6-v2/ --guard 0.95 --out mined",
    )
    parser.add_argument("--k", type=int, default=20, help="negatives to keep (%(default)s)")
    parser.add_argument("--at-least", type=int, default=7, help="leave out pairs with fewer (%(default)s)")
    parser.add_argument("--guard", type=float, help="leave out candidates above this part of the positive's score")
    _add_curate_arguments(parser)


def _add_curate_arguments(parser: Any) -> None:
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

    return Teacher(_load(parsed.teacher), parsed.query_task, parsed.document_task, parsed.max_length)


# --- train -----------------------------------------------------------------------------------------------------------


def _add_recipe(commands: Any) -> None:
    parser = _command(
        commands, "recipe", _recipe, "show a recipe's card and settings, or list all", "  longspan recipe contrastive"
    )
    parser.add_argument("recipe", nargs="?", help="its name, or path/to/file.py:function")


def _recipe(parsed: argparse.Namespace) -> None:
    import inspect

    from longspan.recipes.catalog import RECIPES, build_recipe, find_recipe

    if parsed.recipe is None:
        for name, recipe in RECIPES.items():
            print(f"{name:18s} {(inspect.getdoc(recipe) or '').splitlines()[0]}")
        return
    print(inspect.getdoc(find_recipe(parsed.recipe)) or f"{parsed.recipe} (its function has no docstring)")
    print(build_recipe(parsed.recipe, "DATA", None, {}).model_dump_json(indent=2))


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "train by a recipe, or go on with a run",
        "  longspan train mlm --data data --out runs/mlm --set batch_size=256 --set max_steps=1000\n"
        "  longspan train --resume runs/mlm\n"
        "  torchrun --nproc-per-node 8 -m longspan train contrastive --data data --init runs/mlm --out runs/con",
    )
    parser.add_argument("recipe", nargs="?", help="name of a recipe (longspan recipe lists them) or file.py:function")
    parser.add_argument("--data", help="folder of prepared sources")
    parser.add_argument("--init", help="model to start from: folder, finished run or hub id")
    parser.add_argument("--out", type=Path, help="run directory")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: optim.lr=1e-4"
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with this run; needs nothing else")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events into the run directory")


def _train(parsed: argparse.Namespace) -> int | None:
    if parsed.resume is None and not (parsed.recipe and parsed.data and parsed.out):
        raise _usage("name a RECIPE, --data and --out; or --resume RUN", "train")
    if parsed.resume is not None and (parsed.recipe or parsed.data or parsed.init or parsed.out or parsed.set):
        raise _usage("--resume takes everything from the run directory: leave the other arguments out", "train")
    changes = _changes(parsed.set)

    from longspan.recipes.catalog import build_recipe
    from longspan.train.loop import Interrupted, resume, start

    _check_device(parsed.device)
    options = {"device": parsed.device, "tensorboard": parsed.tensorboard}
    try:
        if parsed.resume is not None:
            run = resume(parsed.resume, **options)
        else:
            run = start(build_recipe(parsed.recipe, parsed.data, parsed.init, changes), parsed.out, **options)
    except Interrupted as stop:
        folder = parsed.resume or parsed.out
        print(f"longspan: {stop}; go on with: longspan train --resume {folder}", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"finished: {run.model}")
    return None


def _check_device(name: str | None) -> None:
    import torch

    if name is None:
        return
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an unknown name, no such GPU, a torch without CUDA
        why = str(error).splitlines()[0]
        raise LongspanError(f"there is no device {name!r}: {why}", where="--device", remedy="use cpu or cuda") from None


def _changes(settings: list[str]) -> dict[str, str]:
    changes = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise _usage(f"--set {setting}: write it as KEY=VALUE", "train")
        changes[key] = value
    return changes


# --- use -------------------------------------------------------------------------------------------------------------


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        "retrieval quality on a set in BEIR's layout, beside BM25 if wanted",
        "  longspan evaluate runs/finetune --data scifact --bm25",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument("--suite", choices=("retrieval",), default="retrieval", help="what to measure (%(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="folder with corpus.jsonl, queries.jsonl and qrels")
    parser.add_argument("--bm25", action="store_true", help="measure BM25 too")
    parser.add_argument("--max-length", type=int, help="cut texts at this many tokens (default: the model's limit)")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")


def _evaluate(parsed: argparse.Namespace) -> None:
    from longspan.evaluate.bm25 import evaluate_bm25
    from longspan.evaluate.retrieval import RetrievalSet, evaluate_retrieval
    from longspan.files import write_json
    from longspan.progress import Bar

    retrieval_set, embedder = RetrievalSet.load(parsed.data), _load(parsed.model)
    with Bar("evaluate", len(retrieval_set.queries) + len(retrieval_set.corpus)) as bar:

        def embed(texts: Sequence[str], *, task: str) -> Any:
            return embedder.embed(texts, task=task, max_length=parsed.max_length, truncate=True, progress=bar.advance)

        results = {parsed.model: evaluate_retrieval(retrieval_set, embed)}
    if parsed.bm25:
        results["BM25"] = evaluate_bm25(retrieval_set)
    names = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map")
    print("  ".join(f"{name:>10s}" for name in names))
    for model, result in results.items():
        print("  ".join(f"{result.metrics[name]:10.4f}" for name in names), f" {model}")
    if parsed.out is not None:
        write_json(parsed.out, {model: result.as_json() for model, result in results.items()})


def _add_embed(commands: Any) -> None:
    parser = _command(
        commands,
        "embed",
        _embed,
        "vectors of lines or rows, as .npy, .jsonl or .parquet",
        "  longspan embed runs/finetune queries.txt --task search_query --dim 128 --out queries.npy\n"
        "  cat texts.txt | longspan embed runs/finetune --task clustering --out vectors.jsonl",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument("files", nargs="*", help="text files (a text a line), .jsonl, .parquet, .csv; default: stdin")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .npy, .jsonl or .parquet")
    parser.add_argument("--task", help="what the texts are for: search_query, search_document, ...")
    parser.add_argument("--dim", type=int, help="keep the first DIM coordinates (Matryoshka) and normalise again")
    parser.add_argument("--column", default="text", help="column of the text in files of rows (%(default)s)")
    parser.add_argument("--max-length", type=int, help="longest text in tokens (default: the model's limit)")
    parser.add_argument("--truncate", action="store_true", help="cut longer texts instead of refusing them")


def _embed(parsed: argparse.Namespace) -> None:
    from longspan.output import check_output, read_texts, write_vectors
    from longspan.progress import Bar

    check_output(parsed.out)
    texts = read_texts(parsed.files, parsed.column)
    if not texts:
        where = ", ".join(parsed.files) or "standard input"
        raise LongspanError("there are no texts", where=where, remedy="name files that hold text")
    embedder = _load(parsed.model)
    with Bar("embed", len(texts)) as bar:
        vectors = embedder.embed(
            texts,
            task=parsed.task,
            dim=parsed.dim,
            max_length=parsed.max_length,
            truncate=parsed.truncate,
            progress=bar.advance,
        )
    write_vectors(parsed.out, texts, vectors)
    print(f"{len(texts):,} vectors of {vectors.shape[1]} coordinates: {parsed.out}")


def _add_search(commands: Any) -> None:
    parser = _command(
        commands,
        "search",
        _search,
        "find the passages of files that answer a query",
        "  longspan search runs/finetune notes/*.md 'how do I reset the password?'",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument("files", nargs="+", help="files to search: .txt, .md, .jsonl, .parquet, .csv")
    parser.add_argument("query", help="what to look for")
    parser.add_argument("--k", type=_at_least_1, default=5, help="passages to show (%(default)s)")
    parser.add_argument("--cache", type=Path, help="keep vectors in this folder and use them again")


def _search(parsed: argparse.Namespace) -> None:
    from longspan.progress import Bar
    from longspan.search import Index, read_passages

    passages = read_passages(parsed.files)
    embedder = _load(parsed.model)
    with Bar("index", len(passages)) as bar:
        index = Index.build(embedder, passages, cache=parsed.cache, progress=bar.advance)
    for hit in index.search(parsed.query, parsed.k):
        print(f"{hit.score:.3f}  {hit.passage.where}\n       {' '.join(hit.passage.text.split())[:300]}")


def _add_export(commands: Any) -> None:
    parser = _command(
        commands,
        "export",
        _export,
        "publish a model in a form that other software loads",
        "  longspan export runs/finetune --out published --check",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument(
        "--format", choices=("sentence-transformers",), default="sentence-transformers", help="(%(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--check", action="store_true", help="load it with sentence-transformers and compare vectors")


def _export(parsed: argparse.Namespace) -> None:
    from longspan.export.sentence_transformers import compare_with_sentence_transformers, publish

    embedder = _load(parsed.model)
    publish(embedder, parsed.out)
    print(f"published: {parsed.out}")
    if parsed.check:
        worst = compare_with_sentence_transformers(embedder, parsed.out)
        print(f"sentence-transformers gives the same vectors (largest difference {worst:.1e})")


# --- shared ----------------------------------------------------------------------------------------------------------


def _at_least_1(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _load(model: str) -> Embedder:
    from longspan.embedder import Embedder

    return Embedder.load(model)


def _usage(what: str, command: str) -> LongspanError:
    return LongspanError(what, where="the command line", remedy=f"see longspan {command} --help")


def _console() -> Console:
    from rich.console import Console

    return Console()


if __name__ == "__main__":
    sys.exit(main())
