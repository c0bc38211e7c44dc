"""GLUE under the paper's protocol (section 5.1, Table 2): every task is finetuned with several settings and seeds.

The paper follows Liu et al. (2019): of the settings (batch size and learning rate) the one with the best median over
the seeds counts, and that median is the score. Each trial is a folder that is written when it is finished, so a killed
sweep goes on with the trials that are missing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from longspan.config import Config
from longspan.errors import LongspanError
from longspan.evaluate.glue_tasks import TASKS, missing_tasks, task_by_name
from longspan.evaluate.glue_trial import SCORE, WEIGHTS, Trial, TrialConfig, run_trial
from longspan.files import write_json
from longspan.model.folder import read_model
from longspan.progress import Tell

SUMMARY = "glue.json"

TITLES = {name: task.title for name, task in TASKS.items()}
"""Task -> its column in Table 2."""

_MNLI = "mnli"


class GlueProtocol(Config):
    """Which trials are made. The defaults are the paper's: 30 trials a task."""

    batch_sizes: tuple[int, ...] = Field(default=(16, 32), min_length=1)
    lrs: tuple[float, ...] = Field(default=(1e-5, 2e-5, 3e-5), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    epochs: int = Field(default=10, gt=0)
    max_length: int = Field(default=128, ge=5)
    from_mnli: bool = True
    """Whether RTE, STS-B and MRPC start from the encoder of the best MNLI trial."""
    precision: Literal["float32", "bfloat16"] = "float32"

    def deviations(self) -> list[str]:
        """In words, where this is not the paper's protocol."""
        papers = GlueProtocol().model_dump()
        ours = self.model_dump(exclude={"from_mnli", "precision"})
        said = [f"GLUE {name} {_shown(value)}, the paper's {_shown(papers[name])}"
                for name, value in ours.items() if value != papers[name]]  # fmt: skip
        return said if self.from_mnli else [*said, "GLUE RTE, STS-B and MRPC do not start from MNLI, the paper's do"]

    def trials(self, task: str) -> list[TrialConfig]:
        """All trials of a task."""
        return [
            TrialConfig(
                task=task,
                batch_size=batch_size,
                lr=lr,
                seed=seed,
                epochs=self.epochs,
                max_length=self.max_length,
                precision=self.precision,
            )
            for batch_size in self.batch_sizes
            for lr in self.lrs
            for seed in self.seeds
        ]


QUICK = GlueProtocol(batch_sizes=(32,), lrs=(3e-5,), seeds=(0,), epochs=3, from_mnli=False)
"""One short trial a task: whether a model learns at all."""


@dataclass(frozen=True)
class SettingScore:
    """A setting and what it scores after the last epoch, by seed in order."""

    batch_size: int
    lr: float
    scores: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.scores)


@dataclass(frozen=True)
class GlueResults:
    """Scores of a model on some tasks.

    Attributes:
        model: its name.
        trained_length: longest sequence of its training, in tokens.
        protocol: which trials were made.
        settings: task -> every setting.
    """

    model: str
    trained_length: int
    protocol: GlueProtocol
    settings: dict[str, tuple[SettingScore, ...]]

    def best(self, task: str) -> SettingScore:
        """The setting with the best median; the first of equals."""
        return max(self.settings[task], key=lambda setting: setting.median)

    def average(self) -> float | None:
        """Mean over the eight tasks; None if one is missing."""
        if self.settings.keys() != TASKS.keys():
            return None
        return statistics.fmean(self.best(task).median for task in TASKS)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        tasks = {}
        for task, settings in self.settings.items():
            best = self.best(task)
            tasks[task] = {
                "metric": TASKS[task].metric.__name__,
                "score": best.median,
                "batch_size": best.batch_size,
                "lr": best.lr,
                "median_of_all_trials": statistics.median(score for one in settings for score in one.scores),
                "settings": [vars(one) | {"scores": list(one.scores)} for one in settings],
            }
        return {
            "suite": "glue",
            "model": self.model,
            "precision": self.protocol.precision,
            "trained_length": self.trained_length,
            "protocol": self.protocol.model_dump(mode="json"),
            "deviations": self.protocol.deviations(),
            "average": self.average(),
            "tasks": tasks,
        }


def run_glue(
    model: str,
    out: Path,
    *,
    data: Path | None = None,
    tasks: Sequence[str] | None = None,
    protocol: GlueProtocol | None = None,
    devices: Sequence[str] | None = None,
    progress: Tell | None = None,
) -> GlueResults:
    """Finetune and measure, skipping trials that are finished in `out`.

    A trial is kept by the model's weights, the rows, and its settings; a change of any of these trains again.

    Args:
        model: folder, finished run or hub id.
        out: folder of results; a trial is in `TASK/bBATCH-lrLR-sSEED`.
        data: folder of GLUE (see `read_glue`); None: the hub.
        tasks: some of `TASKS` (all). MNLI is added where another task starts from it.
        protocol: None: the paper's.
        devices: one trial at a time on each; None: all GPUs, or the CPU.
        progress: told of steps, or of trials where there are several devices.

    Raises:
        LongspanError: a task is unknown or its data are missing (before anything is trained), or whatever `run_trial`
            raises.
    """
    protocol = protocol or GlueProtocol()
    chosen = [task_by_name(name).name for name in tasks or TASKS]
    if needs_mnli := protocol.from_mnli and any(TASKS[name].from_mnli for name in chosen):
        chosen = [*([] if _MNLI in chosen else [_MNLI]), *chosen]
    _refuse_missing(chosen, data, needs_mnli)
    encoder, _, _ = read_model(model)
    devices = list(devices or _all_devices())
    out, scores = Path(out), {}
    waiting = [name for name in chosen if needs_mnli and TASKS[name].from_mnli]
    first = [
        Trial(config, out / name / config.name, model, data, keep_weights=needs_mnli and name == _MNLI)
        for name in chosen
        if name not in waiting
        for config in protocol.trials(name)
    ]
    scores |= _run(first, devices, progress)
    if waiting:
        start = _best_mnli(out, protocol, scores)
        second = [
            Trial(config, out / name / config.name, model, data, start)
            for name in waiting
            for config in protocol.trials(name)
        ]
        scores |= _run(second, devices, progress)
    settings = {name: _settings(protocol, out / name, scores) for name in TASKS if name in chosen}
    results = GlueResults(model, encoder.config.trained_length, protocol, settings)
    write_json(out / SUMMARY, results.as_json())
    return results


def _refuse_missing(chosen: Sequence[str], data: Path | None, needs_mnli: bool) -> None:
    missing = missing_tasks(chosen, data)
    if not missing:
        return
    remedy = "put a folder with train and validation there for each"
    if there := [name for name in chosen if name not in missing]:
        remedy += f"; or measure what is there: --tasks {','.join(there)}"
    if needs_mnli and _MNLI in missing:
        remedy += "; and start RTE, STS-B and MRPC from the model itself: --no-mnli"
    raise LongspanError(f"GLUE's {', '.join(missing)} is not there", where=str(data), remedy=remedy)


def _settings(protocol: GlueProtocol, folder: Path, scores: dict[Path, float]) -> tuple[SettingScore, ...]:
    by_setting: dict[tuple[int, float], list[float]] = {}
    for config in protocol.trials(folder.name):
        by_setting.setdefault((config.batch_size, config.lr), []).append(scores[folder / config.name])
    return tuple(SettingScore(batch_size, lr, tuple(values)) for (batch_size, lr), values in by_setting.items())


def _best_mnli(out: Path, protocol: GlueProtocol, scores: dict[Path, float]) -> Path:
    """The weights of the best MNLI trial; those of the others are deleted."""
    folders = [out / _MNLI / config.name for config in protocol.trials(_MNLI)]
    best = max(folders, key=lambda folder: scores[folder])
    for folder in folders:
        if folder != best:
            (folder / WEIGHTS).unlink(missing_ok=True)
    if not (best / WEIGHTS).exists():
        raise LongspanError(
            "the best MNLI trial has no weights beside its score",
            where=best,
            remedy=f"delete its {SCORE} and run the same command again: it is trained again",
        )
    return best / WEIGHTS


def _all_devices() -> list[str]:
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def _run(trials: Sequence[Trial], devices: Sequence[str], progress: Tell | None) -> dict[Path, float]:
    """Folder -> score."""
    if len(devices) == 1:
        return {trial.folder: run_trial(trial, devices[0], _steps(trial, progress)) for trial in trials}
    scores: dict[Path, float] = {}
    with _pool(devices) as pool:
        waiting = {pool.submit(_run_in_worker, trial): trial for trial in trials}
        for finished in as_completed(waiting):
            scores[waiting[finished].folder] = finished.result()
            if progress is not None:
                progress("trials", len(scores), len(trials))
    return scores


def _steps(trial: Trial, progress: Tell | None) -> Any:
    what = f"{trial.config.task} {trial.config.name}"
    return None if progress is None else lambda step, total: progress(what, step, total)


@contextlib.contextmanager
def _pool(devices: Sequence[str]) -> Iterator[ProcessPoolExecutor]:
    """A process for each device; trials that have not begun are dropped when one fails."""
    context = multiprocessing.get_context("spawn")  # a process that has used a GPU cannot be forked
    free = context.Queue()
    for device in devices:
        free.put(device)
    pool = ProcessPoolExecutor(len(devices), mp_context=context, initializer=_take_device, initargs=(free,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_own: dict[str, str] = {}
"""In a worker: its device."""


def _take_device(free: Any) -> None:
    _own["device"] = free.get()


def _run_in_worker(trial: Trial) -> float:
    return run_trial(trial, _own["device"])


def _shown(value: Any) -> str:
    return ", ".join(f"{one:g}" for one in value) if isinstance(value, tuple) else str(value)
