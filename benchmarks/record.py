"""How things are measured here and how records are kept.

Machines are noisy: candidates take turns within one process, and what is reported is the ratio within a round. A record
holds the command, the machine, the versions and every single time, so that the spread can be seen.
"""

from __future__ import annotations

import datetime
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from longspan.machine import installed_versions, read_machine

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("longspan", "torch", "numpy", "tokenizers", "transformers", "sentence-transformers")


def take_turns(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, after one uncounted round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(rounds + 1):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            if round_number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def compare(seconds: dict[str, list[float]], ours: str, tokens: int) -> dict[str, Any]:
    """Tokens per second of each candidate, and how many times as fast `ours` is as the best of the others, by round."""
    others = {name: times for name, times in seconds.items() if name != ours}
    best = min(others, key=lambda name: statistics.median(others[name]))
    ratios = [theirs / mine for mine, theirs in zip(seconds[ours], others[best], strict=True)]
    return {
        "tokens": tokens,
        "seconds": {name: [round(t, 3) for t in times] for name, times in seconds.items()},
        "tokens_per_second": {name: round(tokens / statistics.median(times)) for name, times in seconds.items()},
        "best_other": best,
        "ratio_to_best_other": {
            "median": round(statistics.median(ratios), 2),
            "min": round(min(ratios), 2),
            "max": round(max(ratios), 2),
        },
    }


def write_record(name: str, result: Any) -> Path:
    """Write `results/DATE-NAME.json` (with a number where the name is taken) and print it."""
    today = datetime.date.today().isoformat()
    number, path = 1, RESULTS / f"{today}-{name}.json"
    while path.exists():
        number += 1
        path = RESULTS / f"{today}-{name}-{number}.json"
    RESULTS.mkdir(exist_ok=True)
    about = {"command": _command(), "machine": machine(), "versions": installed_versions(PACKAGES)}
    record = about | {"result": result}
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))
    print(f"record: results/{path.name}")
    return path


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    return {
        "processor": read_machine().processor.name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "gemm_gflops_fp32": round(gemm_rate(), 1),
    }


def gemm_rate(size: int = 1024, seconds: float = 0.5) -> float:
    """Measured float32 matrix rate of the CPU in GFLOP/s: what the figures can be held against."""
    a, b = torch.randn(4 * size, size), torch.randn(size, size)
    return rate_of(lambda: torch.mm(a, b), 8 * size**3, seconds)


def rate_of(run: Callable[[], object], operations: int, seconds: float) -> float:
    """G operations/s of `run`, which takes so many operations, repeated for so long."""
    run()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        run()
        count += 1
    return operations * count / (time.perf_counter() - began) / 1e9


def _command() -> str:
    """As it was typed, but for where things are on this machine."""
    spec = sys.modules["__main__"].__spec__
    arguments = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    return shlex.join(["python", "-m", spec.name if spec is not None else "?", *arguments])
