"""Reports of curation steps as pages: facts, score histograms, and pairs that a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from longspan.curate.report import Example, Histogram, Report, Table
from longspan.files import write_text
from longspan.page import page, table

_WIDTH, _HEIGHT = 640, 140
_COLOURS = ("#27a", "#d73", "#493", "#a4a")
_NUM_TICKS = 10
_HISTOGRAM = "histogram"
_IN_TABLES = ("top_k_and_threshold",)
"""Facts that a report's tables show."""
_BAR, _NAMES = 20, 120
"""Height of a bar, and room for the names before the bars."""


def write_page(path: Path, title: str, reports: Sequence[Report], columns: Sequence[str] = ()) -> None:
    """Write one self-contained HTML file about one source, or several.

    Args:
        columns: facts of which a table has one row for each source.

    Raises:
        LongspanError: the place cannot be written.
    """
    overview = ""
    if columns:
        rows = [[report.name, *(_shown(report.facts[column]) for column in columns)] for report in reports]
        overview = table(["source", *columns], rows, names=1)
    write_text(path, page(title, [overview, *(_section(report) for report in reports)]))


def write_values_page(path: Path, title: str, values: Mapping[str, Any]) -> None:
    """Write a page of plain values: those of one step that has nothing to plot.

    Args:
        values: facts; a mapping or a list of mappings becomes a table of its own, and what a mapping calls `histogram`
            bars.

    Raises:
        LongspanError: the place cannot be written.
    """
    write_text(path, page(title, _blocks(values, "h2")))


def _blocks(values: Mapping[str, Any], heading: str) -> list[str]:
    """What is plain as one table, and below it every mapping or list of mappings under its name."""
    plain = {name: value for name, value in values.items() if not isinstance(value, dict | list)}
    parts = [table(["", ""], [[_name(name), _shown(value)] for name, value in plain.items()], names=2)]
    for name, value in values.items():
        if name not in plain and value:
            parts += [f"<{heading}>{escape(_name(name))}</{heading}>", *_block(value)]
    return parts


def _block(value: dict[str, Any] | list[Any]) -> list[str]:
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        heads = list(dict.fromkeys(key for one in value for key in one))
        rows = [[_shown(one.get(head, "")) for head in heads] for one in value]
        return [table([_name(head) for head in heads], rows, names=len(heads))]
    if isinstance(value, list):
        return [table([""], [[_shown(one)] for one in value], names=1)]
    if all(isinstance(one, dict) for one in value.values()):
        if any(_is_nested(inner) for one in value.values() for inner in one.values()):
            return [part for name, one in value.items() for part in (f"<h3>{escape(name)}</h3>", *_blocks(one, "h4"))]
        heads = list(dict.fromkeys(key for one in value.values() for key in one))
        rows = [[name, *(_shown(one.get(head, "")) for head in heads)] for name, one in value.items()]
        return [table(["", *(_name(head) for head in heads)], rows, names=1)]
    rows = [[_name(key), _shown(one)] for key, one in value.items() if key != _HISTOGRAM]
    return [table(["", ""], rows, names=2), _bars(value.get(_HISTOGRAM, {}))]


def _is_nested(value: Any) -> bool:
    """Whether mappings lie in it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(one, dict) for one in inner)


def _bars(counts: dict[str, int]) -> str:
    """A bar for each name, from the first to the last that has any."""
    filled = [place for place, count in enumerate(counts.values()) if count]
    if not filled:
        return ""
    shown, highest = list(counts.items())[filled[0] : filled[-1] + 1], max(counts.values())
    shapes = []
    for number, (name, count) in enumerate(shown):
        y, width = number * _BAR, _WIDTH / 2 * count / highest
        shapes.append(
            f'<text x="{_NAMES - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{_NAMES}" y="{y + 2}" width="{width:.1f}" height="{_BAR - 4}" fill="{_COLOURS[0]}"/>'
            f'<text x="{_NAMES + width + 6:.1f}" y="{y + 14}">{count:,}</text>'
        )
    return f'<figure><svg width="{_WIDTH}" height="{len(shown) * _BAR}">{"".join(shapes)}</svg></figure>'


def _name(key: str) -> str:
    return key.replace("_", " ")


def _section(report: Report) -> str:
    facts = [[_name(name), _fact(name, value)] for name, value in report.facts.items() if name not in _IN_TABLES]
    parts = [f"<h2>{escape(report.name)}</h2>", table(["", ""], facts, names=2)]
    parts += [_plot(histogram) for histogram in report.histograms]
    parts += [_titled_table(one) for one in report.tables]
    parts += [_examples(kind, examples) for kind, examples in report.examples.items() if examples]
    return "\n".join(parts)


def _fact(name: str, value: Any) -> str:
    if name != "search" or not isinstance(value, dict):
        return _shown(value)
    if value["exact"]:
        said = "every document was looked at"
    else:
        said = (
            f"{value['num_probes']:,} of an index's {value['num_lists']:,} lists, which find {value['recall']:.1%} of "
            f"the nearest documents (measured on {value['num_measured']:,} queries)"
        )
    known = value.get("ranks_known_to")
    return said if known is None else f"{said}; ranks are known up to {known}"


def _titled_table(one: Table) -> str:
    return f"<h3>{escape(one.title)}</h3>{table(one.heads, one.rows, names=1)}"


def _shown(value: Any) -> str:
    match value:
        case bool() | None:
            return {True: "yes", False: "no", None: "none"}[value]
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case dict():
            return ", ".join(f"{_name(str(key))}: {_shown(one)}" for key, one in value.items())
        case list() | tuple():
            return ", ".join(_shown(one) for one in value)
        case _:
            return str(value)


def _plot(histogram: Histogram) -> str:
    """Series over one another, each as parts of its own total, so that a small one is seen beside a large one."""
    low, high = histogram.edges[0], histogram.edges[-1]
    totals = {name: max(sum(counts), 1) for name, counts in histogram.series.items()}
    highest = max((count / totals[name] for name, counts in histogram.series.items() for count in counts), default=0)

    def x_of(value: float) -> float:
        return (value - low) / (high - low) * _WIDTH

    shapes, keys = [], []
    for number, (name, counts) in enumerate(histogram.series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        for left, right, count in zip(histogram.edges, histogram.edges[1:], counts, strict=False):
            if count:
                height = _HEIGHT * count / totals[name] / highest
                title = f"{escape(name)}, {left:.2f} to {right:.2f}: {count:,} ({count / totals[name]:.1%})"
                shapes.append(
                    f'<rect x="{x_of(left):.2f}" y="{_HEIGHT - height:.2f}" width="{x_of(right) - x_of(left):.2f}" '
                    f'height="{height:.2f}" fill="{colour}" fill-opacity=".5"><title>{title}</title></rect>'
                )
        keys.append(f'<span class="key" style="background:{colour}"></span>{escape(name)} ({sum(counts):,})')
    for name, value in histogram.marks.items():
        if low <= value <= high:
            shapes.append(
                f'<line class="cut" x1="{x_of(value):.2f}" x2="{x_of(value):.2f}" y1="0" y2="{_HEIGHT}"/>'
                f'<text x="{x_of(value) + 3:.2f}" y="10">{escape(name)} {value:.3f}</text>'
            )
    step = max(1, (len(histogram.edges) - 1) // _NUM_TICKS)
    ticks = [
        f'<text x="{x_of(edge):.2f}" y="{_HEIGHT + 14}" text-anchor="middle">{edge:.2f}</text>'
        for edge in histogram.edges[::step]
    ]
    axis = f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>'
    return (
        f"<figure><figcaption>{escape(histogram.title)}<br>{' &emsp; '.join(keys)}</figcaption>"
        f'<svg width="{_WIDTH}" height="{_HEIGHT + 20}">{"".join([*shapes, axis, *ticks])}</svg></figure>'
    )


def _examples(kind: str, examples: Sequence[Example]) -> str:
    rows, ranked = [], any(example.rank is not None for example in examples)
    for example in examples:
        rank = "" if example.rank is None else f"{example.rank:,}"
        rows.append([f"{example.row:,}", example.query, example.document, f"{example.score:.3f}", rank])
        rows += [["", "", f"↳ {other.document}", f"{other.score:.3f}", ""] for other in example.others]
    heads = ["row", "query", "its document, and others beside it (↳)", "score", "score higher"]
    if not ranked:
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    body = table(heads, rows, names=3)
    return f"<details open><summary>{escape(kind)} ({len(examples)})</summary>{body}</details>"
