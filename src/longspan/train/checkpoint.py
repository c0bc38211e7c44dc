"""Checkpoints: whole or absent, verified on reading.

A checkpoint is a folder `step-NNNNNNNN` with the weights and the optimiser's state as safetensors and a `state.json`
that holds the step and the hash of both files. No random state is kept because none is used: every draw in training is
a function of (seed, step, row), and there is no dropout.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from longspan.errors import LongspanError
from longspan.files import atomic_path, read_json, sha256_file, sweep_unfinished, write_json
from longspan.model.hub import read_safetensors, write_safetensors

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_REMEDY = "delete this folder and resume again: the run goes on from the checkpoint before it"


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: int) -> Path:
    """Write `folder/step-NNNNNNNN` and delete all but the newest `keep` checkpoints.

    Raises:
        LongspanError: the disk is full.
    """
    path = folder / f"step-{step:08d}"
    with atomic_path(path) as unfinished:
        write_safetensors(unfinished / MODEL, model.state_dict())
        write_safetensors(unfinished / OPTIMIZER, _optimizer_tensors(model, optimizer))
        hashes = {name: sha256_file(unfinished / name) for name in (MODEL, OPTIMIZER)}
        write_json(unfinished / STATE, {"step": step, "sha256": hashes})
    sweep_unfinished(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put weights and optimiser back; return the step.

    Raises:
        LongspanError: the checkpoint is torn, was changed, or belongs to another model.
    """
    state = read_json(path / STATE, remedy=_REMEDY)
    for name, expected in state["sha256"].items():
        if not (path / name).is_file() or sha256_file(path / name) != expected:
            raise LongspanError(f"{name} is torn or was changed", where=path / name, remedy=_REMEDY)
    weights = read_safetensors(path / MODEL)
    _check_shapes(weights, model.state_dict(), path)
    model.load_state_dict(weights)
    _restore_optimizer(read_safetensors(path / OPTIMIZER), model, optimizer)
    return int(state["step"])


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
        optimizer.state[parameter][key] = tensor.to(parameter.device)


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
