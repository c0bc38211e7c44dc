"""Losses that jump and weights that learn nothing, from logged rows."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.train.watch import DEAD_ROWS, LEAST, dead, flags, spike

CALM = [2.0 + 0.1 * math.sin(17 * i) for i in range(40)]


def test_a_jump_is_a_spike() -> None:
    assert spike(2.1, CALM) is None
    assert spike(0.0, CALM) is None, "a loss that falls is no spike"
    assert spike(3.5, CALM) is not None
    assert "3.5" in str(spike(3.5, CALM))


def test_too_few_losses_say_nothing() -> None:
    assert spike(100.0, CALM[: LEAST - 1]) is None
    assert spike(100.0, CALM[:LEAST]) is not None


def test_one_spike_does_not_hide_the_next() -> None:
    assert spike(50.0, [*CALM, 50.0, 60.0]) is not None


def test_losses_that_hardly_differ() -> None:
    assert spike(2.0001, [2.0] * 30) is None
    assert spike(2.1, [2.0] * 30) is not None


def test_a_loss_that_falls_all_the_time() -> None:
    falling = [10 * 0.97**i for i in range(100)]
    assert all(spike(loss, falling[:i]) is None for i, loss in enumerate(falling))


@given(st.floats(0.5, 100), st.floats(0.1, 10), st.lists(st.floats(-1, 1), min_size=LEAST, max_size=60))
def test_scale_does_not_matter(loss: float, scale: float, noise: list[float]) -> None:
    earlier = [10 + x for x in noise]
    limit_is_near = any(spike(loss * (1 + e), earlier) != spike(loss, earlier) for e in (-1e-6, 1e-6))
    if not limit_is_near:
        assert (spike(loss, earlier) is None) == (spike(loss * scale, [x * scale for x in earlier]) is None)


def _rows(*zero: str) -> list[dict[str, Any]]:
    """A row for each text: the weights without gradient, one letter each."""
    return [{"loss": 1.0, "zero_gradients": list(letters)} if letters else {"loss": 1.0} for letters in zero]


@pytest.mark.parametrize(
    ("zero", "found"),
    [
        (("a", "a"), []),
        (("a", "a", "a"), ["a"]),
        (("", "a", "a", "a"), ["a"]),
        (("a", "a", "a", "a"), []),  # said once
        (("a", "", "a", "a"), []),
        (("ab", "ba", "cab"), ["a", "b"]),
        (("b", "ab", "ab", "ab"), ["a"]),
        (("a", "a", "a", "", "a", "a", "a"), ["a"]),
    ],
)
def test_dead_weights(zero: tuple[str, ...], found: list[str]) -> None:
    assert DEAD_ROWS == 3
    assert dead(_rows(*zero)) == found


def test_flags_of_the_newest_row() -> None:
    rows: list[dict[str, Any]] = [{"loss": loss} for loss in CALM]
    assert flags(rows) == []
    assert flags([*rows, {"loss": 9.0}])[0].startswith("loss spike: 9")
    assert flags([*rows, {"loss": 9.0}, {"loss": 2.0}]) == []
    assert flags([*rows, {"loss": None}]) == flags([*rows, {"loss": math.nan}]) == [], "a skipped step has none"
    assert flags([{"loss": None}, *rows, {"loss": math.nan}, {"loss": 9.0}]) == flags([*rows, {"loss": 9.0}])
    (flag,) = flags([*rows, *_rows("abcde", "abcde", "abcde")][-4:])
    assert flag.endswith("a, b, c and 2 more")
