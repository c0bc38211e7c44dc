"""`longspan plan`: what a run will take, before it starts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cli.common import at_least_1, changed_settings, console, declare
from longspan.errors import LongspanError

if TYPE_CHECKING:
    from longspan.train.forecast import Forecast

PAPER = ("mlm", "contrastive", "finetune")


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "plan",
        _plan,
        "say what a run will take before it starts: steps, tokens, operations, time, memory, cost",
        "  longspan plan mlm contrastive finetune --hardware 8xH100 --price 2.5\n"
        "  longspan plan contrastive --data data --hardware 1xA100 --set objective.chunk_tokens=32768\n"
        "  longspan plan demo-contrastive --data demo/pairs --hardware here",
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: the paper's three")
    parser.add_argument("--init", help="model to start from; one that is not here counts as of the paper's shape")
    parser.add_argument("--data", type=Path, help="folder of prepared sources: their number and lengths are used")
    parser.add_argument(
        "--hardware",
        default="8xH100",
        help="8xH100, 1xL4 ...; `here` tries a part of a step on this machine, also under torchrun (%(default)s)",
    )
    parser.add_argument(
        "--utilization",
        type=float,
        default=0.4,
        help="part of the hardware's best rate that training reaches: an assumption until you measure (%(default)s)",
    )
    parser.add_argument("--price", type=float, help="of one device for an hour, in any currency")
    parser.add_argument("--query-tokens", type=at_least_1, default=20, help="without --data: of a query (%(default)s)")
    parser.add_argument(
        "--document-tokens", type=at_least_1, default=160, help="without --data: of a document (%(default)s)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of all")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _plan(parsed: argparse.Namespace) -> None:
    from longspan.recipes.catalog import build_recipe
    from longspan.train.cost import TextLengths
    from longspan.train.forecast import forecast
    from longspan.train.hardware import find_hardware
    from longspan.train.parallel import join_world, leave_world, local_device

    if not 0 < parsed.utilization <= 1:
        raise LongspanError(
            f"{parsed.utilization} is not a part of the best rate",
            where="--utilization",
            remedy="give a number above 0 and up to 1",
        )
    hardware = None if parsed.hardware == "here" else find_hardware(parsed.hardware)
    otherwise = {"query": TextLengths.equal(parsed.query_tokens), "document": TextLengths.equal(parsed.document_tokens)}
    changes = changed_settings(parsed.set, "plan")
    world = join_world(local_device())
    forecasts = [
        forecast(
            build_recipe(name, str(parsed.data or "DATA"), parsed.init, changes),
            hardware,
            data=parsed.data,
            utilization=parsed.utilization,
            otherwise=otherwise,
            world=world,
        )
        for name in parsed.recipes or PAPER
    ]
    leave_world(world)
    if world.rank:
        return
    if parsed.json:
        shown = [one.model_dump() | {"hours": one.hours, "num_tokens": one.num_tokens} for one in forecasts]
        print(json.dumps(shown, indent=2))
    else:
        _print(forecasts, parsed.price)


def _print(forecasts: list[Forecast], price: float | None) -> None:
    from rich.table import Table

    out, table = console(), Table(title=f"on {forecasts[0].hardware}")
    table.add_column("")
    for one in forecasts:
        table.add_column(one.recipe, justify="right")
    for name, show in _ROWS.items():
        table.add_row(name, *(show(one) for one in forecasts))
    hours = sum(one.hours for one in forecasts)
    out.print(table)
    for text in dict.fromkeys(text for one in forecasts for text in one.assumed):
        out.print(f"assumed: {text}", markup=False, highlight=False, soft_wrap=True)
    total = f"together: {_time(hours)}"
    if price is not None:
        num_devices = int(forecasts[0].hardware.partition("x")[0])
        total += f"; {hours * num_devices:,.0f} device hours cost {hours * num_devices * price:,.0f}"
    out.print(total, highlight=False)


def _chunk(one: Forecast) -> str:
    if one.fits is None:
        return f"{one.chunk_tokens:,}"
    return f"{one.chunk_tokens:,}" + ("" if one.fits else " (does not fit)")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _time(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


_ROWS: dict[str, Callable[[Forecast], str]] = {
    "steps": lambda one: f"{one.work.num_steps:,}",
    "sequences a step": lambda one: f"{one.work.num_sequences:,.0f}",
    "tokens a step": lambda one: f"{one.work.num_tokens:,.0f}",
    "tokens of the run": lambda one: f"{one.num_tokens:.3g}",
    "operations a step": lambda one: f"{one.operations.total:.3g}",
    "  of them attention": lambda one: f"{one.operations.attention / one.operations.total:.0%}",
    "operations a second": lambda one: f"{one.flops:.3g}",
    "a step": lambda one: f"{one.step_seconds:.2f} s",
    "the run": lambda one: _time(one.hours),
    "tokens of a chunk": _chunk,
    "largest chunk that fits": lambda one: (
        "not known" if one.largest_chunk_tokens is None else f"{one.largest_chunk_tokens:,}"
    ),
    "memory of a device": lambda one: _gib(one.memory.total),
    "  weights": lambda one: _gib(one.memory.weights + one.memory.weights_bf16),
    "  gradients": lambda one: _gib(one.memory.gradients),
    "  optimizer": lambda one: _gib(one.memory.optimizer),
    "  activations of a chunk": lambda one: _gib(one.memory.activations),
    "  output layer": lambda one: _gib(one.memory.head),
    "  vectors of the batch": lambda one: _gib(one.memory.vectors),
    "  checkpoint being written": lambda one: _gib(one.memory.checkpoint),
}
