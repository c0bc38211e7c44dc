"""`longspan evaluate --suite loco`: long documents."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import load_embedder, usage_error

NAME = "loco"
SUMMARY = "LoCo, retrieval of long documents, by length and by the way positions are scaled"
SHARED = ("tasks", "lengths", "processes")

OUT = Path("loco-results")


def add_options(parser: Any) -> list[argparse.Action]:
    return [
        parser.add_argument(
            "--rope-scaling",
            type=_scalings,
            help="how positions reach past the trained length, some of dynamic,none,linear,ntk (the model's own)",
        )
    ]


def run(parsed: argparse.Namespace) -> None:
    from longspan.evaluate.loco import LENGTHS, run_loco
    from longspan.evaluate.loco_sets import load_loco
    from longspan.progress import Bars

    if parsed.data is None:
        raise usage_error("the loco suite needs --data", "evaluate")
    sets = load_loco(parsed.data, parsed.tasks)
    embedder, out = load_embedder(parsed.model, parsed.precision), parsed.out or OUT
    with Bars("loco") as bars:
        results = run_loco(
            embedder,
            sets,
            out,
            lengths=parsed.lengths or LENGTHS,
            scalings=parsed.rope_scaling,
            model=parsed.model,
            processes=parsed.processes,
            progress=bars.show,
        )
    for score in results.scores:
        low, high = score.interval
        where = f"{score.max_length:>6,}  {score.rope_scaling or '-':<8s}"
        print(f"{where} {100 * score.score:6.2f}  ({100 * low:.2f} to {100 * high:.2f})  {score.task}")
    for mean in results.averages():
        where = f"{mean['max_length']:>6,}  {mean['rope_scaling'] or '-':<8s}"
        print(f"{where} {100 * mean['score']:6.2f}  average ({mean['benchmark'] or 'some sets only'})")
    print(f"\nscores: {out}; beside the paper's: longspan report {out}")


def _scalings(text: str) -> list[str]:
    from longspan.evaluate.loco import SCALINGS

    names = text.split(",")
    if unknown := [name for name in names if name not in SCALINGS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SCALINGS)}")
    return names
