"""What came of an adaptation, for people: a table on the terminal, a page, and the same in Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longspan.adapt.road import AFTER, BEFORE, HELD_OUT, MEASURE, MEASURES, REMEDY, Adaptation
from longspan.files import read_json, write_json, write_text
from longspan.page import page, table
from longspan.stages import Done
from longspan.train.report import curves
from longspan.train.run import Run, environment

RESULTS, PAGE, TEXT = "results.json", "report.html", "report.md"
NUM_SHOWN = 5
"""Queries shown that have gained most, and as many that have lost most."""
_HEADS = ("set", "measure", "before", "after", "difference", "95 % interval", "p")


def write_report(done: Mapping[str, Done], adaptation: Adaptation, console: Console) -> Path:
    """Print the comparison, and keep it as `report.html`, `report.md` and `results.json`.

    Returns:
        The page.

    Raises:
        LongspanError: a result is gone or torn, or the folder cannot be written.
    """
    out = adaptation.out
    verdict, rows = done["publish"].result, _rows(done)
    shown = Table()
    for number, head in enumerate(_HEADS):
        shown.add_column(head, justify="right" if number > 1 else "left")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    sentence = f"Kept {verdict['kept']}: {verdict['why']}."
    console.print(sentence, highlight=False, soft_wrap=True)
    write_json(
        out / RESULTS,
        {
            "results": {name: stage.result for name, stage in done.items()},
            "seconds": {name: stage.seconds for name, stage in done.items()},
            "environment": environment(),
        },
    )
    facts = _facts(done)
    write_text(out / TEXT, _markdown(sentence, rows, facts))
    changed = _most_changed(adaptation)
    parts = [
        f"<p>{escape(sentence)}</p>",
        table(_HEADS, rows, names=2),
        f"<h2>What was done</h2>{table(['', ''], facts, names=2)}",
        f"<h2>Training</h2>{curves(Run(adaptation.run).logged())}",
        *(f"<h2>{title}</h2>{table(['query', 'before', 'after'], body, names=1)}" for title, body in changed.items()),
    ]
    write_text(out / PAGE, page("A model adapted to own documents", parts))
    return out / PAGE


def _rows(done: Mapping[str, Done]) -> list[list[str]]:
    before, after = done["before"].result, done["after"].result
    rows = []
    for name, test in done["publish"].result["comparisons"].items():
        for measure in MEASURES:
            old, new = (scores[name]["metrics"][measure] for scores in (before, after))
            low, high = test["interval"]
            # The test is of nDCG@10, by which is decided.
            sure = [f"{low:+.4f} to {high:+.4f}", f"{test['p_value']:.4f}"] if measure == MEASURE else ["", ""]
            which = f"{name} ({test['num_queries']:,} queries)"
            rows.append([which, measure, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}", *sure])
    return rows


def _facts(done: Mapping[str, Done]) -> list[list[str]]:
    data, mined, trained = (done[name].result for name in ("hold-out", "mine", "train"))
    settings = trained["settings"]
    seconds = ", ".join(f"{name} {stage.seconds:.0f}" for name, stage in done.items())
    facts = {
        "pairs": f"{data['pairs']:,}, of which {data['train']:,} to learn from",
        "left out because the held-out set asks the same": f"{data['dropped']:,}",
        "documents": f"{data['documents']:,}; {data['searched_documents']:,} are searched in the measurement",
        "negatives": f"{mined['num_negatives']} a pair and step, mined by the model itself; {mined['dropped']:,} pairs "
        "had too few",
        "training": f"{trained['steps']:,} steps of {settings['batch_size']} pairs, learning rate "
        f"{settings['optim']['lr']:.2e}, temperature {settings['objective']['temperature']:g}, documents cut at "
        f"{settings['objective']['max_document_tokens']} tokens",
        "trained weights in the finished ones": ", ".join(map(_tried, done["after"].result["tried"])),
        "seconds": seconds,
    }
    return [[name, text] for name, text in facts.items()]


def _tried(one: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{which} {score:.4f}" for which, score in one.items() if which != "blend")
    return f"{one['blend']:.0%} ({scores})"


def _most_changed(adaptation: Adaptation) -> dict[str, list[list[str]]]:
    """The held-out queries that gained and lost most, with their nDCG@10 before and after."""
    before = read_json(adaptation.out / BEFORE, remedy=REMEDY)[HELD_OUT]["per_query"]
    after = read_json(adaptation.out / AFTER, remedy=REMEDY)["scores"][HELD_OUT]["per_query"]
    texts = adaptation.retrieval_sets()[HELD_OUT].queries
    order = sorted(before, key=lambda query: (before[query] - after[query], query))

    def rows(queries: list[str]) -> list[list[str]]:
        return [[texts[query], f"{before[query]:.3f}", f"{after[query]:.3f}"] for query in queries]

    gained = [query for query in order if after[query] > before[query]][:NUM_SHOWN]
    lost = [query for query in reversed(order) if after[query] < before[query]][:NUM_SHOWN]
    titles = {"Queries that gained most (nDCG@10)": gained, "Queries that lost most (nDCG@10)": lost}
    return {title: rows(queries) for title, queries in titles.items() if queries}


def _markdown(sentence: str, rows: list[list[str]], facts: list[list[str]]) -> str:
    lines = ["# A model adapted to own documents", "", sentence, ""]
    lines += [_line(_HEADS), _line(["---"] * len(_HEADS)), *map(_line, rows), ""]
    lines += [_line(["what", "how much"]), _line(["---"] * 2), *map(_line, facts)]
    return "\n".join(lines) + "\n"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
