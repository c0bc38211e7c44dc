"""`longspan bench`: how fast this machine is, beside its limit and the peers that are installed."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import Any

from longspan.cli.common import console, declare


def add(commands: Any) -> None:
    parser = declare(
        commands,
        "bench",
        _bench,
        "measure embedding on this CPU beside sentence-transformers and ONNX Runtime, where they are installed",
        "  longspan bench encoder --quick\n  longspan bench encoder --model runs/finetune --out bench.json",
    )
    parser.add_argument("what", choices=("encoder",), help="what to measure")
    parser.add_argument("--model", help="folder, finished run or hub id (default: nomic-bert's size, random weights)")
    parser.add_argument("--quick", action="store_true", help="a minute: fewer texts, settings and layers")
    parser.add_argument("--out", type=Path, help="write everything that was measured to this JSON file")


def _bench(parsed: argparse.Namespace) -> None:
    from longspan.bench import bench_encoder
    from longspan.files import write_json

    measured = bench_encoder(parsed.model, quick=parsed.quick, say=lambda what: print(what, file=sys.stderr))
    if parsed.out is not None:
        write_json(parsed.out, {"date": datetime.date.today().isoformat()} | measured)
    _print(measured)


def _print(measured: dict[str, Any]) -> None:
    from rich.table import Table

    out, result = console(), measured["result"]
    out.print(f"{measured['model']}, {measured['threads']} threads", highlight=False)
    limits = ", ".join(f"{name} {rate:,.0f}" for name, rate in result["limits_gflops"].items())
    out.print(f"matrix products alone, GFLOP/s: {limits}", highlight=False)
    out.print(f"passes between the products, bfloat16 and int8: {measured['compiled_passes']}", highlight=False)
    for kind in ("documents", "queries"):
        of_kind = result[kind]
        table = Table(title=f"{of_kind['texts']} {kind}, {of_kind['mean_tokens']} tokens each on average")
        table.add_column("")
        table.add_column("tokens/s", justify="right")
        table.add_column("cosine to float32, smallest", justify="right")
        for name, rate in sorted(of_kind["tokens_per_second"].items(), key=lambda item: -item[1]):
            cosine = of_kind["smallest_cosine_to_float32"].get(name)
            table.add_row(name, f"{rate:,.0f}", "" if cosine is None else f"{cosine:.4f}")
        out.print(table)
        for name, ratios in of_kind["ratios"].items():
            for ratio in {ratio["to"]: ratio for ratio in ratios}.values():
                line = f"{name}: {ratio['median']} times {ratio['to']} (by round: {ratio['by_round']})"
                out.print(line, highlight=False)
    shares = ", ".join(f"{name} {share}" for name, share in result["linear_layers_share_of_limit"].items())
    out.print(f"linear layers to products alone: {shares}", highlight=False)
    memory = ", ".join(f"{name} {peak:,.0f}" for name, peak in result["memory_mib"].items() if peak is not None)
    out.print(f"peak memory of a process of its own, MiB: {memory}", highlight=False)
    if result["absent"]:
        out.print(f"not installed, so not measured: {', '.join(result['absent'])}", highlight=False)
