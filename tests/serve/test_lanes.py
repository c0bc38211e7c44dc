"""Lanes: every text once, batches within the budget, and nobody starves."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.serve.lanes import Job, Lanes

BUDGET = 64


@pytest.fixture(autouse=True)
def _small_lanes():
    with patch("longspan.serve.lanes.LANES", (16, 128)):
        yield


def job(*lengths):
    return Job([np.zeros(length, dtype=np.int32) for length in lengths])


def everything(lanes, budget=BUDGET):
    batches = []
    while (batch := lanes.take(budget)) is not None:
        batches.append(batch)
    return batches


def take(lanes):
    batch = lanes.take(BUDGET)
    assert batch is not None
    return batch


def lengths_of(batch):
    return [len(sequence) for _, _, sequence in batch.items]


@given(st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=6), max_size=12), st.integers(1, 300))
def test_every_text_is_taken_once_and_within_the_budget(jobs, budget):
    lanes = Lanes()
    put = [job(*lengths) for lengths in jobs]
    for one in put:
        lanes.put(one)
    assert lanes.tokens == sum(map(sum, jobs))
    assert lanes.num_texts == sum(map(len, jobs))
    batches = everything(lanes, budget)
    taken = [(put.index(one), number, len(ids)) for batch in batches for one, number, ids in batch.items]
    assert sorted(taken) == [(j, n, length) for j, lengths in enumerate(jobs) for n, length in enumerate(lengths)]
    for batch in batches:
        assert batch.tokens == sum(lengths_of(batch))
        assert batch.tokens <= budget or len(batch.items) == 1
        assert lengths_of(batch) == sorted(lengths_of(batch))
    assert lanes.tokens == lanes.num_texts == 0


@given(st.lists(st.integers(1, 16), min_size=1, max_size=20))
def test_within_a_lane_the_first_come_is_the_first_served(lengths):
    lanes = Lanes()
    put = [job(length) for length in lengths]
    for one in put:
        lanes.put(one)
    order = [one for batch in everything(lanes, 1) for one, _, _ in batch.items]
    assert order == put


@given(st.lists(st.integers(129, 400), min_size=1, max_size=8), st.integers(1, 16))
def test_a_short_request_is_next_whatever_long_ones_wait(longs, length):
    lanes = Lanes()
    for tokens in longs:
        lanes.put(job(tokens))
    lanes.take(BUDGET)  # a long one is being computed
    short = job(length)
    lanes.put(short)
    assert [one for one, _, _ in take(lanes).items] == [short]


@given(st.integers(129, 400), st.integers(1, 16))
def test_a_long_request_is_not_starved_by_short_ones(long_tokens, length):
    lanes = Lanes()
    for _ in range(5):  # the lane of the short ones has been busy, the other one not
        lanes.put(job(length))
    everything(lanes)
    lanes.put(job(long_tokens))
    lanes.put(job(long_tokens))
    served = 0
    for _ in range(2):
        while True:
            while lanes.num_texts < 6:
                lanes.put(job(length))  # without end
            batch = take(lanes)
            if long_tokens in lengths_of(batch):
                break
            served += batch.tokens
        assert len(batch.items) == 1
    # Between the two it has had as many tokens as one of them, and less than a batch more than that.
    assert served <= long_tokens + 2 * BUDGET


def test_many_texts_of_one_request_count_together():
    """Fifty short texts in one request do not hold up a request of one."""
    lanes = Lanes()
    lanes.put(job(*[10] * 50))
    lanes.take(BUDGET)
    one = job(10)
    lanes.put(one)
    assert one in [item[0] for item in take(lanes).items]


def test_only_shorter_requests_interrupt_and_only_up_to_their_share():
    lanes = Lanes()
    lanes.put(job(200))
    running = lanes.take(BUDGET)
    lanes.put(job(300))
    assert lanes.take(BUDGET, interrupting=running) is None
    served = 0
    for _ in range(100):
        lanes.put(job(10))
    while (batch := lanes.take(BUDGET, interrupting=running)) is not None:
        assert set(lengths_of(batch)) == {10}
        served += batch.tokens
    assert 200 <= served < 200 + BUDGET
    lanes.put(job(5))
    short = lanes.take(5)
    assert lanes.take(BUDGET, interrupting=short) is None  # nothing is shorter than the shortest


def test_an_idle_lane_gathers_no_credit():
    lanes = Lanes()
    lanes.put(job(200))
    everything(lanes)
    for _ in range(100):
        lanes.put(job(16))
    everything(lanes)
    lanes.put(job(200))
    lanes.put(job(200))
    lanes.put(job(16))
    assert [lengths_of(lanes.take(BUDGET)) for _ in range(3)] == [[16], [200], [200]]


@given(st.data())
def test_a_discarded_job_leaves_nothing(data):
    lanes = Lanes()
    put = [job(*lengths) for lengths in data.draw(st.lists(st.lists(st.integers(1, 99), min_size=1), min_size=1))]
    for one in put:
        lanes.put(one)
    lanes.take(data.draw(st.integers(1, 200)))
    for one in data.draw(st.permutations(put)):
        left = sum(len(ids) for other in put if other is not one for _, ids in other.waiting)
        lanes.discard(one)
        lanes.discard(one)  # twice is nothing more
        assert lanes.tokens == left
    assert lanes.take(BUDGET) is None


def test_how_long_it_takes_counts_the_lanes_that_share():
    lanes = Lanes()
    assert lanes.tokens_until_done(10) == 10
    lanes.put(job(10))
    assert lanes.tokens_until_done(10) == 20
    lanes.put(job(300))
    assert lanes.tokens_until_done(10) == 40
    assert lanes.tokens_until_done(100) == 300  # three lanes, and nothing before it in its own
