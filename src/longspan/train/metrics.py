"""What a run tells while it goes: JSON Lines always, a progress bar on a terminal, TensorBoard and W&B if wanted."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich.console import Console

from longspan.errors import LongspanError
from longspan.progress import Bar

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Reporter(Protocol):
    """Something that is told about steps."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def step(self, step: int, metrics: dict[str, Any], *, log: bool) -> None:
        """Step `step` (from 1) is done; `log` says whether it is one of the steps to keep."""
        ...


class JsonLines:
    """Appends logged steps to `metrics.jsonl`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._stream = open(self._path, "a", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stream.close()

    def step(self, step: int, metrics: dict[str, Any], *, log: bool) -> None:
        """See `Reporter`."""
        if log:
            row = {name: None if _is_not_finite(value) else value for name, value in metrics.items()}
            self._stream.write(json.dumps({"step": step} | row) + "\n")
            self._stream.flush()


class ProgressBar:
    """Shows the loss and the speed beside a bar with the time left, and above it what a person should look at."""

    def __init__(self, name: str, first_step: int, total_steps: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Bar(name, total_steps, done=first_step, console=self._console)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, tb)

    def step(self, step: int, metrics: dict[str, Any], *, log: bool) -> None:
        """See `Reporter`."""
        for line in metrics.get("flags", ()):
            self._console.print(f"step {step}: {line}", highlight=False, markup=False, soft_wrap=True)
        latest = f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tok/s"
        if "pairs_per_second" in metrics:
            latest += f"  {metrics['pairs_per_second']:,.0f} pairs/s"
        if "mfu" in metrics:
            latest += f"  {metrics['mfu']:.0%} of peak"
        self._bar.advance(1, latest)


class TensorBoard:
    """Writes the numbers of logged steps as TensorBoard scalars.

    Steps after `first_step` that an interrupted part of the run has written already are struck out."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = summary_writer()(str(folder), purge_step=first_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._writer.close()

    def step(self, step: int, metrics: dict[str, Any], *, log: bool) -> None:
        """See `Reporter`."""
        if log:
            for name, value in scalars(metrics).items():
                self._writer.add_scalar(name, value, step)


class WandB:
    """Sends the numbers of logged steps to Weights & Biases.

    Args:
        identity: of the run there; a resumed run goes on under the one it began with.
        config: shown beside the curves.

    Raises:
        LongspanError: wandb is not installed.
    """

    def __init__(self, project: str, name: str, identity: str, config: dict[str, Any]) -> None:
        self._run = wandb().init(project=project, name=name, id=identity, resume="allow", config=config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)

    def step(self, step: int, metrics: dict[str, Any], *, log: bool) -> None:
        """See `Reporter`."""
        if log:
            self._run.log(scalars(metrics), step=step)


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers among the metrics of a step; the accuracy also under the name of the batch's source."""
    numbers: dict[str, float] = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    if "source" in metrics and "accuracy" in numbers:
        numbers[f"accuracy/{metrics['source']}"] = numbers["accuracy"]
    return numbers


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def summary_writer() -> type[SummaryWriter]:
    """TensorBoard's writer.

    Raises:
        LongspanError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise LongspanError(
            "TensorBoard is not installed", where="--tensorboard", remedy="pip install 'longspan[tensorboard]'"
        ) from None
    return SummaryWriter


def wandb() -> Any:
    """The package of Weights & Biases.

    Raises:
        LongspanError: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise LongspanError("wandb is not installed", where="--wandb", remedy="pip install 'longspan[wandb]'") from None
