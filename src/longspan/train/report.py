"""A run directory as one page: curves, what it learnt from, how it was configured, where it ran, and what it read."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from longspan.data.dataset import find_prepared
from longspan.data.sample import SeenRow, sample_pairs, sample_text
from longspan.errors import LongspanError
from longspan.files import write_text
from longspan.objective.mlm import MaskedConfig
from longspan.page import page, table
from longspan.train.config import TrainConfig
from longspan.train.run import ENVIRONMENT, Run

_WIDTH, _HEIGHT = 320, 120
_MOST_POINTS = 400
"""A curve of more steps is drawn from the means of stretches of them."""
_COLOUR = "#27a"
_FEWEST_SMOOTHED, _SMOOTHED_PART = 40, 1 / 20
"""A curve of so many points also gets its running mean, over this part of them: batches of different sources differ."""

_CURVES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "lr": "learning rate",
    "gradient_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "pairs_per_second": "pairs per second",
    "mfu": "share of the peak rate",
    "cut": "texts cut",
    "temperature": "temperature",
    "false_negatives": "candidates left out for their score",
}
"""Metric -> title of its curve, where the run has it; evaluations and other losses come after these."""

NUM_SAMPLES = 2
"""Rows shown of each source."""
_LONGEST_SAMPLE = 400
"""Characters shown of a text."""


def write_report(run_folder: Path, out: Path) -> Path:
    """Write one self-contained HTML file about a run, finished or not.

    Args:
        run_folder: the run directory.
        out: the file.

    Raises:
        LongspanError: `run_folder` is not a run directory, or the file cannot be written.
    """
    run = Run(run_folder)
    logged = run.logged()
    state = "finished" if run.finished else "not finished"
    done = logged[-1]["step"] if logged else 0
    parts = [
        f"<p>Recipe {escape(run.config.recipe)}, {state}: step {done:,} of {run.total_steps:,}.</p>",
        _summary(logged, run),
        "<h2>Curves</h2>" + (curves(logged) or "<p>No step is logged yet.</p>"),
        _part("What should be looked at", _flags(logged)),
        _part("What it learnt from", _mix(logged)),
        _part("What it read", _samples(run.config)),
        _part("Starts", _starts(run_folder)),
        _part("Configuration", _configuration(run)),
    ]
    write_text(out, page(f"Run {run_folder.resolve().name}", parts))
    return out


def curves(logged: Sequence[Mapping[str, Any]]) -> str:
    """The curves of logged steps as SVG figures, a figure for each metric that they have."""
    names = [name for name in _CURVES if any(name in row for row in logged)]
    names += sorted({name for row in logged for name in row if name.startswith(("eval/", "loss_", "accuracy_"))})
    figures = []
    for name in names:
        points = [(float(row["step"]), float(row[name])) for row in logged if row.get(name) is not None]
        if points:
            figures.append(_figure(_CURVES.get(name, name), points))
    return "".join(figures)


def _figure(title: str, points: Sequence[tuple[float, float]]) -> str:
    points = _thinned(points)
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))

    def place(x: float, y: float) -> str:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return f"{_WIDTH * across:.1f},{_HEIGHT * (1 - up):.1f}"

    def line(points: Sequence[tuple[float, float]], opacity: float) -> str:
        where = " ".join(place(x, y) for x, y in points)
        return f'<polyline points="{where}" fill="none" stroke="{_COLOUR}" stroke-width="1.5" opacity="{opacity}"/>'

    last = points[-1][1]
    if len(points) == 1:
        x, y = place(*points[0]).split(",")
        drawn = f'<circle cx="{x}" cy="{y}" r="3" fill="{_COLOUR}"/>'
    elif len(points) < _FEWEST_SMOOTHED:
        drawn = line(points, 1)
    else:
        drawn = line(points, 0.3) + line(_smoothed(points), 1)
    return (
        f"<figure><figcaption>{escape(title)}, at the end {last:.4g}</figcaption>"
        f'<svg width="{_WIDTH + 60}" height="{_HEIGHT + 20}">'
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>'
        f"{drawn}"
        f'<text x="{_WIDTH + 4}" y="10">{high:.4g}</text><text x="{_WIDTH + 4}" y="{_HEIGHT}">{low:.4g}</text>'
        f'<text x="0" y="{_HEIGHT + 14}">{left:,.0f}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{right:,.0f} steps</text></svg></figure>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    size = -(-len(points) // _MOST_POINTS)
    if size == 1:
        return points
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(stretch[-1][0], sum(y for _, y in stretch) / len(stretch)) for stretch in stretches]


def _smoothed(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Each point the mean of itself and of those before it that are near."""
    size = max(2, round(len(points) * _SMOOTHED_PART))
    means = []
    for end in range(1, len(points) + 1):
        near = points[max(0, end - size) : end]
        means.append((points[end - 1][0], sum(y for _, y in near) / len(near)))
    return means


def _summary(logged: Sequence[Mapping[str, Any]], run: Run) -> str:
    """Where it ended, in a line; empty before the first logged step."""
    if not logged:
        return ""
    last, share = logged[-1], len(logged) / max(1, logged[-1]["step"])
    tokens, seconds = (sum(row[name] for row in logged) / share for name in ("tokens", "seconds"))
    about = "" if share == 1 else "about "
    rows = [
        ["loss", f"{last['loss']:.4g}"],
        ["tokens read", f"{about}{tokens:,.0f}"],
        ["time in steps", f"{about}{datetime.timedelta(seconds=round(seconds))}"],
        ["tokens a second", f"{tokens / seconds:,.0f}"],
        ["started from", run.config.init or "random weights"],
        ["data", run.config.data],
    ]
    return table(["", ""], rows, names=2)


def _mix(logged: Sequence[Mapping[str, Any]]) -> str:
    """A row for each source: its logged steps and its means; empty where a step has no source."""
    sources: dict[str, list[Mapping[str, Any]]] = {}
    for row in logged:
        if "source" in row:
            sources.setdefault(str(row["source"]), []).append(row)
    if not sources:
        return ""
    means: dict[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
        "loss": lambda rows: _mean(rows, "loss"),
        "in-batch accuracy": lambda rows: _mean(rows, "accuracy"),
        "at the end": lambda rows: _mean(rows[-max(1, len(rows) // 10) :], "accuracy"),
        "tokens of a step": lambda rows: _mean(rows, "tokens"),
        "texts cut": lambda rows: _mean(rows, "cut"),
    }
    rows = [
        [name, f"{len(of):,}", f"{len(of) / len(logged):.1%}", *(show(of) for show in means.values())]
        for name, of in sorted(sources.items(), key=lambda one: -len(one[1]))
    ]
    return table(["source", "logged steps", "share", *means], rows, names=1)


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [float(row[name]) for row in rows if row.get(name) is not None]
    return f"{sum(values) / len(values):,.4g}" if values else ""


def _flags(logged: Sequence[Mapping[str, Any]]) -> str:
    rows = [[f"{row['step']:,}", text] for row in logged for text in row.get("flags", ())]
    return table(["step", ""], rows, names=2) if rows else ""


def _samples(config: TrainConfig) -> str:
    """Some rows as the model reads them; what the prepared data no longer gives is not shown."""
    folder, objective = Path(config.data), config.objective
    rows: list[SeenRow] = []
    try:
        if isinstance(objective, MaskedConfig):
            rows += sample_text(
                folder, num_rows=NUM_SAMPLES, row_length=objective.row_length, mask_rate=objective.mask_rate
            )
        else:
            there = [manifest.name for manifest in find_prepared(folder).values() if manifest.kind == "pairs"]
            for source in config.sources or there:
                rows += sample_pairs(
                    folder,
                    source=source,
                    num_rows=NUM_SAMPLES,
                    max_query_tokens=objective.max_query_tokens,
                    max_document_tokens=objective.max_document_tokens_of.get(source, objective.max_document_tokens),
                    num_negatives=min(1, objective.num_negatives),
                    prefixes=config.prefixes,
                )
    except LongspanError as error:
        return f"<p>The prepared data gives no samples: {escape(str(error))}</p>"
    shown = [
        [row.source or "text", f"{row.row:,}", text.role, _shortened("".join(text.pieces)), f"{text.num_tokens:,}"]
        for row in rows
        for text in row.texts
    ]
    return table(["source", "row", "", "as the model reads it", "tokens"], shown, names=4)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SAMPLE else text[:_LONGEST_SAMPLE] + " ..."


def _starts(folder: Path) -> str:
    path = folder / ENVIRONMENT
    if not path.is_file():
        return ""
    starts = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    names = list(dict.fromkeys(name for start in starts for name in start))
    rows = [[name.replace("_", " "), *(_shown(start.get(name)) for start in starts)] for name in names]
    return table(["", *(f"start {number}" for number in range(1, len(starts) + 1))], rows, names=1 + len(starts))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _configuration(run: Run) -> str:
    values = run.settings.model_dump(mode="json")
    rows = [[key, json.dumps(value, ensure_ascii=False)] for key, value in _leaves(values)]
    return f"<details><summary>all settings</summary>{table(['key', 'value'], rows, names=2)}</details>"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and their values, as `--set` would write them."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return found


def _part(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""
