"""`longspan evaluate --suite mteb`: the Massive Text Embedding Benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cli.common import load_embedder, usage_error

if TYPE_CHECKING:
    from longspan.evaluate.mteb_suite import MtebResults

NAME = "mteb"
SUMMARY = "tasks or benchmarks of mteb under the paper's protocol, from the hub or from a folder"

SHARED = ("tasks", "max_length", "dim", "processes")

OUT = Path("mteb-results")


def add_options(parser: Any) -> list[argparse.Action]:
    return [
        parser.add_argument("--benchmark", help='name of a benchmark; "MTEB(eng, v1)" is the 56 tasks of the paper'),
        parser.add_argument("--name", help="what mteb calls the model, organization/model (from its folder)"),
    ]


def run(parsed: argparse.Namespace) -> None:
    from longspan.evaluate.embedding import open_engine, without_lengths
    from longspan.evaluate.mteb_encoder import MtebProtocol
    from longspan.evaluate.mteb_suite import run_mteb
    from longspan.evaluate.mteb_tasks import tasks_by_name, tasks_of_benchmark
    from longspan.progress import Bars

    if (parsed.tasks is None) == (parsed.benchmark is None):
        raise usage_error("the mteb suite needs --tasks or --benchmark", "evaluate")
    embedder = load_embedder(parsed.model, parsed.precision)
    if parsed.benchmark is not None:
        tasks = tasks_of_benchmark(parsed.benchmark)
    else:
        tasks = tasks_by_name(parsed.tasks)
    engine = open_engine(parsed.model, embedder, parsed.processes, without_lengths)
    with Bars("mteb") as bars, engine:
        results = run_mteb(
            embedder,
            tasks,
            parsed.out or OUT,
            protocol=MtebProtocol.of(embedder, max_length=parsed.max_length),
            name=parsed.name,
            data=parsed.data,
            dims=parsed.dim or (),
            engine=engine,
            progress=bars.show,
        )
    _show(results)


def _show(results: MtebResults) -> None:
    for score in results.scores:
        print(f"{100 * score.score:7.2f}  {score.category:<20s} {score.task} ({score.metric})")
    print()
    for category, mean in results.categories().items():
        count = sum(score.category == category for score in results.scores)
        print(f"{100 * mean:7.2f}  {category} ({count})")
    print(f"{100 * results.average():7.2f}  average over tasks ({len(results.scores)})")
    for cut in results.by_dim:
        print(f"{100 * cut.average():7.2f}  average with the first {cut.protocol.dim} coordinates")
    print(f"\nscores and model_meta.json, as mteb's results repository takes them: {results.folder}")
