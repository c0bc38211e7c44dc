"""Is one system better than another, or only luckier with these queries?

Axes: N queries, M measures, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from longspan.errors import LongspanError

ROUNDS = 10_000
"""Random relabellings, and bootstrap resamples, behind a figure."""

_CELLS = 2**22
"""Numbers held at a time."""


@dataclass(frozen=True)
class PairedTest:
    """Two systems on the same queries by one measure.

    Attributes:
        difference: mean over queries of system minus baseline.
        interval: 95 % paired bootstrap interval (low, high) of the difference.
        p_value: how often relabelling the systems at random per query gives a difference at least as large, of either
            sign.
        wins: queries on which the system is better.
        losses: queries on which it is worse; the rest are equal.
        num_queries: all queries.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    wins: int
    losses: int
    num_queries: int

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return asdict(self) | {"interval": list(self.interval)}


def paired_test(values: Mapping[str, float], baseline: Mapping[str, float], *, seed: int = 0) -> PairedTest:
    """Compare two systems query by query: Fisher's randomisation test and the paired bootstrap.

    Both are recommended for retrieval by Smucker, Allan and Carterette, "A comparison of statistical significance
    tests for information retrieval evaluation" (CIKM 2007). Up to 13 queries whose values differ all relabellings are
    tried; above, `ROUNDS` random ones and the one observed.

    Args:
        values: query -> value of a measure, of the system.
        baseline: the same queries -> value, of the baseline.
        seed: the same seed gives the same figures.

    Raises:
        LongspanError: there is no query, or the queries are not the same.
    """
    if not values or values.keys() != baseline.keys():
        raise LongspanError(
            f"{len(values)} and {len(baseline)} measured queries are not the same queries",
            where="paired_test",
            remedy="evaluate both systems on the same queries, at least one",
        )
    difference_N = np.array([value - baseline[query] for query, value in values.items()])
    return PairedTest(
        difference=math.fsum(difference_N) / len(difference_N),
        interval=bootstrap_intervals({"difference": difference_N.tolist()}, seed=seed)["difference"],
        p_value=_randomization(difference_N, seed),
        wins=int((difference_N > 0).sum()),
        losses=int((difference_N < 0).sum()),
        num_queries=len(difference_N),
    )


def bootstrap_intervals(
    values: Mapping[str, Sequence[float]], *, seed: int = 0, resamples: int = ROUNDS, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals (low, high) of the means of several measures of the same queries.

    Queries are resampled together, so all measures see the same resamples (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: measure -> one value per query, at least one; all of the same length.
        seed: the same seed gives the same intervals.
        resamples: how many times to draw as many queries with replacement.
        confidence: part of the resampled means inside an interval.
    """
    generator = np.random.default_rng(seed)
    values_NM = np.array(list(values.values()), dtype=np.float64).T
    num_queries = len(values_NM)
    # How often each query is drawn, in blocks: the means are then one matrix product.
    block = max(1, _CELLS // num_queries)
    parts = []
    for start in range(0, resamples, block):
        drawn_RN = generator.integers(num_queries, size=(min(block, resamples - start), num_queries))
        drawn_RN += np.arange(len(drawn_RN))[:, None] * num_queries
        count_RN = np.bincount(drawn_RN.ravel(), minlength=drawn_RN.size).reshape(drawn_RN.shape)
        parts.append(count_RN @ values_NM / num_queries)
    low_M, high_M = np.quantile(np.concatenate(parts), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(values, low_M, high_M, strict=True)}


def _randomization(difference_N: np.ndarray, seed: int) -> float:
    difference_N = difference_N[difference_N != 0]  # equal under every relabelling
    observed = abs(difference_N.sum())
    slack = 1e-12 * max(1.0, float(np.abs(difference_N).sum()))  # sums in another order differ in their last bits
    if 2 ** len(difference_N) <= ROUNDS:
        numbers_R = np.arange(2 ** len(difference_N))
        signs_RN = 1 - 2 * (numbers_R[:, None] >> np.arange(len(difference_N)) & 1)
        return float((np.abs(signs_RN @ difference_N) >= observed - slack).mean())
    generator, extreme = np.random.default_rng(seed), 0
    block = max(1, _CELLS // len(difference_N))
    for start in range(0, ROUNDS, block):
        size = (min(block, ROUNDS - start), len(difference_N))
        signs_RN = generator.integers(0, 2, size=size, dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs_RN @ difference_N) >= observed - slack).sum())
    return (extreme + 1) / (ROUNDS + 1)
