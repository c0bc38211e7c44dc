"""`Contrastive.backward` leaves the gradient of the plain computation, whatever the chunks.

Tolerance: float64 throughout; sums of some hundred terms in another order differ by less than 1e-10 relative to the
largest entry of each gradient. (Between processes: tests/train/test_parallel.py.)
"""

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from longspan.data.batch import PairBatch
from longspan.errors import LongspanError
from longspan.objective.contrastive import Contrastive
from longspan.objective.distillation import distillation_loss
from longspan.objective.gradcache import embed_in_chunks
from longspan.objective.temperature import TemperedEncoder
from longspan.text.packed import Packed, chunks_of_similar_length, join
from tests.objective import cases, naive

ROUNDING = 1e-10
NUM_PAIRS = 5
EVERYTHING = 10**9


def _objective(negatives_for: str, chunk_tokens: int, *, mask_duplicates: bool = True) -> Contrastive:
    return Contrastive(
        cases.config("own", 0, negatives_for=negatives_for, chunk_tokens=chunk_tokens, mask_duplicates=mask_duplicates)
    )


def _batch(num_negatives: int) -> PairBatch:
    return naive.with_repeats(naive.pair_batch(NUM_PAIRS, num_negatives))


@functools.cache
def _plain(variant: str, num_negatives: int) -> tuple[float, dict[str, Tensor]]:
    config = cases.config(variant, num_negatives)
    model = naive.pooled_model(config=config)
    loss = naive.contrastive_loss(model, _batch(num_negatives), config)
    return float(loss.detach()), naive.plain_gradients(model, loss)


@pytest.mark.parametrize(
    ("variant", "num_negatives", "chunk_tokens"),
    [
        (variant, num_negatives, chunk_tokens)
        for variant in cases.VARIANTS
        for num_negatives in (0, 1, 3)
        for chunk_tokens in ((1, 12, 40, EVERYTHING) if variant in ("own", "all") else (30,))
        if cases.makes_sense(variant, num_negatives)
    ],
)
def test_equals_the_plain_computation(variant: str, num_negatives: int, chunk_tokens: int) -> None:
    loss, gradients = _plain(variant, num_negatives)
    config = cases.config(variant, num_negatives, chunk_tokens=chunk_tokens)
    model = naive.pooled_model(config=config)
    metrics = Contrastive(config).backward(model, _batch(num_negatives))
    assert metrics["loss"] == pytest.approx(loss, rel=1e-12)
    assert naive.largest_difference(naive.gradients(model), gradients) < ROUNDING


@pytest.mark.parametrize(
    "variant", [name for name, changes in cases.VARIANTS.items() if name not in ("own", "temperature")]
)
def test_every_variant_is_another_loss(variant: str) -> None:
    # Else the test above would show nothing of it. (A temperature that is learnt starts as any other.)
    assert abs(_plain(variant, 3)[0] - _plain("own", 3)[0]) > 0.01


@settings(max_examples=15)
@given(
    num_pairs=st.integers(1, 5),
    num_negatives=st.integers(0, 2),
    variant=st.sampled_from(sorted(cases.VARIANTS)),
    longest=st.integers(2, 30),
    chunk_tokens=st.integers(1, 100),
    seed=st.integers(0, 1000),
    repeat=st.booleans(),
    mask_duplicates=st.booleans(),
)
def test_any_batch_and_any_chunks(
    num_pairs: int,
    num_negatives: int,
    variant: str,
    longest: int,
    chunk_tokens: int,
    seed: int,
    repeat: bool,
    mask_duplicates: bool,
) -> None:
    num_negatives = max(num_negatives, 0 if cases.makes_sense(variant, 0) else 1)
    batch = naive.pair_batch(num_pairs, num_negatives, seed, longest=longest)
    if repeat and num_pairs > 2:
        batch = naive.with_repeats(batch)
    config = cases.config(variant, num_negatives, chunk_tokens=chunk_tokens, mask_duplicates=mask_duplicates)
    model = naive.pooled_model(seed, config)
    loss = naive.contrastive_loss(model, batch, config)
    gradients = naive.plain_gradients(model, loss)
    metrics = Contrastive(config).backward(model, batch)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-10, abs=1e-12)
    # Absolute: a gradient of nearly zero is a difference of nearly equal numbers.
    torch.testing.assert_close(naive.gradients(model), gradients, rtol=1e-8, atol=1e-9)


def _with_equal_texts() -> PairBatch:
    """Queries 0 and 1 are equal, documents 2 and 3 are equal, and a mined negative of query 4 is its own document."""
    return naive.with_repeats(naive.pair_batch(5, 1, seed=3))


def test_right_answers_are_counted_and_left_out_only_if_asked() -> None:
    losses = []
    for mask_duplicates in (True, False):
        objective = _objective("own", EVERYTHING, mask_duplicates=mask_duplicates)
        metrics = objective.backward(naive.pooled_model(), _with_equal_texts())
        assert metrics["duplicates"] == 5
        losses.append(metrics["loss"])
    assert losses[0] < losses[1] - 0.1


def test_own_and_shared_negatives_differ() -> None:
    own, all_ = _plain("own", 3), _plain("all", 3)
    assert all_[0] > own[0] + 0.05
    assert naive.largest_difference(all_[1], own[1]) > 0.01
    # Without mined negatives there is nothing to share.
    assert naive.largest_difference(_plain("all", 0)[1], _plain("own", 0)[1]) == 0


@pytest.mark.parametrize("chunk_tokens", [7, EVERYTHING])
def test_adds_to_the_gradient_that_is_there(chunk_tokens: int) -> None:
    model, objective = naive.pooled_model(), _objective("own", chunk_tokens)
    expected: dict[str, Tensor] = {}
    for seed in (1, 2):
        batch = naive.pair_batch(NUM_PAIRS, 1, seed)
        plain = naive.plain_gradients(model, naive.contrastive_loss(model, batch, cases.config("own", 0)))
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
        "loss": pytest.approx(float(naive.contrastive_loss(model, batch, cases.config("own", 0)).detach()), rel=1e-12),
        "accuracy": right / NUM_PAIRS,
        "source": "random",
        "pairs": NUM_PAIRS,
        "tokens": sum(batch.queries.lengths) + sum(batch.documents.lengths),
        "cut": batch.num_cut,
        "duplicates": 0,
    }


def test_metrics_of_the_variants() -> None:
    config = cases.config("matryoshka", 2, learn_temperature=True, false_negative_margin=0.05)
    model, batch = naive.pooled_model(config=config), _batch(2)
    metrics = Contrastive(config).backward(model, batch)
    by_dim = {}
    for dim in config.matryoshka_dims:
        alone = cases.config("margin", 2, matryoshka_dims=(dim,))
        by_dim[dim] = float(naive.contrastive_loss(model, batch, alone).detach())
        assert metrics[f"loss_{dim}"] == pytest.approx(by_dim[dim], rel=1e-12)
    assert metrics["loss"] == pytest.approx(by_dim[8] + 0.5 * by_dim[5] + 2 * by_dim[2], rel=1e-12)
    assert metrics["accuracy"] == metrics["accuracy_8"]
    assert metrics["temperature"] == pytest.approx(cases.TEMPERATURE)
    assert isinstance(metrics["false_negatives"], int)
    assert metrics["false_negatives"] > 0
    assert metrics["duplicates"] == 5


def test_what_is_distilled_is_told_and_weighed() -> None:
    model, batch = naive.pooled_model(), _batch(2)
    plain = Contrastive(cases.config("own", 2)).backward(model, batch)
    for variant in ("distilled", "distilled-margin"):
        config = cases.config(variant, 2)
        metrics = Contrastive(config).backward(model, batch)
        added = config.distillation_weight * float(metrics["loss_distillation"])
        assert metrics["loss"] == pytest.approx(float(plain["loss"]) + added, rel=1e-12)
        assert added > 0.01


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    queries_nD, candidates_nCD = torch.randn(5, 8).double(), torch.randn(5, 4, 8).double()
    cosines_nC = torch.cosine_similarity(queries_nD[:, None], candidates_nCD, dim=2)
    for kind, scores_nC, temperature in (("kl", 3 * cosines_nC + 1, 0.3), ("margin_mse", cosines_nC + 1, 0.1)):
        loss = distillation_loss(kind, queries_nD, candidates_nCD, scores_nC, 0.1, temperature)  # pyright: ignore[reportArgumentType]
        assert float(loss) == pytest.approx(0, abs=1e-12)
        other = distillation_loss(kind, queries_nD, candidates_nCD, scores_nC.flip(1), 0.1, temperature)  # pyright: ignore[reportArgumentType]
        assert float(other) > 0.1


def test_without_scores_nothing_is_distilled() -> None:
    batch = dataclasses.replace(_batch(2), teacher_scores=None)
    with pytest.raises(LongspanError, match="no scores of a teacher"):
        Contrastive(cases.config("distilled", 2)).backward(naive.pooled_model(), batch)


def test_the_width_is_one_of_the_dimensions() -> None:
    for dims in ((16, 8), (5, 2)):
        config = cases.config("own", 0, matryoshka_dims=dims)
        with pytest.raises(LongspanError, match=f"largest of the Matryoshka dimensions is {dims[0]}.* 8 coordinates"):
            Contrastive(config).backward(naive.pooled_model(), naive.pair_batch(2, 0))


def test_the_temperature_does_not_fall_below_its_limit() -> None:
    config = cases.config("temperature", 0, min_temperature=0.09)
    model = naive.pooled_model(config=config)
    assert isinstance(model, TemperedEncoder)
    with torch.no_grad():
        model.log_temperature.fill_(math.log(0.001))
    batch = naive.pair_batch(NUM_PAIRS, 0)
    metrics = Contrastive(config).backward(model, batch)
    assert metrics["temperature"] == pytest.approx(0.09)
    fixed = cases.config("own", 0, temperature=0.09)
    expected = Contrastive(fixed).backward(naive.pooled_model(), batch)["loss"]
    # float64; the last bits follow where in memory a text lies.
    assert metrics["loss"] == pytest.approx(expected, rel=1e-12)
    # A gradient that pulls it up again must not be lost.
    assert model.log_temperature.grad is not None
    assert model.log_temperature.grad != 0


def test_only_a_tempered_encoder_learns_a_temperature() -> None:
    with pytest.raises(TypeError, match="TemperedEncoder"):
        Contrastive(cases.config("temperature", 0)).backward(naive.pooled_model(), naive.pair_batch(2, 0))


def test_the_temperature_is_used() -> None:
    model, batch = naive.pooled_model(), naive.pair_batch(NUM_PAIRS, 1)
    config = cases.config("own", 1, temperature=2.0)
    metrics = Contrastive(config).backward(model, batch)
    assert metrics["loss"] == pytest.approx(float(naive.contrastive_loss(model, batch, config).detach()), rel=1e-12)


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
    with_graph = [tokens for tokens, graph in counting.calls if graph]
    without = [tokens for tokens, graph in counting.calls if not graph]
    assert sum(with_graph) == batch.queries.num_tokens + batch.documents.num_tokens
    # The last chunk of the first pass keeps its graph; the others come again in their order.
    assert without == with_graph[1:]


def test_a_sequence_longer_than_the_budget_is_a_chunk_by_itself() -> None:
    counting, batch = _Counting(), naive.pair_batch(NUM_PAIRS, 0)
    _objective("own", 1).backward(counting, batch)
    assert sorted(tokens for tokens, graph in counting.calls if graph) == sorted(
        [*batch.queries.lengths, *batch.documents.lengths]
    )


def test_what_fits_into_one_chunk_is_computed_once() -> None:
    counting, batch = _Counting(), naive.pair_batch(NUM_PAIRS, 1)
    _objective("own", EVERYTHING).backward(counting, batch)
    assert counting.calls == [(batch.queries.num_tokens + batch.documents.num_tokens, True)]


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
        config = cases.config("own", 1, chunk_tokens=chunk_tokens)
        losses.append(Contrastive(config, autocast=autocast).backward(model, batch)["loss"])
        gradients.append(naive.gradients(model))
        assert all(gradient.dtype == torch.float32 for gradient in gradients[-1].values())
    # bfloat16 keeps 8 bits: some per cent after two layers; but not nothing.
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert 0 < naive.largest_difference(gradients[1], gradients[0]) < 0.3


# --- models that draw random numbers ---------------------------------------------------------------------------------


class _Dropping(nn.Module):
    """A model with dropout, that notes its vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.model = naive.pooled_model()
        self.dropout = nn.Dropout(0.5)
        self.vectors: list[Tensor] = []

    def forward(self, packed: Packed) -> Tensor:
        # One factor for every coordinate: dropped ones make the vectors of a chunk differ.
        vectors_BD = self.dropout(self.model(packed)) + 0.01
        self.vectors.append(vectors_BD)
        return vectors_BD


def test_both_passes_meet_the_same_dropout() -> None:
    batch, config = naive.pair_batch(NUM_PAIRS, 1), cases.config("own", 1, chunk_tokens=12)
    model = _Dropping()
    torch.manual_seed(7)
    Contrastive(config).backward(model, batch)
    after = torch.get_rng_state()
    num_chunks = (len(model.vectors) + 1) // 2  # the last one goes through once
    assert num_chunks > 3
    for first, again in zip(model.vectors[: num_chunks - 1], model.vectors[num_chunks:], strict=True):
        assert not first.requires_grad
        assert torch.equal(first, again)

    # On one graph: what is drawn for the chunks in their order, and from there on the plain computation.
    plain = _Dropping()
    torch.manual_seed(7)
    packed = join([batch.queries, batch.documents])
    groups = chunks_of_similar_length(packed.lengths, 12)
    order = torch.tensor([*itertools.chain(*groups)])
    vectors_BD = torch.cat([plain(packed.select(group)) for group in groups])[order.argsort()]
    q_nD, d_nD = vectors_BD[:NUM_PAIRS], vectors_BD[NUM_PAIRS:]
    mined = [[d_nD[NUM_PAIRS + i]] for i in range(NUM_PAIRS)]
    loss = naive.info_nce_loss(list(q_nD), list(d_nD[:NUM_PAIRS]), range(NUM_PAIRS), cases.TEMPERATURE, mined)
    expected = naive.plain_gradients(plain, loss / NUM_PAIRS)
    assert naive.largest_difference(naive.gradients(model), expected) < ROUNDING
    assert torch.equal(after, torch.get_rng_state()), "numbers go on as if there had been one pass"
