"""`longspan evaluate --suite jina-long`: Jina's long-context benchmark, through mteb."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import load_embedder

NAME = "jina-long"
SUMMARY = "the four tasks of the paper's Table 5, through mteb, read to 128, 512 and 8,191 tokens"
SHARED = ("tasks", "lengths", "processes")

OUT = Path("jina-long-results")


def add_options(parser: Any) -> list[argparse.Action]:
    return []


def run(parsed: argparse.Namespace) -> None:
    from longspan.evaluate.embedding import open_engine, without_lengths
    from longspan.evaluate.jina_long import LENGTHS, TASKS, run_jina_long
    from longspan.progress import Bars

    embedder, out = load_embedder(parsed.model, parsed.precision), parsed.out or OUT
    lengths = parsed.lengths or LENGTHS
    engine = open_engine(parsed.model, embedder, parsed.processes, without_lengths)
    with Bars("jina-long") as bars, engine:
        results = run_jina_long(
            embedder,
            out,
            tasks=parsed.tasks or TASKS,
            lengths=lengths,
            data=parsed.data,
            engine=engine,
            progress=bars.show,
        )
    for length, result in zip(lengths, results, strict=True):
        for score in result.scores:
            print(f"{length:>6,}  {100 * score.score:7.2f}  {score.task} ({score.metric})")
        print(f"{length:>6,}  {100 * result.average():7.2f}  average ({len(result.scores)})")
    print(f"\nscores: {out}; beside the paper's: longspan report {out}")
