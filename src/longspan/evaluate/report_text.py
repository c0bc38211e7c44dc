"""A report as Markdown, as LaTeX, and as a page with plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from longspan.evaluate.report import Report
from longspan.evaluate.report_parts import Plot, Table, Unit
from longspan.page import page, table

_WIDTH, _HEIGHT = 380, 200
_LABEL_WIDTH = 36
_COLOURS = ("#1f6fb4", "#d1661c", "#3a8a3a", "#8a4fa8", "#b03060", "#00838f")
_OTHERS = "#999"

_PLOTTED: dict[Unit, str] = {
    "tokens": "Score against sequence length",
    "coordinates": "Quality against dimension",
    "bytes": "Quality against bytes of a stored vector",
}
"""What plots are against -> what stands above them."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_markdown(report: Report) -> str:
    """Markdown; our rows are bold."""
    parts = []
    for one in report.tables:
        heads = [*one.names, *one.scores]
        lines = [f"## {one.heading}", "", _pipes(heads), _pipes(["---"] * len(one.names) + ["---:"] * len(one.scores))]
        for row, cells in zip(one.rows, one.cells(), strict=True):
            shown = [cell.replace("|", r"\|") for cell in cells]
            lines.append(_pipes([f"**{cell}**" if row.ours else cell for cell in shown]))
        parts.append("\n".join(lines))
    parts.append("\n".join(_closing(report)))
    return "\n\n".join(parts) + "\n"


def as_latex(report: Report) -> str:
    """One `tabular` a table, which needs no package; our rows are bold."""
    parts = []
    for one in report.tables:
        lines = [
            r"\begin{table}",
            rf"\caption{{{_tex(one.heading)}}}",
            rf"\begin{{tabular}}{{{'l' * len(one.names)}{'r' * len(one.scores)}}}",
            r"\hline",
            _ampersands([_tex(head) for head in (*one.names, *one.scores)]),
            r"\hline",
        ]
        for number, (row, cells) in enumerate(zip(one.rows, one.cells(), strict=True)):
            if row.ours and not one.rows[number - 1].ours:
                lines.append(r"\hline")
            lines.append(_ampersands([rf"\textbf{{{_tex(cell)}}}" if row.ours else _tex(cell) for cell in cells]))
        parts.append("\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}"]))
    parts.append("\n".join(f"% {line}" for line in _closing(report)))
    return "\n\n".join(parts) + "\n"


def as_html(report: Report) -> str:
    """A self-contained page: tables, and every score that was measured at lengths against the length."""
    parts = [_html_table(one) for one in report.tables]
    for unit, heading in _PLOTTED.items():
        plots = [line_plot(plot) for plot in report.plots if plot.unit == unit]
        if plots:
            parts += [f"<h2>{heading}</h2>", *plots]
    parts += [f"<p>{escape(line)}</p>" for line in _closing(report)]
    return page("Results beside the paper's", parts)


def line_plot(plot: Plot) -> str:
    """Scores against what is counted, on a logarithmic axis; the paper's series are grey."""
    title, series = plot.title, plot.series
    points = [point for line in series.values() for point in line]
    low_x, high_x = (math.log2(edge([length for length, _ in points])) for edge in (min, max))
    low_y, high_y = math.floor(min(y for _, y in points)), math.ceil(max(y for _, y in points))
    wide, high = max(high_x - low_x, 1e-9), max(high_y - low_y, 1)

    def place(length: int, score: float) -> tuple[float, float]:
        return (math.log2(length) - low_x) / wide * _WIDTH, _HEIGHT - (score - low_y) / high * _HEIGHT

    shapes, keys, colours = [], [], iter(_COLOURS * len(series))
    for name, line in series.items():
        colour = _OTHERS if name.endswith("(paper)") else next(colours)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for length, score in line:
            x, y = place(length, score)
            tip = f"<title>{escape(name)}, {length:,} {plot.unit}: {score:.2f}</title>"
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{tip}</circle>')
        if colour != _OTHERS:
            keys.append(f'<span class="key" style="background:{colour}"></span>{escape(name)}')
    if any(name.endswith("(paper)") for name in series):
        keys.append(f'<span class="key" style="background:{_OTHERS}"></span>the paper\'s (point at a dot)')
    free = -math.inf
    for length in sorted({length for length, _ in points}):
        x, _ = place(length, low_y)
        if x >= free:  # names of neighbours would lie over one another
            shapes.append(f'<text x="{x:.1f}" y="{_HEIGHT + 16}" text-anchor="middle">{length:,}</text>')
            free = x + _LABEL_WIDTH
    for score in (low_y, high_y):
        shapes.append(f'<text x="-6" y="{place(points[0][0], score)[1] + 4:.1f}" text-anchor="end">{score}</text>')
    axes = f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>'
    axes += f'<line class="axis" x1="0" x2="0" y1="0" y2="{_HEIGHT}"/>'
    caption = f'<figcaption style="max-width:{_WIDTH}px">{escape(title)}<br>{" &emsp; ".join(keys)}</figcaption>'
    svg = f'<svg width="{_WIDTH}" height="{_HEIGHT + 22}">{axes}{"".join(shapes)}</svg>'
    return f'<figure style="padding-left:2.5rem">{caption}{svg}</figure>'


def _html_table(one: Table) -> str:
    ours = [number for number, row in enumerate(one.rows) if row.ours and one.number]
    cells = table([*one.names, *one.scores], one.cells(), names=len(one.names), ours=ours)
    return f"<h2>{escape(one.heading)}</h2>{cells}"


def _closing(report: Report) -> list[str]:
    has_papers = any(one.number for one in report.tables)
    return [*report.notes, *([f"The other rows are as printed in: {report.source}."] if has_papers else [])]


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
