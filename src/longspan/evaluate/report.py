"""Our scores inside the paper's tables 1, 2, 4, 5 and 6.

The paper's numbers are data (`paper_tables.json`, as printed). Ours come from the results that the suites of `longspan
evaluate` write. A cell of ours is filled only by what the column means: a category of Table 4 by all its tasks, an
average by all its columns; of what is there in part the cell says so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from longspan.errors import LongspanError
from longspan.evaluate import glue, jina_long, loco, mteb_suite
from longspan.evaluate.forms import SUITE as FORMS
from longspan.evaluate.report_forms import check_forms_result, cut_label, dim_plots, forms_plots, forms_tables
from longspan.evaluate.report_parts import Plot, Row, Table
from longspan.files import read_json

_AVERAGE = "Avg"
_LOCO_TITLES = ("SummScreenFD", "GovReport", "QMSum", "QASPER title", "QASPER abstract")
_LOCO_COLUMNS: dict[str, str] = dict(zip(loco.V0, _LOCO_TITLES, strict=True))
_JINA_TITLES = ("NarrativeQA", "WikiCities", "SciFact", "BigPatent")
_JINA_COLUMNS: dict[str, str] = dict(zip(jina_long.TASKS, _JINA_TITLES, strict=True))
_LONGEST_LOCO, _LONGEST_JINA = 8192, 8191
"""Table 1 shows LoCo and Jina's benchmark at these lengths."""

_FILES = (glue.SUMMARY, mteb_suite.SUMMARY, jina_long.SUMMARY, loco.SUMMARY)
_REMEDY = (
    "name folders that longspan evaluate wrote with --suite mteb, jina-long, loco or glue, or the file that it wrote "
    "for one's own set with --dim, --stored or --lengths"
)


@dataclass(frozen=True)
class Report:
    """What is told of some results.

    Attributes:
        source: the paper.
        tables: those of the paper in which we have rows.
        notes: where a measurement of ours is not the paper's protocol.
        plots: every score that was measured at lengths, with several dimensions or in several forms.
    """

    source: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    plots: tuple[Plot, ...]


@functools.cache
def paper_tables() -> dict[str, Table]:
    """The paper's tables, by number."""
    tables = {}
    for number, table in _paper()["tables"].items():
        names, scores = tuple(table["names"]), tuple(table["scores"])
        rows = tuple(
            Row(
                dict(zip(names, cells[: len(names)], strict=True)),
                dict(zip(scores, cells[len(names) :], strict=True)),
                ours=False,
            )
            for cells in table["rows"]
        )
        tables[number] = Table(number, table["title"], table["section"], names, scores, rows, table.get("tasks", {}))
    return tables


def build_report(places: Iterable[Path]) -> Report:
    """Read results and put them into the paper's tables.

    Args:
        places: folders of results, or folders that hold some, or the summaries themselves.

    Raises:
        LongspanError: a place holds no results, or broken ones.
    """
    found = [(path, read_json(path, remedy=_REMEDY)) for place in places for path in result_files(place)]
    ours: dict[str, list[Row]] = {number: [] for number in paper_tables()}
    notes, best = [], {}
    for path, result in found:
        try:
            notes += _take(result, ours, best)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"these are not the results of a suite ({type(error).__name__}: {error})"
            raise LongspanError(what, where=path, remedy=_REMEDY) from None
    ours["1"] = [Row({"Model": model}, scores, ours=True) for model, scores in best.items()]
    tables = [
        dataclasses.replace(table, rows=_by_length((*table.rows, *rows)))
        for number, table in paper_tables().items()
        if (rows := ours[number])
    ]
    results = [(_label(result), result) for _, result in found]
    forms = [one for one in results if one[1].get("suite") == FORMS]
    tables += forms_tables(forms)
    plots = [
        *_length_plots([table for table in tables if table.number in ("5", "6")]),
        *forms_plots(forms),
        *dim_plots([one for one in results if "by_dim" in one[1]]),
    ]
    return Report(_paper()["source"], tuple(tables), tuple(dict.fromkeys(notes)), tuple(plots))


def result_files(place: Path) -> list[Path]:
    """The summaries in a folder, or in the folders in it.

    Raises:
        LongspanError: there are none.
    """
    if place.is_file():
        return [place]
    here = [place / name for name in _FILES if (place / name).is_file()]
    if here or not place.is_dir():
        found = here
    else:
        found = [child / name for child in sorted(place.iterdir()) for name in _FILES if (child / name).is_file()]
    if not found:
        raise LongspanError("there are no results of a suite", where=place, remedy=_REMEDY)
    return found


def _by_length(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Tables 5 and 6 are in groups by length: ours go below the paper's of the same length."""
    if not all(row.names.get("Seq", "").isdigit() for row in rows):
        return rows
    return tuple(sorted(rows, key=lambda row: int(row.names["Seq"])))


def _take(result: dict[str, Any], ours: dict[str, list[Row]], best: dict[str, dict[str, str]]) -> list[str]:
    """Add a result's rows to `ours` and its line of Table 1 to `best`; the notes on it."""
    model = _label(result)
    match result.get("suite", "mteb"):
        case "mteb":
            row = _mteb_row(model, result["tasks"])
            cut = [_mteb_row(cut_label(model, one), one["tasks"]) for one in result.get("by_dim", ())]
            ours["4"] += [one for one in (row, *cut) if one.scores]
            if _AVERAGE in row.scores:
                _add(best, model, "MTEB", f"{100 * result['average']:.2f}")
            return _mteb_notes(model, result)
        case "jina-long":
            rows = _long_rows(model, result, _JINA_COLUMNS, "Jina LC", _LONGEST_JINA, best)
            ours["5"] += rows
        case "loco":
            rows = _long_rows(model, result, _LOCO_COLUMNS, "LoCo", _LONGEST_LOCO, best)
            ours["6"] += rows
        case "glue":
            ours["2"].append(_glue_row(model, result))
            return [f"{model}: {note}" for note in result["deviations"]]
        case forms if forms == FORMS:
            check_forms_result(result)
        case other:
            raise ValueError(f"there is no suite {other!r}")
    return []


def _add(best: dict[str, dict[str, str]], model: str, column: str, score: str) -> None:
    if best.setdefault(model, {}).setdefault(column, score) != score:
        raise LongspanError(
            f"there are two scores of {column} for a model called {model}: {best[model][column]} and {score}",
            where="Table 1",
            remedy="report the two models apart, or give one of their folders another name and measure again",
        )


def _label(result: Mapping[str, Any]) -> str:
    precision = result.get("precision", "float32")
    name = Path(result["model"]).name  # mteb has another organization for a folder than its path
    return name if precision == "float32" else f"{name} ({precision})"


def _mteb_row(model: str, tasks: Mapping[str, Mapping[str, Any]]) -> Row:
    columns = paper_tables()["4"].tasks
    scores: dict[str, str] = {}
    for column, names in columns.items():
        values = [100 * tasks[name]["score"] for name in names if name in tasks]
        if values:
            part = "" if len(values) == len(names) else f" ({len(values)} of {len(names)})"
            scores[column] = f"{sum(values) / len(values):.1f}{part}"
    wanted = [name for names in columns.values() for name in names]
    if all(name in tasks for name in wanted):
        scores[_AVERAGE] = f"{100 * sum(tasks[name]['score'] for name in wanted) / len(wanted):.1f}"
    return Row({"Model": model}, scores, ours=True)


def _mteb_notes(model: str, result: Mapping[str, Any]) -> list[str]:
    length = result["protocol"]["max_length"]
    return [] if length == 512 else [f"{model}: MTEB at {length:,} tokens, the paper's at 512"]


def _long_rows(
    model: str,
    result: Mapping[str, Any],
    columns: Mapping[str, str],
    in_table_1: str,
    at_length: int,
    best: dict[str, dict[str, str]],
) -> list[Row]:
    """A row for each length and scaling; the dynamic one at `at_length` goes into Table 1."""
    by_setting: dict[tuple[int, str | None], dict[str, float]] = {}
    for one in result["scores"]:
        if one["task"] in columns:
            setting = by_setting.setdefault((one["max_length"], one.get("rope_scaling")), {})
            setting[columns[one["task"]]] = 100 * one["score"]
    rows = []
    for (length, scaling), values in by_setting.items():
        scores = {column: f"{values[column]:.1f}" for column in columns.values() if column in values}
        is_papers = scaling in (None, "dynamic")
        if len(values) == len(columns):
            average = sum(values.values()) / len(values)
            scores[_AVERAGE] = f"{average:.1f}"
            if length == at_length and is_papers:
                _add(best, model, in_table_1, f"{average:.2f}")
        names = {"Model": model if is_papers else f"{model} ({scaling})", "Seq": str(length)}
        if parameters := result.get("num_parameters"):
            names["Params"] = f"{parameters / 1e6:.0f}M"
        rows.append(Row(names, scores, ours=True))
    return rows


def _glue_row(model: str, result: Mapping[str, Any]) -> Row:
    scores = {glue.TITLES[name]: f"{one['score']:.2f}" for name, one in result["tasks"].items()}
    if result["average"] is not None:
        scores[_AVERAGE] = f"{result['average']:.2f}"
    return Row({"Model": model, "Seq": str(result["trained_length"])}, scores, ours=True)


def _length_plots(tables: Sequence[Table]) -> list[Plot]:
    """Every column that we have measured, against the length."""
    plots = []
    for table in tables:
        for column in table.scores:
            series: dict[str, list[tuple[int, float]]] = {}
            for row in table.rows:
                if column in row.scores:
                    name = row.names["Model"] if row.ours else f"{row.names['Model']} (paper)"
                    series.setdefault(name, []).append((int(row.names["Seq"]), float(row.scores[column])))
            if any(row.ours and column in row.scores for row in table.rows):
                title = f"{table.title}: {column}"
                plots.append(Plot(title, "tokens", {name: sorted(points) for name, points in series.items()}))
    return plots


@functools.cache
def _paper() -> dict[str, Any]:
    text = resources.files("longspan.evaluate").joinpath("paper_tables.json").read_text("utf-8")
    return json.loads(text)
