"""The engine: the same vectors as the embedder's, whoever else asks; order, refusals, failures, clients that leave."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.serve.engine import Engine, Texts
from longspan.serve.refusal import Refusal
from longspan.serve.settings import ServeSettings

WORDS = ["fox", "the quick brown fox", "naïve café 東京", "lazy dogs " * 12, "jumps over " * 30, "def area(radius)"]
TASK = "search_query"


class Watched:
    def __init__(self):
        self.batches, self.failures = [], []

    def batch(self, *, texts, tokens, seconds):
        self.batches.append((texts, tokens))

    def waited(self, seconds):
        assert seconds >= 0

    def failed(self, error):
        self.failures.append(error)


def use(embedder, job, **limits):
    """Run `job(engine, watched)` with an engine that is stopped at the end."""
    watched = Watched()

    async def main():
        engine = Engine(embedder, ServeSettings(**limits), watched)
        await engine.start()
        try:
            return await job(engine, watched)
        finally:
            await asyncio.to_thread(engine.stop)

    return asyncio.run(main())


async def reached(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


requests = st.tuples(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5),
    st.sampled_from(["search_query", "clustering"]),
    st.sampled_from([None, 1, 16, 64]),
    st.sampled_from([None, True, False]),
)


@settings(max_examples=15)
@given(st.lists(requests, min_size=1, max_size=8), st.sampled_from([1, 40, 4096]))
def test_vectors_are_the_embedders_to_the_bit(small_embedder, asked, budget):
    async def job(engine, _):
        return await asyncio.gather(*(engine.embed(Texts(t, task, dim, n)) for t, task, dim, n in asked))

    answers = use(small_embedder, job, max_batch_tokens=budget)
    for (texts, task, dim, normalize), answer in zip(asked, answers, strict=True):
        embedder = small_embedder if normalize is not False else small_embedder.with_settings(normalize=False)
        assert np.array_equal(answer.vectors_ND, embedder.embed(texts, task=task, dim=dim))
        assert answer.num_tokens == sum(small_embedder.num_tokens(texts, task=task))
        assert answer.cut == []


def test_token_ids_are_their_text(small_embedder):
    ids = small_embedder.tokenizer.encode(WORDS)

    async def job(engine, _):
        return await engine.embed(Texts(ids, TASK))

    assert np.array_equal(use(small_embedder, job).vectors_ND, small_embedder.embed(WORDS, task=TASK))


def test_what_waits_is_computed_together(small_embedder, gate):
    async def job(engine, watched):
        first = asyncio.ensure_future(engine.embed(Texts(["fox"], TASK)))
        await reached(gate.reached.is_set)
        others = [asyncio.ensure_future(engine.embed(Texts([word], TASK))) for word in WORDS]
        await reached(lambda: engine.waiting_texts == len(WORDS))
        gate.open()
        await asyncio.gather(first, *others)
        return watched.batches

    batches = use(small_embedder, job, max_batch_tokens=4096)
    assert [texts for texts, _ in batches] == [1, len(WORDS)]


@pytest.fixture
def gate(small_embedder):
    from tests.serve.conftest import Gate

    with Gate(small_embedder, only=lambda packed: packed.num_tokens < 1000) as made:
        yield made


@pytest.fixture
def small_lanes(monkeypatch):
    monkeypatch.setattr("longspan.serve.lanes.LANES", (16, 64))


@pytest.mark.usefixtures("small_lanes")
def test_a_short_request_is_answered_in_the_middle_of_a_long_text(small_embedder):
    from tests.serve.conftest import Gate

    long = "fox " * 100

    async def job(engine, _):
        done = []

        async def ask(text):
            answer = await engine.embed(Texts([text], TASK))
            done.append(text)
            return answer.vectors_ND

        with Gate(small_embedder, only=lambda packed: packed.num_tokens > 64) as gate:
            first = asyncio.ensure_future(ask(long))
            await reached(gate.reached.is_set)
            second = asyncio.ensure_future(ask(long))  # as long: waits its turn
            short = asyncio.ensure_future(ask("fox"))
            await reached(lambda: engine.waiting_texts == 2)
            gate.open()
            return done, await asyncio.gather(first, second, short)

    done, vectors = use(small_embedder, job)
    assert done == ["fox", long, long]
    for text, vector_1D in zip([long, long, "fox"], vectors, strict=True):
        assert np.array_equal(vector_1D, small_embedder.embed([text], task=TASK))


@pytest.mark.usefixtures("small_lanes")
def test_a_long_text_that_nobody_waits_for_is_given_up(small_embedder):
    from tests.serve.conftest import Gate

    async def job(engine, watched):
        with Gate(small_embedder, only=lambda packed: packed.num_tokens > 64) as gate:
            task = asyncio.ensure_future(engine.embed(Texts(["fox " * 100], TASK)))
            await reached(gate.reached.is_set)
            task.cancel()
            await asyncio.wait([task])
            gate.open()
            answer = await engine.embed(Texts(["fox"], TASK))
        return watched.batches, answer.vectors_ND

    batches, vectors_ND = use(small_embedder, job)
    assert [texts for texts, _ in batches] == [1]  # only the second was ever finished
    assert np.array_equal(vectors_ND, small_embedder.embed(["fox"], task=TASK))


def test_what_waits_is_forgotten_when_its_client_leaves(small_embedder, gate):
    async def job(engine, _):
        first = asyncio.ensure_future(engine.embed(Texts(["fox"], TASK)))
        await reached(gate.reached.is_set)
        waiting = asyncio.ensure_future(engine.embed(Texts(WORDS, TASK)))
        await reached(lambda: engine.waiting_texts == len(WORDS))
        assert engine.waiting_tokens == sum(small_embedder.num_tokens(WORDS, task=TASK))
        waiting.cancel()
        await asyncio.wait([waiting])
        assert engine.waiting_tokens == engine.waiting_texts == 0
        gate.open()
        await first

    use(small_embedder, job)


@pytest.mark.parametrize("limits", [{"max_queue_tokens": 20}, {"timeout": 1e-6}])
def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(small_embedder, gate, limits):
    async def job(engine, _):
        tasks = [asyncio.ensure_future(engine.embed(Texts(["fox"], TASK)))]
        await reached(gate.reached.is_set)
        tasks.append(asyncio.ensure_future(engine.embed(Texts(["fox"], TASK))))  # nothing waited
        await reached(lambda: engine.waiting_texts == 1)
        with pytest.raises(Refusal, match="busy") as caught:
            await engine.embed(Texts(WORDS, TASK))
        assert caught.value.status == 429
        assert int(caught.value.headers["retry-after"]) >= 1
        assert engine.waiting_texts == 1
        gate.open()
        await asyncio.gather(*tasks)

    use(small_embedder, job, **limits)


def test_a_failure_is_told_and_the_next_request_works(small_embedder, monkeypatch):
    pooled = small_embedder.pooled

    def failing(sequences):
        if len(sequences) == 2:
            raise MemoryError("no room")
        return pooled(sequences)

    monkeypatch.setattr(small_embedder, "pooled", failing)

    async def job(engine, watched):
        with pytest.raises(Refusal, match="the encoder failed") as caught:
            await engine.embed(Texts(["fox", "dogs"], TASK))
        assert caught.value.status == 500
        assert [type(error) for error in watched.failures] == [MemoryError]
        return (await engine.embed(Texts(["fox"], TASK))).vectors_ND

    assert np.array_equal(use(small_embedder, job), small_embedder.embed(["fox"], task=TASK))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (Texts(["fox", " "], TASK), "text number 1 is empty"),
        (Texts(["fox " * 200], TASK), "more than 128"),
        (Texts(["fox"], "search"), "no task 'search'"),
        (Texts(["fox"]), "needs to know the task"),
        (Texts(["fox"], TASK, dim=65), "dim 65"),
        (Texts([np.array([10, 9999])], TASK), "token id 9999 of text number 0"),
        (Texts([np.array([], dtype=np.int32)], TASK), "text number 0 is empty"),
    ],
)
def test_refuses_what_the_embedder_refuses(small_embedder, texts, message):
    async def job(engine, _):
        with pytest.raises(LongspanError, match=message):
            await engine.embed(texts)

    use(small_embedder, job)


def test_cuts_on_request_and_tells_which(small_embedder):
    long = "fox " * 200
    ids = small_embedder.tokenizer.encode(["fox", long])

    async def job(engine, _):
        return [await engine.embed(Texts(inputs, TASK, truncate=True)) for inputs in (["fox", long], ids)]

    for answer in use(small_embedder, job):
        assert answer.cut == [1]
        assert np.array_equal(answer.vectors_ND, small_embedder.embed(["fox", long], task=TASK, truncate=True))
