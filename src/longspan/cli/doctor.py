"""`longspan doctor`: what this machine offers and what will be used."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from longspan.cli.common import console, declare

if TYPE_CHECKING:
    from longspan.doctor import Examination


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "doctor",
        _doctor,
        "say what this machine offers, what will be used and why, and what could be better",
        "  longspan doctor\n  longspan doctor runs/finetune --json",
    )
    parser.add_argument("model", nargs="?", help="folder, finished run or hub id: say what it asks for, too")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--quick", action="store_true", help="measure nothing")


def _doctor(parsed: argparse.Namespace) -> None:
    from longspan.doctor import examine

    examination = examine(parsed.model, measure=not parsed.quick)
    if parsed.json:
        print(examination.model_dump_json(indent=2))
    else:
        _print(examination)


def _print(found: Examination) -> None:
    from rich.table import Table
    from rich.text import Text

    out, table = console(), Table.grid(padding=(0, 2))
    for name, value in _facts(found):
        table.add_row(name, Text(value))
    out.print(table)

    def say(line: str) -> None:
        out.print(line, markup=False, highlight=False, soft_wrap=True)

    say("\nwhat will be used")
    for use in found.uses:
        computed = "cannot be done" if use.computed_in is None else f"computed in {use.computed_in}"
        say(f"  {use.device} {use.work} {use.precision}: {computed}: {use.why}")
        if use.computed_in is not None:
            say(f"      matrices: {use.matrices}; attention: {use.attention}")
    if found.rates:
        say("\nmeasured matrix rates, billions of operations a second")
    for rate in found.rates:
        say(f"  {rate.device} {rate.dtype}: {rate.gops:,.0f}")
    for advice in found.advice:
        say(f"\n! {advice.what}\n  remedy: {advice.remedy}")


def _facts(found: Examination) -> list[tuple[str, str]]:
    machine, processor, memory = found.machine, found.machine.processor, found.machine.memory
    limit = "" if memory.limit is None else f", the container allows {memory.limit:.1f}"
    available = "" if memory.available is None else f", {memory.available:.1f} available"
    cores = "an unknown number of" if processor.num_cores is None else processor.num_cores
    settings = ", ".join(f"{name}={value or 'not set'}" for name, value in found.threads.environment.items())
    facts = [
        ("longspan", f"{found.longspan}, Python {found.python}"),
        ("packages", ", ".join(f"{name} {version or 'absent'}" for name, version in found.packages.items())),
        ("system", machine.system),
        ("processor", f"{processor.name} ({processor.architecture})"),
        ("cores", f"{cores} cores, {processor.num_logical} hardware threads, {processor.usable:g} may be used"),
        ("instructions", f"{', '.join(processor.simd) or 'none that matrix kernels ask for'}"),
        ("torch", f"{found.threads.torch} threads, kernels for {found.threads.capability}; {settings}"),
        ("memory", f"{memory.total:.1f} GiB{available}{limit}"),
        ("disk", f"{machine.disk.free:.1f} of {machine.disk.total:.1f} GiB free at {machine.disk.folder}"),
    ]
    driver = machine.gpu_driver or "unknown"
    for number, gpu in enumerate(machine.gpus):
        bfloat16 = "bfloat16" if gpu.bfloat16 else "no bfloat16"
        facts.append(
            (
                f"cuda:{number}",
                f"{gpu.name}, {gpu.memory:.0f} GiB, compute capability {gpu.capability}, {bfloat16}, driver {driver}",
            )
        )
    if not machine.gpus:
        facts.append(("GPUs", "none"))
    if found.model is not None:
        model = found.model
        facts.append(
            (
                "model",
                f"{model.model}: {model.parameters:,} parameters, {model.memory:.2f} GiB in float32, texts of up to "
                f"{model.max_length:,} tokens (trained to {model.trained_length:,})",
            )
        )
    return facts
