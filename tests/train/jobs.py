"""What tests have done in processes of their own: training that can be killed, and ranks of one job."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from longspan.errors import LongspanError
from longspan.objective.contrastive import Contrastive, ContrastiveConfig
from longspan.objective.mlm import MaskedConfig, MaskedLanguageModelling
from longspan.objective.world import World
from longspan.train.config import TrainConfig
from longspan.train.loop import resume, start
from longspan.train.parallel import join_world, leave_world
from longspan.train.run import RUN
from tests.kill import die_before_change
from tests.objective import naive


def in_order(job: Callable[..., None], arguments: tuple[Any, ...], environment: Mapping[str, str]) -> None:
    """Call `job` in the state that every job is to find: strict about warnings, one thread."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ.update(environment)
    job(*arguments)


def train(config: str, out: str, die_at_change: int = 0) -> None:
    """Start the run, or go on with it; with `die_at_change`, die by SIGKILL before that change to the directory."""
    if die_at_change:
        die_before_change(out, die_at_change)
    folder = Path(out)
    if (folder / RUN).is_file():
        resume(folder)
    else:
        start(TrainConfig.model_validate_json(config), folder)


# --- one rank of several ---------------------------------------------------------------------------------------------

OBJECTIVES: dict[str, tuple[Literal["own", "all"], int]] = {"plain": ("own", 0), "own": ("own", 2), "all": ("all", 2)}
"""Name -> `negatives_for` and number of negatives of the contrastive objectives that are compared."""
NUM_PAIRS, NUM_ROWS = 8, 8


def objectives(size: int, rank: int, out: str) -> None:
    """This rank's gradients of every objective, twice without zeroing, saved as `out`/<objective>-<rank>.pt."""
    world = join_world(torch.device("cpu"))
    assert (world.rank, world.size) == (rank, size)
    for name, (negatives_for, num_negatives) in OBJECTIVES.items():
        config = ContrastiveConfig(temperature=0.1, negatives_for=negatives_for, chunk_tokens=20)
        whole = naive.with_repeats(naive.pair_batch(NUM_PAIRS, num_negatives))
        objective = Contrastive(config, world=world)
        _save(objective, naive.pooled_model(), naive.pair_share(whole, rank, size), f"{out}/{name}-{rank}.pt")
    objective = MaskedLanguageModelling(MaskedConfig(row_length=10, micro_batch_tokens=20), world=world)
    share = naive.masked_share(naive.masked_batch(NUM_ROWS), rank, size)
    _save(objective, naive.masked_model(), share, f"{out}/mlm-{rank}.pt")
    torch.save(_primitives(world), f"{out}/primitives-{rank}.pt")
    leave_world(world)


def _save(objective: Contrastive | MaskedLanguageModelling, model: nn.Module, batch: Any, path: str) -> None:
    metrics = objective.backward(model, batch)
    once = naive.gradients(model)
    objective.backward(model, batch)
    torch.save({"metrics": metrics, "once": once, "twice": naive.gradients(model)}, path)


def _primitives(world: World) -> dict[str, torch.Tensor]:
    mine = torch.arange(6.0).reshape(2, 3) + 10 * world.rank
    everyones = torch.arange(2.0 * world.size) * (world.rank + 1)
    gathered, scattered, total = world.gather(mine), world.reduce_scatter(everyones), world.sum(mine)
    strided = world.gather(mine.T.contiguous().T)
    return {"mine": mine, "gathered": gathered, "scattered": scattered, "total": total, "strided": strided}


def start_again(config: str, out: str) -> None:
    """One rank of a start into the directory of a finished run."""
    with pytest.raises(LongspanError, match="finished runs do not change"):
        start(TrainConfig.model_validate_json(config), Path(out))
