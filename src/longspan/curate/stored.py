"""Nearest neighbours among stored vectors: a small form proposes, a finer one scores again.

Vectors of one bit a dimension are compared by the number of bits that differ, which takes a few instructions a
document; int8 and float16 are read back, block by block. Either ranks a few candidates more than are asked for, and
these are scored by `score_pairs` with a finer form of the same vectors: int8 or float32 on disk, of which only the
candidates are read. Already the query's own float32 against the stored signs, which needs no second form, ranks better
than bits against bits.

Axes: N queries, M documents, D dimensions, K kept, C candidates, S bytes of bits, W words that hold them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from longspan.curate.neighbours import best_of, score_pairs, top_k
from longspan.errors import LongspanError
from longspan.storage import Stored

OVERSAMPLE = 4
"""Candidates for each document asked for, unless told otherwise."""

_BLOCK_DOCUMENTS = 2**16
_INDEX_BITS = 44
"""A distance and an index as one number that sorts as both: the index has so many bits."""


def nearest_stored(
    queries_ND: np.ndarray,
    documents: Stored,
    k: int,
    *,
    finer: Stored | np.ndarray | None = None,
    oversample: int = OVERSAMPLE,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the K stored documents nearest to every query; equal scores go to the lower index.

    Without `finer`, float32, float16 and int8 are ranked exactly by the inner product of the query with the vector that
    is read back (as `top_k` on `documents[:]`), and binary by the bits that differ.

    Args:
        queries_ND: float32.
        documents: what is searched.
        k: how many to keep, at least 1.
        finer: the same documents in a finer form, by which `oversample` x K candidates are scored again. `documents`
            itself, where it is binary, scores them by the query's float32 against the stored signs.
        oversample: at least 1.

    Returns:
        scores_NK float32, descending: inner products; without `finer`, of binary the part of equal bits less the part
        of those that differ. indices_NK int64. Where there are fewer than k documents, -inf and -1.

    Raises:
        LongspanError: as `top_k`; an oversample below 1; `finer` has another shape.
    """
    if finer is None:
        return _ranked(queries_ND, documents, k)
    if oversample < 1:
        raise LongspanError(f"oversample is {oversample}", where="nearest_stored", remedy="let it be at least 1")
    if finer.shape != documents.shape:
        raise LongspanError(
            f"the finer form has shape {finer.shape}, the searched one {documents.shape}",
            where="nearest_stored: finer",
            remedy="give the same documents in both forms, in the same order",
        )
    _, candidates_NC = _ranked(queries_ND, documents, k * oversample)
    return best_of(score_pairs(queries_ND, _as_array(finer), candidates_NC), candidates_NC, k)


def _ranked(queries_ND: np.ndarray, documents: Stored, k: int) -> tuple[np.ndarray, np.ndarray]:
    if documents.storage.form != "binary":
        return top_k(queries_ND, _as_array(documents), k)
    if k < 1:
        raise LongspanError(f"cannot keep {k} neighbours", where="k", remedy="ask for at least 1")
    bits_NS = documents.storage.encode(queries_ND)
    count = min(k, len(documents))
    scores_NK = np.full((len(queries_ND), k), -np.inf, dtype=np.float32)
    indices_NK = np.full((len(queries_ND), k), -1, dtype=np.int64)
    for n, (differ_K, indices_K) in enumerate(_nearest_bits(bits_NS, documents.array_NS, count)):
        scores_NK[n, :count] = 1 - 2 * differ_K / documents.storage.dim
        indices_NK[n, :count] = indices_K
    return scores_NK, indices_NK


def _nearest_bits(queries_NS: np.ndarray, documents_MS: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each query how many bits differ from its K nearest documents, and which these are."""
    best = [np.empty(0, dtype=np.int64)] * len(queries_NS)
    queries_NW = _words(queries_NS)
    for start in range(0, len(documents_MS), _BLOCK_DOCUMENTS):
        documents_MW = _words(documents_MS[start : start + _BLOCK_DOCUMENTS])
        indices_M = np.arange(start, start + len(documents_MW))
        for n, query_W in enumerate(queries_NW):
            differ_M = np.bitwise_count(documents_MW ^ query_W).sum(axis=1, dtype=np.int64)
            keys = np.concatenate([best[n], (differ_M << _INDEX_BITS) | indices_M])
            best[n] = np.partition(keys, k - 1)[:k] if len(keys) > k else keys
    best = [np.sort(keys) for keys in best]
    return [(keys >> _INDEX_BITS, keys & ((1 << _INDEX_BITS) - 1)) for keys in best]


def _words(bits_MS: np.ndarray) -> np.ndarray:
    """Bytes as the widest words that they fill, (M, W)."""
    width = next(size for size in (8, 4, 2, 1) if bits_MS.shape[1] % size == 0)
    return np.ascontiguousarray(bits_MS).view(np.dtype(f"u{width}"))


def _as_array(vectors: Stored | np.ndarray) -> Any:
    """`top_k` and `score_pairs` read rows of a matrix, and `Stored` gives them."""
    return vectors
