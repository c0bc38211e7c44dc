"""Where teachers compute: the arguments of the commands that embed much, and the engine that they ask for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cli.common import at_least_1, usage_error

if TYPE_CHECKING:
    from longspan.curate.engine import Engine
    from longspan.embedder import Embedder
    from longspan.progress import Bars, Tell


def add_engine(parser: Any) -> None:
    """`--engine`, `--processes` and `--ray-address`."""
    group = parser.add_argument_group(
        "where the teacher computes", "The result is the same, and what is computed already is used, whichever it is."
    )
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="this machine, or Ray Data: a cluster if there is an address, or else a Ray of its own here (%(default)s)",
    )
    group.add_argument(
        "--processes",
        type=at_least_1,
        metavar="N",
        help="each loads the teacher, onto a GPU of its own if there are GPUs, or else has its share of the cores "
        "(local: 1; ray: all GPUs, or all cores)",
    )
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="of a cluster, such as head:6379 (what RAY_ADDRESS says)"
    )


def open_engine(parsed: argparse.Namespace, embedder: Embedder, command: str) -> Engine:
    """The engine that the arguments ask for, to be entered by `with`.

    Raises:
        LongspanError: the arguments do not fit together; Ray is not installed.
    """
    from longspan.curate.engine import LocalEngine, RemoteTeacher

    if parsed.ray_address is not None and parsed.engine != "ray":
        raise usage_error("--ray-address goes with --engine ray", command)
    if parsed.engine == "ray":
        from longspan.curate.engine_ray import RayEngine

        return RayEngine(RemoteTeacher.of(parsed.teacher, embedder), parsed.processes, parsed.ray_address)
    if parsed.processes in (None, 1):
        return LocalEngine(embedder)
    from longspan.curate.engine_pool import PoolEngine

    return PoolEngine(RemoteTeacher.of(parsed.teacher, embedder), parsed.processes, Path(parsed.out))


def show_with(bars: Bars, engine: Engine) -> Tell:
    """Bars that show of "embedding" what the engine has done in a second, not what was found already computed."""

    def show(what: str, done: int, total: int) -> None:
        computing = what == "embedding" and engine.throughput.num_texts
        bars.show(what, done, total, str(engine.throughput) if computing else None)

    return show


def say_throughput(engine: Engine) -> None:
    """Tell on stderr what has been computed, and how fast; nothing if all of it was already."""
    if engine.throughput.num_texts:
        done = engine.throughput
        print(
            f"embedded {done.num_texts:,} texts, {done.num_tokens:,} tokens, in {done.seconds:,.1f} s: {done}",
            file=sys.stderr,
        )
