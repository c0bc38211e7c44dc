"""Transient errors are tried again with growing waits; errors that last go through at once."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data import retry
from longspan.data.retry import ATTEMPTS, is_transient, with_retries
from longspan.errors import LongspanError


class LibraryError(Exception):
    """Stands for what network libraries raise: a class of their own, with the status that came."""

    def __init__(self, status=None):
        super().__init__(f"status {status}")
        self.status = status


@pytest.fixture
def waits(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    return waited


def failing(times: int, error: Exception):
    left = [error] * times

    def action() -> str:
        if left:
            raise left.pop()
        return "done"

    return action


@pytest.mark.parametrize("times", range(ATTEMPTS))
def test_it_is_tried_until_it_succeeds(waits, times):
    assert with_retries(failing(times, ConnectionResetError("cut")), where="s3://a") == "done"
    assert len(waits) == times


def test_waits_double_and_differ_by_chance_but_stay_bounded(waits):
    for _ in range(50):
        with_retries(failing(ATTEMPTS - 1, TimeoutError()), where="s3://a")
    for attempt in range(ATTEMPTS - 1):
        longest = min(retry.LONGEST_WAIT, retry.FIRST_WAIT * 2**attempt)
        of_attempt = waits[attempt :: ATTEMPTS - 1]
        assert all(longest / 2 <= wait <= longest for wait in of_attempt)
        assert len(set(of_attempt)) > 40


def test_attempts_that_come_further_begin_the_count_anew(waits):
    reached = 0

    def action() -> str:
        nonlocal reached
        reached = min(reached + 1, 20)
        raise ConnectionError

    with pytest.raises(LongspanError):
        with_retries(action, where="s3://a", progress=lambda: reached)
    assert len(waits) == 19 + ATTEMPTS - 1
    assert max(waits[:19]) <= retry.FIRST_WAIT, "it does not wait longer while it goes on"


def test_the_last_failure_is_told(waits):
    with pytest.raises(LongspanError, match=f"{ATTEMPTS} attempts have failed.*ConnectionResetError: cut") as caught:
        with_retries(failing(ATTEMPTS, ConnectionResetError("cut")), where="s3://a")
    assert caught.value.where == "s3://a"
    assert "run the same command again" in caught.value.remedy


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError(), ValueError(), LibraryError(403)])
def test_an_error_that_lasts_goes_through_at_once(waits, error):
    with pytest.raises(type(error)):
        with_retries(failing(1, error), where="s3://a")
    assert waits == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError(), True),
        (TimeoutError(), True),
        (OSError("the library says no more"), True),
        (LibraryError(), True),
        (LibraryError(429), True),
        (LibraryError(500), True),
        (LibraryError(503), True),
        (LibraryError(404), False),
        (IsADirectoryError(), False),
        (OSError(errno.ENOSPC, "full"), False),
        (KeyError("a mistake of ours"), False),
        (LongspanError("x", where="y", remedy="z"), False),
    ],
)
def test_what_is_transient(error, expected):
    assert is_transient(error) == expected


@given(st.integers())
def test_waiting_does_not_disturb_seeded_draws(seed):
    import random

    random.seed(seed)
    expected = random.random()
    random.seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry.time, "sleep", lambda seconds: None)
        with_retries(failing(2, TimeoutError()), where="x")
    assert random.random() == expected
