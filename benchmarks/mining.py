"""Hard negatives on a CPU: longspan beside sentence-transformers, same teacher, same pairs, from file to file.

Each candidate runs in a process of its own, so that its peak of memory is its own; they take turns. The clock runs from
the open file of pairs to the written file of negatives, embedding included; the loading of libraries and of the model
is left out. Both libraries run with the teacher in float32 and in bfloat16, and longspan in int8 as well;
sentence-transformers runs at several batch sizes, with FAISS and without, and its best counts. What the lower
precisions change is told for both, beside longspan's candidates in float32.

Beside it stands the floor: the time that the encoder's matrix products alone would take at the rate of the fastest
float32 products here, on the distinct texts without padding. No program that multiplies in float32 is faster, so that
the peer's time over it bounds every ratio.

    python -m benchmarks.mining [--pairs FILE] [--rows N]     docstrings of the installed packages, or these pairs
    python -m benchmarks.mining --large N --data DIR --work DIR
        N x N top-20 of vectors like those of real texts, as `nearest` finds them, in parts of the queries that are kept
        in --work: the same command goes on. --search index: through an index.
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
from typing import Any, cast

import numpy as np
import torch

from benchmarks.record import gemm_rate, rate_of, write_record
from longspan.files import atomic_path, read_json, write_json
from longspan.model.fused import fused_precisions, random_product
from longspan.model.inference import Precision

ROUNDS = 2
ROWS = 4000
NUM_NEGATIVES = 20
OURS = {"float32": "longspan-float32", "bfloat16": "longspan-bfloat16", "int8": "longspan-int8"}
OTHERS = {
    "float32": ("st-float32-8", "st-float32-16", "st-float32-32", "st-float32-16-faiss"),
    "bfloat16": ("st-bfloat16-16", "st-bfloat16-32", "st-bfloat16-64"),
}
"""sentence-transformers, the teacher's precision, the batch size, and whether FAISS searches."""
TIE = 1e-5
"""Scores nearer than this may stand in either order: both sides round."""
TEXTS = "squad_sentence"
"""Pairs whose vectors the large search is made of: 22,333 questions and 13,447 sentences."""
SPREAD, ROWS_AT_A_TIME = 0.4, 2**15
NUM_CHECKED = 64
"""Queries of each part of a large search that are searched again in float64, document by document."""


def main() -> None:
    """Measure what is asked for, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="a .jsonl file with the columns query and document")
    parser.add_argument("--rows", type=int, default=ROWS, help="pairs, the first (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that each candidate runs (%(default)s)")
    parser.add_argument("--others", nargs="+", help="only these settings of sentence-transformers")
    parser.add_argument("--large", type=int, metavar="N", help="instead, N x N vectors")
    parser.add_argument("--queries", type=int, help="of them, the first (all)")
    parser.add_argument("--data", type=Path, help="the folder of the small real data sets")
    parser.add_argument("--work", type=Path, help="folder of the vectors and of finished parts")
    parser.add_argument("--parts", type=int, default=4, help="parts of the queries (%(default)s)")
    parser.add_argument("--at-once", type=int, default=4, help="parts searched by this command (%(default)s)")
    parser.add_argument("--search", choices=("by size", "index"), default="by size", help="(%(default)s)")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.worker:
        print("\n" + json.dumps(_worker(*parsed.worker)))
    elif parsed.large:
        if parsed.data is None or parsed.work is None:
            parser.error("--large needs --data and --work")
        _search_large(parsed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_record("mining-cpu-minilm", _beside_sentence_transformers(Path(folder), parsed))


def _beside_sentence_transformers(folder: Path, parsed: argparse.Namespace) -> dict[str, Any]:
    _write_pairs(folder, parsed.pairs, parsed.rows)
    others = {
        precision: [name for name in names if not parsed.others or name in parsed.others]
        for precision, names in OTHERS.items()
    }
    names = [*OURS.values(), *itertools.chain.from_iterable(others.values())]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    floors = []
    for number in range(parsed.rounds):
        floors.append(_run("floor", str(folder), ""))
        for name, measured in runs.items():
            measured.append(_run(name, str(folder), str(folder / f"{name}-{number}.jsonl")))
    best = {
        precision: min(names, key=lambda name: statistics.median(run["seconds"] for run in runs[name]))
        for precision, names in others.items()
    }

    def ratios(ours: list[dict[str, Any]], precision: str) -> list[float]:
        theirs = runs[best[precision]]
        return [round(other["seconds"] / one["seconds"], 2) for one, other in zip(ours, theirs, strict=True)]

    truth = folder / f"{OURS['float32']}-0.jsonl"
    return {
        "pairs": str(parsed.pairs.name) if parsed.pairs else "docstrings of the installed packages",
        "rows": parsed.rows,
        "runs": runs,
        "best_other": best,
        "ratio_float32": ratios(runs[OURS["float32"]], "float32"),
        "ratio_bfloat16": ratios(runs[OURS["bfloat16"]], "bfloat16"),
        "ratio_int8_to_their_float32": ratios(runs[OURS["int8"]], "float32"),
        "ratio_bfloat16_to_their_float32": ratios(runs[OURS["bfloat16"]], "float32"),
        "floor": floors,
        "ratio_that_float32_cannot_exceed": ratios(floors, "float32"),
        "peak_mb": {name: max(run["peak_mb"] for run in measured) for name, measured in runs.items()},
        "candidates_beside_longspan_float32": {
            name: _differences(folder / f"{name}-0.jsonl", truth)
            for name in (OURS["bfloat16"], OURS["int8"], *best.values())
        },
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
        return _part_of_large(Path(folder), Path(out))
    file = Path(folder) / "pairs.jsonl"
    if name == "floor":
        return _floor(file)
    library, precision, *more = name.split("-")
    if library == "longspan":
        return _longspan(file, Path(out), precision)
    return _sentence_transformers(file, Path(out), precision, int(more[0]), more[1:] == ["faiss"])


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
    rate = _product_rate()
    return {
        "tokens": int(lengths_N.sum()),
        "teraflops": round(flops / 1e12, 3),
        "gemm_gflops_fp32": round(rate, 1),
        "seconds": round(flops / rate / 1e9, 2),
    }


def _product_rate(seconds: float = 3) -> float:
    """GFLOP/s of the fastest float32 product there is here: torch's, or the compiled code's own."""
    rates, rows, weight_OI = [gemm_rate(seconds=seconds)], 1024, torch.randn(3072, 768)
    if "float32" in fused_precisions():
        rates.append(rate_of(random_product(weight_OI, rows, "float32"), 2 * rows * weight_OI.numel(), seconds))
    return max(rates)


def _longspan(file: Path, out: Path, precision: str) -> dict[str, Any]:
    from longspan.curate.consistency import Teacher
    from longspan.curate.mining import mine_source
    from longspan.curate.negatives import Mining
    from longspan.data.source import PairSource
    from longspan.demo.teacher import teacher_folder
    from longspan.embedder import Embedder

    embedder = Embedder.load(teacher_folder(), device="cpu", precision=cast("Precision", precision))
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


def _sentence_transformers(file: Path, out: Path, precision: str, batch_size: int, use_faiss: bool) -> dict[str, Any]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from longspan.demo.teacher import teacher_folder

    model = SentenceTransformer(str(teacher_folder()), device="cpu", model_kwargs={"dtype": precision})
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


def _search_large(parsed: argparse.Namespace) -> None:
    """Search the parts that are left, and write a record when there are none."""
    count, work, num_queries = parsed.large, parsed.work, parsed.queries or parsed.large
    for side, seed in (("query", 1), ("document", 2)):
        if not (work / f"{side}-{count}.npy").is_file():
            _perturbed(work / f"{side}-{count}.npy", _texts(side, parsed.data, work / "texts"), count, seed)
    name = parsed.search.replace(" ", "-")
    files = [work / f"{name}-{num_queries}-{count}-{part}-of-{parsed.parts}.json" for part in range(parsed.parts)]
    for part, file in [(part, file) for part, file in enumerate(files) if not file.is_file()][: parsed.at_once]:
        start, stop = (place * num_queries // parsed.parts for place in (part, part + 1))
        exact = False if parsed.search == "index" else None
        write_json(work / "asked.json", {"count": count, "start": start, "stop": stop, "exact": exact})
        write_json(file, _run("large", str(work), str(work / "asked.json")))
    if not all(file.is_file() for file in files):
        return
    parts = [read_json(file, remedy="delete it") for file in files]
    total = {name: round(sum(part[name] for part in parts), 1) for name in ("seconds", "cpu_seconds")}
    total |= {"peak_mb": max(part["peak_mb"] for part in parts), "anonymous_mb": max(p["anonymous_mb"] for p in parts)}
    total["recall_by_float64"] = round(statistics.mean(part["recall_by_float64"] for part in parts), 5)
    size = {"queries": num_queries, "documents": count, "k": NUM_NEGATIVES}
    write_record(f"mining-large-{count}-{name}", size | total | {"parts": parts})


def _texts(side: str, data: Path, cache: Path) -> np.ndarray:
    """MiniLM's vectors of the queries or documents of some real pairs."""
    from longspan.curate.vectors import VectorStore
    from longspan.data.readers import read_rows
    from longspan.demo.teacher import teacher_folder
    from longspan.embedder import Embedder

    texts = dict.fromkeys(row[side] for _, row in read_rows(str(data / "pairs" / f"{TEXTS}.jsonl.gz")))
    teacher = Embedder.load(teacher_folder(), precision="bfloat16")
    return VectorStore(cache, teacher, task=f"search_{side}").embed(list(texts))


def _perturbed(path: Path, texts_TD: np.ndarray, count: int, seed: int) -> None:
    """Unit vectors in float16: each that of a text, moved by a part of the difference of two others.

    So the noise has the directions in which such texts differ, and neighbourhoods are as uneven as theirs.
    """
    generator, num_texts = np.random.default_rng(seed), len(texts_TD)
    with atomic_path(path) as unfinished:
        whole = np.lib.format.open_memmap(unfinished, "w+", dtype=np.float16, shape=(count, texts_TD.shape[1]))
        for start in range(0, count, ROWS_AT_A_TIME):
            size = min(ROWS_AT_A_TIME, count - start)
            text_N, one_N, other_N = generator.integers(num_texts, size=(3, size))
            rows_ND = texts_TD[text_N] + np.float32(SPREAD) * (texts_TD[one_N] - texts_TD[other_N])
            whole[start : start + size] = rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
        del whole


def _part_of_large(work: Path, asked_file: Path) -> dict[str, Any]:
    from longspan.curate.approximate import nearest

    asked = read_json(asked_file, remedy="")
    queries_ND, documents_MD = (
        np.load(work / f"{side}-{asked['count']}.npy", mmap_mode="r") for side in ("query", "document")
    )
    queries_ND = queries_ND[asked["start"] : asked["stop"]]
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    found = nearest(queries_ND, documents_MD, NUM_NEGATIVES, exact=asked["exact"])
    result = _measured(began)
    result["cpu_seconds"] = round(result["cpu_seconds"] - before.ru_utime - before.ru_stime, 2)
    anonymous = next(line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if "RssAnon" in line)
    result["anonymous_mb"] = round(int(anonymous.split()[1]) / 1000)
    return result | {
        "queries": len(queries_ND),
        "search": found.search.report(),
        "recall_by_float64": _recall_by_float64(queries_ND, documents_MD, found.indices_NK),
    }


def _recall_by_float64(queries_ND: np.ndarray, documents_MD: np.ndarray, found_NK: np.ndarray) -> float:
    """The part of the nearest documents by definition that was found, of some of the queries."""
    rows = np.sort(np.random.default_rng(0).permutation(len(queries_ND))[:NUM_CHECKED])
    queries_RD = np.asarray(queries_ND[rows], dtype=np.float64)
    best_RK, indices_RK = np.full((2, len(rows), NUM_NEGATIVES), -np.inf)
    for start in range(0, len(documents_MD), ROWS_AT_A_TIME):
        block_CD = np.asarray(documents_MD[start : start + ROWS_AT_A_TIME], dtype=np.float64)
        numbers_RC = np.broadcast_to(np.arange(start, start + len(block_CD)), (len(rows), len(block_CD)))
        scores_RX = np.concatenate([best_RK, queries_RD @ block_CD.T], axis=1)
        places_RK = np.argpartition(-scores_RX, NUM_NEGATIVES, axis=1)[:, :NUM_NEGATIVES]
        best_RK = np.take_along_axis(scores_RX, places_RK, axis=1)
        indices_RK = np.take_along_axis(np.concatenate([indices_RK, numbers_RC], axis=1), places_RK, axis=1)
    shared = [len(set(true) & set(found)) for true, found in zip(indices_RK, found_NK[rows], strict=True)]
    return round(sum(shared) / (len(rows) * NUM_NEGATIVES), 5)


if __name__ == "__main__":
    main()
