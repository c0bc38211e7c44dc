"""What a person should look at in a run: losses that jump, and weights that learn nothing.

Pure functions of the logged rows, so that a run that was killed and resumed flags what the undisturbed one flags.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 100
"""Logged rows that are looked back at."""
LEAST = 20
"""With fewer losses than this nothing is known about their spread."""
SPIKE = 10.0
"""A loss is a spike when it is this many median absolute deviations above the median (some 7 standard deviations of a
normal distribution)."""
DEAD_ROWS = 3
"""A weight is dead when its gradient was zero in this many rows, one after another."""
ZERO_GRADIENTS = "zero_gradients"
"""The metric that names the weights whose gradient is zero."""


def spike(loss: float, earlier: Sequence[float]) -> str | None:
    """Whether `loss` is far above the `earlier` ones, in words; None: it is not, or too few are known.

    Median and median absolute deviation, because one spike must not hide the next.
    """
    if len(earlier) < LEAST:
        return None
    median = statistics.median(earlier)
    deviation = statistics.median(abs(value - median) for value in earlier)
    # Losses that hardly differ would make a spike of every rounding.
    limit = median + SPIKE * max(deviation, 1e-3 * abs(median))
    if loss <= limit:
        return None
    return f"loss spike: {loss:.4g}, where the last {len(earlier)} logged ones have the median {median:.4g}"


def dead(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The weights that have just become dead: without gradient in the last `DEAD_ROWS` rows, but not in the one before.

    Args:
        rows: the logged rows up to now, the newest last.
    """
    if len(rows) < DEAD_ROWS:
        return []
    last = [set(row.get(ZERO_GRADIENTS, ())) for row in rows[-DEAD_ROWS - 1 :]]
    before = last.pop(0) if len(last) > DEAD_ROWS else set()
    return sorted(set.intersection(*last) - before)


def _has_loss(row: Mapping[str, Any]) -> bool:
    # A skipped step has none in metrics.jsonl, and one that is not finite in memory.
    return row.get("loss") is not None and math.isfinite(row["loss"])


def flags(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the newest of `rows` gives cause to say, beside the rows before it."""
    *earlier, newest = rows[-WINDOW - 1 :]
    found = []
    if _has_loss(newest):
        jump = spike(newest["loss"], [row["loss"] for row in earlier if _has_loss(row)])
        found += [] if jump is None else [jump]
    names = dead(rows)
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        found.append(f"dead gradient: exactly zero {DEAD_ROWS} times in succession: {shown}")
    return found
