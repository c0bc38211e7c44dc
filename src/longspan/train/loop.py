"""The loop. It does not know the loss: an objective turns (model, batch) into gradients and metrics.

Reading order: `start` (-> `_create`) or `resume` -> `_go` -> `_steps` -> `_finish`.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from longspan.errors import LongspanError
from longspan.files import sha256_file, sweep_unfinished
from longspan.objective.world import World
from longspan.train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint, tidy_checkpoints
from longspan.train.config import TrainConfig
from longspan.train.metrics import JsonLines, ProgressBar, Reporter, TensorBoard, summary_writer
from longspan.train.optim import build_optimizer, clip_gradients, set_learning_rate
from longspan.train.parallel import join_world, leave_world, local_device
from longspan.train.run import CHECKPOINTS, TOKENIZER, Run, RunSettings, create_run, refuse_occupied, trim_metrics
from longspan.train.stage import Stage, build_stage


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved where it is."""


def start(config: TrainConfig, out: Path, *, device: str | None = None, tensorboard: bool = False) -> Run:
    """Train from the beginning into a new run directory.

    Raises:
        LongspanError: bad data, model or place; a loss that is not finite; a full disk.
        Interrupted: see there.
    """
    config = _with_absolute_paths(config)
    with _world(device) as (place, world):
        _check_tensorboard(tensorboard)
        refuse_occupied(out)
        _wait(world, place)  # until every process has seen that it is free
        stage = build_stage(config, world, place)
        if world.rank == 0:
            _create(out, config, stage)
        _wait(world, place)
        return _go(Run(out), stage, world, place, tensorboard)


def resume(folder: Path, *, device: str | None = None, tensorboard: bool = False) -> Run:
    """Go on with a run from its newest checkpoint; a finished one is returned as it is.

    Raises:
        LongspanError: the data has changed since the start, or the checkpoint is torn; else as `start`.
        Interrupted: see there.
    """
    run = Run(folder)
    if run.finished:
        return run
    with _world(device) as (place, world):
        _check_tensorboard(tensorboard)
        stage = build_stage(run.config, world, place, shape=run.settings.encoder)
        if stage.data_fingerprint != run.settings.data_fingerprint:
            raise LongspanError(
                "the prepared data is not the data this run was started on",
                where=run.config.data,
                remedy="restore the data, or start a new run",
            )
        return _go(run, stage, world, place, tensorboard)


def _create(out: Path, config: TrainConfig, stage: Stage) -> None:
    # run.json comes last: with it, the directory has all that the run will need.
    stage.tokenizer.save(out / TOKENIZER)
    optimizer = build_optimizer(stage.model, config.optim)
    save_checkpoint(out / CHECKPOINTS, 0, stage.model, optimizer, keep=config.keep_checkpoints)
    settings = RunSettings(
        config=config,
        encoder=stage.encoder,
        data_fingerprint=stage.data_fingerprint,
        total_steps=stage.total_steps,
    )
    create_run(out, settings)


def _go(run: Run, stage: Stage, world: World, device: torch.device, tensorboard: bool) -> Run:
    optimizer = build_optimizer(stage.model, run.config.optim)
    first_step = load_checkpoint(newest_checkpoint(run.checkpoints), stage.model, optimizer)
    reporters: list[Reporter] = []
    if world.rank == 0:
        # Only now that the newest checkpoint has proved whole: until then an older one may be needed.
        tidy_checkpoints(run.checkpoints, keep=run.config.keep_checkpoints)
        sweep_unfinished(run.folder)
        trim_metrics(run.metrics, first_step)
        run.record_start(world.size, device)
        reporters = [JsonLines(run.metrics), ProgressBar(run.config.recipe, first_step, run.total_steps)]
        if tensorboard:
            reporters.append(TensorBoard(run.folder / "tensorboard", first_step))
    _steps(run, stage, optimizer, world, reporters, first_step)
    if world.rank == 0:
        _finish(run, stage)
    _wait(world, device)
    return run


def _steps(
    run: Run,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    world: World,
    reporters: Sequence[Reporter],
    first_step: int,
) -> None:
    config = run.config
    batches = stage.loader(first_step, run.total_steps)
    with contextlib.ExitStack() as stack, contextlib.closing(batches), _stop_requests(world) as stop_requested:
        reporters = [stack.enter_context(reporter) for reporter in reporters]
        for step, batch in enumerate(batches, first_step):
            began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            metrics: dict[str, Any] = stage.objective.backward(stage.model, batch)
            metrics["gradient_norm"] = clip_gradients(stage.model, config.optim.clip_norm)
            _refuse_non_finite(metrics, step, run)
            metrics["lr"] = config.optim.lr * config.schedule.factor(step, run.total_steps)
            set_learning_rate(optimizer, metrics["lr"])
            optimizer.step()
            metrics["seconds"] = time.perf_counter() - began
            metrics["tokens_per_second"] = metrics["tokens"] / metrics["seconds"]
            done, stopping = step + 1, stop_requested()
            is_last = done == run.total_steps
            for reporter in reporters:
                reporter.step(done, metrics, log=done % config.log_every == 0 or is_last)
            if world.rank == 0 and (done % config.checkpoint_every == 0 or is_last or stopping):
                save_checkpoint(run.checkpoints, done, stage.model, optimizer, keep=config.keep_checkpoints)
            if stopping and not is_last:
                raise Interrupted(f"stopped after step {done} of {run.total_steps}; the checkpoint is saved")


def _finish(run: Run, stage: Stage) -> None:
    stage.save_model(run.model)
    weights = sha256_file(run.model / "model.safetensors")
    # The loss is read back: a run that was killed right here is resumed without a step to do.
    run.finish({"steps": run.total_steps, "loss": run.logged()[-1]["loss"], "model_sha256": weights})


def _refuse_non_finite(metrics: dict[str, Any], step: int, run: Run) -> None:
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics[name]):
            raise LongspanError(
                f"{name} is {metrics[name]} in step {step + 1}: the step was not applied",
                where=run.folder,
                remedy="lower optim.lr, set optim.clip_norm, or use precision fp32; the last checkpoint is from before",
            )


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    # A run must be resumable from any working directory.
    changes = {"data": str(Path(config.data).absolute())}
    if config.init is not None and Path(config.init).is_dir():
        changes["init"] = str(Path(config.init).absolute())
    return config.model_copy(update=changes)


def _check_tensorboard(wanted: bool) -> None:
    if wanted:
        summary_writer()


@contextlib.contextmanager
def _world(device: str | None) -> Iterator[tuple[torch.device, World]]:
    place = local_device(device)
    world = join_world(place)
    try:
        yield place, world
    finally:
        leave_world(world)


def _wait(world: World, device: torch.device) -> None:
    world.sum(torch.zeros(1, device=device))


@contextlib.contextmanager
def _stop_requests(world: World) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a flag that is read between steps; a second Ctrl-C stops at once.

    With several processes they would have to agree on the step, so there the signals keep their meaning and the last
    regular checkpoint counts.
    """
    requested = False

    def note(number: int, frame: Any) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)} if world.size == 1 else {}
    except ValueError:  # not in the main thread: signals are somebody else's
        before = {}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
