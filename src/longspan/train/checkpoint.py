"""Checkpoints: whole or absent, verified on reading, the same whatever the engine and the number of processes.

A checkpoint is a folder `step-NNNNNNNN` with the trained weights and the optimiser's state as safetensors, each tensor
whole, and a `state.json`: the step, the best step so far, what the checkpoint belongs to (data, shape, configuration)
and was made with (versions, code), the hash of both files, and a checksum over itself. No random state is kept because
none is used: every draw in training is a function of (seed, step, row), and there is no dropout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longspan.errors import LongspanError
from longspan.files import UNFINISHED, atomic_path, read_json, sha256_file, sha256_json, sweep_unfinished, write_json
from longspan.model.hub import read_safetensors, write_safetensors
from longspan.train.parallel import share_like, whole

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"

FORMAT = 2
"""Of what is in a checkpoint; another one is refused."""

_BELONGS = {"data": "other prepared data", "encoder": "an encoder of another shape"}
"""The facts in which a checkpoint must agree with the run that goes on from it, and what it is if it does not."""


@dataclass(frozen=True)
class Best:
    """The step with the best value of the metric that is watched."""

    step: int
    metric: str
    value: float


@dataclass(frozen=True)
class Snapshot:
    """A moment of training, in memory of its own: training goes on while it is written.

    Attributes:
        weights, optimizer: whole tensors on the CPU, by name.
        about: what it belongs to and was made with, in plain JSON values.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    about: Mapping[str, Any]
    best: Best | None = None


def take_snapshot(
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    about: Mapping[str, Any],
    *,
    best: Best | None = None,
    keep: bool = True,
) -> Snapshot:
    """Copy the trained weights and the optimiser's state to the CPU, tensor by tensor; collective with a sharded model.

    Args:
        keep: False on the ranks that only lend their shards: their snapshot stays empty.
    """
    weights, state = _trained(model), _optimizer_tensors(model, optimizer)
    return Snapshot(step, _copies(weights, keep=keep), _copies(state, keep=keep), about, best)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """All weights but those that are frozen, which a run keeps elsewhere."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def _copies(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    copies = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if keep:
            copies[name] = complete.to("cpu", copy=True)
    return copies


def write_checkpoint(folder: Path, snapshot: Snapshot, *, keep: int) -> Path:
    """Write `folder/step-NNNNNNNN`; delete all but the newest `keep` checkpoints and the best.

    Raises:
        LongspanError: the disk is full.
    """
    path = folder / f"step-{snapshot.step:08d}"
    with atomic_path(path) as unfinished:
        write_safetensors(unfinished / MODEL, snapshot.weights)
        write_safetensors(unfinished / OPTIMIZER, snapshot.optimizer)
        best = None if snapshot.best is None else vars(snapshot.best)
        state = {"format": FORMAT, "step": snapshot.step, "best": best, **snapshot.about, "sha256": _hashes(unfinished)}
        write_json(unfinished / STATE, state | {"checksum": sha256_json(state)})
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


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the best value of the watched metric, by the newest one's word; None: there is none."""
    found = checkpoints(folder)
    best = read_best(found[-1]) if found else None
    path = None if best is None else folder / f"step-{best.step:08d}"
    return path if path in found else None


def read_best(path: Path) -> Best | None:
    """What was best when the checkpoint was made. (For the checkpoint itself, see `load_checkpoint`.)"""
    try:
        best = read_json(path / STATE, remedy=_remedy(path)).get("best")
        return None if best is None else Best(**best)
    except (LongspanError, AttributeError, TypeError):
        return None  # it is torn: nothing is known, and whoever goes on from it is told why


def tidy_checkpoints(folder: Path, *, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best, and what killed writers left."""
    best = best_checkpoint(folder)
    for old in checkpoints(folder)[:-keep]:
        if old != best:
            # A kill while a folder is being deleted must not leave half of it under the name of a whole one.
            os.replace(old, old.with_name(f"{UNFINISHED}{os.getpid()}-old-{old.name}"))
    sweep_unfinished(folder)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, belongs_to: Mapping[str, Any] | None = None
) -> int:
    """Put weights and optimiser back; return the step. Every rank reads the files and takes its shards.

    Args:
        belongs_to: facts of the run, such as `data` and `encoder`, that the checkpoint must agree with.

    Raises:
        LongspanError: the checkpoint is torn, was changed, or is of other data, another shape or another format.
    """
    state = _verified_state(path)
    for key, fact in (belongs_to or {}).items():
        if state.get(key) != fact:
            raise LongspanError(
                f"the checkpoint is of {_BELONGS[key]} than the run",
                where=path,
                remedy="put it back into the run it came from; " + _remedy(path),
            )
    load_weights(path, model)
    _restore_optimizer(read_safetensors(path / OPTIMIZER), model, optimizer)
    return int(path.name.removeprefix("step-"))


def load_weights(path: Path, model: nn.Module) -> None:
    """Put the weights of a checkpoint into `model`, sharded or not, without verifying the files; frozen ones stay.

    Raises:
        LongspanError: the weights are another model's.
    """
    weights, into = read_safetensors(path / MODEL), _trained(model)
    _check_shapes(weights, into, path)
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(share_like(weights[name], tensor))


def _hashes(path: Path) -> dict[str, str]:
    return {name: sha256_file(path / name) for name in (MODEL, OPTIMIZER)}


def _verified_state(path: Path) -> dict[str, Any]:
    remedy = _remedy(path)
    for name in (MODEL, OPTIMIZER, STATE):
        if not (path / name).is_file():
            raise LongspanError(f"the checkpoint is torn: {name} is missing", where=path / name, remedy=remedy)
    state = read_json(path / STATE, remedy=remedy)
    if not isinstance(state, dict) or not _vouches_for(state, path):
        raise LongspanError(
            f"the checkpoint is torn or was changed: its files are not what {STATE} vouches for",
            where=path,
            remedy=remedy,
        )
    if state["format"] != FORMAT:
        raise LongspanError(
            f"the checkpoint has format {state['format']}, and this longspan reads format {FORMAT}",
            where=path,
            remedy="go on with the version that began the run (environment.jsonl names it), or start a new run",
        )
    return state


def _vouches_for(state: dict[str, Any], path: Path) -> bool:
    if state.keys() == {"step", "sha256"}:  # format 1, which had no checksum of its own
        state["format"] = 1
    elif state.pop("checksum", None) != sha256_json(state):
        return False
    return state["step"] == int(path.name.removeprefix("step-")) and state["sha256"] == _hashes(path)


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
        if tensor.shape == parameter.shape:
            tensor = share_like(tensor, parameter)
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
