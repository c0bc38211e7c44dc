"""Hard negatives on a CPU: longspan beside sentence-transformers, same teacher, same pairs, from file to file.

Each candidate runs in a process of its own, so that its peak of memory is its own; they take turns. The clock runs from
the open file of pairs to the written file of negatives, embedding included; the loading of libraries and of the model
is left out. sentence-transformers runs at several batch sizes, with FAISS and without, and its best counts.

Beside it stands the floor: the time that the encoder's matrix products alone would take at the rate of this machine's
float32 products, on the distinct texts without padding. No float32 program is faster, so that the peer's time over it
bounds every ratio. longspan also runs with the teacher in int8, to tell what that gives and how many candidates change.

    python -m benchmarks.mining [--pairs FILE] [--rows N]     docstrings of the installed packages, or these pairs
    python -m benchmarks.mining --large N                     N x N top-20 of synthetic vectors, through the index
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import gemm_rate, write_record
from longspan.model.inference import Precision

ROUNDS = 2
ROWS = 4000
NUM_NEGATIVES = 20
OURS, OURS_INT8 = "longspan", "longspan-int8"
OTHERS = ("st-8", "st-16", "st-32", "st-16-faiss")
"""sentence-transformers, its batch size, and whether FAISS searches."""
TIE = 1e-5
"""Scores nearer than this may stand in either order: both sides round."""
WIDTH, DIRECTIONS, NOISE, ROWS_AT_A_TIME = 384, 10_000, 0.8, 2**15
"""Synthetic vectors: a random direction, and noise of this length."""


def main() -> None:
    """Measure what is asked for, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="a .jsonl file with the columns query and document")
    parser.add_argument("--rows", type=int, default=ROWS, help="pairs, the first (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that each candidate runs (%(default)s)")
    parser.add_argument("--large", type=int, metavar="N", help="instead, N x N synthetic vectors")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.worker:
        print("\n" + json.dumps(_worker(*parsed.worker)))
    elif parsed.large:
        with tempfile.TemporaryDirectory() as folder:
            write_record(f"mining-large-{parsed.large}", _run("large", folder, str(parsed.large)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = _beside_sentence_transformers(Path(folder), parsed.pairs, parsed.rows, parsed.rounds)
            write_record("mining-cpu-minilm", result)


def _beside_sentence_transformers(folder: Path, pairs: Path | None, num_rows: int, num_rounds: int) -> dict[str, Any]:
    _write_pairs(folder, pairs, num_rows)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (OURS, OURS_INT8, *OTHERS)}
    floors = []
    for number in range(num_rounds):
        floors.append(_run("floor", str(folder), ""))
        for name, measured in runs.items():
            measured.append(_run(name, str(folder), str(folder / f"{name}-{number}.jsonl")))
    best = min(OTHERS, key=lambda name: statistics.median(run["seconds"] for run in runs[name]))

    def ratios(ours: list[dict[str, Any]]) -> list[float]:
        return [round(theirs["seconds"] / one["seconds"], 2) for one, theirs in zip(ours, runs[best], strict=True)]

    return {
        "pairs": str(pairs.name) if pairs else "docstrings of the installed packages",
        "rows": num_rows,
        "runs": runs,
        "best_other": best,
        "ratio_to_best_other": ratios(runs[OURS]),
        "ratio_int8": ratios(runs[OURS_INT8]),
        "floor": floors,
        "ratio_that_float32_cannot_exceed": ratios(floors),
        "peak_mb": {name: max(run["peak_mb"] for run in measured) for name, measured in runs.items()},
        "candidates": _differences(folder / f"{OURS}-0.jsonl", folder / f"{best}-0.jsonl"),
        "candidates_int8": _differences(folder / f"{OURS_INT8}-0.jsonl", folder / f"{OURS}-0.jsonl"),
    }


def _write_pairs(folder: Path, pairs: Path | None, num_rows: int) -> None:
    from longspan.data.readers import read_rows

    if pairs is None:
        from longspan.demo.collect import collect

        collect(folder / "collected")
        pairs = folder / "collected" / "pairs" / "docstring.jsonl"
    rows = itertools.islice(read_rows(str(pairs)), num_rows)
    lines = [json.dumps({"query": row["query"], "document": row["document"]}) for _, row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def _differences(ours: Path, theirs: Path) -> dict[str, Any]:
    """How far two files of negatives agree, query by query."""
    found = [
        {row["query"]: row for row in map(json.loads, file.read_text("utf-8").splitlines())} for file in (ours, theirs)
    ]
    equal, ties, other, shared, largest = 0, 0, 0, 0, 0.0
    for query, their_row in found[1].items():
        our_row = found[0][query]
        gap = max(abs(a - b) for a, b in zip(our_row["scores"], their_row["scores"], strict=True))
        largest = max(largest, gap)
        shared += len(set(our_row["negatives"]) & set(their_row["negatives"]))
        if our_row["negatives"] == their_row["negatives"]:
            equal += 1
        elif gap < TIE:
            ties += 1
        else:
            other += 1
    return {
        "queries": len(found[1]),
        "equal": equal,
        "equal_but_for_ties": ties,
        "different": other,
        "negatives_shared": round(shared / sum(len(row["negatives"]) for row in found[1].values()), 4),
        "largest_gap": largest,
    }


def _run(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.mining", "--worker", *arguments]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return json.loads(lines[-1])


def _worker(name: str, folder: str, out: str) -> dict[str, Any]:
    if name == "large":
        return _large(Path(folder), int(out))
    file = Path(folder) / "pairs.jsonl"
    if name == "floor":
        return _floor(file)
    if name in (OURS, OURS_INT8):
        return _longspan(file, Path(out), "int8" if name == OURS_INT8 else "float32")
    _, size, *faiss = name.split("-")
    return _sentence_transformers(file, Path(out), int(size), bool(faiss))


def _floor(file: Path) -> dict[str, Any]:
    """Seconds of the encoder's matrix products alone on the distinct texts, at the rate of large products here."""
    from longspan.demo.teacher import load_teacher
    from longspan.train.cost import count_parameters

    teacher = load_teacher()
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    texts = [text for name in ("query", "document") for text in dict.fromkeys(row[name] for row in rows)]
    lengths_N = np.array(teacher.num_tokens(texts)).clip(max=teacher.config.max_length)
    shape = teacher.model.encoder.config
    linear, _ = count_parameters(shape)
    flops = float(2 * linear * lengths_N.sum() + 4 * shape.num_layers * shape.width * (lengths_N**2).sum())
    rate = gemm_rate(seconds=3)
    return {
        "tokens": int(lengths_N.sum()),
        "teraflops": round(flops / 1e12, 3),
        "gemm_gflops_fp32": round(rate, 1),
        "seconds": round(flops / rate / 1e9, 2),
    }


def _longspan(file: Path, out: Path, precision: Precision) -> dict[str, Any]:
    from longspan.curate.consistency import Teacher
    from longspan.curate.mining import mine_source
    from longspan.curate.negatives import Mining
    from longspan.data.source import PairSource
    from longspan.demo.teacher import teacher_folder
    from longspan.embedder import Embedder

    embedder = Embedder.load(teacher_folder(), device="cpu", precision=precision)
    spent: dict[str, float] = {}
    began = last = time.perf_counter()
    doing = "reading"

    def progress(what: str, done: int, total: int) -> None:
        nonlocal doing, last
        now = time.perf_counter()
        spent[doing] = spent.get(doing, 0.0) + now - last
        doing, last = what, now

    with tempfile.TemporaryDirectory() as folder:
        source = PairSource(name="pairs", files=(str(file),))
        mine_source(source, Teacher(embedder), Path(folder), Mining(k=NUM_NEGATIVES, at_least=0), progress=progress)
        progress("", 0, 0)
        result = _measured(began) | {"parts": {name: round(seconds, 2) for name, seconds in spent.items()}}
        rows = map(json.loads, (Path(folder) / "mined.jsonl").read_text("utf-8").splitlines())
        _write_rows(out, ((row["query"], row["negatives"], row["negative_scores"]) for row in rows))
    return result


def _sentence_transformers(file: Path, out: Path, batch_size: int, use_faiss: bool) -> dict[str, Any]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from longspan.demo.teacher import teacher_folder

    model = SentenceTransformer(str(teacher_folder()), device="cpu")
    spent: dict[str, float] = {}
    for name in ("encode_document", "encode_query"):
        setattr(model, name, _timed(getattr(model, name), spent))
    began = time.perf_counter()
    pairs = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    mined: Any = mine_hard_negatives(
        Dataset.from_list(pairs),
        model,
        num_negatives=NUM_NEGATIVES,
        output_format="n-tuple",
        output_scores=True,
        batch_size=batch_size,
        use_faiss=use_faiss,
        verbose=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        mined.to_json(Path(folder) / "mined.jsonl")
        result = _measured(began)
    result["parts"] = {"embedding": round(spent["seconds"], 2)}
    names = [f"negative_{n}" for n in range(1, NUM_NEGATIVES + 1)]
    _write_rows(out, ((row["query"], [row[name] for name in names], row["scores"][1:]) for row in mined))
    return result


def _timed(function: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = function(*arguments, **named)
        spent["seconds"] = spent.get("seconds", 0.0) + time.perf_counter() - began
        return result

    return timed


def _write_rows(out: Path, rows: Any) -> None:
    lines = (json.dumps({"query": q, "negatives": n, "scores": [round(s, 4) for s in scores]}) for q, n, scores in rows)
    out.write_text("\n".join(lines) + "\n", "utf-8")


def _measured(began: float) -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1000),
    }


def _large(folder: Path, count: int) -> dict[str, Any]:
    from longspan.curate.approximate import nearest

    queries_ND, documents_MD = (_synthetic(folder / f"{seed}.npy", count, seed) for seed in (1, 2))
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    found = nearest(queries_ND, documents_MD, NUM_NEGATIVES, exact=False)
    result = _measured(began)
    result["cpu_seconds"] = round(result["cpu_seconds"] - before.ru_utime - before.ru_stime, 2)
    return result | {
        "queries": count,
        "documents": count,
        "width": WIDTH,
        "k": NUM_NEGATIVES,
        "result_mb": round((found.scores_NK.nbytes + found.indices_NK.nbytes) / 1e6),
        "search": found.search.report(),
    }


def _synthetic(path: Path, count: int, seed: int) -> np.ndarray:
    """Unit vectors around random directions, as many to a direction whatever the count; float16, memory-mapped."""
    num_directions = max(1, count * DIRECTIONS // 1_000_000)
    directions_CD = np.random.default_rng(0).standard_normal((num_directions, WIDTH), dtype=np.float32) / WIDTH**0.5
    generator = np.random.default_rng(seed)
    whole = np.lib.format.open_memmap(path, "w+", dtype=np.float16, shape=(count, WIDTH))
    for start in range(0, count, ROWS_AT_A_TIME):
        size = min(ROWS_AT_A_TIME, count - start)
        noise_ND = generator.standard_normal((size, WIDTH), dtype=np.float32) * (NOISE / WIDTH**0.5)
        rows_ND = directions_CD[generator.integers(num_directions, size=size)] + noise_ND
        whole[start : start + size] = rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
    del whole
    return np.load(path, mmap_mode="r")


if __name__ == "__main__":
    main()
