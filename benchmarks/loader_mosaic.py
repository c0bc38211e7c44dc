"""Candidate of `benchmarks.loader`: mosaicml-streaming with one source a batch (`per_stream`).

It runs in an environment of its own, where longspan is not installed. Shards hold the token ids as uint16 arrays.

`python -m benchmarks.loader_mosaic write FOLDER` writes the shards, `... turns FOLDER` takes turns, and
`... start FOLDER STEP` opens FOLDER (one source) and makes that step's batch.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset

from benchmarks.loader_turns import Pass, report, serve, start_times

MDS, IDS = "mds", "ids.npz"
BATCHES = 2
"""Of a pass."""

Sample = dict[str, np.ndarray]


def main() -> None:
    """Write, take turns, or start once."""
    action, folder, *rest = sys.argv[1:]
    root = Path(folder)
    if action == "write":
        report(lambda: _write(root))
    elif action == "turns":
        _turns(root, *map(int, rest))
    else:
        report(lambda: _start(root, *map(int, rest)))


def _write(folder: Path) -> dict[str, float]:
    began = time.perf_counter()
    for path in sorted(folder.glob(f"*.{IDS}")):
        arrays = dict(np.load(path))
        texts = {
            column: np.split(arrays[column], np.cumsum(arrays[f"{column}_lengths"])[:-1])
            for column in ("query", "document")
        }
        target = folder / MDS / path.name.removesuffix(f".{IDS}")
        with MDSWriter(out=str(target), columns=dict.fromkeys(texts, "ndarray:uint16")) as writer:
            for query, document in zip(texts["query"], texts["document"], strict=True):
                writer.write({"query": query, "document": document})
    return {"seconds": round(time.perf_counter() - began, 3)}


def _turns(folder: Path, batch: int, max_query: int, max_document: int) -> None:
    frame = json.loads((folder / "frame.json").read_text("utf-8"))
    pack_query = _packer(frame["query"], max_query)
    pack_document = _packer(frame["document"], max_document)

    def collate(samples: list[Sample]) -> dict[str, Any]:
        queries, documents = ([sample[column] for sample in samples] for column in ("query", "document"))
        return {"num_samples": samples, "queries": pack_query(queries), "documents": pack_document(documents)}

    passes: dict[str, Pass] = {}
    dataset = _dataset(sorted((folder / MDS).iterdir()), batch)  # one: it does not share a folder with a second

    def add(name: str, collate: Callable[[list[Sample]], Any]) -> None:
        def run() -> int:
            loader = StreamingDataLoader(dataset, batch_size=batch, collate_fn=collate)
            return sum(batch for _ in itertools.islice(loader, BATCHES))

        passes[f"mosaicml-streaming, {name}"] = run

    add("iteration alone", list)
    add("packed", collate)
    serve(passes, ["mosaicml-streaming", "torch", "numpy"])


def _dataset(streams: list[Path], batch: int) -> StreamingDataset:
    return StreamingDataset(
        streams=[Stream(local=str(path)) for path in streams],
        batch_size=batch,
        batching_method="per_stream",
        shuffle=True,
        shuffle_seed=0,
    )


def _packer(frame: dict[str, list[int]], longest: int) -> Callable[[list[np.ndarray]], tuple[torch.Tensor, ...]]:
    """Texts to flat int64 ids with prefix, cut and special tokens, and int32 boundaries."""
    before, after = (np.array(frame[side], dtype=np.uint16) for side in ("before", "after"))
    kept = longest - len(before) - len(after)

    def pack(texts: list[np.ndarray]) -> tuple[torch.Tensor, ...]:
        pieces = [piece for text in texts for piece in (before, text[:kept], after)]
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        ends = np.cumsum(np.minimum(lengths, kept) + len(before) + len(after))
        ids = torch.from_numpy(np.concatenate(pieces).astype(np.int64))
        return ids, torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))

    return pack


def _start(folder: Path, batch: int, step: int) -> dict[str, float]:
    began = time.perf_counter()
    dataset = _dataset([folder], batch)
    opened = time.perf_counter()
    loader = StreamingDataLoader(dataset, batch_size=batch, collate_fn=list)
    if step:
        epoch, inside = divmod(step, dataset.size // batch)
        state = {
            "epoch": epoch,
            "sample_in_epoch": inside * batch,
            "num_canonical_nodes": 1,
            "shuffle_seed": 0,
            "initial_physical_nodes": 1,
        }
        loader.load_state_dict(state)
    next(iter(loader))
    made = time.perf_counter()
    return start_times(began, opened, made)


if __name__ == "__main__":
    main()
