"""What a curation step did, to be read by people and programs: counts, score histograms, tables, and examples.

A step builds a `Report`; `write_report` leaves it as `report.json` and as the page `report.html`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longspan.curate.rows import REPORT, excerpt
from longspan.files import write_json

PAGE = "report.html"
NUM_EXAMPLES = 20
"""Examples of each kind."""
EXCERPT = 400
"""Characters of a text in an example."""
BIN_WIDTH = 0.02
"""Of score histograms: cosines between -1 and 1."""

_SCORES_AT_A_TIME = 2**20


@dataclass(frozen=True)
class Histogram:
    """Counts of values, of one or several series over the same bins.

    Attributes:
        edges: E + 1 edges of E bins.
        series: name -> E counts.
        marks: name -> a value to be shown as a line.
    """

    title: str
    edges: tuple[float, ...]
    series: dict[str, tuple[int, ...]]
    marks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column is a name."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Other:
    """Another document than the pair's own, as a rival or a negative.

    Attributes:
        row: a row of which it is the document, from 1; None where that is not known.
    """

    document: str
    score: float
    row: int | None = None


@dataclass(frozen=True)
class Example:
    """One pair as a person reads it; the texts are excerpts.

    Attributes:
        row: number of the pair in its source, from 1.
        score: of the pair's own document.
        others: documents beside it, best first.
    """

    row: int
    query: str
    document: str
    score: float
    rank: int | None = None
    others: tuple[Other, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a step did to one source.

    Attributes:
        step: what it is called.
        name: of the source.
        facts: plain values under names of their own: counts, settings, the teacher.
        examples: kind of pair -> some of them.
    """

    step: str
    name: str
    facts: dict[str, Any]
    histograms: tuple[Histogram, ...] = ()
    tables: tuple[Table, ...] = ()
    examples: dict[str, tuple[Example, ...]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The content of `report.json`: facts on top, the rest below them."""
        whole = asdict(self)
        facts = whole.pop("facts")
        return {"step": whole.pop("step"), "source": whole.pop("name"), **facts, **whole}


def write_report(folder: Path, report: Report) -> dict[str, Any]:
    """Write `report.json` and `report.html`; returns what is in the former.

    Raises:
        LongspanError: the folder cannot be written.
    """
    from longspan.curate.report_page import write_page

    values = report.as_json()
    write_json(folder / REPORT, values)
    write_page(folder / PAGE, f"{report.step}: {report.name}", [report])
    return values


def write_values(folder: Path, step: str, values: Mapping[str, Any]) -> None:
    """Write plain values, which JSON knows, as `report.json` and `report.html`.

    Raises:
        LongspanError: the folder cannot be written.
    """
    from longspan.curate.report_page import write_values_page

    write_json(folder / REPORT, values)
    write_values_page(folder / PAGE, step, values)


def write_overview(folder: Path, step: str, reports: Sequence[Report], columns: Sequence[str]) -> None:
    """Write `report.json` and `report.html` of several sources together.

    Args:
        columns: facts that are shown side by side.

    Raises:
        LongspanError: the folder cannot be written.
    """
    from longspan.curate.report_page import write_page

    facts = {report.name: {column: report.facts[column] for column in columns} for report in reports}
    write_json(folder / REPORT, {"step": step, "sources": facts})
    write_page(folder / PAGE, f"{step}: {len(reports)} sources", reports, columns)


def score_histogram(
    title: str, series: Mapping[str, np.ndarray], marks: Mapping[str, float] | None = None, width: float = BIN_WIDTH
) -> Histogram:
    """The scores of some series, each one-dimensional and of any length (memory-mapped too), in bins of equal width.

    The bins go from the lowest to the highest score; scores that are not finite are left out.
    """
    bounds = [(part.min(), part.max()) for scores_N in series.values() for part in _finite_parts(scores_N)]
    low = np.floor(min((low for low, _ in bounds), default=0.0) / width)
    high = np.floor(max((high for _, high in bounds), default=0.0) / width) + 1
    edges = np.arange(low, high + 1) * width
    counts = {name: np.zeros(len(edges) - 1, dtype=np.int64) for name in series}
    for name, scores_N in series.items():
        for part in _finite_parts(scores_N):
            counts[name] += np.histogram(part, edges)[0]
    return Histogram(
        title,
        tuple(round(float(edge), 6) for edge in edges),
        {name: tuple(count.tolist()) for name, count in counts.items()},
        {name: float(value) for name, value in (marks or {}).items()},
    )


def evenly(numbers: np.ndarray, count: int = NUM_EXAMPLES) -> np.ndarray:
    """At most `count` of these, spread evenly over them, in their order."""
    return numbers[np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(np.int64)]


def shortened(text: str) -> str:
    """A text as examples show it."""
    return excerpt(text, EXCERPT)


def _finite_parts(scores_N: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(scores_N), _SCORES_AT_A_TIME):
        part = np.asarray(scores_N[start : start + _SCORES_AT_A_TIME], dtype=np.float64)
        part = part[np.isfinite(part)]
        if len(part):
            yield part
