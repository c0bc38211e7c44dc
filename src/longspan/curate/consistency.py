"""Consistency filtering of weakly supervised pairs (paper, section 4.2.1).

A pair is kept if a teacher, searching with the query among the documents of a sample, finds the pair's own document
among the first k (the paper: samples of one million pairs, k = 2). Identical documents count once: a paragraph that
answers five questions is one document.

Axes: N pairs, M distinct documents, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longspan.curate.neighbours import rank_of
from longspan.curate.vectors import VectorStore
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import write_json, write_json_lines

SAMPLE_SIZE = 1_000_000
TOP_K = 2
NUM_EXAMPLES = 20


@dataclass(frozen=True)
class Teacher:
    """A model that judges pairs, and how it reads them."""

    embedder: Embedder
    query_task: str = "search_query"
    document_task: str = "search_document"
    max_length: int | None = None
    """Texts are cut here, in tokens; None: at the model's own limit."""


@dataclass(frozen=True)
class Filtered:
    """What the filter decided.

    Attributes:
        rank_N: int64, how many distinct documents of the sample score above the pair's own.
        keep_N: bool, `rank_N < k`.
    """

    rank_N: np.ndarray
    keep_N: np.ndarray


def consistency_filter(
    queries_ND: np.ndarray,
    documents_ND: np.ndarray,
    texts: Sequence[str],
    *,
    k: int = TOP_K,
    sample_size: int = SAMPLE_SIZE,
    seed: int = 0,
) -> Filtered:
    """Rank every pair's own document among the documents of its sample.

    Args:
        queries_ND, documents_ND: the teacher's vectors of the two sides of N pairs, of length 1.
        texts: the N document texts, by which identical documents are known.
        sample_size: most pairs in a sample; the pairs are shuffled by `seed` and cut into samples of nearly equal
            size, so that each is judged once and none against much fewer others than the rest.

    Raises:
        LongspanError: no pairs, or a `k` or `sample_size` with which nothing could be kept or nothing dropped.
    """
    _check_sizes(len(texts), k, sample_size)
    number_of = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    groups_N = np.array([number_of[text] for text in texts])
    order = np.random.default_rng(seed).permutation(len(texts))
    rank_N = np.empty(len(texts), dtype=np.int64)
    for part in np.array_split(order, math.ceil(len(texts) / sample_size)):
        sample = np.sort(part)
        own = np.arange(len(sample))
        rank_N[sample] = rank_of(queries_ND[sample], documents_ND[sample], own, groups_N[sample])
    return Filtered(rank_N, rank_N < k)


def filter_pairs(
    rows: Sequence[dict[str, Any]],
    teacher: Teacher,
    out: Path,
    *,
    k: int = TOP_K,
    sample_size: int = SAMPLE_SIZE,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Filter rows with `query` and `document` into `out/kept.jsonl` and `out/dropped.jsonl`, with `out/report.json`.

    Args:
        cache: where the teacher's vectors are kept for reuse (default: `out/vectors`).
        progress: called with the number of texts embedded since the last call; 2 N in all.

    Returns:
        The report: counts, the distribution of ranks, and examples of dropped pairs.

    Raises:
        LongspanError: as `consistency_filter`.
    """
    _check_sizes(len(rows), k, sample_size)  # before the long work
    queries_ND, documents_ND = embed_pairs(rows, teacher, cache or out / "vectors", progress)
    documents = [row["document"] for row in rows]
    filtered = consistency_filter(queries_ND, documents_ND, documents, k=k, sample_size=sample_size, seed=seed)
    kept = [row for row, keep in zip(rows, filtered.keep_N, strict=True) if keep]
    dropped = [row | {"rank": int(rank)} for row, rank in zip(rows, filtered.rank_N, strict=True) if rank >= k]
    report = {
        "pairs": len(rows),
        "kept": len(kept),
        "dropped": len(dropped),
        "k": k,
        "sample_size": min(sample_size, len(rows)),
        "teacher": teacher.embedder.name,
        "teacher_fingerprint": teacher.embedder.fingerprint,
        "teacher_max_length": teacher.max_length,
        "rank_quantiles": {str(q): float(np.quantile(filtered.rank_N, q)) for q in (0.25, 0.5, 0.75, 0.9, 0.99)},
        "kept_at": {str(top): float((filtered.rank_N < top).mean()) for top in (1, 2, 5, 10, 20)},
        "examples_dropped": [_readable(row) for row in dropped[:: max(1, len(dropped) // NUM_EXAMPLES)][:NUM_EXAMPLES]],
    }
    write_json_lines(out / "kept.jsonl", kept)
    write_json_lines(out / "dropped.jsonl", dropped)
    write_json(out / "report.json", report)
    return report


def embed_pairs(
    rows: Sequence[dict[str, Any]], teacher: Teacher, cache: Path, progress: Callable[[int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's vectors of both sides of N pairs, each (N, D), kept in `cache` and reused from there."""
    sides = []
    for column, task in (("query", teacher.query_task), ("document", teacher.document_task)):
        store = VectorStore(cache, teacher.embedder, task=task, max_length=teacher.max_length)
        sides.append(store.embed([row[column] for row in rows], progress))
    return sides[0], sides[1]


def _check_sizes(num_pairs: int, k: int, sample_size: int) -> None:
    if not num_pairs:
        raise LongspanError("there are no pairs to filter", where="the pairs", remedy="check the files of pairs")
    if k < 1:
        raise LongspanError(f"k {k} would drop every pair", where="k", remedy="ask for at least 1")
    if sample_size <= k:
        raise LongspanError(
            f"in a sample of {sample_size} every document is among the first {k}: nothing could be dropped",
            where="sample_size",
            remedy=f"use samples of much more than {k} pairs",
        )


def _readable(row: dict[str, Any], width: int = 160) -> dict[str, Any]:
    return {"query": row["query"][:width], "document": row["document"][:width], "rank": row["rank"]}
