"""What a report tells of vectors that were cut and rounded: by dimension, by form of storage, by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longspan.evaluate.report_parts import Plot, Row, Table

Results = Sequence[tuple[str, Mapping[str, Any]]]
"""Label of a model, and a result of its."""

_NAMES = ("Model", "Tokens", "Dim", "Stored", "Bytes")
_SCORES = ("nDCG@10", "95 % interval", "Change", "p")


def check_forms_result(result: Mapping[str, Any]) -> None:
    """Look at everything that is shown of a result of `measure_forms`.

    Raises:
        KeyError, TypeError, ValueError: something is not there, or is something else.
    """
    forms_tables([("model", result)])
    forms_plots([("model", result)])


def forms_tables(results: Results) -> list[Table]:
    """A table for each retrieval set: what vectors are worth in every form that was measured."""
    rows: dict[str, list[Row]] = {}
    for model, result in results:
        title = f"{result['set']}: {result['queries']:,} queries, {result['documents']:,} documents"
        rows.setdefault(title, []).extend(_row(model, result, score) for score in result["scores"])
    return [Table("", title, "", _NAMES, _SCORES, tuple(its)) for title, its in rows.items()]


def forms_plots(results: Results) -> list[Plot]:
    """Plots of each retrieval set, of what was measured at more than one point."""
    plots = []
    for name in dict.fromkeys(result["set"] for _, result in results):
        its = [(model, result) for model, result in results if result["set"] == name]
        whole = [(m, r, s) for m, r in its for s in r["scores"] if s["dim"] == r["width"] and s["form"] == "float32"]
        plots.append(Plot(f"{name}: nDCG@10", "tokens", _series((m, _tokens(r, s), s) for m, r, s in whole)))
        longest = [(m, r, s) for m, r in its for s in r["scores"] if _tokens(r, s) == _most(r)]
        by_form = [(f"{model}, {score['form']}", score) for model, _, score in longest]
        plots.append(Plot(f"{name}: nDCG@10", "coordinates", _series((m, s["dim"], s) for m, s in by_form)))
        plots.append(Plot(f"{name}: nDCG@10", "bytes", _series((m, s["bytes_per_vector"], s) for m, s in by_form)))
    return [plot for plot in plots if len({count for line in plot.series.values() for count, _ in line}) > 1]


def dim_plots(results: Results) -> list[Plot]:
    """The averages of mteb's tasks against the dimension."""
    series = {}
    for model, result in results:
        width = result["width"]
        points = [(width, result["average"]), *((one["protocol"]["dim"], one["average"]) for one in result["by_dim"])]
        tasks = len(result["tasks"])
        series[f"{model}, {tasks} task{'s' if tasks > 1 else ''}"] = sorted((dim, 100 * score) for dim, score in points)
    return [Plot("MTEB: average over tasks", "coordinates", series)] if series else []


def cut_label(model: str, result: Mapping[str, Any]) -> str:
    """What a model is called whose vectors were cut."""
    return f"{model}, dim {result['protocol']['dim']}"


def _row(model: str, result: Mapping[str, Any], score: Mapping[str, Any]) -> Row:
    low, high = score["interval"]
    names = (model, f"{_tokens(result, score):,}", str(score["dim"]), score["form"], f"{score['bytes_per_vector']:,}")
    scores = {"nDCG@10": f"{100 * score['score']:.2f}", "95 % interval": f"{100 * low:.2f} to {100 * high:.2f}"}
    if (change := score["change"]) is not None:
        scores |= {"Change": f"{100 * change['difference']:+.2f}", "p": f"{change['p_value']:.4f}"}
    return Row(dict(zip(_NAMES, names, strict=True)), scores, ours=True)


def _tokens(result: Mapping[str, Any], score: Mapping[str, Any]) -> int:
    return result["reads"] if score["max_length"] is None else score["max_length"]


def _most(result: Mapping[str, Any]) -> int:
    return max(_tokens(result, score) for score in result["scores"])


def _series(points: Any) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for name, count, score in points:
        series.setdefault(name, []).append((count, 100 * score["score"]))
    return {name: sorted(line) for name, line in series.items()}
