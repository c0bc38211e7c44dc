"""K-means of unit vectors: centres from a sample, and which centre every vector is nearest to.

Lloyd's algorithm by inner product: a centre is the normalised mean of its vectors. It begins with centres that are far
from each other (k-means++: Arthur & Vassilvitskii, 2007). Scores are exact (`neighbours.top_k`), so the same seed gives
the same clusters on every device, and whether or not FAISS is installed: its k-means does the same products.

Axes: N vectors, S vectors of the sample, K centres, D width.
"""

from __future__ import annotations

import numpy as np

from longspan.curate.neighbours import top_k
from longspan.errors import LongspanError

SAMPLE_PER_CENTRE = 256
"""Vectors from which centres are learnt, for each of them: more change little."""
ROUNDS = 20
"""At most so many; fewer where nothing moves any more."""

_BEGIN_PER_CENTRE = 32
"""Vectors among which the first centres are looked for, for each of them: looking costs as many products as a round,
one centre after the other."""


def learn_centres(sample_SD: np.ndarray, k: int, *, seed: int = 0, device: str = "cpu") -> np.ndarray:
    """K centres of unit vectors, float32 (K, D), of length 1.

    A centre that loses all its vectors moves to the vector that is farthest from its own.

    Args:
        sample_SD: at least K of them different.
        device: where vectors are compared.

    Raises:
        LongspanError: the sample has fewer than K different vectors.
    """
    draw = np.random.default_rng(seed)
    centres_KD = _far_apart(sample_SD[draw.permutation(len(sample_SD))[: k * _BEGIN_PER_CENTRE]], k, draw)
    labels_S = np.full(len(sample_SD), -1)
    for _ in range(ROUNDS):
        before_S = labels_S
        labels_S, scores_S = nearest_centres(sample_SD, centres_KD, device=device)
        if np.array_equal(labels_S, before_S):
            break
        labels_S = _without_empty(labels_S, scores_S, k)
        order = np.argsort(labels_S, kind="stable")
        firsts = np.searchsorted(labels_S[order], np.arange(k))
        sums_KD = np.add.reduceat(sample_SD[order].astype(np.float64), firsts, axis=0)
        centres_KD = _unit(sums_KD)
    return centres_KD


def nearest_centres(
    vectors_ND: np.ndarray, centres_KD: np.ndarray, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """For every vector the number of the centre with the largest inner product (int64), and that product (float32)."""
    scores_N1, indices_N1 = top_k(vectors_ND, centres_KD, 1, device=device)
    return indices_N1[:, 0], scores_N1[:, 0]


def _far_apart(sample_SD: np.ndarray, k: int, draw: np.random.Generator) -> np.ndarray:
    """K vectors of the sample, each drawn with a chance that grows with its squared distance from those before it."""
    chosen = [int(draw.integers(len(sample_SD)))]
    distance_S = _squared_distances(sample_SD, sample_SD[chosen[0]])
    while len(chosen) < k:
        total = distance_S.sum()
        if total <= 0:
            raise LongspanError(
                f"{len(chosen)} different vectors cannot give {k} clusters",
                where="the texts to cluster",
                remedy="ask for fewer clusters",
            )
        chosen.append(int(draw.choice(len(sample_SD), p=distance_S / total)))
        distance_S = np.minimum(distance_S, _squared_distances(sample_SD, sample_SD[chosen[-1]]))
    return sample_SD[chosen]


def _squared_distances(sample_SD: np.ndarray, vector_D: np.ndarray) -> np.ndarray:
    distance_S = 2 - 2 * (sample_SD @ vector_D).astype(np.float64)
    return np.where(distance_S < 1e-6, 0.0, distance_S)  # rounding leaves a little between equal vectors


def _without_empty(labels_S: np.ndarray, scores_S: np.ndarray, k: int) -> np.ndarray:
    """Every centre has a vector: an empty one takes the vector that is farthest from its own centre."""
    labels_S, farthest = labels_S.copy(), iter(np.argsort(scores_S, kind="stable").tolist())
    counts_K = np.bincount(labels_S, minlength=k)
    for empty in np.flatnonzero(counts_K == 0).tolist():
        moved = next(s for s in farthest if counts_K[labels_S[s]] > 1)
        counts_K[labels_S[moved]] -= 1
        labels_S[moved] = empty
        counts_K[empty] = 1
    return labels_S


def _unit(vectors_KD: np.ndarray) -> np.ndarray:
    lengths_K1 = np.linalg.norm(vectors_KD, axis=1, keepdims=True)
    return (vectors_KD / np.maximum(lengths_K1, 1e-12)).astype(np.float32)
