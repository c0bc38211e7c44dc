"""Scores of named pairs of vectors: the same bits on every machine, whatever stands beside a pair.

A float32 matrix product rounds differently for every block shape, library and device, so it can only *screen*
(`neighbours.py`, `screening.py`). What a pair scores is said here: a float64 sum in one fixed order, in float32.

Axes: D width. Inside a block: R queries, C documents, P (query, document) pairs; X is R or C.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from longspan.errors import LongspanError

LARGEST = float(np.finfo(np.float32).max)
"""The largest float32."""

_PAIR_VALUES = 2**20
"""Values held while pairs are scored again: 8 MiB of float64, which stays near the cache."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix on the device, with their lengths in float64."""

    values_XD: torch.Tensor
    norms_X: torch.Tensor

    @classmethod
    def read(cls, matrix: np.ndarray, rows: slice | np.ndarray, name: str, device: str | torch.device) -> Rows:
        """
        Raises:
            LongspanError: a value is not finite.
        """
        values_XD = to_device(matrix[rows], device, np.float32)
        norms_X = torch.linalg.vector_norm(values_XD, dim=1, dtype=torch.float64)
        broken_X = ~torch.isfinite(norms_X)
        if bool(broken_X.any()):
            first = int(broken_X.nonzero()[0, 0])
            row = rows.start + first if isinstance(rows, slice) else int(rows[first])
            raise LongspanError(
                f"row {row} of {name} holds a value that is not a finite float32",
                where=f"{name}[{row}]",
                remedy="find out why this vector was made with NaN or infinity, and make it again",
            )
        return cls(values_XD, norms_X)


def check_range(queries: Rows, documents: Rows) -> float:
    """Refuse products that could overflow; returns the largest length among the documents."""
    largest = float(documents.norms_X.max())
    if float(queries.norms_X.max()) * largest > LARGEST / 4:
        raise LongspanError(
            "the vectors are so long that their inner products overflow float32",
            where="queries_ND, documents_MD",
            remedy="normalise the vectors to length 1 first",
        )
    return largest


def pair_scores(
    queries_RD: torch.Tensor, documents_CD: torch.Tensor, rows_P: torch.Tensor, columns_P: torch.Tensor
) -> torch.Tensor:
    """Score the named pairs, a bounded number at a time: (P,) float32."""
    scores_P = queries_RD.new_empty(len(rows_P))
    for part in slices(len(rows_P), max(1, _PAIR_VALUES // queries_RD.shape[1])):
        scores_P[part] = fixed_order_dot(queries_RD[rows_P[part]], documents_CD[columns_P[part]])
    return scores_P


def fixed_order_dot(a_PD: torch.Tensor, b_PD: torch.Tensor) -> torch.Tensor:
    """Inner product of each row with each row, the same bits whatever P, the device or the alignment: (P,) float32.

    A product of two float32 is exact in float64, and the sum folds the upper half of the terms on the lower half until
    one is left. That is element-wise addition only, which no library reorders.
    """
    terms_PD = a_PD.double().mul_(b_PD)
    while (width := terms_PD.shape[1]) > 1:
        lower, upper = terms_PD[:, : (width + 1) // 2], terms_PD[:, (width + 1) // 2 :]
        lower[:, : width // 2] += upper
        terms_PD = lower
    return terms_PD[:, 0].float() + 0.0  # + 0.0 turns -0.0 into 0.0, which some sorts would put apart


def score_named(queries: Rows, documents_MD: np.ndarray, indices_RK: np.ndarray) -> torch.Tensor:
    """Score the documents that are named for each query, -inf for -1: (R, K) float32, on the queries' device.

    Raises:
        LongspanError: a document's vector is not finite; products beyond float32.
    """
    device = queries.values_XD.device
    num_queries, per_query = indices_RK.shape
    scores_RK = torch.full((num_queries, per_query), -torch.inf, device=device)
    for rows in slices(num_queries, max(1, _PAIR_VALUES // (max(1, per_query) * queries.values_XD.shape[1]))):
        rows_P, columns_P = np.nonzero(indices_RK[rows] >= 0)
        if not len(rows_P):
            continue
        part = Rows(queries.values_XD[rows], queries.norms_X[rows])
        # Neighbouring queries often name the same documents: each is read, and checked, once.
        named_C, place_P = np.unique(indices_RK[rows][rows_P, columns_P], return_inverse=True)
        documents = Rows.read(documents_MD, named_C, "documents_MD", device)
        check_range(part, documents)
        where_P, place_P = to_device(rows_P, device), to_device(place_P, device)
        scores_P = pair_scores(part.values_XD, documents.values_XD, where_P, place_P)
        scores_RK[rows][where_P, to_device(columns_P, device)] = scores_P
    return scores_RK


def to_device(array: np.ndarray, device: str | torch.device, dtype: type[np.generic] | None = None) -> torch.Tensor:
    """An array as a tensor of its own."""
    # A copy, because torch warns about memory that it may not write to, and a memory map may be just that.
    return torch.from_numpy(np.array(array, dtype=dtype, order="C")).to(device)


def slices(total: int, size: int, first: int = 0) -> Iterator[slice]:
    """The rows from `first` to `total` in slices of `size`."""
    for start in range(first, total, size):
        yield slice(start, min(start + size, total))
