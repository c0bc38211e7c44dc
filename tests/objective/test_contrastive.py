"""`Contrastive.backward` leaves the gradient of the plain computation, whatever the chunks.

Tolerance: float64 throughout; sums of some hundred terms in another order differ by less than 1e-10 relative to the
largest entry of each gradient. (Between processes: tests/train/test_parallel.py.)
"""

import functools
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from longspan.data.collate import PairBatch
from longspan.objective.contrastive import Contrastive, ContrastiveConfig, duplicates
from longspan.objective.gradcache import embed_in_chunks
from longspan.objective.world import Alone
from longspan.text.packed import Packed
from tests.objective import naive

ROUNDING = 1e-10
TEMPERATURE = 0.1
NUM_PAIRS = 5
EVERYTHING = 10**9

NegativesFor = Literal["own", "all"]


def _objective(negatives_for: NegativesFor, chunk_tokens: int, *, mask_duplicates: bool = True) -> Contrastive:
    config = ContrastiveConfig(
        temperature=TEMPERATURE,
        negatives_for=negatives_for,
        chunk_tokens=chunk_tokens,
        mask_duplicates=mask_duplicates,
    )
    return Contrastive(config)


@functools.cache
def _plain(num_negatives: int, negatives_for: NegativesFor) -> tuple[float, dict[str, Tensor]]:
    model = naive.pooled_model()
    batch = naive.pair_batch(NUM_PAIRS, num_negatives)
    loss = naive.contrastive_loss(model, batch, TEMPERATURE, negatives_for)
    return float(loss.detach()), naive.plain_gradients(model, loss)


@pytest.mark.parametrize("negatives_for", ["own", "all"])
@pytest.mark.parametrize("num_negatives", [0, 1, 3])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 12, 40, 90, EVERYTHING])
def test_equals_the_plain_computation(num_negatives: int, negatives_for: NegativesFor, chunk_tokens: int) -> None:
    loss, gradients = _plain(num_negatives, negatives_for)
    model = naive.pooled_model()
    metrics = _objective(negatives_for, chunk_tokens).backward(model, naive.pair_batch(NUM_PAIRS, num_negatives))
    assert metrics["loss"] == pytest.approx(loss, rel=1e-12)
    assert naive.largest_difference(naive.gradients(model), gradients) < ROUNDING


@settings(max_examples=15)
@given(
    num_pairs=st.integers(1, 5),
    num_negatives=st.integers(0, 2),
    negatives_for=st.sampled_from(["own", "all"]),
    longest=st.integers(2, 30),
    chunk_tokens=st.integers(1, 100),
    seed=st.integers(0, 1000),
    repeat=st.booleans(),
    mask_duplicates=st.booleans(),
)
def test_any_batch_and_any_chunks(
    num_pairs: int,
    num_negatives: int,
    negatives_for: NegativesFor,
    longest: int,
    chunk_tokens: int,
    seed: int,
    repeat: bool,
    mask_duplicates: bool,
) -> None:
    # One pair without negatives has a loss of zero, and gradients of zero.
    num_negatives = max(num_negatives, 1 if num_pairs == 1 else 0)
    batch = naive.pair_batch(num_pairs, num_negatives, seed, longest=longest)
    if repeat and num_pairs > 2:
        batch = naive.with_repeats(batch)
    model = naive.pooled_model(seed)
    loss = naive.contrastive_loss(model, batch, TEMPERATURE, negatives_for, mask_duplicates=mask_duplicates)
    gradients = naive.plain_gradients(model, loss)
    _objective(negatives_for, chunk_tokens, mask_duplicates=mask_duplicates).backward(model, batch)
    assert naive.largest_difference(naive.gradients(model), gradients) < 1e-8  # losses near zero cancel


def _with_equal_texts() -> PairBatch:
    """Queries 0 and 1 are equal, documents 2 and 3 are equal, and a mined negative of query 4 is its own document."""
    return naive.with_repeats(naive.pair_batch(5, 1, seed=3))


def test_which_candidates_are_right_too() -> None:
    right = torch.zeros(5, 5, dtype=torch.bool)
    right[0, 1] = right[1, 0] = right[2, 3] = right[3, 2] = True
    batch = _with_equal_texts()
    own = duplicates(batch, Alone(), torch.device("cpu"), share_negatives=False)
    assert own.tolist() == torch.cat([right, torch.tensor([[0], [0], [0], [0], [1]]).bool()], dim=1).tolist()
    shared = duplicates(batch, Alone(), torch.device("cpu"), share_negatives=True)
    assert shared[:, :5].tolist() == right.tolist()
    assert shared[:, 5:].nonzero().tolist() == [[4, 4]]


def test_right_answers_are_counted_and_left_out_only_if_asked() -> None:
    losses = []
    for mask_duplicates in (True, False):
        objective = _objective("own", EVERYTHING, mask_duplicates=mask_duplicates)
        metrics = objective.backward(naive.pooled_model(), _with_equal_texts())
        assert metrics["duplicates"] == 5
        losses.append(metrics["loss"])
    assert losses[0] < losses[1] - 0.1


def test_own_and_shared_negatives_differ() -> None:
    own, all_ = _plain(3, "own"), _plain(3, "all")
    assert all_[0] > own[0] + 0.05
    assert naive.largest_difference(all_[1], own[1]) > 0.01
    # Without mined negatives there is nothing to share.
    assert naive.largest_difference(_plain(0, "all")[1], _plain(0, "own")[1]) == 0


@pytest.mark.parametrize("chunk_tokens", [7, EVERYTHING])
def test_adds_to_the_gradient_that_is_there(chunk_tokens: int) -> None:
    model, objective = naive.pooled_model(), _objective("own", chunk_tokens)
    expected: dict[str, Tensor] = {}
    for seed in (1, 2):
        batch = naive.pair_batch(NUM_PAIRS, 1, seed)
        plain = naive.plain_gradients(model, naive.contrastive_loss(model, batch, TEMPERATURE, "own"))
        expected = {name: gradient + expected.get(name, 0.0) for name, gradient in plain.items()}
        objective.backward(model, batch)
    assert naive.largest_difference(naive.gradients(model), expected) < ROUNDING


@pytest.mark.parametrize("chunk_tokens", [7, EVERYTHING])
def test_metrics(chunk_tokens: int) -> None:
    model, batch = naive.pooled_model(), naive.pair_batch(NUM_PAIRS, 2, seed=1)
    metrics = _objective("own", chunk_tokens).backward(model, batch)
    with torch.no_grad():
        queries, documents = model(batch.queries), model(batch.documents)
    right = 0
    for i in range(NUM_PAIRS):
        candidates = [*range(NUM_PAIRS), *range(NUM_PAIRS + 2 * i, NUM_PAIRS + 2 * i + 2)]
        best = max(candidates, key=lambda j: float(naive.cosine(queries[i], documents[j])))
        right += best == i
    assert 0 < right < NUM_PAIRS, "an accuracy of 0 or 1 shows little"
    assert metrics == {
        "loss": pytest.approx(float(naive.contrastive_loss(model, batch, TEMPERATURE, "own").detach()), rel=1e-12),
        "accuracy": right / NUM_PAIRS,
        "source": "random",
        "pairs": NUM_PAIRS,
        "tokens": sum(batch.queries.lengths) + sum(batch.documents.lengths),
        "cut": batch.num_cut,
        "duplicates": 0,
    }


def test_the_temperature_is_used() -> None:
    model, batch = naive.pooled_model(), naive.pair_batch(NUM_PAIRS, 1)
    metrics = Contrastive(ContrastiveConfig(temperature=2.0)).backward(model, batch)
    assert metrics["loss"] == pytest.approx(float(naive.contrastive_loss(model, batch, 2.0, "own").detach()), rel=1e-12)


# --- the chunks ------------------------------------------------------------------------------------------------------


class _Counting(nn.Module):
    """Notes the tokens of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.model = naive.pooled_model()
        self.calls: list[tuple[int, bool]] = []

    def forward(self, packed: Packed) -> Tensor:
        self.calls.append((packed.num_tokens, torch.is_grad_enabled()))
        return self.model(packed)


def test_no_chunk_is_larger_than_the_budget() -> None:
    counting, batch = _Counting(), naive.pair_batch(NUM_PAIRS, 3)
    _objective("own", 11).backward(counting, batch)
    assert max(tokens for tokens, _ in counting.calls) <= 11
    with_graph = sum(tokens for tokens, graph in counting.calls if graph)
    without = sum(tokens for tokens, graph in counting.calls if not graph)
    assert with_graph == without == batch.queries.num_tokens + batch.documents.num_tokens


def test_a_sequence_longer_than_the_budget_is_a_chunk_by_itself() -> None:
    counting, batch = _Counting(), naive.pair_batch(NUM_PAIRS, 0)
    _objective("own", 1).backward(counting, batch)
    assert sorted(tokens for tokens, graph in counting.calls if graph) == sorted(
        [*batch.queries.lengths, *batch.documents.lengths]
    )


def test_what_fits_into_one_chunk_is_computed_once() -> None:
    counting, batch = _Counting(), naive.pair_batch(NUM_PAIRS, 1)
    _objective("own", EVERYTHING).backward(counting, batch)
    assert counting.calls == [(batch.queries.num_tokens, True), (batch.documents.num_tokens, True)]


@pytest.mark.parametrize("chunk_tokens", [1, 9, EVERYTHING])
def test_vectors_come_in_the_order_of_the_sequences(chunk_tokens: int) -> None:
    model, packed = naive.pooled_model(), naive.pair_batch(8, 0).documents
    vectors_BD, _ = embed_in_chunks(model, packed, chunk_tokens, None)
    assert not vectors_BD.requires_grad
    with torch.no_grad():
        alone_BD = torch.cat([model(packed.select([b])) for b in range(packed.num_sequences)])
    torch.testing.assert_close(vectors_BD, alone_BD, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [9, EVERYTHING])
def test_autocast_multiplies_in_bfloat16(chunk_tokens: int) -> None:
    batch = naive.pair_batch(NUM_PAIRS, 1)
    losses, gradients = [], []
    for autocast in (None, torch.bfloat16):
        model = naive.pooled_model().float()
        config = ContrastiveConfig(temperature=TEMPERATURE, chunk_tokens=chunk_tokens)
        losses.append(Contrastive(config, autocast=autocast).backward(model, batch)["loss"])
        gradients.append(naive.gradients(model))
        assert all(gradient.dtype == torch.float32 for gradient in gradients[-1].values())
    # bfloat16 keeps 8 bits: some per cent after two layers; but not nothing.
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert 0 < naive.largest_difference(gradients[1], gradients[0]) < 0.3
