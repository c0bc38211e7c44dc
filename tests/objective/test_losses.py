"""`info_nce` is the paper's equations (1) and (2).

Axes: N queries, M documents, H own negatives of each query, D width.

Tolerance: everything is computed in float64 from some dozen numbers, so 1e-11 relative is rounding.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from longspan.objective.contrastive import ContrastiveConfig
from longspan.objective.losses import info_nce
from tests.objective.naive import info_nce_loss

ROUNDING = 1e-11


def _random(seed: int, n: int, m: int, h: int, d: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        # Lengths from 0.1 to 10: the loss must not depend on them.
        lengths = 10 ** (2 * torch.rand(*shape[:-1], 1, generator=generator, dtype=torch.float64) - 1)
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * lengths).requires_grad_()

    labels_N = torch.randint(0, m, (n,), generator=generator)
    return draw(n, d), draw(m, d), labels_N, draw(n, h, d) if h else None


sizes = {"n": st.integers(1, 4), "extra": st.integers(0, 4), "h": st.integers(0, 3)}
temperatures = st.floats(0.01, 10)


@given(**sizes, temperature=temperatures, seed=st.integers(0, 10_000))
def test_equals_the_double_loop(n: int, extra: int, h: int, temperature: float, seed: int) -> None:
    queries_ND, documents_MD, labels_N, negatives_NHD = _random(seed, n, n + extra, h)
    inputs = [x for x in (queries_ND, documents_MD, negatives_NHD) if x is not None]
    loss, _ = info_nce(queries_ND, documents_MD, labels_N, temperature, negatives_NHD)
    naive = info_nce_loss(
        list(queries_ND),
        list(documents_MD),
        labels_N.tolist(),
        temperature,
        [] if negatives_NHD is None else [list(own_HD) for own_HD in negatives_NHD],
    )
    torch.testing.assert_close(loss, naive, rtol=ROUNDING, atol=ROUNDING)
    for found, expected in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(naive, inputs), strict=True):
        # The gradient of a loss of nearly zero is a difference of nearly equal numbers, hence the absolute part.
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=ROUNDING / temperature)


def test_one_pair_by_hand() -> None:
    # s(q, d1) = 1, s(q, d2) = 0, s(q, h) = -1; tau = 1/2: loss = -log(e^2 / (e^2 + e^0 + e^-2)).
    query_ND = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    documents_MD = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    negatives_NHD = torch.tensor([[[-5.0, 0.0]]], dtype=torch.float64)
    loss, correct = info_nce(query_ND, documents_MD, torch.tensor([0]), 0.5, negatives_NHD)
    assert float(loss) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-2))), rel=1e-14)
    assert int(correct) == 1
    loss, correct = info_nce(query_ND, documents_MD, torch.tensor([1]), 0.5)
    assert float(loss) == pytest.approx(-math.log(1 / (math.exp(2) + 1)), rel=1e-14)
    assert int(correct) == 0


def test_the_loss_is_a_sum_over_queries() -> None:
    queries_ND, documents_MD, labels_N, negatives_NHD = _random(1, 4, 6, 2)
    assert negatives_NHD is not None
    whole, right = info_nce(queries_ND, documents_MD, labels_N, 0.1, negatives_NHD)
    parts = [
        info_nce(queries_ND[i : i + 1], documents_MD, labels_N[i : i + 1], 0.1, negatives_NHD[i : i + 1])
        for i in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack([loss for loss, _ in parts]).sum(), rtol=ROUNDING, atol=0)
    assert int(right) == sum(int(correct) for _, correct in parts)


def test_the_direction_is_query_to_document_only() -> None:
    queries_ND, documents_MD, _, _ = _random(2, 4, 4, 0)
    labels_N = torch.arange(4)
    forth, _ = info_nce(queries_ND, documents_MD, labels_N, 0.1)
    back, _ = info_nce(documents_MD, queries_ND, labels_N, 0.1)
    assert abs(float((forth - back).detach())) > 0.1


def test_own_negatives_differ_from_shared_ones() -> None:
    queries_ND, documents_MD, labels_N, negatives_NHD = _random(3, 4, 4, 2)
    assert negatives_NHD is not None
    own, _ = info_nce(queries_ND, documents_MD, labels_N, 0.1, negatives_NHD)
    everyone = torch.cat([documents_MD, negatives_NHD.flatten(0, 1)])
    shared, _ = info_nce(queries_ND, everyone, labels_N, 0.1)
    assert float((shared - own).detach()) > 0.1


def test_a_tie_is_not_right() -> None:
    # A model that maps every text to one vector must not look better than chance.
    same = torch.ones(3, 4)
    assert int(info_nce(same, same, torch.arange(3), 0.1)[1]) == 0
    negatives_NHD = same[:, None, :]
    documents_MD = torch.eye(3, 4)
    assert int(info_nce(documents_MD, documents_MD, torch.arange(3), 0.1)[1]) == 3
    assert int(info_nce(documents_MD, documents_MD, torch.arange(3), 0.1, documents_MD[:, None, :])[1]) == 0
    assert int(info_nce(documents_MD, documents_MD, torch.arange(3), 0.1, negatives_NHD)[1]) == 3


@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 1.0, 1e4])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    # exp(1 / 1e-4) has no float32; the loss must not need it.
    queries_ND, documents_MD, labels_N, negatives_NHD = _random(4, 4, 5, 2)
    assert negatives_NHD is not None
    inputs = [x.detach().float().requires_grad_() for x in (queries_ND, documents_MD, negatives_NHD)]
    loss, _ = info_nce(inputs[0], inputs[1], labels_N, temperature, inputs[2])
    exact, _ = info_nce(queries_ND, documents_MD, labels_N, temperature, negatives_NHD)
    # Cosines are off by about 1e-7 in float32, and the temperature divides them.
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-5, abs=1e-6 / temperature)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, inputs))


def test_a_zero_vector_is_survived() -> None:
    queries_ND = torch.zeros(2, 3, requires_grad=True)
    loss, correct = info_nce(queries_ND, torch.eye(3)[:2], torch.tensor([0, 1]), 0.05)
    assert float(loss.detach()) == pytest.approx(2 * math.log(2))
    assert int(correct) == 0
    (gradient,) = torch.autograd.grad(loss, queries_ND)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [0.0, -0.02, float("nan"), float("inf")])
def test_no_such_temperature(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        ContrastiveConfig(temperature=temperature)
