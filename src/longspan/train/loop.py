"""The loop. It does not know the loss: an objective turns (model, batch) into gradients and metrics.

Reading order: `start` (-> `_create`) or `resume` -> `_go` -> `_Training.steps` -> `_finish`.
"""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from longspan.errors import LongspanError
from longspan.files import sha256_file, sha256_json, sweep_unfinished
from longspan.objective.world import Alone, World
from longspan.train.bad_batches import save_bad_batch
from longspan.train.blocks import prepare_blocks
from longspan.train.checkpoint import (
    Best,
    best_checkpoint,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    read_best,
    take_snapshot,
    tidy_checkpoints,
    write_checkpoint,
)
from longspan.train.config import TrainConfig
from longspan.train.flops import known_peak, measured_peak, training_flops
from longspan.train.heap import keep_freed_memory
from longspan.train.lock import locked
from longspan.train.metrics import JsonLines, ProgressBar, Reporter, TensorBoard, WandB, summary_writer, wandb
from longspan.train.optim import build_optimizer, clip_gradients, set_learning_rate
from longspan.train.parallel import (
    Engine,
    any_process,
    gathered,
    is_sharded,
    join_world,
    leave_world,
    local_device,
    on_first_process,
    shard_model,
)
from longspan.train.run import (
    BASE,
    CHECKPOINTS,
    ENVIRONMENT,
    TOKENIZER,
    WEIGHTS,
    Run,
    RunSettings,
    create_run,
    refuse_occupied,
    trim_metrics,
)
from longspan.train.signals import stop_requests
from longspan.train.stage import Stage, build_stage
from longspan.train.watch import WINDOW, ZERO_GRADIENTS, flags
from longspan.train.writer import CheckpointWriter

Evaluator = Callable[[nn.Module, World], Mapping[str, float]]
"""Measures a model in the loop. Called on every rank, without gradients, with the model in training's form and all its
weights at hand; the first rank's numbers count, and the others may return none."""


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved where it is."""


@dataclass(frozen=True)
class Options:
    """How a start or a resume is done: nothing here changes what is computed, beyond rounding.

    Attributes:
        device: cpu, cuda, ...; None: a GPU if there is one.
        tensorboard: whether to write TensorBoard events into the run directory.
        wandb: the project at Weights & Biases to send metrics to; None: none.
        evaluators: by name, for evaluation in the loop; their numbers are logged as `eval/NAME/NUMBER`.
        peak_flops: matrix rate of the device in FLOP/s; None: the manufacturer's, if it is known.
        measure_peak: whether to measure it, for a third of a second, where it is not known.
        parallel: instead of the configuration's `parallel`, when a run goes on on other machines.
    """

    device: str | None = None
    tensorboard: bool = False
    wandb: str | None = None
    evaluators: Mapping[str, Evaluator] | None = None
    peak_flops: float | None = None
    measure_peak: bool = False
    parallel: Engine | None = None


def start(config: TrainConfig, out: Path, **options: Any) -> Run:
    """Train from the beginning into a new run directory.

    Args:
        options: see `Options`.

    Raises:
        LongspanError: bad data, model or place; somebody else works there; a loss that is not finite; a full disk.
        Interrupted: see there.
    """
    chosen = Options(**options)
    config = _with_absolute_paths(config)
    _check_options(config, chosen)
    with _world(chosen.device) as (place, world):
        refuse_occupied(out)
        _wait(world, place)  # until every process has seen that it is free
        stage = build_stage(config, world, place)
        with _locked(out, world, place):
            on_first_process(world, place, lambda: _create(out, config, stage))
            return _go(Run(out), stage, world, place, chosen)


def resume(folder: Path, **options: Any) -> Run:
    """Go on with a run from its newest checkpoint; a finished one is returned as it is.

    Args:
        options: see `Options`.

    Raises:
        LongspanError: the data has changed since the start, or the checkpoint is torn; else as `start`.
        Interrupted: see there.
    """
    chosen = Options(**options)
    run = Run(folder)
    if run.finished:
        return run
    _check_options(run.config, chosen)
    run.check_base()
    with _world(chosen.device) as (place, world), _locked(folder, world, place):
        stage = build_stage(run.config, world, place, shape=run.settings.encoder, base=run.base)
        if stage.data_fingerprint != run.settings.data_fingerprint:
            raise LongspanError(
                "the prepared data is not the data this run was started on",
                where=run.config.data,
                remedy="restore the data, or start a new run",
            )
        return _go(run, stage, world, place, chosen)


def _create(out: Path, config: TrainConfig, stage: Stage) -> None:
    refuse_occupied(out)  # again, now that nobody else can begin
    # run.json comes last: with it, the directory has all that the run will need.
    stage.tokenizer.save(out / TOKENIZER)
    base_sha256 = None
    if config.lora.rank:
        stage.save_model(out / BASE)  # adapters begin at zero: so far it is the model that they are put on
        base_sha256 = sha256_file(out / BASE / WEIGHTS)
    settings = RunSettings(
        config=config,
        encoder=stage.encoder,
        data_fingerprint=stage.data_fingerprint,
        total_steps=stage.total_steps,
        base_sha256=base_sha256,
    )
    optimizer = build_optimizer(stage.model, config.optim)
    first = take_snapshot(0, stage.model, optimizer, settings.about())
    write_checkpoint(out / CHECKPOINTS, first, keep=config.keep_checkpoints)
    create_run(out, settings)


def _go(run: Run, stage: Stage, world: World, device: torch.device, options: Options) -> Run:
    config, engine = run.config, options.parallel or run.config.parallel
    if device.type == "cpu":
        keep_freed_memory()
    prepare_blocks(stage.model, compiled=config.compile, checkpointed=config.activation_checkpointing)
    shard_model(stage.model, world, engine)
    optimizer = build_optimizer(stage.model, config.optim)
    newest = newest_checkpoint(run.checkpoints)
    about = run.settings.about()
    first_step = load_checkpoint(newest, stage.model, optimizer, belongs_to=_data_and_shape(about))
    training = _Training(run, stage, optimizer, world, device, options, about, read_best(newest))
    if world.rank == 0:
        # Only now that the newest checkpoint has proved whole: until then an older one may be needed.
        tidy_checkpoints(run.checkpoints, keep=config.keep_checkpoints)
        sweep_unfinished(run.folder)
        trim_metrics(run.metrics, first_step)
        left_over = [f"{name}: {count:,}" for name, count in stage.left_over.items()]
        run.record_start(
            {"processes": world.size, "device": str(device), "parallel": engine, "rows_left_over": left_over}
        )
        training.history.extend(run.logged())
    training.steps(first_step)
    on_first_process(world, device, lambda: _finish(run, stage, sharded=is_sharded(stage.model)))
    return run


class _Training:
    """The steps of a run, from a checkpoint to the last.

    Attributes:
        history: the newest logged rows, for what `watch` says of them; on the first rank only.
    """

    def __init__(
        self,
        run: Run,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        world: World,
        device: torch.device,
        options: Options,
        about: Mapping[str, Any],
        best: Best | None,
    ) -> None:
        self.history: collections.deque[dict[str, Any]] = collections.deque(maxlen=WINDOW + 1)
        self._run, self._stage, self._optimizer = run, stage, optimizer
        self._world, self._device = world, device
        self._options, self._about, self._best = options, about, best
        self._evaluators = options.evaluators or {}
        self._peak = None
        if not run.config.lora.rank:  # frozen weights take fewer operations than are counted
            self._peak = options.peak_flops or known_peak(device, run.config.precision)
            if self._peak is None and options.measure_peak:
                self._peak = measured_peak(device, run.config.precision)
        self._num_skipped = 0

    def steps(self, first_step: int) -> None:
        """Do the steps after `first_step`, and save on the way; collective.

        Raises:
            LongspanError: loss or gradient are not finite; a checkpoint could not be written.
            Interrupted: the run was asked to stop, and has saved.
        """
        run, config = self._run, self._run.config
        batches = self._stage.loader(first_step, run.total_steps)
        with contextlib.ExitStack() as stack:
            reporters = [stack.enter_context(reporter) for reporter in self._reporters(first_step)]
            stack.enter_context(contextlib.closing(batches))
            writer = stack.enter_context(CheckpointWriter(run.checkpoints, keep=config.keep_checkpoints))
            stop_requested = stack.enter_context(stop_requests())
            for step, batch in enumerate(batches, first_step):
                done, is_last = step + 1, step + 1 == run.total_steps
                metrics, stopping = self._step(step, batch, writer, stop_requested)
                is_best = self._evaluate(done, metrics) if self._is_evaluated(done) else False
                self._report(reporters, done, metrics)
                if done % config.checkpoint_every == 0 or is_last or stopping or is_best:
                    self._save(done, writer)
                if stopping and not is_last:
                    on_first_process(self._world, self._device, writer.wait)
                    raise Interrupted(f"stopped after step {done} of {run.total_steps}; the checkpoint is saved")

    def _step(
        self, step: int, batch: Any, writer: CheckpointWriter, stop_requested: Callable[[], bool]
    ) -> tuple[dict[str, Any], bool]:
        """Gradient and update; returns the metrics, and whether some process was asked to stop."""
        config, stage = self._run.config, self._stage
        began = time.perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        metrics: dict[str, Any] = stage.objective.backward(stage.model, batch)
        gradient = clip_gradients(stage.model, config.optim.clip_norm)
        metrics["gradient_norm"] = gradient.norm
        if gradient.zero:
            metrics[ZERO_GRADIENTS] = gradient.zero
        metrics["lr"] = config.optim.lr * config.schedule.factor(step, self._run.total_steps)
        why = _not_finite(metrics)
        stopping, failed, bad = any_process(self._world, self._device, stop_requested(), writer.failed, why is not None)
        if failed:
            on_first_process(self._world, self._device, writer.wait)
        if bad:
            self._set_aside(step, batch, why or "not finite on another process", metrics)
        else:
            self._num_skipped = 0
            set_learning_rate(self._optimizer, metrics["lr"])
            self._optimizer.step()
        self._add_speeds(metrics, batch, time.perf_counter() - began)
        return metrics, stopping

    def _set_aside(self, step: int, batch: Any, why: str, metrics: dict[str, Any]) -> None:
        """Save a batch that spoilt the gradient; skip the step or stop."""
        config, folder = self._run.config, self._run.folder
        rows = self._stage.loader.rows(step)
        path = save_bad_batch(folder, step + 1, self._world.rank, batch, rows, why)
        _wait(self._world, self._device)  # an error on one process ends the others
        self._num_skipped += 1
        if config.on_non_finite == "stop" or self._num_skipped > config.max_skips:
            several = f", the {self._num_skipped}th in succession" if self._num_skipped > 1 else ""
            raise LongspanError(
                f"{why} in step {step + 1}{several}: the step was not applied",
                where=path,
                remedy="look at the batch, which is saved there; lower optim.lr, set optim.clip_norm, use precision "
                "fp32, or skip such steps with on_non_finite=skip; the last checkpoint is from before",
            )
        metrics["skipped"] = why
        metrics["flags"] = [f"step skipped: {why}; the batch is in {path.parent.name}/{path.name}"]

    def _add_speeds(self, metrics: dict[str, Any], batch: Any, seconds: float) -> None:
        metrics["seconds"] = seconds
        metrics["tokens_per_second"] = metrics["tokens"] / seconds
        if "pairs" in metrics:
            metrics["pairs_per_second"] = metrics["pairs"] / seconds
        if self._peak is not None:
            metrics["mfu"] = training_flops(self._stage.encoder, batch) / seconds / self._peak

    def _is_logged(self, done: int) -> bool:
        return done % self._run.config.log_every == 0 or done == self._run.total_steps

    def _is_evaluated(self, done: int) -> bool:
        every = self._run.config.evaluate_every
        is_due = done == self._run.total_steps or (every is not None and done % every == 0)
        return bool(self._evaluators) and is_due

    def _evaluate(self, done: int, metrics: dict[str, Any]) -> bool:
        """Add what the evaluators say to `metrics`; whether the watched metric is the best so far."""
        found: dict[str, Any] = {}
        with gathered(self._world), torch.no_grad():
            for name, evaluate in self._evaluators.items():
                numbers = evaluate(self._stage.model, self._world)
                found |= {f"eval/{name}/{number}": float(value) for number, value in numbers.items()}
        metrics |= found
        wanted = self._run.config.best_metric
        if wanted is None:
            return False
        on_first_process(self._world, self._device, lambda: _check_evaluated(found, wanted))
        # The first rank's number counts on all of them.
        own = torch.tensor(found.get(wanted, 0.0) if self._world.rank == 0 else 0.0, dtype=torch.float64)
        value = float(self._world.sum(own.to(self._device)))
        sign = 1 if self._run.config.best_is == "max" else -1
        if self._best is not None and sign * value <= sign * self._best.value:
            return False
        self._best = Best(done, wanted, value)
        return True

    def _report(self, reporters: list[Reporter], done: int, metrics: dict[str, Any]) -> None:
        if not reporters:
            return
        seen = flags([*self.history, metrics])
        if seen:
            metrics["flags"] = [*metrics.get("flags", []), *seen]
        log = self._is_logged(done) or "flags" in metrics or any(name.startswith("eval/") for name in metrics)
        for reporter in reporters:
            reporter.step(done, metrics, log=log)
        if log:
            self.history.append(metrics)

    def _save(self, done: int, writer: CheckpointWriter) -> None:
        is_first = self._world.rank == 0
        writer.idle()  # the last snapshot is gone before there is another
        snapshot = take_snapshot(done, self._stage.model, self._optimizer, self._about, best=self._best, keep=is_first)
        if is_first:
            writer.submit(snapshot)

    def _reporters(self, first_step: int) -> list[Reporter]:
        run = self._run
        if self._world.rank != 0:
            return []
        reporters: list[Reporter] = [
            JsonLines(run.metrics),
            ProgressBar(run.config.recipe, first_step, run.total_steps),
        ]
        if self._options.tensorboard:
            reporters.append(TensorBoard(run.folder / "tensorboard", first_step))
        if self._options.wandb is not None:
            first_start = (run.folder / ENVIRONMENT).read_text("utf-8").splitlines()[0]
            identity = sha256_json([str(run.folder.absolute()), first_start])[:16]
            config = run.settings.model_dump(mode="json")
            reporters.append(WandB(self._options.wandb, run.folder.absolute().name, identity, config))
        return reporters


def _finish(run: Run, stage: Stage, *, sharded: bool) -> None:
    best = best_checkpoint(run.checkpoints) if run.config.published == "best" else None
    if sharded or best is not None:  # no process has these weights whole: they are read back from a checkpoint
        stage = build_stage(run.config, Alone(), torch.device("cpu"), shape=run.settings.encoder, base=run.base)
        load_weights(best or newest_checkpoint(run.checkpoints), stage.model)
    stage.save_model(run.model)
    weights = sha256_file(run.model / WEIGHTS)
    # The loss is read back: a run that was killed right here is resumed without a step to do.
    run.finish({"steps": run.total_steps, "loss": run.logged()[-1]["loss"], "model_sha256": weights})


def _check_evaluated(found: Mapping[str, Any], wanted: str) -> None:
    if wanted not in found:
        remedy = "choose one of " + ", ".join(sorted(found))
        raise LongspanError(f"the evaluation gives no {wanted!r}", where="best_metric", remedy=remedy)


def _not_finite(metrics: dict[str, Any]) -> str | None:
    wrong = [name for name in ("loss", "gradient_norm") if not math.isfinite(metrics[name])]
    return f"{wrong[0]} is {metrics[wrong[0]]}" if wrong else None


def _data_and_shape(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in ("data", "encoder")}


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    # A run must be resumable from any working directory.
    changes: dict[str, Any] = {"data": str(Path(config.data).absolute())}
    if config.init is not None and Path(config.init).is_dir():
        changes["init"] = str(Path(config.init).absolute())
    if config.held_out.data is not None:
        place = str(Path(config.held_out.data).absolute())
        changes["held_out"] = config.held_out.model_copy(update={"data": place})
    return config.model_copy(update=changes)


def _check_options(config: TrainConfig, options: Options) -> None:
    if options.tensorboard:
        summary_writer()
    if options.wandb is not None:
        wandb()
    if config.lora.rank and options.parallel not in (None, "ddp"):
        raise LongspanError(
            "adapters are trained with the whole model on every process", where="--parallel", remedy="use ddp"
        )
    if not options.evaluators and (config.evaluate_every is not None or config.best_metric is not None):
        key = "best_metric" if config.evaluate_every is None else "evaluate_every"
        raise LongspanError(
            f"{key} is set, and there is nothing to evaluate with",
            where=key,
            remedy="name what to measure on (--eval-data), give the run its evaluators, as at its start, or leave the "
            "setting out",
        )


@contextlib.contextmanager
def _world(device: str | None) -> Iterator[tuple[torch.device, World]]:
    place = local_device(device)
    world = join_world(place)
    try:
        yield place, world
    finally:
        leave_world(world)


@contextlib.contextmanager
def _locked(folder: Path, world: World, device: torch.device) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        on_first_process(world, device, lambda: held.enter_context(locked(folder)))
        yield


def _wait(world: World, device: torch.device) -> None:
    world.sum(torch.zeros(1, device=device))
