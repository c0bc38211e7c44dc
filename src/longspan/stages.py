"""Stages that are done once: each leaves a marker when it is complete, and a later run goes on after the last one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from longspan import __version__
from longspan.errors import LongspanError
from longspan.files import read_json, sha256_json, write_json

MARKERS = "stages"


@dataclass(frozen=True)
class Stage:
    """One step of a longer work.

    Attributes:
        name: what its marker is called.
        title: what it does, in a line for people.
        settings: all that its result depends on beside the stages before it, as JSON.
        work: does it, and returns what the later stages and the reader want to know, as JSON.
    """

    name: str
    title: str
    settings: Any
    work: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Done:
    """A finished stage: what its work returned, and the seconds it took."""

    result: dict[str, Any]
    seconds: float
    resumed: bool


def run_stages(stages: list[Stage], folder: Path, console: Console) -> dict[str, Done]:
    """Do the stages that are not done yet, in order.

    Raises:
        LongspanError: a marker in `folder` was made with other settings; or whatever a stage raises.
    """
    done: dict[str, Done] = {}
    key = sha256_json(["road", __version__])
    for number, stage in enumerate(stages, 1):
        key = sha256_json([key, stage.name, stage.settings])
        marker = folder / MARKERS / f"{number:02d}-{stage.name}.json"
        heading = f"[bold]{number}/{len(stages)} {stage.name}[/bold]  {stage.title}"
        if marker.is_file():
            done[stage.name] = _read(marker, key)
            console.print(f"{heading}  [dim](done before, {done[stage.name].seconds:.0f} s)[/dim]", highlight=False)
            continue
        console.print(heading, highlight=False)
        done[stage.name] = _do(stage, marker, key)
    return done


def refuse_foreign(folder: Path) -> None:
    """Make sure that stages may write into a folder: it is empty, or stages have made it.

    Raises:
        LongspanError: it holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKERS).is_dir():
        raise LongspanError(
            "this folder was made by something else",
            where=folder,
            remedy="choose another --out, or empty it by hand",
        )


def clear(folder: Path) -> None:
    """Delete everything that stages left in `folder`.

    Raises:
        LongspanError: it holds something else.
    """
    refuse_foreign(folder)
    if folder.is_dir():
        shutil.rmtree(folder)


def _do(stage: Stage, marker: Path, key: str) -> Done:
    started = marker.with_suffix(".started")
    resumed = started.is_file()
    marker.parent.mkdir(parents=True, exist_ok=True)
    started.touch()
    began = time.monotonic()
    result = stage.work()
    seconds = time.monotonic() - began
    write_json(marker, {"key": key, "seconds": round(seconds, 1), "resumed": resumed, "result": result})
    started.unlink()
    return Done(result, seconds, resumed)


def _read(marker: Path, key: str) -> Done:
    remedy = "start anew with --fresh, or choose another --out"
    values = read_json(marker, remedy=remedy)
    if values.get("key") != key:
        raise LongspanError("this stage was done with other settings or another version", where=marker, remedy=remedy)
    return Done(values["result"], values["seconds"], values["resumed"])
