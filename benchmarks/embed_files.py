"""Bulk embedding of files: its speed beside the bare encoder's, and its memory at two sizes. all-MiniLM-L6-v2 on a CPU.

    python -m benchmarks.embed_files
    python -m benchmarks.embed_files --rounds 0 --sizes 50000 200000

Speed: the same texts through `embed_files` (reading JSON Lines twice, tokenising, computing, writing, flushing to the
disk), and through the encoder alone (token ids at hand, batches formed); they take turns. Memory: the peak of a
`longspan embed` process that embeds so many texts, beside that of one that embeds 1,000.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import take_turns, write_record
from longspan.demo.teacher import teacher_folder
from longspan.embedder import TOKENS_PER_BATCH, Embedder
from longspan.export.probes import whole_words
from longspan.output.bulk import Settings, embed_files
from longspan.output.texts import open_inputs
from longspan.text.packed import chunks_of_similar_length

FEW = 1000


def main() -> None:
    """Measure and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10_000, help="of the speed (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[50_000, 200_000], help="of the memory")
    parser.add_argument("--threads", type=int, default=2)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    embedder = Embedder.load(teacher_folder(), device="cpu")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if parsed.rounds:
            result["speed"] = _speed(embedder, Path(folder), parsed.texts, parsed.rounds)
        if parsed.sizes:
            result["memory"] = _memory(embedder, Path(folder), [FEW, *parsed.sizes])
    write_record("embed-files", result)


def _speed(embedder: Embedder, folder: Path, count: int, rounds: int) -> dict[str, Any]:
    file = folder / "speed.jsonl"
    texts = _write(embedder, file, count)
    sequences, _ = embedder.sequences(texts)
    groups = list(chunks_of_similar_length([len(ids) for ids in sequences], TOKENS_PER_BATCH["cpu"]))

    def bulk(name: str, **settings: Any) -> None:
        with open_inputs([str(file)]) as inputs:
            embed_files(embedder, inputs, folder / name, Settings(**settings))

    def encoder() -> None:
        for group in groups:
            embedder.pooled([sequences[i] for i in group])

    seconds = take_turns(
        {
            "encoder alone": encoder,
            "float32 .npy": lambda: bulk("v.npy"),
            "int8 .npy": lambda: bulk("v8.npy", form="int8"),
            "float32 .parquet": lambda: bulk("v.parquet"),
        },
        rounds,
    )
    tokens = sum(len(ids) for ids in sequences)
    shares = {
        name: [round(bare / mine, 3) for bare, mine in zip(seconds["encoder alone"], times, strict=True)]
        for name, times in seconds.items()
    }
    return {
        "texts": count,
        "tokens": tokens,
        "seconds": {name: [round(t, 3) for t in times] for name, times in seconds.items()},
        "share_of_the_encoder": {
            name: {"median": round(float(np.median(of)), 3), "min": min(of), "max": max(of)}
            for name, of in shares.items()
        },
    }


def _memory(embedder: Embedder, folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    rows = []
    for size in sizes:
        file, out = folder / f"{size}.jsonl", folder / f"{size}.npy"
        _write(embedder, file, size)
        command = [sys.executable, "-m", "longspan", "embed", embedder.name, str(file), "--out", str(out)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"longspan embed of {size} texts ended with {status}")
        row = {
            "texts": size,
            "input_mib": round(file.stat().st_size / 2**20, 1),
            "vectors_mib": round(out.stat().st_size / 2**20, 1),
            "peak_mib": round(usage.ru_maxrss / 1024, 1),
        }
        print(row, flush=True)
        rows.append(row)
        out.unlink()
    return rows


def _write(embedder: Embedder, file: Path, count: int) -> list[str]:
    """So many texts of 3 to 9 words, as JSON Lines."""
    words = np.array(whole_words(embedder))
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, size=size)) for size in generator.integers(3, 10, size=count)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return texts


if __name__ == "__main__":
    main()
