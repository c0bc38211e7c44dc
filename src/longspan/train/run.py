"""A run directory: everything needed to go on with a run, or to repeat it.

tokenizer.json    the data's tokenizer
checkpoints/      step-NNNNNNNN/, from step 0 on
base/             the frozen model, in the published layout, where only adapters on it are trained
run.json          configuration, shape of the encoder, data fingerprint, number of steps; written last of the start
lock              who works on the run (see train/lock.py)
environment.jsonl one line per start and resume: code, versions, machine
metrics.jsonl     one line per logged step
bad-batches/      batches whose loss or gradient was not finite, for study (train/bad_batches.py)
model/            the finished model, in the published layout
finished.json     written last of all; from then on nothing in the directory changes

A directory with a run.json can go on with nothing but itself and the prepared data: the model that it was initialised
from is in its first checkpoint, or in base/. A directory without one is what a killed start left, and can be started
into again.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from longspan import __version__
from longspan.config import Config
from longspan.errors import LongspanError
from longspan.files import UNFINISHED, read_json, sha256_file, sweep_unfinished, write_json, write_text
from longspan.model.config import EncoderConfig
from longspan.train.config import TrainConfig
from longspan.train.lock import LOCK

RUN, FINISHED, ENVIRONMENT = "run.json", "finished.json", "environment.jsonl"
TOKENIZER, CHECKPOINTS, FIRST_CHECKPOINT = "tokenizer.json", "checkpoints", "step-00000000"
BASE, WEIGHTS = "base", "model.safetensors"


class RunSettings(Config):
    """The content of run.json: all that a run is, beside the data."""

    config: TrainConfig
    encoder: EncoderConfig
    """Shape of the encoder, whether the configuration gives it or the model that the run was initialised from."""
    data_fingerprint: str
    """Of the prepared data."""
    total_steps: int = Field(gt=0)
    """Optimiser steps of the whole run."""
    base_sha256: str | None = None
    """Of the weights in base/, where only adapters on them are trained."""

    def about(self) -> dict[str, Any]:
        """What a checkpoint of this run belongs to, and is made with: plain JSON values without the time."""
        made_with = environment()
        del made_with["time"]
        return {
            "data": self.data_fingerprint,
            "encoder": self.encoder.model_dump(mode="json"),
            "config": self.config.model_dump(mode="json"),
            "environment": made_with,
        }


class Run:
    """An existing run directory.

    Attributes:
        settings: what is in its run.json.
    """

    def __init__(self, folder: Path) -> None:
        """Open a run directory.

        Raises:
            LongspanError: `folder` is not one, or its run.json has keys this version does not know.
        """
        self.folder = folder
        values = read_json(
            folder / RUN, remedy="name a run directory; start a new run with: longspan train RECIPE --out DIR"
        )
        self.settings = RunSettings.parse(values, where=folder / RUN)

    @property
    def config(self) -> TrainConfig:
        return self.settings.config

    @property
    def total_steps(self) -> int:
        return self.settings.total_steps

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def base(self) -> Path:
        return self.folder / BASE

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def finished(self) -> bool:
        return (self.folder / FINISHED).is_file()

    def logged(self) -> list[dict[str, Any]]:
        """The logged steps, in order."""
        if not self.metrics.is_file():
            return []
        return [json.loads(line) for line in self.metrics.read_text("utf-8").splitlines()]

    def check_base(self) -> None:
        """Make sure that the frozen model, if there is one, is what the run was started on.

        Raises:
            LongspanError: it is missing or was changed.
        """
        weights, expected = self.base / WEIGHTS, self.settings.base_sha256
        if expected is not None and not (weights.is_file() and sha256_file(weights) == expected):
            raise LongspanError(
                "the frozen model is not the one that the run was started on",
                where=weights,
                remedy="restore it from a copy, or start a new run",
            )

    def record_start(self, facts: dict[str, Any]) -> None:
        """Add a line to `environment.jsonl`: the environment and `facts` of this start."""
        with open(self.folder / ENVIRONMENT, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(environment() | facts) + "\n")

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished; nothing may change after this."""
        write_json(self.folder / FINISHED, summary)


def refuse_occupied(folder: Path) -> None:
    """Make sure that a new run can be started in `folder`.

    Raises:
        LongspanError: `folder` holds a run already, or something else.
    """
    if (folder / FINISHED).is_file():
        raise LongspanError(
            "this run is finished, and finished runs do not change", where=folder, remedy="choose another --out"
        )
    if (folder / RUN).is_file():
        raise LongspanError(
            "this directory holds an unfinished run",
            where=folder,
            remedy=f"go on with it: longspan train --resume {folder}; or choose another --out",
        )
    if folder.is_dir() and not all(_of_a_killed_start(path) for path in folder.iterdir()):
        raise LongspanError("the directory is not empty", where=folder, remedy="choose another --out")


def _of_a_killed_start(path: Path) -> bool:
    if path.name == CHECKPOINTS and path.is_dir():
        return all(_unfinished(inner) or inner.name == FIRST_CHECKPOINT for inner in path.iterdir())
    return _unfinished(path) or path.name in (TOKENIZER, BASE, LOCK)


def _unfinished(path: Path) -> bool:
    return path.name.startswith(UNFINISHED)


def create_run(folder: Path, settings: RunSettings) -> Run:
    """Turn `folder`, which holds the tokenizer and the first checkpoint, into a run directory."""
    sweep_unfinished(folder)
    write_json(folder / RUN, settings.model_dump(mode="json"))
    return Run(folder)


def environment() -> dict[str, Any]:
    """What a result may depend on beside the configuration: code, libraries, machine."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "longspan": __version__,
        "code": code_fingerprint(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


@functools.cache
def code_fingerprint() -> str:
    """Hex SHA-256 over the package's own source files."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def trim_metrics(path: Path, last_step: int) -> None:
    """Drop lines of later steps than `last_step`, and a line that a kill cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= last_step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))
