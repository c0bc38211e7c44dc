"""Batches come in the order of the plan, from a thread that hands over its errors and ends when nobody listens."""

import contextlib
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.data.loader import Loader
from longspan.data.plan import Plan, PlannedSource
from longspan.errors import LongspanError

PLAN = Plan([PlannedSource("a", 40), PlannedSource("b", 70)], batch_size=8, seed=1)


def collate(step, planned, part):
    return step, planned.source, planned.rows[part].tolist()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "longspan-loader"]


@given(st.integers(0, 30), st.integers(0, 12), st.integers(1, 4))
@settings(max_examples=25)
def test_the_loader_gives_the_batches_of_the_plan_in_order(first, count, ahead):
    loader = Loader(PLAN, collate, ahead=ahead)
    got = list(loader(first, first + count))
    assert got == [(step, PLAN(step).source, PLAN(step).rows.tolist()) for step in range(first, first + count)]
    assert got == [loader.batch(step) for step in range(first, first + count)]
    assert not threads()


@pytest.mark.parametrize("resumed", [0, 1, 7, 29, 30])
def test_resuming_gives_the_rest_of_the_sequence(resumed):
    loader = Loader(PLAN, collate)
    assert list(loader(resumed, 30)) == list(loader(0, 30))[resumed:]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_shares_of_all_processes_are_the_global_batch(world_size):
    ranks = [list(Loader(PLAN, collate, rank=rank, world_size=world_size)(3, 9)) for rank in range(world_size)]
    for step, shares in enumerate(zip(*ranks, strict=True), 3):
        assert {(number, source) for number, source, _ in shares} == {(step, PLAN(step).source)}
        np.testing.assert_array_equal(np.concatenate([rows for _, _, rows in shares]), PLAN(step).rows)


@pytest.mark.parametrize("world_size", [3, 5, 16])
def test_a_batch_that_does_not_divide_is_refused(world_size):
    with pytest.raises(LongspanError) as caught:
        Loader(PLAN, collate, world_size=world_size)
    assert caught.value.what == f"a batch of 8 does not divide among {world_size} processes"
    assert caught.value.where == "batch_size"
    assert "multiple" in caught.value.remedy


@pytest.mark.parametrize("error", [ValueError("row 3"), LongspanError("a", where="b", remedy="c"), KeyboardInterrupt()])
def test_an_error_in_the_thread_is_raised_after_the_batches_before_it(error):
    def fails(step, planned, part):
        if step == 5:
            raise error
        return step

    got = []
    with pytest.raises(type(error)) as caught:
        got.extend(Loader(PLAN, fails)(2, 9))
    # `extend` keeps what came before the error.
    assert got == [2, 3, 4]
    assert caught.value is error
    assert not threads()


def test_it_works_ahead_and_no_further():
    made = []

    def notes(step, planned, part):
        made.append(step)
        return step

    batches = Loader(PLAN, notes, ahead=2)(0, 100)
    with contextlib.closing(batches):
        assert next(batches) == 0
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        # One was taken, two wait, and one more is made already and waits for room.
        assert made == [0, 1, 2, 3]


def test_an_abandoned_loader_ends_at_once():
    batches = Loader(PLAN, collate)(0, 10**9)
    next(batches)
    assert threads()
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 2.0
    assert not threads()


def test_a_loader_that_was_never_asked_starts_no_thread():
    batches = Loader(PLAN, collate)(0, 10)
    assert not threads()
    batches.close()
    assert list(Loader(PLAN, collate)(5, 5)) == []
    assert list(Loader(PLAN, collate)(5, 3)) == []
