"""The command line: `longspan COMMAND ...`. A file per command; each command is a few lines that call the library.

Nothing heavy is imported until a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from longspan import __version__
from longspan.cli import (
    adapt,
    bench,
    curate,
    data,
    demo,
    doctor,
    embed,
    evaluate,
    export,
    parity,
    plan,
    prepare,
    recipe,
    report,
    search,
    serve,
    train,
)
from longspan.cli.common import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from longspan.errors import LongspanError

COMMANDS = (
    *(demo, prepare, data, curate, recipe, plan, train, adapt, evaluate, report, embed, search, serve),
    *(export, parity, doctor, bench),
)
"""In the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 2 for something the user can mend, 130 when interrupted."""
    _share_processors()
    parsed = build_parser().parse_args(arguments)
    try:
        status = parsed.command(parsed)
        sys.stdout.flush()  # so that a closed pipe shows here and not at the interpreter's exit
        return status or 0
    except LongspanError as error:
        return _failed(error)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _failed(_system_error(error))
    except KeyboardInterrupt:
        print("\nlongspan: interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED


def _failed(error: LongspanError) -> int:
    print(f"longspan: {error}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _system_error(error: OSError) -> LongspanError:
    where = error.filename if isinstance(error.filename, str | Path) else "this machine"
    return LongspanError(
        f"the system refused: {error.strerror or error}", where=where, remedy="check the path and your rights to it"
    )


def _share_processors() -> None:
    # OpenMP's threads spin while they wait for one another. On a machine that does something else too, the spinning
    # takes the very time that the awaited thread needs: five times slower was measured (docs/performance.md). Read by
    # OpenMP when torch is first imported; whoever sets it keeps it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="longspan",
        description="From raw text to a long-context text embedder: prepare, train, curate, evaluate, search, publish.",
        epilog="Start with: longspan demo. Help for a command: longspan COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"longspan {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser
