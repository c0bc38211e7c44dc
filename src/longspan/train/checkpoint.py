"""Checkpoints: whole or absent, verified on reading.

A checkpoint is a folder `step-NNNNNNNN` with the weights and the optimiser's state as safetensors and a `state.json`
that holds the step and the hash of both files. No random state is kept because none is used: every draw in training is
a function of (seed, step, row), and there is no dropout.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longspan.errors import LongspanError
from longspan.files import UNFINISHED, atomic_path, read_json, sha256_file, sweep_unfinished, write_json
from longspan.model.hub import read_safetensors, write_safetensors

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: int) -> Path:
    """Write `folder/step-NNNNNNNN` and delete all but the newest `keep` checkpoints.

    Raises:
        LongspanError: the disk is full.
    """
    path = folder / f"step-{step:08d}"
    with atomic_path(path) as unfinished:
        write_safetensors(unfinished / MODEL, model.state_dict())
        write_safetensors(unfinished / OPTIMIZER, _optimizer_tensors(model, optimizer))
        write_json(unfinished / STATE, _state(unfinished, step))
    tidy_checkpoints(folder, keep=keep)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint that a run goes on from.

    Raises:
        LongspanError: there is none.
    """
    found = checkpoints(folder)
    if not found:
        raise LongspanError(
            "the run has no checkpoint left",
            where=folder,
            remedy="start a new run in another directory; the settings of this one are in its run.json",
        )
    return found[-1]


def tidy_checkpoints(folder: Path, *, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what killed writers left."""
    for old in checkpoints(folder)[:-keep]:
        # A kill while a folder is being deleted must not leave half of it under the name of a whole one.
        os.replace(old, old.with_name(f"{UNFINISHED}{os.getpid()}-old-{old.name}"))
    sweep_unfinished(folder)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put weights and optimiser back; return the step.

    Raises:
        LongspanError: the checkpoint is torn, was changed, or belongs to another model.
    """
    step = _verified_step(path)
    weights = read_safetensors(path / MODEL)
    _check_shapes(weights, model.state_dict(), path)
    model.load_state_dict(weights)
    _restore_optimizer(read_safetensors(path / OPTIMIZER), model, optimizer)
    return step


def _state(path: Path, step: int) -> dict[str, Any]:
    return {"step": step, "sha256": {name: sha256_file(path / name) for name in (MODEL, OPTIMIZER)}}


def _verified_step(path: Path) -> int:
    step, remedy = int(path.name.removeprefix("step-")), _remedy(path)
    for name in (MODEL, OPTIMIZER, STATE):
        if not (path / name).is_file():
            raise LongspanError(f"the checkpoint is torn: {name} is missing", where=path / name, remedy=remedy)
    if read_json(path / STATE, remedy=remedy) != _state(path, step):
        raise LongspanError(
            f"the checkpoint is torn or was changed: its files are not what {STATE} vouches for",
            where=path,
            remedy=remedy,
        )
    return step


def _remedy(path: Path) -> str:
    earlier = [other.name for other in checkpoints(path.parent) if other.name < path.name]
    if not earlier:
        return "none is kept from before this one: start a new run, or restore this folder from a copy"
    return f"delete this folder and resume again: the run goes on from {earlier[-1]}"


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = torch.as_tensor(value)
    return tensors


def _restore_optimizer(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = parameters[name]
        # A copy, because what was read is a view of the file, which will be deleted while the run goes on.
        optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)


def _check_shapes(found: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    for name in sorted(set(found) ^ set(expected)):
        raise LongspanError(
            f"weight {name} is only in {'the checkpoint' if name in found else 'the model'}",
            where=path,
            remedy="the checkpoint belongs to another configuration: resume it with the run it came from",
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise LongspanError(
                f"weight {name} has shape {tuple(found[name].shape)}, the model's is {tuple(tensor.shape)}",
                where=path,
                remedy="the checkpoint belongs to another configuration: resume it with the run it came from",
            )
