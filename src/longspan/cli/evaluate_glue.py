"""`longspan evaluate --suite glue`: what an encoder has learned, by finetuning it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import usage_error

NAME = "glue"
SUMMARY = "GLUE's eight tasks under the paper's protocol: finetuning, 30 trials a task"
SHARED = ("tasks",)

OUT = Path("glue-results")


def add_options(parser: Any) -> list[argparse.Action]:
    return [
        parser.add_argument("--quick", action="store_true", help="one trial of 3 epochs a task instead of 30 of 10"),
        parser.add_argument(
            "--no-mnli", action="store_true", help="start RTE, STS-B and MRPC from the model, not from its MNLI trial"
        ),
    ]


def run(parsed: argparse.Namespace) -> None:
    from longspan.evaluate.glue import QUICK, TITLES, GlueProtocol, run_glue
    from longspan.progress import Bars

    if parsed.precision not in ("float32", "bfloat16"):
        raise usage_error(f"the glue suite trains, and not in {parsed.precision}", "evaluate")
    changes = {"precision": parsed.precision} | ({"from_mnli": False} if parsed.no_mnli else {})
    protocol = (QUICK if parsed.quick else GlueProtocol()).replace(changes, where="the command line")
    out = parsed.out or OUT
    with Bars("glue") as bars:
        results = run_glue(
            parsed.model, out, data=parsed.data, tasks=parsed.tasks, protocol=protocol, progress=bars.show
        )
    for task in results.settings:
        best = results.best(task)
        how = f"batch {best.batch_size}, learning rate {best.lr:g}, median of {len(best.scores)}"
        print(f"{100 * best.median:7.2f}  {TITLES[task]} ({how})")
    average = results.average()
    if average is not None:
        print(f"{100 * average:7.2f}  average")
    for deviation in protocol.deviations():
        print(f"not the paper's protocol: {deviation}")
    print(f"\ntrials and scores: {out}; beside the paper's: longspan report {out}")
