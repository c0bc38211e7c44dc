"""The data loader beside its peers: pairs per second of one core, and how long it takes to start and to jump.

The same seeded pairs for all: four sources of real words, 262,144 pairs. Every candidate is a process of its own on the
same one core; they take turns, and a round's ratio counts. Nobody has `DataLoader` workers: on one core they only take
from the process that waits for them. mosaicml-streaming needs an environment of its own:
`python -m benchmarks.loader --mosaic-python PATH`; without it, its place in the record says so.

Starting and jumping are measured in fresh processes on folders of 50 and 235 million rows. Their shards are links to a
few real ones, so this measures what grows with the number of rows and shards, and not a disk.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.loader_longspan import open_loader
from benchmarks.loader_rows import (
    ARROW,
    BATCH,
    BATCHES_OF,
    MAX_DOCUMENT,
    MAX_QUERY,
    MDS,
    PREFIX,
    link_arrow,
    link_mds,
    link_prepared,
    read_rows,
    real_words,
    write_frame,
    write_ids,
    write_rows,
)
from benchmarks.loader_turns import Worker, run_once
from benchmarks.record import write_record
from longspan.data.catalog import catalog
from longspan.demo.teacher import teacher_folder
from longspan.text.tokenizer import Tokenizer

OURS = "longspan"
ROUNDS = 3
MANY_ROWS = 50_000_000
JUMP = 10_000
"""Step to jump to."""


def main() -> None:
    """Measure, and write a record."""
    parser = argparse.ArgumentParser(description="The data loader beside its peers.")
    parser.add_argument("--mosaic-python", help="the python of an environment that has mosaicml-streaming")
    mosaic = parser.parse_args().mosaic_python
    tokenizer = Tokenizer.load(teacher_folder())  # its vocabulary is bert-base-uncased
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {"rows": _prepare(folder, tokenizer, mosaic), "equality": _check(folder, tokenizer)}
        result["throughput"] = _throughput(folder, mosaic)
        result["start"] = _starts(folder, mosaic)
    write_record("loader", result)


def _prepare(folder: Path, tokenizer: Tokenizer, mosaic: str | None) -> dict[str, Any]:
    write_rows(folder, tokenizer, real_words((teacher_folder() / "vocab.txt").read_text("utf-8").splitlines()))
    if mosaic:
        write_ids(folder)
        write_frame(folder, tokenizer)
        run_once(mosaic, "benchmarks.loader_mosaic", "write", str(folder))
    loader, steps = open_loader(folder / "prepared")
    batches = [loader.batch(step) for step in range(steps)]
    tokens = sum(batch.queries.num_tokens + batch.documents.num_tokens for batch in batches)
    pairs = sum(BATCHES_OF.values()) * BATCH
    return {
        "pairs": pairs,
        "sources": len(BATCHES_OF),
        "batch": BATCH,
        "max_query_tokens": MAX_QUERY,
        "max_document_tokens": MAX_DOCUMENT,
        "tokens_per_pair": round(tokens / pairs, 1),
        "sequences_cut": sum(batch.num_cut for batch in batches),
    }


def _check(folder: Path, tokenizer: Tokenizer) -> str:
    """Decode an epoch of a source: it must be its file, with prefixes and cuts, each row once."""
    source = min(BATCHES_OF, key=lambda name: BATCHES_OF[name])
    longest = {"query": MAX_QUERY, "document": MAX_DOCUMENT}
    before = {column: tokenizer.encode([prefix])[0] for column, prefix in PREFIX.items()}

    def seen(column: str, text: str) -> str:
        words = text.split(" ")[: longest[column] - len(before[column]) - 2]
        return f"[CLS] {tokenizer.decode(before[column])} {' '.join(words)} [SEP]"

    expected = sorted(tuple(seen(column, row[column]) for column in PREFIX) for row in read_rows(folder, source))
    loader, steps = open_loader(folder / "prepared", only=(source,))
    decoded = []
    for batch in map(loader.batch, range(steps)):
        columns = []
        for packed in (batch.queries, batch.documents):
            ends = itertools.pairwise(packed.cu_seqlens.tolist())
            columns.append([tokenizer.decode(packed.ids_T[start:end].numpy()) for start, end in ends])
        decoded.extend(zip(*columns, strict=True))
    if sorted(decoded) != expected:
        raise SystemExit("a decoded epoch is not the file that it was prepared from")
    return f"an epoch of source {source}, decoded, is its {len(expected)} rows with prefix and cut, each once"


def _throughput(folder: Path, mosaic: str | None) -> dict[str, Any]:
    workers = [
        Worker(sys.executable, "benchmarks.loader_longspan", str(folder / "prepared")),
        Worker(sys.executable, "benchmarks.loader_sentence_transformers", str(folder)),
    ]
    if mosaic:
        arguments = ("turns", str(folder), *map(str, (BATCH, MAX_QUERY, MAX_DOCUMENT)))
        workers.append(Worker(mosaic, "benchmarks.loader_mosaic", *arguments))
    rates: dict[str, list[float]] = {name: [] for worker in workers for name in worker.hello["candidates"]}
    for round_number in range(ROUNDS + 1):
        for worker in workers:
            for name in worker.hello["candidates"]:
                answer = worker.run(name)
                if round_number:  # the first round does not count
                    rates[name].append(answer["pairs"] / answer["seconds"])
    for worker in workers:
        worker.close()
    return {
        "pairs_per_second": {name: [round(rate) for rate in found] for name, found in rates.items()},
        "median": {name: round(statistics.median(found)) for name, found in rates.items()},
        "longspan_is_times_as_fast": {name: _ratio(rates[OURS], rates[name]) for name in rates if name != OURS},
        "versions": [worker.hello["versions"] for worker in workers],
        "mosaicml-streaming": "measured" if mosaic else "absent: no --mosaic-python was given",
    }


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {"median": round(statistics.median(ratios), 1), "min": round(min(ratios), 1), "max": round(max(ratios), 1)}


def _starts(folder: Path, mosaic: str | None) -> dict[str, Any]:
    paper = {entry.name: entry.num_rows or 0 for entry in catalog().values() if entry.stage == "contrastive"}
    prepared = folder / "prepared"
    many, all_of_table_7 = folder / "many", folder / "table-7"
    result: dict[str, Any] = {}
    rows = link_prepared(prepared, many, {"many": MANY_ROWS})
    result[f"{OURS}, {rows} rows"] = _start(sys.executable, "benchmarks.loader_longspan", str(many))
    rows = link_prepared(prepared, all_of_table_7, paper)
    place = str(all_of_table_7)
    result[f"{OURS}, {rows} rows in {len(paper)} sources"] = _start(sys.executable, "benchmarks.loader_longspan", place)
    arrow = folder / "many-arrow"
    rows = link_arrow(folder / ARROW, arrow, MANY_ROWS)
    module = "benchmarks.loader_sentence_transformers"
    result[f"sentence-transformers, {rows} rows, raw texts"] = _start(sys.executable, module, str(arrow))
    if mosaic:
        mds = folder / "many-mds"
        rows = link_mds(folder / MDS, mds, MANY_ROWS)
        arguments = (mosaic, "benchmarks.loader_mosaic", "start", str(mds), str(BATCH))
        result[f"mosaicml-streaming, {rows} rows, iteration alone"] = _start(*arguments)
    return result


def _start(python: str, module: str, *arguments: str) -> dict[str, Any]:
    return {
        "first batch": run_once(python, module, *arguments, "0"),
        f"step {JUMP}": run_once(python, module, *arguments, str(JUMP)),
    }


if __name__ == "__main__":
    main()
