"""`longspan evaluate`: how good is a model? A suite per file; each is a few lines that call the library.

A suite has `NAME`, `SUMMARY`, `SHARED` (which of the options that suites share it takes), `add_options(parser)` that
gives the options which are its own, and `run(parsed)`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli import evaluate_glue, evaluate_jina_long, evaluate_loco, evaluate_mteb, evaluate_retrieval
from longspan.cli.common import add_precision, at_least_1, declare, usage_error

SUITES = {
    suite.NAME: suite for suite in (evaluate_retrieval, evaluate_mteb, evaluate_jina_long, evaluate_loco, evaluate_glue)
}
"""In the order of the help."""


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "evaluate",
        _evaluate,
        "quality on a retrieval set of one's own, or on a benchmark: "
        + "; ".join(f"--suite {name}: {suite.SUMMARY}" for name, suite in SUITES.items()),
        "  longspan evaluate runs/finetune --data scifact --bm25\n"
        "  longspan evaluate runs/finetune --data pairs.jsonl --against runs/before\n"
        "  longspan evaluate runs/finetune --suite mteb --tasks STSBenchmark,Banking77Classification --data mteb\n"
        "  longspan evaluate runs/finetune --data scifact --dim 512,256,128,64 --stored float32,int8,binary\n"
        '  longspan evaluate runs/finetune --suite mteb --benchmark "MTEB(eng, v1)" --out results\n'
        "  longspan evaluate runs/finetune --suite loco --data loco --rope-scaling dynamic,none\n"
        "  longspan evaluate runs/mlm --suite glue --data glue --tasks cola,sst2",
    )
    parser.add_argument("model", help="folder, finished run or hub id")
    parser.add_argument("--suite", choices=tuple(SUITES), default="retrieval", help="what to measure (%(default)s)")
    parser.add_argument("--data", type=Path, help="folder of the suite's data")
    parser.add_argument("--out", type=Path, help="where results are written")
    add_precision(parser)
    owners = {option: _takers(option.dest) for option in _add_shared(parser)}
    for name, suite in SUITES.items():
        owners |= {option: [name] for option in suite.add_options(parser.add_argument_group(f"with --suite {name}"))}
    parser.set_defaults(suite_options=owners)


def _add_shared(parser: Any) -> list[argparse.Action]:
    return [
        parser.add_argument(
            "--max-length",
            type=int,
            help=f"cut texts at this many tokens (--suite {', '.join(_takers('max_length'))})",
        ),
        parser.add_argument(
            "--tasks",
            type=_names,
            help=f"names of tasks or sets, with commas between them (--suite {', '.join(_takers('tasks'))})",
        ),
        parser.add_argument(
            "--dim",
            type=_lengths,
            help="measure vectors cut to their first so many coordinates too, such as 512,256,128 "
            f"(--suite {', '.join(_takers('dim'))})",
        ),
        parser.add_argument(
            "--processes",
            type=at_least_1,
            metavar="N",
            help="so many embed, each on a GPU of its own or with its share of the cores; scores are the same "
            f"(all GPUs, or one; --suite {', '.join(_takers('processes'))})",
        ),
        parser.add_argument(
            "--lengths",
            type=_lengths,
            help=f"cut texts at these many tokens, such as 2048,8192 (--suite {', '.join(_takers('lengths'))})",
        ),
    ]


def _takers(shared: str) -> list[str]:
    return [name for name, suite in SUITES.items() if shared in suite.SHARED]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _lengths(text: str) -> list[int]:
    return [at_least_1(length) for length in _names(text)]


def _evaluate(parsed: argparse.Namespace) -> None:
    for option, suites in parsed.suite_options.items():
        if parsed.suite not in suites and getattr(parsed, option.dest) != option.default:
            belongs = f"{option.option_strings[0]} belongs to --suite {' or '.join(suites)}"
            raise usage_error(f"{belongs}, not to --suite {parsed.suite}", "evaluate")
    SUITES[parsed.suite].run(parsed)
