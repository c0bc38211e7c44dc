"""What a process grows by when every batch has another number of tokens, and what a bound on oneDNN's kernels costs.

    python -m benchmarks.kernel_caches [--batches 600]

all-MiniLM-L6-v2 on a CPU, a process for each bound (1,024 is oneDNN's own). Growth: resident memory after batches of up
to 40 short texts, beside that after the first. Latency: one query of 5 to 42 tokens at a time, the last half of 600.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.record import write_record
from longspan.demo.teacher import teacher_folder
from longspan.embedder import Embedder
from longspan.model.kernel_cache import KERNELS, SETTINGS

BOUNDS = (16, KERNELS, 1024)
WORDS = tuple("the quick brown fox jumps over a lazy dog again and".split())
NUM_QUERIES = 600


def main() -> None:
    """Measure and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=600)
    parser.add_argument("--one", choices=("float32", "bfloat16"), help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one:
        print(json.dumps(_measure(parsed.one, parsed.batches)))
        return
    result = {
        precision: {f"{bound} kernels": _in_process(precision, bound, parsed.batches) for bound in BOUNDS}
        for precision in ("float32", "bfloat16")
    }
    write_record("kernel-caches", result)


def _in_process(precision: str, bound: int, batches: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.kernel_caches", "--one", precision, "--batches", str(batches)]
    environment = os.environ | dict.fromkeys(SETTINGS, str(bound))
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(precision: str, batches: int) -> dict[str, float]:
    torch.set_num_threads(2)
    embedder, draw = Embedder.load(teacher_folder(), device="cpu", precision=precision), random.Random(0)
    embedder.embed(["fox"])
    before, began = _resident_mib(), time.perf_counter()
    for _ in range(batches):
        embedder.embed([_text(draw, 60) for _ in range(draw.randint(1, 40))])
    seconds, after = time.perf_counter() - began, _resident_mib()
    times = []
    for _ in range(NUM_QUERIES):
        query = _text(draw, 40)
        began = time.perf_counter()
        embedder.embed([query])
        times.append(time.perf_counter() - began)
    return {
        "grown_mib": round(after - before),
        "seconds_of_batches": round(seconds, 1),
        "query_ms": round(1000 * statistics.median(times[NUM_QUERIES // 2 :]), 2),
    }


def _text(draw: random.Random, longest: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(3, longest)))


def _resident_mib() -> float:
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024


if __name__ == "__main__":
    main()
