"""`longspan adapt`: a finished model, made better on one's own documents."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from longspan.cli.common import EXIT_INTERRUPTED, changed_settings, console, declare


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "adapt",
        _adapt,
        "make a finished model better on your own documents, and measure whether it is",
        "  longspan adapt --model all-MiniLM-L6-v2/ --data handbook/ --out adapted\n"
        "  longspan adapt --model gte-base/ --data tickets.csv --query question --document answer --out adapted\n"
        "  longspan adapt --model gte-base/ --data ours --split train --held-out ours --guard beir/nq --out adapted\n"
        "the finished model is in adapted/model, the report in adapted/report.html",
    )
    parser.add_argument("--model", required=True, help="to begin with: folder, finished run or hub id")
    parser.add_argument(
        "--data",
        required=True,
        help="pairs (.jsonl, .csv, .tsv, .parquet), documents (.md, .rst, .txt), a folder of them or in BEIR's form",
    )
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--query", default="query", help="column of the query (%(default)s)")
    parser.add_argument("--document", default="document", help="column of the document (%(default)s)")
    parser.add_argument("--split", help="of a folder in BEIR's form: the judgements to train on")
    parser.add_argument("--held-out", metavar="SET", help="retrieval set to measure on (a part of the data)")
    parser.add_argument("--part", type=float, default=0.15, help="of the pairs that is held out (%(default)s)")
    parser.add_argument("--guard", metavar="SET", help="another retrieval set, on which the model must not get worse")
    parser.add_argument(
        "--most-lost", type=float, default=0.01, help="nDCG@10 that it may lose there all the same (%(default)s)"
    )
    parser.add_argument(
        "--blend",
        type=float,
        help="part of the trained weights in the finished ones (all; with a guard, less where all would harm it)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of mining, measuring and training; what is published is float32 (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of the held-out part and of training")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the recipe adapt: epochs=3"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of going on where it was interrupted")


def _adapt(parsed: argparse.Namespace) -> int | None:
    from longspan.adapt.report import write_report
    from longspan.adapt.road import Adaptation, AdaptConfig
    from longspan.stages import clear, run_stages
    from longspan.train.loop import Interrupted

    names = ("model", "data", "split", "query", "document", "held_out", "part", "guard", "most_lost", "blend")
    names += ("precision", "seed")
    values = {name: getattr(parsed, name) for name in names}
    values["training"] = changed_settings(parsed.set, "adapt")
    config = AdaptConfig.parse(values, where="the command line")
    screen = console()
    adaptation = Adaptation(config, parsed.out, screen, device=parsed.device)
    if parsed.fresh:
        clear(parsed.out)
    try:
        done = run_stages(adaptation.stages(), parsed.out, screen)
    except Interrupted as stop:
        print(f"longspan: {stop}; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    page = write_report(done, adaptation, screen)
    print(f"the model: {adaptation.published}\nthe report: {page}")
    return None
