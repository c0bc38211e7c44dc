"""`longspan serve`: vectors over HTTP."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cli.common import add_precision, at_least_1, declare, load_embedder, say_cut, usage_error
from longspan.errors import LongspanError

if TYPE_CHECKING:
    from longspan.embedder import Embedder
    from longspan.serve.app import Mount

API_KEY_VARIABLE = "LONGSPAN_API_KEY"


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "serve",
        _serve,
        "vectors over HTTP, in the forms of OpenAI and of text-embeddings-inference",
        "  longspan serve runs/finetune --default-task search_query\n"
        "  longspan serve runs/finetune models/small --name large --name small --host 0.0.0.0 --api-key-file key.txt\n"
        "  longspan serve runs/finetune --ui notes/*.md --cache vectors\n"
        "then, in another terminal\n"
        '  curl http://127.0.0.1:8080/embed -d \'{"inputs": "how do I sort a list?"}\'\n'
        "and http://127.0.0.1:8080/docs tells the rest.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder, finished run or hub id; several are served")
    parser.add_argument("--name", action="append", help="what clients call a model, one each (default: its last part)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is all of them (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=8080, help="port to listen at, 0 for a free one (%(default)s)")
    parser.add_argument(
        "--default-task", metavar="TASK", help="the task of requests that name none; without it they are refused"
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"file whose first line clients must send as a key (default: the variable {API_KEY_VARIABLE}, else none)",
    )
    parser.add_argument("--max-batch-tokens", type=at_least_1, help="tokens computed at once (default: by device)")
    parser.add_argument("--max-queue-tokens", type=at_least_1, default=262_144, help="tokens waiting (%(default)s)")
    parser.add_argument("--max-requests", type=at_least_1, default=1024, help="requests in progress (%(default)s)")
    parser.add_argument("--max-texts", type=at_least_1, default=256, help="texts in a request (%(default)s)")
    parser.add_argument("--max-body-mib", type=at_least_1, default=4, help="MiB of a request (%(default)s)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for a request (%(default)s)")
    parser.add_argument(
        "--shutdown-timeout", type=float, default=30.0, help="seconds to finish in when told to stop (%(default)s)"
    )
    parser.add_argument(
        "--ui",
        nargs="+",
        metavar="FILE",
        help="a page to search in these files, with a map of them: .txt, .md, .jsonl, .parquet, .csv (first model)",
    )
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep the vectors and the map of --ui here")
    parser.add_argument("--refuse-token-ids", action="store_true", help="accept texts only, no token ids")
    add_precision(parser)


def _serve(parsed: argparse.Namespace) -> None:
    from longspan.serve.app import create_app
    from longspan.serve.run import run
    from longspan.serve.service import Service
    from longspan.serve.settings import MIB, ServeSettings

    settings = ServeSettings.parse(
        {
            "max_batch_tokens": parsed.max_batch_tokens,
            "max_queue_tokens": parsed.max_queue_tokens,
            "max_requests": parsed.max_requests,
            "max_texts": parsed.max_texts,
            "max_body_bytes": parsed.max_body_mib * MIB,
            "timeout": parsed.timeout,
            "shutdown_timeout": parsed.shutdown_timeout,
            "token_ids": not parsed.refuse_token_ids,
        },
        where="the command line",
    )
    if parsed.cache is not None and parsed.ui is None:
        raise usage_error("--cache is of use with --ui only", "serve")
    names = _names(parsed.models, parsed.name)
    api_key = _api_key(parsed.api_key_file)
    embedders = {name: load_embedder(model, parsed.precision) for name, model in zip(names, parsed.models, strict=True)}
    service = Service(embedders, settings, default_task=parsed.default_task)
    if parsed.ui is None:
        app = create_app(service, api_key=api_key)
    else:
        mount, open_paths = _search_page(embedders[names[0]], names[0], parsed.ui, parsed.cache)
        app = create_app(service, api_key=api_key, mounts=[mount], open_paths=open_paths)
    run(app, service, parsed.host, parsed.port, lambda address: print(f"{', '.join(names)}: {address}", flush=True))


def _search_page(embedder: Embedder, name: str, files: list[str], cache: Path | None) -> tuple[Mount, tuple[str, ...]]:
    """What adds the page to the server, and the paths of it that need no key."""
    from longspan.progress import Bar
    from longspan.search import QUERY, Index, read_passages
    from longspan.ui.corpus import Corpus, by_source
    from longspan.ui.layout import STEPS, kept_layout
    from longspan.ui.routes import PAGE_PATHS, search_page

    passages = by_source(read_passages(files))
    embedder = embedder.with_settings(normalize=True)
    embedder.check_task(QUERY if embedder.config.prefixes else None)
    cut: list[int] = []
    with Bar("index", len(passages)) as bar:
        index = Index.build(embedder, passages, cache=cache, progress=bar.advance, on_cut=cut.append)
    say_cut(sum(cut), len(passages))
    with Bar("map", STEPS) as bar:
        places_M2 = kept_layout(cache, index.vectors_MD, bar.advance)
    return search_page(Corpus(index, places_M2), name), PAGE_PATHS


def _names(models: list[str], given: list[str] | None) -> list[str]:
    if given is not None and len(given) != len(models):
        raise usage_error(f"there are {len(models)} models and {len(given)} names", "serve")
    names = given if given is not None else [Path(model).resolve().name for model in models]
    if len(set(names)) < len(names) or not all(names):
        raise usage_error(f"each model needs a name of its own, not {', '.join(names)}: give --name for each", "serve")
    return names


def _api_key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    key = file.read_text("utf-8").partition("\n")[0].strip()
    if not key:
        raise LongspanError("the file holds no key", where=file, remedy="write the key into its first line")
    return key
