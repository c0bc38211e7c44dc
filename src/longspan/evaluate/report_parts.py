"""What a report is made of: tables with rows, and plots with curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["tokens", "coordinates", "bytes"]
"""What a score is plotted against."""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        names: model, parameters, length and so on, by column; what is not known is left out.
        scores: by column, as shown: "62.39", "75.1 (3 of 12)".
        ours: whether we measured it.
    """

    names: dict[str, str]
    scores: dict[str, str]
    ours: bool


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, with our rows below its own; or one of ours alone.

    Attributes:
        number: "1", "2", "4", "5" or "6"; empty for one of ours.
        title, section: of the paper; one of ours has no section.
        names, scores: the columns: what tells a row from others, and what was measured.
        rows: in order.
        tasks: column -> mteb's tasks of it, in Table 4.
    """

    number: str
    title: str
    section: str
    names: tuple[str, ...]
    scores: tuple[str, ...]
    rows: tuple[Row, ...]
    tasks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """What stands above it."""
        return f"Table {self.number}: {self.title} (section {self.section})" if self.number else self.title

    def cells(self) -> list[list[str]]:
        """The rows as they are shown, a dash where nothing is known."""
        return [
            [row.names.get(column, "-") for column in self.names]
            + [row.scores.get(column, "-") for column in self.scores]
            for row in self.rows
        ]


@dataclass(frozen=True)
class Plot:
    """Scores against something that is counted.

    Attributes:
        title: what was measured.
        unit: what the scores are plotted against.
        series: name -> points (count, score), at least one point each; names that end in "(paper)" are the paper's.
    """

    title: str
    unit: Unit
    series: dict[str, list[tuple[int, float]]]
