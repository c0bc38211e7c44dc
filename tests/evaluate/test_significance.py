"""Paired tests and intervals against their definitions. Axes: N queries."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.evaluate.significance import bootstrap_intervals, paired_test

VALUES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=7)


def systems(pairs: list[tuple[float, float]]) -> tuple[dict[str, float], dict[str, float]]:
    return {f"q{n}": a for n, (a, _) in enumerate(pairs)}, {f"q{n}": b for n, (_, b) in enumerate(pairs)}


@given(VALUES)
def test_few_queries_are_relabelled_in_every_way(pairs: list[tuple[float, float]]) -> None:
    test = paired_test(*systems(pairs))
    differences = [a - b for a, b in pairs]
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product([1, -1], repeat=len(differences))
    ]
    assert test.p_value == pytest.approx(sum(total >= abs(sum(differences)) for total in sums) / len(sums))
    assert test.difference == pytest.approx(sum(differences) / len(pairs))
    assert (test.wins, test.losses) == (sum(d > 0 for d in differences), sum(d < 0 for d in differences))
    assert test.num_queries == len(pairs)


@given(VALUES, st.integers(0, 3))
def test_exchanging_the_systems_turns_the_difference_around(pairs: list[tuple[float, float]], seed: int) -> None:
    values, baseline = systems(pairs)
    one, other = paired_test(values, baseline, seed=seed), paired_test(baseline, values, seed=seed)
    assert (one.difference, one.wins, one.losses) == (-other.difference, other.losses, other.wins)
    assert one.p_value == other.p_value
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=1e-9)


def test_many_queries_agree_with_the_normal_approximation() -> None:
    difference_N = np.random.default_rng(0).normal(0.02, 0.2, size=300)
    test = paired_test(*systems([(float(d), 0.0) for d in difference_N]))
    z = abs(difference_N.sum()) / np.sqrt((difference_N**2).sum())
    assert test.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)
    assert test == paired_test(*systems([(float(d), 0.0) for d in difference_N]))  # seeded


def test_equal_systems_do_not_differ() -> None:
    values = {f"q{n}": n / 40 for n in range(40)}
    test = paired_test(values, dict(reversed(values.items())))
    assert (test.difference, test.interval, test.p_value, test.wins, test.losses) == (0.0, (0.0, 0.0), 1.0, 0, 0)


def test_a_large_difference_is_never_impossible() -> None:
    test = paired_test(*systems([(1.0, 0.0)] * 60))
    assert 0 < test.p_value < 0.001


@pytest.mark.parametrize("baseline", [{}, {"q1": 1.0}, {"q0": 1.0, "q1": 1.0}])
def test_other_queries_are_refused(baseline: dict[str, float]) -> None:
    with pytest.raises(LongspanError, match="not the same queries"):
        paired_test({"q0": 1.0} if baseline else {}, baseline)


def test_measures_share_their_resamples() -> None:
    values = np.random.default_rng(1).uniform(size=50).tolist()
    intervals = bootstrap_intervals({"a": values, "twice": [2 * v for v in values], "b": values[::-1]})
    assert intervals["twice"] == pytest.approx((2 * intervals["a"][0], 2 * intervals["a"][1]))
    assert intervals["a"] == bootstrap_intervals({"a": values})["a"]
    assert intervals["a"] != intervals["b"]
