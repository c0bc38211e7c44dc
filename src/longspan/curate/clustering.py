"""Clusters for the pairs of a source: pairs in, the same pairs with the number of their cluster and a report out.

Batches of one cluster hold texts that are hard to tell apart, so that a pair's rivals in the batch teach more (Merrick,
2024, "Embedding And Clustering Your Data Can Improve Contrastive Pretraining"). What is clustered is one side of the
pairs, by the vectors of a model. These are kept by text (`vectors.py`): a killed run computes those that are missing,
and clusters anew, which takes little beside them.

In memory are 12 bytes for each pair, and the sample from which the centres are learnt.

Axes: N pairs, K clusters, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from longspan.config import Config
from longspan.curate.consistency import Teacher
from longspan.curate.engine import Engine
from longspan.curate.kmeans import SAMPLE_PER_CENTRE, learn_centres, nearest_centres
from longspan.curate.pairs import Pair, PairReader
from longspan.curate.report import Example, Report, Table, score_histogram, shortened, write_report
from longspan.curate.rows import json_lines
from longspan.curate.vectors import VectorStore
from longspan.data.places import is_local
from longspan.data.source import CLUSTER, PairSource
from longspan.errors import LongspanError
from longspan.progress import Tell, counted

CLUSTERED = "clustered.jsonl"
PAIRS_PER_BLOCK = 2**14
NUM_SHOWN, NUM_SHOWN_OF = 10, 3
"""Clusters shown in the report, and pairs of each."""


class Clustering(Config):
    """How pairs are put into clusters."""

    num_clusters: int = Field(gt=0)
    at_least: int = Field(default=1, ge=1)
    """A cluster of fewer pairs is given up, and its pairs go to the nearest of the others: what fills no batch would
    never be read."""
    side: Literal["query", "document"] = "document"
    """Which text of a pair is looked at."""
    seed: int = 0


def cluster_source(
    source: PairSource,
    teacher: Teacher,
    out: Path,
    config: Clustering,
    *,
    cache: Path | None = None,
    engine: Engine | None = None,
    device: str = "cpu",
    progress: Tell | None = None,
) -> Report:
    """Give the pairs of a source their `cluster`, a number from 0: `out/clustered.jsonl`.

    Args:
        cache: where vectors are kept for reuse (default: `out/vectors`).
        engine: where they are computed (default: in this process).
        device: where vectors are compared.
        progress: told of "embedding", "clustering" and "writing".

    Raises:
        LongspanError: a file is missing, broken or would be overwritten; there are fewer different texts than clusters.
    """
    tell = progress or _silent
    reader = _reader(source, out)
    task = teacher.query_task if config.side == "query" else teacher.document_task
    store = VectorStore(
        cache or out / "vectors", teacher.embedder, task=task, max_length=teacher.max_length, engine=engine
    )
    num_pairs = sum(1 for _ in reader)
    store.fill((_text(pair, config) for pair in reader), counted(tell, "embedding", num_pairs))
    number_N = _numbers(reader, config, store)
    if len(number_N) < config.num_clusters:
        raise LongspanError(
            f"{len(number_N)} pairs cannot give {config.num_clusters} clusters", where=out, remedy="ask for fewer"
        )
    label_N, score_N = _labels(number_N, config, store, device, tell)
    sizes_K = np.bincount(label_N)
    examples = _write(reader, config, store, number_N, label_N, score_N, out, tell)
    facts = {
        "pairs": len(number_N),
        "clusters": len(sizes_K),
        "smallest": int(sizes_K.min()),
        "median": float(np.median(sizes_K)),
        "largest": int(sizes_K.max()),
        "mean_score": float(score_N.mean()),
        **config.model_dump(),
        "teacher": teacher.embedder.name,
        "teacher_fingerprint": teacher.embedder.fingerprint,
        "teacher_max_length": teacher.max_length,
    }
    rows = tuple((str(cluster), f"{size:,}") for cluster, size in enumerate(sizes_K.tolist()))
    report = Report(
        "clusters",
        source.name,
        facts,
        (score_histogram("scores with the own centre", {config.side: score_N}),),
        (Table("sizes", ("cluster", "pairs"), rows),),
        examples,
    )
    write_report(out, report)
    return report


def merged(
    label_N: np.ndarray, vectors_of: VectorStore, number_N: np.ndarray, centres_KD: np.ndarray, at_least: int
) -> np.ndarray:
    """Labels of which each has at least so many pairs, or one label for all; numbered from 0, the largest first.

    The smallest cluster is given up first, because its pairs may be what another one lacks.
    """
    label_N, left = label_N.copy(), np.arange(len(centres_KD))
    counts_K = np.bincount(label_N, minlength=len(centres_KD))
    while len(left) > 1 and counts_K[left].min() < at_least:
        smallest = left[np.argmin(counts_K[left])]
        left = left[left != smallest]
        moved = np.flatnonzero(label_N == smallest)
        if len(moved):
            nearest, _ = nearest_centres(vectors_of.blocks.take(number_N[moved]), centres_KD[left])
            label_N[moved] = left[nearest]
        counts_K = np.bincount(label_N, minlength=len(centres_KD))
    new_K = np.empty(len(centres_KD), dtype=np.int64)
    new_K[np.argsort(-counts_K, kind="stable")] = np.arange(len(centres_KD))
    return new_K[label_N]


def _reader(source: PairSource, out: Path) -> PairReader:
    reader = PairReader(source)
    for file in reader.files:
        if is_local(file) and Path(file.removeprefix("file://")).resolve() == (out / CLUSTERED).resolve():
            raise LongspanError("this file would be overwritten", where=file, remedy="choose another --out")
    return reader


def _blocks(reader: PairReader) -> Iterator[list[Pair]]:
    pairs = iter(reader)
    while block := list(itertools.islice(pairs, PAIRS_PER_BLOCK)):
        yield block


def _text(pair: Pair, config: Clustering) -> str:
    return pair.query if config.side == "query" else pair.document


def _numbers(reader: PairReader, config: Clustering, store: VectorStore) -> np.ndarray:
    """The number of every pair's vector in the store, int64 (N,)."""
    numbers = [store.numbers([_text(pair, config) for pair in block]) for block in _blocks(reader)]
    return np.concatenate([np.empty(0, dtype=np.int64), *numbers])


def _labels(
    number_N: np.ndarray, config: Clustering, store: VectorStore, device: str, tell: Tell
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of every pair (int64), and its score with the centre that it was nearest to (float32)."""
    draw = np.random.default_rng(config.seed)
    sample = np.sort(draw.permutation(len(number_N))[: SAMPLE_PER_CENTRE * config.num_clusters])
    sample_SD = store.blocks.take(number_N[sample])
    centres_KD = learn_centres(sample_SD, config.num_clusters, seed=config.seed, device=device)
    label_N, score_N = np.empty(len(number_N), dtype=np.int64), np.empty(len(number_N), dtype=np.float32)
    for start in range(0, len(number_N), PAIRS_PER_BLOCK):
        block = slice(start, start + PAIRS_PER_BLOCK)
        vectors_ND = store.blocks.take(number_N[block])
        label_N[block], score_N[block] = nearest_centres(vectors_ND, centres_KD, device=device)
        tell("clustering", min(start + PAIRS_PER_BLOCK, len(number_N)), len(number_N))
    return merged(label_N, store, number_N, centres_KD, config.at_least), score_N


def _write(
    reader: PairReader,
    config: Clustering,
    store: VectorStore,
    number_N: np.ndarray,
    label_N: np.ndarray,
    score_N: np.ndarray,
    out: Path,
    tell: Tell,
) -> dict[str, tuple[Example, ...]]:
    """Write the rows; returns some pairs of the largest clusters."""
    shown: dict[int, list[Example]] = {cluster: [] for cluster in range(min(NUM_SHOWN, int(label_N.max()) + 1))}
    done = 0
    with json_lines(out / CLUSTERED) as write:
        for block in _blocks(reader):
            if not np.array_equal(
                store.numbers([_text(pair, config) for pair in block]), number_N[done:][: len(block)]
            ):
                raise LongspanError(
                    "the source has changed while it was clustered", where=f"pair {done + 1}", remedy="run it again"
                )
            for pair in block:
                cluster = int(label_N[done])
                write(pair.row | {CLUSTER: cluster})
                if len(shown.get(cluster, [None] * NUM_SHOWN_OF)) < NUM_SHOWN_OF:
                    texts = shortened(pair.query), shortened(pair.document)
                    shown[cluster].append(Example(done + 1, *texts, score=float(score_N[done])))
                done += 1
            tell("writing", done, len(number_N))
    return {f"cluster {cluster}": tuple(pairs) for cluster, pairs in shown.items()}


def _silent(what: str, done: int, total: int) -> None:
    pass
