"""`longspan plan --hardware here` beside what then happens: time of a step and memory of short real runs.

    python -m benchmarks.forecast [--processes 2]

Masked language modelling, contrastive learning with GradCache and finetuning with negatives, in float32 and bfloat16,
on documentation of installed packages. Of each, in turns so that what else the machine does meets both alike: a process
forecasts (it tries a part of a step); then a fresh one trains some steps: seconds of its steps but the first two, and
how much its own memory grew at most, looked at every two milliseconds. All sizes are such that a step takes a second or
so on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import write_record

SKIPPED = 2
"""Steps that are not counted: the first ones of a process are slower."""
_ENCODER = {"width": 384, "num_layers": 4, "num_heads": 6, "inner_width": 1536, "vocab_size": 8192}
_PAIRS: dict[str, Any] = {
    "objective.max_query_tokens": 64,
    "objective.max_document_tokens": 192,
    "objective.chunk_tokens": 2048,
    "objective.max_document_tokens_of": {},
}
CASES: dict[str, dict[str, Any]] = {
    "mlm": {"recipe": "demo-mlm", "batch_size": 8, "objective.micro_batch_tokens": 2048},
    "contrastive": {"recipe": "demo-contrastive", "batch_size": 48, **_PAIRS},
    "finetune": {"recipe": "demo-finetune", "batch_size": 6, "objective.num_negatives": 7, **_PAIRS},
}


def main() -> None:
    """Measure, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="only these")
    parser.add_argument("--precision", choices=("fp32", "bf16"), action="append", help="only these")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="of a forecast and a run (%(default)s)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--data", type=Path, help="folder for the data, which stays there")
    parser.add_argument("--no-record", action="store_true")
    parsed = parser.parse_args()
    cases = [
        CASES[case] | {"case": case, "precision": precision, "max_steps": parsed.steps, "checkpoint_every": 4}
        for case in parsed.case or CASES
        for precision in parsed.precision or ("fp32", "bf16")
    ]
    with tempfile.TemporaryDirectory() as folder:
        data = parsed.data or Path(folder) / "data"
        if not data.is_dir():
            _prepare(data)
        results = []
        for number, case in enumerate(cases):
            rounds = []
            for turn in range(parsed.rounds):
                [told] = _process("forecast", [case], data, Path(folder), parsed.processes)
                [went] = _process("train", [case], data, Path(folder) / f"{number}-{turn}", parsed.processes)
                rounds.append(_compare(told, went))
            results.append({"settings": case, "ratio_of_seconds": _ratios(rounds, "seconds_of_a_step")})
            results[-1] |= {"ratio_of_memory": _ratios(rounds, "memory_bytes"), "rounds": rounds}
            print(json.dumps(results[-1]), flush=True)
    if not parsed.no_record:
        write_record("forecast-cpu", {"processes": parsed.processes, "cases": results})


def _ratios(rounds: list[dict[str, Any]], what: str) -> dict[str, float]:
    ratios = [one[what]["forecast_to_measured"] for one in rounds]
    return {"median": round(statistics.median(ratios), 3), "min": min(ratios), "max": max(ratios)}


def _compare(told: dict[str, Any], went: dict[str, Any]) -> dict[str, Any]:
    seconds = went["seconds"][SKIPPED:]
    measured, memory = statistics.median(seconds), went["memory_bytes"]
    return {
        "seconds_of_a_step": {
            "forecast": round(told["seconds"], 4),
            "measured": round(measured, 4),
            "measured_from_to": [round(min(seconds), 4), round(max(seconds), 4)],
            "forecast_to_measured": round(told["seconds"] / measured, 3),
        },
        "tokens_of_a_step": {"forecast": round(told["tokens"]), "measured": round(statistics.mean(went["tokens"]))},
        "memory_bytes": {
            "forecast": told["memory_bytes"],
            "forecast_by_part": told["memory_by_part"],
            "measured": memory,
            "forecast_to_measured": round(told["memory_bytes"] / memory, 3),
        },
    }


def _process(what: str, cases: list[dict[str, Any]], data: Path, folder: Path, processes: int) -> list[dict[str, Any]]:
    module = ["benchmarks.forecast_case", what, json.dumps(cases), json.dumps(_ENCODER), str(data), str(folder)]
    launch = ["-m", *module]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        # What is freed goes back to the system at once, so that the resident size is what tensors need.
        "MALLOC_MMAP_THRESHOLD_": str(2**20),
    }
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", *module]
    done = subprocess.run([sys.executable, *launch], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _prepare(folder: Path) -> None:
    """Documentation of installed packages: pairs, pairs with negatives (of other pairs), and text."""
    from longspan.data.prepare import prepare
    from longspan.data.source import PairSource, TextSource
    from longspan.demo.collect import collect
    from longspan.text.tokenizer import Tokenizer

    raw = folder / "raw"
    collect(raw)
    file = raw / "pairs" / "docstring.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["negatives"] = [rows[(number + 97 * n) % len(rows)]["document"] for n in range(1, 8)]
    mined = raw / "mined.jsonl"
    mined.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tokenizer = Tokenizer.train([row["document"] for row in rows], _ENCODER["vocab_size"])
    text = tuple(str(path) for path in sorted((raw / "text").glob("*.jsonl")))
    prepare([PairSource(name="docstring", files=(str(file),))], folder / "demo-contrastive", tokenizer)
    mined_source = PairSource(name="docstring", files=(str(mined),), negatives="negatives")
    prepare([mined_source], folder / "demo-finetune", tokenizer)
    prepare([TextSource(name="text", files=text)], folder / "demo-mlm", tokenizer)


if __name__ == "__main__":
    main()
