"""`longspan parity`: the same vectors from every library."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cli.common import at_least_1, declare

if TYPE_CHECKING:
    from longspan.export.parity import ParityReport, Row

EXIT_MISSED = 1
_FAMILIES = ("longspan", "transformers", "sentence-transformers", "onnx", "llama.cpp")


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "parity",
        _parity,
        "prove that every library gives this model's vectors: a table, and exit status 1 if one does not",
        "  longspan parity runs/finetune\n"
        "  longspan parity published --max-length 512 --stack longspan onnx --out parity.json\n"
        "  longspan parity runs/finetune --stack longspan --server http://localhost:8080",
    )
    parser.add_argument(
        "model", help="folder, finished run or hub id; its own ONNX and GGUF files are used, if it has any"
    )
    parser.add_argument("--max-length", type=at_least_1, help="longest text in tokens (default: the model's limit)")
    parser.add_argument(
        "--stack",
        nargs="+",
        choices=_FAMILIES,
        default=list(_FAMILIES),
        help="libraries to compare (all installed ones)",
    )
    parser.add_argument("--server", metavar="URL", help="a running server of this model, compared too")
    parser.add_argument("--out", type=Path, help="write the whole report to this JSON file")


def _parity(parsed: argparse.Namespace) -> int:
    from longspan.export.parity import check_parity
    from longspan.files import write_json
    from longspan.progress import Bar

    with contextlib.ExitStack() as stack:
        work = stack.enter_context(tempfile.TemporaryDirectory(prefix="longspan-parity-"))
        bars: list[Bar] = []

        def plan(seconds: float, num_tokens: int) -> None:
            _say(f"about {_duration(seconds)} (longer where a library is slower than ours)")
            _say(f"\n{'stack':38s} {'texts':34s} {'number':>6s} {'worst cosine':>12s} {'largest diff':>12s}")
            bars.append(stack.enter_context(Bar("parity", num_tokens)))

        def advance(num_tokens: int) -> None:
            bars[0].advance(num_tokens)

        report = check_parity(
            parsed.model,
            Path(work),
            max_length=parsed.max_length,
            families=parsed.stack,
            server=parsed.server,
            on_row=print_row,
            on_plan=plan,
            progress=advance,
        )
    if parsed.out is not None:
        write_json(parsed.out, report.model_dump(mode="json"))
    _print_end(report)
    return 0 if report.passed else EXIT_MISSED


def print_row(row: Row) -> None:
    """One line of the table."""
    cosine = "" if row.worst_cosine is None else f"{row.worst_cosine:.7f}"
    difference = "" if row.largest_difference is None else f"{row.largest_difference:.1e}"
    verdict = "" if row.held else f"  MISSED: {row.least} is asked for" if row.least else "  MISSED"
    if row.held and row.reason:
        verdict = "  (see below)" if row.worst_cosine is not None else "  refused, as it should be"
    _say(f"{row.stack:38s} {row.group:34s} {row.num_texts:6,d} {cosine:>12s} {difference:>12s}{verdict}")


def _print_end(report: ParityReport) -> None:
    for name, why in report.left_out.items():
        _say(f"left out: {name}: {why}")
    for row in report.rows:
        if row.reason and row.worst_cosine is not None:
            _say(f"\n{row.stack}, {row.group}: {row.worst_cosine:.5f} at {row.worst_text}")
            _say(f"  reason: {row.reason}\n  remedy: {row.remedy}")
    asked = [row for row in report.rows if row.least is not None]
    _say(f"\n{sum(row.held for row in asked)} of {len(asked)} comparisons reach their cosine")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _say(line: str) -> None:
    print(line, flush=True)
