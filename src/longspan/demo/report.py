"""The demo's end: one table of quality after each stage, the time of each stage, and the line to type for more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longspan.demo.road import PASSAGES
from longspan.files import write_json, write_text
from longspan.stages import Done
from longspan.train.run import environment

RESULTS, RESULTS_TABLE = "results.json", "results.md"


def report(done: dict[str, Done], out: Path, console: Console) -> None:
    """Print answers and tables, and keep them as `results.json` and `results.md`."""
    for question, hits in done["search"].result.items():
        console.print(f"\n[bold]? {question}[/bold]", highlight=False)
        for hit in hits:
            line = f"  {hit['score']:.2f}  {hit['where']}: {hit['text']}"
            console.print(line, highlight=False, markup=False, no_wrap=True, overflow="ellipsis", crop=True)
    quality, times = _quality_rows(done["evaluate"].result), _time_rows(done)
    evaluated = done["evaluate"].result
    title = f"Held-out queries: {evaluated['queries']} queries, {evaluated['documents']} documents"
    console.print()
    console.print(_table(title, ["model", "nDCG@10", "95 % interval", "recall@10", "MRR@10"], quality))
    console.print(_table("Time", ["stage", "seconds", ""], times))
    best = max(evaluated["models"], key=lambda name: evaluated["models"][name]["ndcg@10"])
    mlm = done["mlm"].result
    console.print(
        f"Best here: {best}. MLM alone does not make an embedder: its loss fell from {mlm['first_loss']:.2f} to "
        f"{mlm['last_loss']:.2f}, and the contrastive stages start from its weights.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"\nThe model is in {out / 'published'}. Ask it yourself:", highlight=False)
    model, passages, cache = out / "published", out / PASSAGES, f"--cache {out / 'vectors'}"
    _print_command(console, f"search {model} {passages} 'your question' {cache}")
    console.print("or on a page with a map of the corpus (it needs the extra serve):", highlight=False)
    _print_command(console, f"serve {model} --ui {passages} {cache}")
    keep(done, out, quality, times)


def keep(done: dict[str, Done], out: Path, quality: list[list[str]], times: list[list[str]]) -> None:
    """Write the results to files."""
    stages = {name: {"seconds": stage.seconds, "resumed": stage.resumed} for name, stage in done.items()}
    values = {name: stage.result for name, stage in done.items() if name != "search"}
    write_json(out / RESULTS, {"results": values, "stages": stages, "environment": environment()})
    lines = ["| model | nDCG@10 | 95 % interval | recall@10 | MRR@10 |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in quality]
    lines += ["", "| stage | seconds | |", "|---|---|---|"] + [f"| {' | '.join(row)} |" for row in times]
    write_text(out / RESULTS_TABLE, "\n".join(lines) + "\n")


def _quality_rows(evaluated: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            f"{row['ndcg@10']:.3f}",
            f"{row['interval'][0]:.3f} - {row['interval'][1]:.3f}",
            f"{row['recall@10']:.3f}",
            f"{row['mrr@10']:.3f}",
        ]
        for name, row in evaluated["models"].items()
    ]


def _time_rows(done: dict[str, Done]) -> list[list[str]]:
    rows = [
        [name, f"{stage.seconds:.0f}", "since it was resumed" if stage.resumed else ""] for name, stage in done.items()
    ]
    return [*rows, ["all", f"{sum(stage.seconds for stage in done.values()):.0f}", ""]]


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _print_command(console: Console, arguments: str) -> None:
    console.print(f"  {_command()} {arguments}", highlight=False, soft_wrap=True, markup=False)


def _command() -> str:
    return "longspan" if Path(sys.argv[0]).name == "longspan" else "python -m longspan"
