"""`longspan curate`: better data."""

from __future__ import annotations

from typing import Any

from longspan.cli import (
    curate_decontaminate,
    curate_dedup,
    curate_explain,
    curate_filter,
    curate_long,
    curate_mine,
)


def add(commands: Any) -> None:
    curate = commands.add_parser("curate", help="better data: filter, hard negatives, long pairs, duplicates, leakage")
    steps = curate.add_subparsers(title="steps", metavar="STEP", required=True)
    for step in (curate_filter, curate_explain, curate_mine, curate_long, curate_dedup, curate_decontaminate):
        step.add(steps)
