"""`longspan report`: results beside the paper's, or a page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import declare, usage_error

FORMATS = {".md": "markdown", ".html": "html", ".tex": "latex"}


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "report",
        _report,
        "results of longspan evaluate as rows of the paper's tables, or a page about a training run",
        "  longspan report mteb-results loco-results\n  longspan report results --out results.html\n"
        "  longspan report runs/mlm --out run.html",
    )
    parser.add_argument("results", nargs="+", type=Path, help="folders that longspan evaluate wrote, or one run")
    parser.add_argument(
        "--format", choices=tuple(FORMATS.values()), help="how to write it (as --out is called, or markdown)"
    )
    parser.add_argument("--out", type=Path, help="write to this file instead of the terminal (a run: report.html)")


def _report(parsed: argparse.Namespace) -> None:
    from longspan.train.run import RUN

    if any((place / RUN).is_file() for place in parsed.results):
        _report_run(parsed)
    else:
        _report_results(parsed)


def _report_run(parsed: argparse.Namespace) -> None:
    from longspan.train.report import write_report

    if len(parsed.results) > 1:
        raise usage_error("a run is reported by itself", "report")
    if parsed.format not in (None, "html"):
        raise usage_error(f"a run is reported as html, not as {parsed.format}", "report")
    # Not into the run: a finished one does not change.
    print(write_report(parsed.results[0], parsed.out or Path("report.html")))


def _report_results(parsed: argparse.Namespace) -> None:
    from longspan.evaluate.report import build_report
    from longspan.evaluate.report_text import as_html, as_latex, as_markdown
    from longspan.files import write_text

    by_name = FORMATS.get(parsed.out.suffix, "markdown") if parsed.out is not None else "markdown"
    write = {"markdown": as_markdown, "html": as_html, "latex": as_latex}[parsed.format or by_name]
    text = write(build_report(parsed.results))
    if parsed.out is None:
        print(text, end="")
    else:
        write_text(parsed.out, text)
        print(parsed.out)
