"""`MaskedLanguageModelling.backward` leaves the gradient of the mean over all masked tokens, however many at a time.

Tolerance: float64 throughout; sums of some hundred terms in another order differ by less than 1e-10 relative to the
largest entry of each gradient. (Between processes: tests/train/test_parallel.py.)
"""

import functools

import pytest
import torch
from torch import Tensor

from longspan.data.batch import MaskedBatch
from longspan.objective.mlm import MaskedConfig, MaskedLanguageModelling
from longspan.text.packed import Packed
from tests.objective import naive

ROUNDING = 1e-10
NUM_ROWS, ROW_LENGTH = 6, 10


def _objective(rows_at_a_time: int = 1) -> MaskedLanguageModelling:
    return MaskedLanguageModelling(
        MaskedConfig(row_length=ROW_LENGTH, micro_batch_tokens=rows_at_a_time * ROW_LENGTH + ROW_LENGTH // 2)
    )


@functools.cache
def _plain() -> tuple[float, dict[str, Tensor]]:
    model = naive.masked_model()
    loss = naive.masked_loss(model, naive.masked_batch(NUM_ROWS))
    return float(loss.detach()), naive.plain_gradients(model, loss)


@pytest.mark.parametrize("rows_at_a_time", range(1, NUM_ROWS + 2))
def test_equals_the_plain_computation(rows_at_a_time: int) -> None:
    loss, gradients = _plain()
    model = naive.masked_model()
    metrics = _objective(rows_at_a_time).backward(model, naive.masked_batch(NUM_ROWS))
    assert metrics["loss"] == pytest.approx(loss, rel=1e-12)
    assert naive.largest_difference(naive.gradients(model), gradients) < ROUNDING


def test_a_budget_below_a_row_takes_one_row() -> None:
    model = naive.masked_model()
    objective = MaskedLanguageModelling(MaskedConfig(row_length=ROW_LENGTH, micro_batch_tokens=1))
    objective.backward(model, naive.masked_batch(NUM_ROWS))
    assert naive.largest_difference(naive.gradients(model), _plain()[1]) < ROUNDING


def test_the_mean_is_over_tokens_not_over_micro_batches() -> None:
    model, batch = naive.masked_model(), naive.masked_batch(NUM_ROWS)
    assert len({len(positions) for positions, _ in batch.targets}) > 1
    alone = [
        _objective().backward(model, MaskedBatch([r], [t])) for r, t in zip(batch.rows, batch.targets, strict=True)
    ]
    mean_of_means = sum(float(metrics["loss"]) for metrics in alone) / NUM_ROWS
    mean_of_tokens = sum(float(m["loss"]) * int(m["masked"]) for m in alone) / sum(int(m["masked"]) for m in alone)
    assert _plain()[0] == pytest.approx(mean_of_tokens, rel=1e-12)
    assert abs(mean_of_means - mean_of_tokens) > 0.01


def test_a_row_without_masked_tokens_changes_nothing() -> None:
    batch = naive.masked_batch(NUM_ROWS)
    empty = torch.zeros(0, dtype=torch.int64)
    more = MaskedBatch([*batch.rows, batch.rows[0]], [*batch.targets, (empty, empty)])
    model = naive.masked_model()
    _objective(1).backward(model, more)
    assert naive.largest_difference(naive.gradients(model), _plain()[1]) < ROUNDING


def test_adds_to_the_gradient_that_is_there() -> None:
    model = naive.masked_model()
    for _ in range(3):
        _objective(2).backward(model, naive.masked_batch(NUM_ROWS))
    expected = {name: 3 * gradient for name, gradient in _plain()[1].items()}
    assert naive.largest_difference(naive.gradients(model), expected) < ROUNDING


def test_metrics() -> None:
    model, batch = naive.masked_model(), naive.masked_batch(NUM_ROWS)
    # Half of the labels are what the model says, so that the accuracy is neither 0 nor 1.
    said = [
        model(row, positions_M).argmax(dim=1) for row, (positions_M, _) in zip(batch.rows, batch.targets, strict=True)
    ]
    targets = [
        (positions, said_M if number % 2 else labels)
        for number, ((positions, labels), said_M) in enumerate(zip(batch.targets, said, strict=True))
    ]
    right = sum(int((said_M == labels).sum()) for (_, labels), said_M in zip(targets, said, strict=True))
    masked = sum(len(positions) for positions, _ in targets)
    assert 0 < right < masked
    batch = MaskedBatch(batch.rows, targets)
    assert _objective(2).backward(model, batch) == {
        "loss": pytest.approx(float(naive.masked_loss(model, batch).detach()), rel=1e-12),
        "accuracy": right / masked,
        "masked": masked,
        "tokens": NUM_ROWS * ROW_LENGTH,
    }


def test_positions_are_those_of_the_row() -> None:
    # A row in two documents, of which only the second is masked: the flat position must not restart.
    row = Packed.of([torch.arange(4).numpy(), torch.arange(5, 11).numpy()])
    batch = MaskedBatch([row, row], [(torch.tensor([7]), torch.tensor([3])), (torch.tensor([9]), torch.tensor([1]))])
    model = naive.masked_model()
    gradients = naive.plain_gradients(model, naive.masked_loss(model, batch))
    _objective(2).backward(model, batch)
    assert naive.largest_difference(naive.gradients(model), gradients) < ROUNDING


def test_autocast_multiplies_in_bfloat16() -> None:
    batch = naive.masked_batch(NUM_ROWS)
    losses = []
    for autocast in (None, torch.bfloat16):
        model = naive.masked_model().float()
        objective = MaskedLanguageModelling(MaskedConfig(row_length=ROW_LENGTH), autocast=autocast)
        losses.append(objective.backward(model, batch)["loss"])
        assert all(gradient.dtype == torch.float32 for gradient in naive.gradients(model).values())
    # bfloat16 keeps 8 bits: a per cent or so after two layers; but not nothing.
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
