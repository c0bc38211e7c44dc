"""Vectors on a map: two coordinates each, so that what is near among the vectors is near on the map.

The method is Neg-t-SNE (Damrich, Böhm, Hamprecht and Kobak, 2023), contrastive learning in two dimensions: pairs of
near neighbours are told from random pairs by their distance d on the map, a pair being taken for neighbours with
probability 1 / (2 + d^2). It starts from the principal components, so that the large structure is theirs. The time
grows with the number of vectors, and that of finding the neighbours with its square.

Axes: M vectors, D width, K neighbours, S sampled others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from longspan.curate.neighbours import Exclude, top_k
from longspan.files import atomic_path

STEPS = 300
"""Steps of gradient descent."""
_NEIGHBOURS = 12
_RANDOM_PAIRS = 4
"""Random pairs for each pair of neighbours ..."""
_SAMPLED = 16
"""... of which so many are looked at for each vector, in every step others."""
_RATE = 0.4
"""Adam's rate at the first step; it falls to 0. The map is some 20 to 60 wide."""
_START = 4.0
"""The spread of the map before the first step."""
_BETAS = (0.9, 0.99)
_FEWEST = 5
"""Fewer vectors have principal components and no neighbourhoods."""
_VERSION = 1
"""Part of the name of a kept map: another method has another number."""


def lay_out(vectors_MD: np.ndarray, progress: Callable[[int], None] | None = None, seed: int = 0) -> np.ndarray:
    """Coordinates of vectors on a map, float32 (M, 2), between 0 and 1; equal vectors give equal maps.

    Args:
        progress: called with the number of steps done since the last call, `STEPS` in all.
    """
    norms_M = np.linalg.norm(vectors_MD, axis=1, keepdims=True)
    vectors_MD = (vectors_MD / np.maximum(norms_M, np.finfo(np.float32).tiny)).astype(np.float32)
    start_M2 = principal_components(vectors_MD)
    if len(vectors_MD) < _FEWEST:
        return _within_the_unit_square(start_M2)
    return _within_the_unit_square(_descend(start_M2, _neighbours(vectors_MD), progress, seed))


def kept_layout(
    cache: Path | None, vectors_MD: np.ndarray, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """As `lay_out`; with `cache`, a folder, the map of these vectors is kept there and read the next time."""
    if cache is None:
        return lay_out(vectors_MD, progress)
    digest = hashlib.sha256(f"{_VERSION} {vectors_MD.shape}".encode())
    digest.update(np.ascontiguousarray(vectors_MD, dtype="<f4").tobytes())
    path = cache / f"map-{digest.hexdigest()[:16]}.npy"
    if not path.is_file():
        places_M2 = lay_out(vectors_MD, progress)
        with atomic_path(path) as unfinished, unfinished.open("wb") as file:
            np.save(file, places_M2)
    return np.load(path)


def principal_components(vectors_MD: np.ndarray) -> np.ndarray:
    """The first two principal components of vectors, float32 (M, 2); 0 where there are fewer."""
    centred_MD = vectors_MD - vectors_MD.mean(axis=0)
    covariance_DD = centred_MD.T.astype(np.float64) @ centred_MD
    _, axes_DD = np.linalg.eigh(covariance_DD)
    axes_D2 = axes_DD[:, ::-1][:, :2]
    # An eigenvector is one only up to its sign.
    axes_D2 = axes_D2 * np.sign(axes_D2[np.abs(axes_D2).argmax(axis=0), range(axes_D2.shape[1])])
    places = (centred_MD @ axes_D2).astype(np.float32)
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def _neighbours(vectors_MD: np.ndarray) -> np.ndarray:
    """The numbers of every vector's nearest neighbours, int64 (M, K)."""
    num_vectors = len(vectors_MD)
    itself = Exclude(np.arange(num_vectors + 1), np.arange(num_vectors))
    _, neighbours_MK = top_k(vectors_MD, vectors_MD, min(_NEIGHBOURS, num_vectors - 1), exclude=itself)
    return neighbours_MK


def _descend(
    start_M2: np.ndarray, neighbours_MK: np.ndarray, progress: Callable[[int], None] | None, seed: int
) -> np.ndarray:
    """Gradient descent by Adam (Kingma and Ba, 2015) on the sum of -log p over pairs."""
    places_M2 = start_M2 * np.float32(_START / (float(start_M2.std()) or 1.0))
    random = np.random.default_rng(seed)
    mean_M2, square_M2 = np.zeros_like(places_M2), np.zeros_like(places_M2)
    for step in range(1, STEPS + 1):
        gradient_M2 = _pull(places_M2, neighbours_MK) + _push(places_M2, neighbours_MK.shape[1], random)
        mean_M2 = _BETAS[0] * mean_M2 + (1 - _BETAS[0]) * gradient_M2
        square_M2 = _BETAS[1] * square_M2 + (1 - _BETAS[1]) * gradient_M2**2
        rate = _RATE * (1 - step / STEPS) * np.sqrt(1 - _BETAS[1] ** step) / (1 - _BETAS[0] ** step)
        places_M2 = places_M2 - np.float32(rate) * mean_M2 / (np.sqrt(square_M2) + np.float32(1e-8))
        if progress is not None:
            progress(1)
    return places_M2


def _pull(places_M2: np.ndarray, neighbours_MK: np.ndarray) -> np.ndarray:
    """The gradient of the sum of log(2 + d^2) over pairs of neighbours."""
    differences_MK2 = places_M2[:, None] - places_M2[neighbours_MK]
    pull_MK2 = 2 * differences_MK2 / (2 + np.square(differences_MK2).sum(axis=2, keepdims=True))
    back_2M = [
        np.bincount(neighbours_MK.ravel(), weights=pull_MK2[..., axis].ravel(), minlength=len(places_M2))
        for axis in range(2)
    ]
    return pull_MK2.sum(axis=1) - np.stack(back_2M, axis=1).astype(np.float32)


def _push(places_M2: np.ndarray, num_neighbours: int, random: np.random.Generator) -> np.ndarray:
    """The gradient of the sum of log(2 + d^2) - log(1 + d^2) over random pairs, estimated by `_SAMPLED` of each place.

    Half of the pairs of a place begin with it and half end with it, which by symmetry counts twice what begins.
    """
    others_MS = random.integers(len(places_M2), size=(len(places_M2), _SAMPLED))
    differences_MS2 = places_M2[:, None] - places_M2[others_MS]
    squares_MS1 = np.square(differences_MS2).sum(axis=2, keepdims=True)
    push_M2 = (2 * differences_MS2 / ((1 + squares_MS1) * (2 + squares_MS1))).sum(axis=1)
    return -push_M2 * np.float32(2 * _RANDOM_PAIRS * num_neighbours / _SAMPLED)


def _within_the_unit_square(places_M2: np.ndarray) -> np.ndarray:
    low, high = places_M2.min(axis=0), places_M2.max(axis=0)
    size = float((high - low).max()) or 1.0
    return ((places_M2 - (low + high) / 2) / size + 0.5).astype(np.float32)
