"""Training steps of longspan beside those of a peer that has many settings: its best one, in every type of arithmetic.

Every setting of the peer runs once, which also warms it up; the fastest then takes turns with ours. Both run in one
process with the same settings of the C library's heap (`train/heap.py`), from which the peer gains too. Peak memory is
that of a process of its own which takes one step. Times are taken by the clock and in processor time, which says
more on a machine that does other work.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.record import compare
from longspan.train.heap import keep_freed_memory

AUTOCAST = {"float32": None, "bf16": torch.bfloat16}
"""What the products are computed in; weights, gradients and sums are float32 either way."""
ROUNDS = 3
OURS = "longspan"

Step = Callable[[], float]
"""Forward and backward; returns the loss."""


def wanted_types(description: str | None) -> list[str]:
    """What the command line asks for: every type of arithmetic, or some of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--types", nargs="+", choices=list(AUTOCAST), default=list(AUTOCAST))
    return parser.parse_args().types


def measure(
    make: Callable[[Path, str, str], Step], place: Path, names: list[str], tokens: int, types: list[str]
) -> dict[str, Any]:
    """All of it, for the given types of arithmetic.

    Args:
        make: from the folder, a type of `AUTOCAST` and a name (`OURS` or one of `names`) to a step. A function of a
            module, for it is called in other processes.
        names: the peer's settings.
    """
    keep_freed_memory()
    result: dict[str, Any] = {"tokens": tokens, "matrix_gflops": {t: _matrix_rate(AUTOCAST[t]) for t in types}}
    for precision in types:
        steps = {name: make(place, precision, name) for name in (OURS, *names)}
        losses: dict[str, float] = {}
        scan = {name: _timed(step, name, losses) for name, step in steps.items()}
        best = min(names, key=lambda name: scan[name].processor)
        turns: dict[str, list[_Seconds]] = {OURS: [], best: []}
        for _ in range(ROUNDS):
            for name, times in turns.items():
                times.append(_timed(steps[name], name, losses))
        result[precision] = {
            "by_the_clock": compare({name: [t.clock for t in times] for name, times in turns.items()}, OURS, tokens),
            "by_processor_time": compare(
                {name: [t.processor for t in times] for name, times in turns.items()}, OURS, tokens
            ),
            "processor_seconds_of_the_first_run": {name: round(t.processor, 2) for name, t in scan.items()},
            "peak_memory_mib": {name: _peak_memory(make, place, precision, name) for name in (OURS, best)},
            "losses": losses,
        }
    return result


class _Seconds(NamedTuple):
    clock: float
    processor: float
    """Of all threads. Unlike the clock it stands still while other programs compute. Threads that wait for one another
    have to sleep (OMP_WAIT_POLICY=PASSIVE), or they count too."""


def _timed(step: Step, name: str, losses: dict[str, float]) -> _Seconds:
    clock, processor = time.perf_counter(), time.process_time()
    losses[name] = step()
    seconds = _Seconds(time.perf_counter() - clock, time.process_time() - processor)
    print(f"{name}: {seconds.clock:.2f} s, {seconds.processor:.2f} s of processor time", flush=True)
    return seconds


def _matrix_rate(dtype: torch.dtype | None, seconds: float = 0.5) -> float:
    """GFLOP/s of the best product there is here: the floor of every step."""
    a, b = (torch.randn(shape).to(dtype or torch.float32) for shape in ((4096, 1024), (1024, 1024)))
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return round(2 * 4096 * 1024 * 1024 / best / 1e9, 1)


def _peak_memory(make: Callable[[Path, str, str], Step], place: Path, precision: str, name: str) -> int | None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_step_and_tell, args=(make, place, precision, name, results))
    process.start()
    process.join()
    return None if process.exitcode or results.empty() else results.get()


def _step_and_tell(
    make: Callable[[Path, str, str], Step], place: Path, precision: str, name: str, results: SimpleQueue[int | None]
) -> None:
    if name == OURS:
        keep_freed_memory()  # as `longspan train` does; the peer's own trainer does not
    make(place, precision, name)()
    # Not ru_maxrss: a child inherits its parent's peak.
    status = Path(f"/proc/{os.getpid()}/status")
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text("utf-8"), re.MULTILINE) if status.exists() else None
    results.put(round(int(peak[1]) / 1024) if peak else None)
