"""What tests have done in processes of their own: training that can be killed, and ranks of one job."""

import dataclasses
import os
import signal
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from longspan.errors import LongspanError
from longspan.evaluate.in_loop import evaluators
from longspan.objective.contrastive import Contrastive
from longspan.objective.mlm import MaskedConfig, MaskedLanguageModelling
from longspan.objective.world import World
from longspan.text.packed import Packed
from longspan.train import loop
from longspan.train.checkpoint import checkpoints
from longspan.train.config import TrainConfig
from longspan.train.loop import Interrupted, resume, start
from longspan.train.optim import Gradient
from longspan.train.parallel import Processes, is_sharded, join_world, leave_world, shard_model, whole
from longspan.train.run import RUN
from tests.kill import die_before_change
from tests.objective import cases, naive


def in_order(job: Callable[..., None], arguments: tuple[Any, ...], environment: Mapping[str, str]) -> None:
    """Call `job` in the state that every job is to find: strict about warnings, one thread, no waiting for the disk.

    What a killed process has written is in the kernel and not lost; only a power cut, which no test makes, needs fsync.
    """
    warnings.simplefilter("error")
    os.fsync = lambda descriptor: None
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

OBJECTIVES = {"plain": cases.config("own", 0), **{name: cases.config(name, 2) for name in cases.VARIANTS}}
"""The contrastive objectives that are compared."""
NUM_PAIRS, NUM_ROWS = 8, 8


def objectives(size: int, rank: int, out: str) -> None:
    """This rank's gradients of every objective, twice without zeroing, saved as `out`/<objective>-<rank>.pt."""
    world = join_world(torch.device("cpu"))
    assert (world.rank, world.size) == (rank, size)
    for name, config in OBJECTIVES.items():
        whole = naive.with_repeats(naive.pair_batch(NUM_PAIRS, config.num_negatives))
        objective = Contrastive(config.model_copy(update={"chunk_tokens": 20}), world=world)
        model, share = naive.pooled_model(config=config), naive.pair_share(whole, rank, size)
        _save(objective, model, share, f"{out}/{name}-{rank}.pt")
    objective = MaskedLanguageModelling(MaskedConfig(row_length=10, micro_batch_tokens=20), world=world)
    share = naive.masked_share(naive.masked_batch(NUM_ROWS), rank, size)
    _save(objective, naive.masked_model(), share, f"{out}/mlm-{rank}.pt")
    leave_world(world)


def _save(objective: Contrastive | MaskedLanguageModelling, model: nn.Module, batch: Any, path: str) -> None:
    metrics = objective.backward(model, batch)
    once = {name: whole(gradient) for name, gradient in naive.gradients(model).items()}
    objective.backward(model, batch)
    twice = {name: whole(gradient) for name, gradient in naive.gradients(model).items()}
    torch.save({"metrics": metrics, "once": once, "twice": twice}, path)


def primitives(out: str) -> None:
    """What this rank gets of what all do together, saved as `out`/primitives-<rank>.pt."""
    world = join_world(torch.device("cpu"))
    mine = torch.arange(6.0).reshape(2, 3) + 10 * world.rank
    everyones = torch.arange(2.0 * world.size) * (world.rank + 1)
    gathered, scattered, total = world.gather(mine), world.reduce_scatter(everyones), world.sum(mine)
    strided = world.gather(mine.T.contiguous().T)
    found = {"mine": mine, "gathered": gathered, "scattered": scattered, "total": total, "strided": strided}
    torch.save(found, f"{out}/primitives-{world.rank}.pt")
    leave_world(world)


def shards(size: int, rank: int, out: str) -> None:
    """This rank's gradients with sharded weights, as `objectives`, saved as `out`/<engine>-<objective>-<rank>.pt."""
    world = join_world(torch.device("cpu"))
    for engine in ("zero2", "zero3"):
        for name in ("own", "mlm"):
            assert isinstance(world, Processes)
            world.shards = None
            if name == "mlm":
                objective = MaskedLanguageModelling(MaskedConfig(row_length=10, micro_batch_tokens=20), world=world)
                model, share = naive.masked_model(), naive.masked_share(naive.masked_batch(NUM_ROWS), rank, size)
            else:
                batch = naive.with_repeats(naive.pair_batch(NUM_PAIRS, 2))
                # So few tokens that the ranks have different numbers of chunks, and each a sequence for itself.
                objective = Contrastive(OBJECTIVES[name].model_copy(update={"chunk_tokens": 20}), world=world)
                model, share = naive.pooled_model(), naive.pair_share(batch, rank, size)
            shard_model(model, world, engine)
            assert is_sharded(model)
            _save(objective, model, share, f"{out}/{engine}-{name}-{rank}.pt")
        learnt = OBJECTIVES["own"].model_copy(update={"learn_temperature": True})
        with pytest.raises(LongspanError, match="log_temperature has 1 elements and cannot be cut"):
            shard_model(naive.pooled_model(config=learnt), world, engine)
    leave_world(world)


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run that several ranks do together.

    Attributes:
        config: as JSON.
        stop_at, spoil_at: the step in which rank 1, and nobody else, gets SIGTERM, or finds its gradient not finite.
        evaluated: whether `evaluate` is called in the loop.
    """

    config: str
    out: str
    stop_at: int | None = None
    spoil_at: int | None = None
    evaluated: bool = False


def evaluate(model: nn.Module, world: World) -> dict[str, float]:
    """A number that depends on all weights; the first rank makes its passes alone."""
    if world.rank != 0:
        return {}
    texts = [np.arange(5, 5 + length) for length in (3, 9)]
    vectors = torch.cat([model(Packed.of([text])) for text in texts])
    return {"likeness": float(torch.cosine_similarity(vectors[0], vectors[1], dim=0))}


def together(*planned: Planned) -> None:
    """Do, or go on with, one run after another as a rank of one job."""
    rank = int(os.environ["RANK"])
    clip, leave = loop.clip_gradients, loop.leave_world
    loop.leave_world = lambda world: None  # they are joined until the last run is done
    for run in planned:
        step = newest_step(Path(run.out))

        def disturbed(model: nn.Module, clip_norm: float | None, run: Planned = run) -> Gradient:
            nonlocal step
            step, gradient = step + 1, clip(model, clip_norm)
            if rank == 1 and step == run.stop_at:
                signal.raise_signal(signal.SIGTERM)
            return gradient._replace(norm=float("nan")) if rank == 1 and step == run.spoil_at else gradient

        loop.clip_gradients = disturbed
        config = TrainConfig.model_validate_json(run.config)
        measured = {"held": evaluate} if run.evaluated else evaluators(config)
        try:
            if (Path(run.out) / RUN).is_file():
                resume(Path(run.out), evaluators=measured)
            else:
                start(config, Path(run.out), evaluators=measured)
            assert run.stop_at is None
        except Interrupted:
            assert step == run.stop_at, "all ranks stop after the same step"
    leave(join_world(torch.device("cpu")))


def newest_step(out: Path) -> int:
    """How far a run has come; 0: it has not begun."""
    found = checkpoints(out / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else 0


def start_again(config: str, out: str) -> None:
    """One rank of a start into the directory of a finished run."""
    with pytest.raises(LongspanError, match="finished runs do not change"):
        start(TrainConfig.model_validate_json(config), Path(out))
