"""What a run directory holds, in a form in which two runs can be compared."""

import json
from pathlib import Path
from typing import Any

CLOCK = ("seconds", "tokens_per_second", "pairs_per_second", "mfu")
"""The metrics that say how fast the machine was."""


def contents(folder: Path) -> dict[str, Any]:
    """Every file and folder of a run: bytes; for metrics their rows without the clock, for a checkpoint's state.json
    what it says but for the code and the libraries it was made with.

    Left out: environment.jsonl, which has a line for every start, the lock, which names a process, and TensorBoard's
    events, which hold times.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == "metrics.jsonl":
            found[name] = [{k: v for k, v in row.items() if k not in CLOCK} for row in metrics(folder)]
        elif path.name == "state.json":
            state = json.loads(path.read_text("utf-8"))
            found[name] = {key: value for key, value in state.items() if key not in ("environment", "checksum")}
        elif name not in ("environment.jsonl", "lock") and not name.startswith("tensorboard"):
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def losses(folder: Path) -> list[float]:
    """The loss of every logged step."""
    return [row["loss"] for row in metrics(folder)]


def differing(folder: Path, other: Path) -> list[str]:
    """The names of what is not the same in two run directories."""
    mine, theirs = contents(folder), contents(other)
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
