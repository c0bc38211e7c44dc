"""`longspan curate`: better data."""

from __future__ import annotations

from typing import Any

from longspan.cli import (
    curate_cluster,
    curate_decontaminate,
    curate_dedup,
    curate_explain,
    curate_filter,
    curate_long,
    curate_mine,
)

_STEPS = (
    curate_filter,
    curate_explain,
    curate_mine,
    curate_cluster,
    curate_long,
    curate_dedup,
    curate_decontaminate,
)


def add(commands: Any) -> None:
    what = "better data: filter, hard negatives, clusters, long pairs, duplicates, leakage"
    curate = commands.add_parser("curate", help=what)
    steps = curate.add_subparsers(title="steps", metavar="STEP", required=True)
    for step in _STEPS:
        step.add(steps)
