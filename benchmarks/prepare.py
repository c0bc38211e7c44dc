"""Preparing data on one core: longspan beside the bare tokenizer; and a large source in bounded memory.

`python -m benchmarks.prepare` tokenises the same texts with `encode_batch_fast` alone, and prepares them: reading JSON
Lines, hashing, tokenising, writing pieces, shuffling and writing shards. Texts are the team's small real sets (see
tests/conftest.py for where they are) and synthetic pairs.

`python -m benchmarks.prepare --gigabytes 10` makes a source of that size, prepares it on all cores, and records memory,
disk and speed over time. It needs about twice that size of free disk, and deletes everything afterwards.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

# One thread for both sides, before the tokenizer's threads are made.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np

from longspan.data.prepare import prepare
from longspan.data.source import PairSource
from longspan.text.tokenizer import Tokenizer

ROUNDS = 5
BATCH = 1000
"""Texts that the bare tokenizer gets at a time."""
SYNTHETIC_ROWS = 20_000
SECONDS_PER_SAMPLE = 1.0
SHARED = Path(os.environ.get("LONGSPAN_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
REAL = ("squad", "squad_sentence", "amazon_reviews", "wikisplit")


def main() -> None:
    """Measure, and write a record."""
    from benchmarks.record import write_record  # with torch, which worker processes would load too

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, help="prepare a synthetic source of this size")
    parser.add_argument("--workers", type=int, help="processes (default: one for each core)")
    parser.add_argument("--folder", type=Path, help="where the large source is made (default: a temporary folder)")
    parsed = parser.parse_args()
    tokenizer = Tokenizer.load(SHARED / "vocab" / "bert-base-uncased-vocab.txt")
    if parsed.gigabytes is None:
        write_record("prepare-speed", compare_speed(tokenizer))
    else:
        result = prepare_large(tokenizer, parsed.gigabytes, parsed.workers, parsed.folder)
        write_record(f"prepare-{parsed.gigabytes:g}-gb", result)


def compare_speed(tokenizer: Tokenizer) -> dict[str, Any]:
    """Each set of texts, tokenised alone and prepared, in turns on one core."""
    from benchmarks.record import compare, take_turns

    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in {**real_sets(), "synthetic": synthetic_pairs(SYNTHETIC_ROWS)}.items():
            file = Path(folder) / f"{name}.jsonl"
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
            texts = [text for row in rows for text in (row["query"], row["document"])]
            tokens = sum(len(encoded) for encoded in encoded_alone(tokenizer, texts))
            candidates = {
                "longspan": lambda name=name, file=file: prepare_once(name, file, Path(folder) / "out", tokenizer),
                "encode_batch_fast alone": lambda texts=texts: encoded_alone(tokenizer, texts),
            }
            result[name] = compare(take_turns(candidates, ROUNDS), "longspan", tokens) | {
                "rows": len(rows),
                "megabytes": round(file.stat().st_size / 1e6, 1),
            }
    return result


def encoded_alone(tokenizer: Tokenizer, texts: list[str]) -> list[Any]:
    """What the tokenizer gives, not even turned into lists of ids."""
    rust = tokenizer._rust
    batches = [texts[first : first + BATCH] for first in range(0, len(texts), BATCH)]
    return [one for batch in batches for one in rust.encode_batch_fast(batch, add_special_tokens=False)]


def prepare_once(name: str, file: Path, out: Path, tokenizer: Tokenizer) -> None:
    """Prepare a file in this process, and delete the result."""
    prepare([PairSource(name=name, files=(str(file),))], out, tokenizer, workers=1)
    shutil.rmtree(out)


def real_sets() -> dict[str, list[dict[str, str]]]:
    """The pairs of the shared data."""
    found = {}
    for name in REAL:
        with gzip.open(SHARED / "pairs" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            found[name] = [{key: json.loads(line)[key] for key in ("query", "document")} for line in lines]
    return found


def synthetic_pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of words of the vocabulary's most frequent ones, about 10 and 80 words long."""
    vocabulary = (SHARED / "vocab" / "bert-base-uncased-vocab.txt").read_text("utf-8").split("\n")
    words = np.array([word for word in vocabulary[1996:12000] if word.isalpha()])
    draw = np.random.default_rng(seed)

    def text(mean: int) -> str:
        return " ".join(words[draw.integers(0, len(words), 1 + draw.poisson(mean - 1))])

    return [{"query": text(10), "document": text(80)} for _ in range(count)]


def prepare_large(tokenizer: Tokenizer, gigabytes: float, workers: int | None, place: Path | None) -> dict[str, Any]:
    """Make a source, prepare it, and watch the processes meanwhile."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        file, out = Path(folder) / "large.jsonl", Path(folder) / "out"
        rows = write_large(file, gigabytes * 1e9)
        phases: list[tuple[float, str]] = []

        def note(what: str, done: int, total: int) -> None:
            if not phases or phases[-1][1] != what:
                phases.append((round(time.perf_counter() - began, 1), what))

        source = PairSource(name="large", files=(str(file),))
        began = time.perf_counter()
        with Watch(out) as watch:
            [manifest] = prepare([source], out, tokenizer, workers=workers, progress=note)
        seconds = time.perf_counter() - began
        assert manifest.num_rows == rows
        began_again = time.perf_counter()
        prepare([source], out, tokenizer)
        tokens = sum(manifest.num_tokens.values())
        return {
            "gigabytes": round(file.stat().st_size / 1e9, 2),
            "rows": rows,
            "tokens": tokens,
            "shards": len(manifest.shards),
            "seconds": round(seconds, 1),
            "phases_began_at": phases,
            "seconds_again": round(time.perf_counter() - began_again, 1),
            "megabytes_per_second": round(file.stat().st_size / 1e6 / seconds, 2),
            "tokens_per_second": round(tokens / seconds),
            "shards_gigabytes": round(sum(shard.num_bytes for shard in manifest.shards) / 1e9, 2),
        } | watch.result()


def write_large(file: Path, num_bytes: float) -> int:
    """Write pairs until there are `num_bytes`; no two are equal. Returns the number of rows."""
    rows = [json.dumps(row) for row in synthetic_pairs(50_000)]
    shift = number = written = 0
    with open(file, "w", encoding="ascii") as stream:
        while written < num_bytes:
            first = '{"query": "' + f"{number} "
            line = first + rows[(number + shift) % len(rows)].removeprefix('{"query": "') + "\n"
            written += stream.write(line)
            number += 1
            shift += number % len(rows) == 0
    return number


class Watch:
    """Samples the memory of this process and its children, and the size of a folder, from /proc."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._samples: list[dict[str, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def result(self) -> dict[str, Any]:
        """Peaks, and some thirty samples over time; anonymous memory is what no file backs."""
        every = max(1, len(self._samples) // 30)
        peaks = {f"peak_{key}": max(s[key] for s in self._samples) for key in self._samples[0] if key != "seconds"}
        return peaks | {"over_time": self._samples[::every]}

    def _run(self) -> None:
        began = time.perf_counter()
        while not self._end.wait(SECONDS_PER_SAMPLE):
            parent = memory("self")
            children = [memory(child) for child in children_of_this()]
            self._samples.append(
                {
                    "seconds": round(time.perf_counter() - began, 1),
                    "parent_mb": parent["VmRSS"],
                    "largest_worker_mb": max((child["VmRSS"] for child in children), default=0),
                    "largest_worker_anonymous_mb": max((child["RssAnon"] for child in children), default=0),
                    "all_mb": parent["VmRSS"] + sum(child["VmRSS"] for child in children),
                    "disk_mb": folder_size(self._folder),
                }
            )


def memory(pid: str) -> dict[str, int]:
    """VmRSS and RssAnon in megabytes; zero for a process that has just ended."""
    found = {"VmRSS": 0, "RssAnon": 0}
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except OSError:
        return found
    for line in lines:
        key, _, value = line.partition(":")
        if key in found:
            found[key] = round(int(value.split()[0]) * 1024 / 1e6)
    return found


def children_of_this() -> list[str]:
    """Processes that this one has started, whatever thread did it."""
    return [child for task in Path("/proc/self/task").iterdir() for child in read(task / "children").split()]


def folder_size(folder: Path) -> int:
    """Megabytes of all files that are there at the moment."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return round(total / 1e6)


def read(path: Path) -> str:
    """A file's text, or nothing if it has gone."""
    try:
        return path.read_text("ascii")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
