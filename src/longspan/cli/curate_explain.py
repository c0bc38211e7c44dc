"""`longspan curate explain`: why a pair was kept or dropped."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cli.common import at_least_1, declare

if TYPE_CHECKING:
    from longspan.curate.explain import Explanation

MOST_ROWS = 5
"""Rows that are explained at most where several have the query."""
_WIDTH, _LINES = 110, 4


def add(steps: Any) -> None:
    parser = declare(
        steps,
        "explain",
        _explain,
        "why the filter kept or dropped a pair: what its query found first",
        '  longspan curate explain filtered --row 17\n  longspan curate explain filtered --query "who wrote Hamlet"',
    )
    parser.add_argument("out", type=Path, help="what `longspan curate filter` wrote: the folder of one source")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--row", type=at_least_1, help="number of the pair in its source, from 1 (see dropped.jsonl)")
    which.add_argument("--query", metavar="TEXT", help="the pairs with this query, or whose query holds this")
    parser.add_argument("--top", type=at_least_1, default=5, help="documents to show (%(default)s)")


def _explain(parsed: argparse.Namespace) -> None:
    from longspan.curate.explain import explain, rows_with_query

    rows = [parsed.row] if parsed.row is not None else rows_with_query(parsed.out, parsed.query)
    for row in rows[:MOST_ROWS]:
        _show(explain(parsed.out, row, num_shown=parsed.top))
    if len(rows) > MOST_ROWS:
        print(f"and {len(rows) - MOST_ROWS:,} more: rows {', '.join(map(str, rows[MOST_ROWS : 4 * MOST_ROWS]))} ...")


def _show(one: Explanation) -> None:
    print(f"{one.source}, row {one.row:,}: {one.verdict}")
    print(_indented(one.query, "  query   "))
    print(_indented(one.document, f"  {one.score:.4f}  its own: "))
    for place, other in enumerate(one.nearest, 1):
        side = "above" if other.score > one.score else "below"
        print(_indented(other.document, f"  {other.score:.4f}  {side}, {place} (row {other.row:,}): "))
    print()


def _indented(text: str, label: str) -> str:
    line, indent = " ".join(text.split()), " " * 10
    return textwrap.fill(
        line, _WIDTH, initial_indent=label, subsequent_indent=indent, max_lines=_LINES, placeholder=" …"
    )
