"""What a run tells while it goes: JSON Lines always, a progress bar on a terminal, TensorBoard if wanted."""

from __future__ import annotations

import json
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
            self._stream.write(json.dumps({"step": step} | metrics) + "\n")
            self._stream.flush()


class ProgressBar:
    """Shows the loss and tokens per second beside a bar with the time left."""

    def __init__(self, name: str, first_step: int, total_steps: int, console: Console | None = None) -> None:
        self._bar = Bar(name, total_steps, done=first_step, console=console)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, tb)

    def step(self, step: int, metrics: dict[str, Any], *, log: bool) -> None:
        """See `Reporter`."""
        self._bar.advance(1, f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tok/s")


class TensorBoard:
    """Writes every numeric metric of logged steps as a TensorBoard scalar.

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
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step)


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
