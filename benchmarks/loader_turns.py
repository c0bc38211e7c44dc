"""Candidates in processes of their own, each on the same one core, that run when they are told to.

Needs the standard library only, so that it also runs in a peer's environment.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Pass = Callable[[], int]
"""Reads some batches; how many pairs they had."""

_STATUS = {"VmRSS": "rss_mb", "VmHWM": "peak_rss_mb", "RssAnon": "anonymous_mb"}


class Worker:
    """A process that runs a pass whenever it is told to; nothing else runs in it meanwhile."""

    def __init__(self, python: str, module: str, *arguments: str) -> None:
        self._process = _start(python, module, arguments, stdin=subprocess.PIPE)
        self.hello: dict[str, Any] = self._answer()

    def run(self, name: str) -> dict[str, float]:
        """Pairs and seconds of one pass."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(name) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(_line(self._process))


def run_once(python: str, module: str, *arguments: str) -> Any:
    """What a fresh process reports that does one thing and ends (see `report`)."""
    process = _start(python, module, arguments, stdin=subprocess.DEVNULL)
    answer = json.loads(_line(process))
    process.wait()
    return answer


def serve(passes: dict[str, Pass], packages: Sequence[str]) -> None:
    """In the worker: say what there is, and run what is asked for until the parent closes the pipe."""
    say = _channel()
    say({"candidates": list(passes), "versions": {name: importlib.metadata.version(name) for name in packages}})
    for line in sys.stdin:
        run = passes[json.loads(line)]
        began = time.perf_counter()
        pairs = run()
        say({"pairs": pairs, "seconds": time.perf_counter() - began})


def report(measure: Callable[[], dict[str, float]]) -> None:
    """In a fresh process: measure once; memory before and after is added."""
    say = _channel()
    before = memory()
    say({**measure(), **memory(), "rss_before_mb": before["rss_mb"], "anonymous_before_mb": before["anonymous_mb"]})


def start_times(began: float, opened: float, made: float) -> dict[str, float]:
    """Seconds to open, to make the first batch, and both."""
    return {
        "open_seconds": round(opened - began, 3),
        "batch_seconds": round(made - opened, 3),
        "first_batch_seconds": round(made - began, 3),
    }


def memory() -> dict[str, float]:
    """Of this process, in MB: resident, its peak, and the part that no file backs."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {ours: round(int(fields[theirs].split()[0]) / 1000) for theirs, ours in _STATUS.items()}


def _start(python: str, module: str, arguments: Sequence[str], stdin: int) -> subprocess.Popen[str]:
    quiet = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})  # the process inherits it, before any library counts the cores
    try:
        return subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **quiet, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
    finally:
        os.sched_setaffinity(0, cores)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a candidate ended with code {process.wait()}: {process.args}")
    return line


def _channel() -> Callable[[Any], None]:
    # What a library prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    return say
