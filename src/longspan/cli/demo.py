"""`longspan demo`: the whole road on real text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import console, declare

DEMO_FOLDER = "longspan-demo"


def add(commands: Any) -> None:
    parser = declare(commands, "demo", _demo, "the whole road on real text, on a CPU, in minutes", "  longspan demo")
    parser.add_argument("--out", type=Path, default=Path(DEMO_FOLDER), help="where everything is kept (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of going on where it was interrupted")


def _demo(parsed: argparse.Namespace) -> None:
    from longspan.demo.report import report
    from longspan.demo.road import Road
    from longspan.stages import clear, run_stages

    if parsed.fresh:
        clear(parsed.out)
    screen = console()
    done = run_stages(Road(parsed.out, screen).stages(), parsed.out, screen)
    report(done, parsed.out, screen)
