"""What the loaders read: the same seeded pairs of real words for all of them, and large folders made of links."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longspan.data.dataset import Dataset, find_prepared
from longspan.data.manifest import MANIFEST, Shard
from longspan.data.prepare import TOKENIZER_FILE, prepare
from longspan.data.shards import remember_verified
from longspan.data.source import PairSource
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import Tokenizer

BATCH = 16_384
MAX_QUERY, MAX_DOCUMENT = 64, 128
QUERY_WORDS, DOCUMENT_WORDS = 12, 40
"""Means; a word is one token."""
BATCHES_OF = {"a": 5, "b": 4, "c": 4, "d": 3}
"""Source -> how many whole batches its rows are."""
PREFIX = {"query": PREFIXES["search_query"], "document": PREFIXES["search_document"]}

ARROW, MDS, IDS = "arrow", "mds", "ids.npz"
MDS_INDEX = "index.json"


def write_rows(folder: Path, tokenizer: Tokenizer, words: Sequence[str]) -> None:
    """Write `folder/NAME.jsonl` of every source, and prepare them in `folder/prepared`."""
    rng = np.random.default_rng(0)
    for name, batches in BATCHES_OF.items():
        columns = zip(
            *(_texts(words, mean, batches * BATCH, rng) for mean in (QUERY_WORDS, DOCUMENT_WORDS)), strict=True
        )
        lines = (json.dumps({"query": query, "document": document}) for query, document in columns)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    prepare(
        [PairSource(name=name, files=(str(folder / f"{name}.jsonl"),)) for name in BATCHES_OF],
        folder / "prepared",
        tokenizer,
    )


def read_rows(folder: Path, name: str) -> list[dict[str, str]]:
    """The texts of a source."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


def real_words(vocabulary: Sequence[str]) -> list[str]:
    """The whole words of a WordPiece vocabulary; BERT's comes with the frequent ones first."""
    return [word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 1]


def _texts(words: Sequence[str], mean: int, count: int, rng: np.random.Generator) -> list[str]:
    lengths = np.maximum(1, rng.gamma(3, mean / 3, count).astype(np.int64))
    frequency = np.cumsum(1 / (np.arange(len(words)) + 10))  # Zipf's law, nearly
    numbers: list[int] = np.searchsorted(frequency, rng.random(int(lengths.sum())) * frequency[-1]).tolist()
    ends = np.cumsum(lengths).tolist()
    return [
        " ".join([words[number] for number in numbers[start:end]])
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def write_ids(folder: Path) -> None:
    """Write the token ids of the prepared sources as arrays that need no library of ours: flat ids and lengths."""
    for source in Dataset(folder / "prepared", "pairs").sources:
        arrays = {}
        for column in PREFIX:
            parts = list(source.ids(column).by_shard())
            arrays[column] = np.concatenate([values for values, _ in parts])
            arrays[f"{column}_lengths"] = np.concatenate([lengths for _, lengths in parts])
        np.savez(folder / f"{source.manifest.name}.{IDS}", **arrays)


def write_frame(folder: Path, tokenizer: Tokenizer) -> None:
    """Write what a peer that reads ids must know to frame a text: for each column what stands before and after it."""
    frame = {}
    for column, prefix in PREFIX.items():
        before = [tokenizer.cls_id, *tokenizer.encode([prefix])[0].tolist()]
        frame[column] = {"before": before, "after": [tokenizer.sep_id]}
    (folder / "frame.json").write_text(json.dumps(frame), "utf-8")


def link_prepared(small: Path, large: Path, rows: Mapping[str, int]) -> int:
    """Make a prepared folder of about the given rows a source, whose shards are links to those of a small one.

    Returns:
        The rows it has.
    """
    large.mkdir()
    os.link(small / TOKENIZER_FILE, large / TOKENIZER_FILE)
    found = find_prepared(small)
    stock = sorted(
        ((shard, folder) for folder, manifest in found.items() for shard in manifest.shards),
        key=lambda item: -item[0].num_rows,
    )
    pattern = next(iter(found.values()))
    total = 0
    for name, wanted in rows.items():
        folder = large / name
        folder.mkdir()
        shards: list[Shard] = []
        left = wanted
        while left > 0:
            shard, origin = next((item for item in stock if item[0].num_rows <= left), stock[-1])
            file = f"shard-{len(shards):05d}.arrow"
            os.link(origin / shard.file, folder / file)
            shards.append(shard.model_copy(update={"file": file}))
            left -= shard.num_rows
        manifest = pattern.model_copy(update={"name": name, "num_rows": wanted - left, "shards": tuple(shards)})
        (folder / MANIFEST).write_text(manifest.model_dump_json(), "utf-8")
        remember_verified(folder, shards)
        total += manifest.num_rows
    return total


def link_arrow(small: Path, large: Path, rows: int) -> int:
    """Make a folder of links to the Arrow files that `datasets` keeps below a small one; returns its rows."""
    large.mkdir()
    stock = [(path, _rows_of_arrow(path)) for path in sorted(small.rglob("*.arrow"))]
    total = 0
    for number, (path, count) in enumerate(itertools.cycle(stock)):
        if total >= rows:
            break
        os.link(path, large / f"{number:05d}.arrow")
        total += count
    return total


def _rows_of_arrow(path: Path) -> int:
    with pa.memory_map(str(path)) as file:
        return sum(batch.num_rows for batch in pa.ipc.open_stream(file))


def link_mds(small: Path, large: Path, rows: int) -> int:
    """Make an MDS folder of links to the shards of the small folders in another; returns its rows."""
    large.mkdir()
    stock = [
        (index.parent, shard)
        for index in sorted(small.glob(f"*/{MDS_INDEX}"))
        for shard in json.loads(index.read_text("utf-8"))["shards"]
    ]
    shards: list[dict[str, Any]] = []
    total = 0
    for folder, shard in itertools.cycle(stock):
        if total >= rows:
            break
        file = f"shard.{len(shards):05d}.mds"
        os.link(folder / shard["raw_data"]["basename"], large / file)
        shards.append(shard | {"raw_data": shard["raw_data"] | {"basename": file}})
        total += shard["samples"]
    (large / MDS_INDEX).write_text(json.dumps({"version": 2, "shards": shards}), "utf-8")
    return total
