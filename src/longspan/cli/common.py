"""What the commands share: how a command is declared, and errors of the command line itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from longspan.errors import LongspanError

if TYPE_CHECKING:
    from rich.console import Console

    from longspan.embedder import Embedder
    from longspan.model.inference import Precision

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130


def declare(
    commands: Any, name: str, handler: Callable[[argparse.Namespace], int | None], text: str, example: str
) -> Any:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=handler)
    return parser


def at_least_1(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def load_embedder(model: str, precision: Precision = "float32") -> Embedder:
    from longspan.embedder import Embedder

    return Embedder.load(model, precision=precision)


def add_precision(parser: Any) -> None:
    """`--precision`, for commands that embed."""
    parser.add_argument(
        "--precision",
        choices=("float32", "int8", "bfloat16", "float16"),
        default="float32",
        help="how exactly to compute: int8 is faster on a CPU, float16 and bfloat16 are fast on a GPU (%(default)s)",
    )


def add_searching(parser: Any, among: str) -> None:
    """`--exact`, `--approximate` and `--recall`, for commands that look for documents in a sample or a corpus."""
    search = parser.add_mutually_exclusive_group()
    search.add_argument("--exact", dest="search", action="store_const", const="exact", help="look at every document")
    search.add_argument(
        "--approximate",
        dest="search",
        action="store_const",
        const="approximate",
        help=f"search an index, and measure its recall (default: in a large {among}, if FAISS is installed)",
    )
    parser.set_defaults(search="by size")
    parser.add_argument("--recall", type=float, default=0.98, help="that an index is to reach (%(default)s)")


def say_cut(num_cut: int, num_texts: int) -> None:
    """Tell on stderr that texts were longer than what was read of them; nothing if none was."""
    if num_cut:
        print(f"{num_cut:,} of {num_texts:,} texts were too long: only their beginnings were read", file=sys.stderr)


def usage_error(what: str, command: str) -> LongspanError:
    return LongspanError(what, where="the command line", remedy=f"see longspan {command} --help")


def console() -> Console:
    from rich.console import Console

    return Console()


def changed_settings(settings: list[str], command: str) -> dict[str, str]:
    """The values of `--set KEY=VALUE`, by key.

    Raises:
        LongspanError: one is not of that form.
    """
    changes = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise usage_error(f"--set {setting}: write it as KEY=VALUE", command)
        changes[key] = value
    return changes
