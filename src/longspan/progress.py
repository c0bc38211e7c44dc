"""Progress of long work: a bar with the time left on a terminal, a line now and then where there is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_PER_LINE = 20.0
"""Without a terminal, a line is printed at most this often (and one at the end)."""

Tell = Callable[[str, int, int], None]
"""`tell(what, done, total)`: so much of what is being done is done (total 0: not known yet). `Bars.show` is one."""


def counted(tell: Tell | None, what: str, total: int) -> Callable[[int], None]:
    """A function that is called with how much more is done, and tells the sum."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if tell is not None:
            tell(what, done, total)

    return advance


class Bar:
    """`with Bar("filter", total=1000) as bar: bar.advance(10)`; written to stderr."""

    def __init__(self, name: str, total: int, *, done: int = 0, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._name, self._total, self._done, self._first = name, total, done, done
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task(self._name, total=self._total, completed=self._done, latest="")
        self._began = self._last_line = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def advance(self, count: int, latest: str = "") -> None:
        """`count` more are done; `latest` is shown beside the bar."""
        self._done += count
        self._progress.update(self._task, completed=self._done, latest=latest)
        now = time.monotonic()
        if not self._console.is_terminal and (
            now - self._last_line >= SECONDS_PER_LINE or (count and self._done >= self._total)
        ):
            self._last_line = now
            self._print_line(now, latest)

    def _print_line(self, now: float, latest: str) -> None:
        rate = (self._done - self._first) / max(now - self._began, 1e-9)
        left = f", {(self._total - self._done) / rate:.0f} s left" if rate and self._done < self._total else ""
        line = f"{self._name}: {self._done:,}/{self._total:,}{left}  {latest}".rstrip()
        self._console.print(line, highlight=False, soft_wrap=True)


class Bars:
    """Bars one after the other, each with its throughput: `with Bars("squad") as bars: work(progress=bars.show)`."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        self._name, self._console = name, console
        self._open = contextlib.ExitStack()
        self._what, self._done = "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def show(self, what: str, done: int, total: int, throughput: str | None = None) -> None:
        """So much of `what` is done; a new name ends the bar before. Nothing is shown while the total is not known.

        Args:
            throughput: shown instead of how much is done in a second.
        """
        if not total:
            return
        if what != self._what:
            self._open.close()
            self._what, self._done = what, 0
            self._began = time.monotonic()
            self._bar = self._open.enter_context(Bar(f"{self._name}: {what}", total, console=self._console))
        rate = done / max(time.monotonic() - self._began, 1e-9)
        self._bar.advance(done - self._done, throughput or f"{rate:,.0f}/s")
        self._done = done
