"""`info_nce` is the paper's equations (1) and (2), for any size of its tiles. (Its variants: test_contrastive.py.)

Axes: N queries, M documents, H own negatives of each query, D width.

Tolerance: everything is computed in float64 from some dozen numbers, so 1e-11 relative is rounding.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from longspan.objective.contrastive import ContrastiveConfig
from longspan.objective.losses import SCORES_PER_TILE, Hashes, InfoNCEConfig, Pairs, Sums, info_nce
from tests.objective import cases
from tests.objective.naive import info_nce_loss

ROUNDING = 1e-11
PAPER = InfoNCEConfig()


def _info_nce(
    queries_ND: Tensor,
    documents_MD: Tensor,
    labels_N: Tensor,
    temperature: float,
    negatives: Tensor | None = None,
    scores_per_tile: int = SCORES_PER_TILE,
) -> tuple[Tensor, Tensor]:
    pairs = Pairs(queries_ND, documents_MD, labels_N, negatives)
    sums = info_nce(pairs, temperature, PAPER, scores_per_tile=scores_per_tile)
    return sums.loss, sums.correct


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


@given(**sizes, temperature=temperatures, seed=st.integers(0, 10_000), scores_per_tile=st.integers(1, 40))
def test_equals_the_double_loop(
    n: int, extra: int, h: int, temperature: float, seed: int, scores_per_tile: int
) -> None:
    queries_ND, documents_MD, labels_N, negatives_NHD = _random(seed, n, n + extra, h)
    inputs = [x for x in (queries_ND, documents_MD, negatives_NHD) if x is not None]
    loss, _ = _info_nce(queries_ND, documents_MD, labels_N, temperature, negatives_NHD, scores_per_tile=scores_per_tile)
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
    loss, correct = _info_nce(query_ND, documents_MD, torch.tensor([0]), 0.5, negatives_NHD)
    assert float(loss) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-2))), rel=1e-14)
    assert int(correct) == 1
    loss, correct = _info_nce(query_ND, documents_MD, torch.tensor([1]), 0.5)
    assert float(loss) == pytest.approx(-math.log(1 / (math.exp(2) + 1)), rel=1e-14)
    assert int(correct) == 0


def test_the_loss_is_a_sum_over_queries() -> None:
    queries_ND, documents_MD, labels_N, negatives_NHD = _random(1, 4, 6, 2)
    assert negatives_NHD is not None
    whole, right = _info_nce(queries_ND, documents_MD, labels_N, 0.1, negatives_NHD)
    parts = [
        _info_nce(queries_ND[i : i + 1], documents_MD, labels_N[i : i + 1], 0.1, negatives_NHD[i : i + 1])
        for i in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack([loss for loss, _ in parts]).sum(), rtol=ROUNDING, atol=0)
    assert int(right) == sum(int(correct) for _, correct in parts)


def test_the_direction_is_query_to_document_only() -> None:
    queries_ND, documents_MD, _, _ = _random(2, 4, 4, 0)
    labels_N = torch.arange(4)
    forth, _ = _info_nce(queries_ND, documents_MD, labels_N, 0.1)
    back, _ = _info_nce(documents_MD, queries_ND, labels_N, 0.1)
    assert abs(float((forth - back).detach())) > 0.1


def test_own_negatives_differ_from_shared_ones() -> None:
    queries_ND, documents_MD, labels_N, negatives_NHD = _random(3, 4, 4, 2)
    assert negatives_NHD is not None
    own, _ = _info_nce(queries_ND, documents_MD, labels_N, 0.1, negatives_NHD)
    everyone = torch.cat([documents_MD, negatives_NHD.flatten(0, 1)])
    shared, _ = _info_nce(queries_ND, everyone, labels_N, 0.1)
    assert float((shared - own).detach()) > 0.1


def test_a_tie_is_not_right() -> None:
    # A model that maps every text to one vector must not look better than chance.
    same = torch.ones(3, 4)
    assert int(_info_nce(same, same, torch.arange(3), 0.1)[1]) == 0
    negatives_NHD = same[:, None, :]
    documents_MD = torch.eye(3, 4)
    assert int(_info_nce(documents_MD, documents_MD, torch.arange(3), 0.1)[1]) == 3
    assert int(_info_nce(documents_MD, documents_MD, torch.arange(3), 0.1, documents_MD[:, None, :])[1]) == 0
    assert int(_info_nce(documents_MD, documents_MD, torch.arange(3), 0.1, negatives_NHD)[1]) == 3


@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 1.0, 1e4])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    # exp(1 / 1e-4) has no float32; the loss must not need it.
    queries_ND, documents_MD, labels_N, negatives_NHD = _random(4, 4, 5, 2)
    assert negatives_NHD is not None
    inputs = [x.detach().float().requires_grad_() for x in (queries_ND, documents_MD, negatives_NHD)]
    loss, _ = _info_nce(inputs[0], inputs[1], labels_N, temperature, inputs[2])
    exact, _ = _info_nce(queries_ND, documents_MD, labels_N, temperature, negatives_NHD)
    # Cosines are off by about 1e-7 in float32, and the temperature divides them.
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-5, abs=1e-6 / temperature)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, inputs))


def test_a_zero_vector_is_survived() -> None:
    queries_ND = torch.zeros(2, 3, requires_grad=True)
    loss, correct = _info_nce(queries_ND, torch.eye(3)[:2], torch.tensor([0, 1]), 0.05)
    assert float(loss.detach()) == pytest.approx(2 * math.log(2))
    assert int(correct) == 0
    (gradient,) = torch.autograd.grad(loss, queries_ND)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [0.0, -0.02, float("nan"), float("inf")])
def test_no_such_temperature(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        ContrastiveConfig(temperature=temperature)


# --- the tiles -------------------------------------------------------------------------------------------------------


def _dense(q_ND: Tensor, d_MD: Tensor, labels_N: Tensor, temperature: float, masked_NM: Tensor) -> tuple[Tensor, int]:
    """The same on one matrix of all scores, with PyTorch's own cross-entropy."""
    scores_NM = normalize(q_ND, dim=-1) @ normalize(d_MD, dim=-1).T / temperature
    scores_NM = scores_NM.masked_fill(masked_NM, float("-inf"))
    rivals_N = (scores_NM >= scores_NM.gather(1, labels_N[:, None])).sum(dim=1)
    return cross_entropy(scores_NM, labels_N, reduction="sum"), int((rivals_N == 1).sum())


def _many(n: int, num_pairs: int, dtype: torch.dtype = torch.float64) -> tuple[Pairs, Hashes]:
    """Vectors of documents near those of their queries, some of them with equal texts."""
    generator = torch.Generator().manual_seed(0)
    documents_MD = torch.randn(num_pairs, 16, generator=generator, dtype=torch.float64)
    labels_N = torch.randperm(num_pairs, generator=generator)[:n]
    noise_ND = torch.randn(n, 16, generator=generator, dtype=torch.float64)
    texts_M = torch.randint(0, num_pairs, (2, num_pairs), generator=generator)
    pairs = Pairs((documents_MD[labels_N] + noise_ND).to(dtype), documents_MD.to(dtype), labels_N)
    return pairs, Hashes(texts_M[0], texts_M[1])


@pytest.mark.parametrize("scores_per_tile", [1, 300, 1000, 2**24])
def test_any_tiles_equal_one_matrix(scores_per_tile: int) -> None:
    pairs, hashes = _many(50, 70)
    leaves = [pairs.queries_nD.requires_grad_(), pairs.documents_ND.requires_grad_()]
    own_N, all_M = (x[pairs.labels_n, None] for x in hashes[:2]), hashes[:2]  # pyright: ignore[reportOptionalSubscript]
    masked_NM = torch.stack([own == x for own, x in zip(own_N, all_M, strict=True)]).any(dim=0)
    masked_NM[torch.arange(50), pairs.labels_n] = False
    assert masked_NM.sum() > 50
    expected, correct = _dense(leaves[0], leaves[1], pairs.labels_n, 0.1, masked_NM)
    assert 10 < correct < 50
    found = info_nce(pairs, 0.1, PAPER, hashes, scores_per_tile=scores_per_tile)
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert (int(found.correct), int(found.duplicates)) == (correct, int(masked_NM.sum()))
    gradients = torch.autograd.grad(found.loss, leaves), torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-13)


class _Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("variant", ["own", "all", "gte-all", "margin", "hard-in_batch"])
def test_no_tensor_is_as_large_as_all_scores(variant: str) -> None:
    n, h, width = 120, 2, 4
    draw = torch.Generator().manual_seed(0)
    config = cases.config(variant, h)
    queries, documents, mined = (torch.randn(k, width, generator=draw).requires_grad_() for k in (n, n, n * h))
    share = config.negatives_for == "all"
    pairs = Pairs(queries, documents, torch.arange(n), mined if share else mined.unflatten(0, (n, h)), queries)
    texts = torch.randint(0, n, (4, n), generator=draw)
    negatives = texts[2:].flatten() if share else texts[2:].T
    with _Largest() as largest:
        info_nce(pairs, 0.1, config, Hashes(texts[0], texts[1], negatives), scores_per_tile=2**11).loss.backward()
    assert queries.grad is not None
    # A mask, a matrix of scores, vectors and their gradients: none of them grows with n * n.
    assert largest.elements <= 2**11 < n * n / 4


def test_without_gradients_there_is_the_same_loss() -> None:
    pairs, hashes = _many(20, 30)
    with torch.no_grad():
        without = info_nce(pairs, 0.1, PAPER, hashes)
    pairs.queries_nD.requires_grad_()
    assert torch.equal(without.loss, info_nce(pairs, 0.1, PAPER, hashes).loss)


def test_bfloat16_vectors_are_compared_in_float32() -> None:
    pairs, hashes = _many(30, 40, torch.bfloat16)
    pairs.queries_nD.requires_grad_()
    in_float32 = pairs._replace(queries_nD=pairs.queries_nD.detach().float(), documents_ND=pairs.documents_ND.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = info_nce(pairs, 0.1, PAPER, hashes)
    assert sums.loss.dtype == torch.float32
    assert torch.equal(sums.loss, info_nce(in_float32, 0.1, PAPER, hashes).loss)
    (gradient,) = torch.autograd.grad(sums.loss, pairs.queries_nD)
    assert gradient.dtype == torch.bfloat16


# --- the variants by hand --------------------------------------------------------------------------------------------


def _two_pairs(**options: Any) -> Sums:
    # q1 = d1 = (1, 0), q2 = (0, 1), d2 = (0.6, 0.8): s(q1, d2) = 0.6, s(q2, d2) = 0.8; t = 1.
    q_ND = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    d_ND = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    return info_nce(Pairs(q_ND, d_ND, torch.arange(2), None, q_ND), 1.0, InfoNCEConfig(**options))


def _log_sum(*scores: float) -> float:
    return math.log(sum(math.exp(s) for s in scores))


def test_directions_by_hand() -> None:
    assert float(_two_pairs().loss) == pytest.approx(_log_sum(1, 0.6) - 1 + _log_sum(0.8, 0) - 0.8)
    both = float(_two_pairs(**cases.SYMMETRIC).loss)
    back = _log_sum(1, 0) - 1 + _log_sum(0.8, 0.6) - 0.8
    assert both == pytest.approx((float(_two_pairs().loss) + back) / 2)
    # Li et al., 2023, equation 2: the own pair is in the sum twice, from both sides.
    gte = _log_sum(1, 0.6, 0, 1, 0, 0.6) - 1 + _log_sum(0.8, 0, 0, 0.8, 0.6, 0.6) - 0.8
    assert float(_two_pairs(directions=cases.ALL_DIRECTIONS).loss) == pytest.approx(gte)


def test_left_out_for_its_score() -> None:
    # From d2, q1 scores 0.6, q2 0.8; only what passes the limit is left out, and never the own pair.
    for options, is_out in [
        ({"false_negative_margin": -0.5}, True),
        ({"false_negative_margin": -0.3}, False),
        ({"false_negative_ratio": 0.5}, True),
        ({"false_negative_ratio": 0.7}, False),
    ]:
        sums = _two_pairs(**options)
        first = 0 if is_out else _log_sum(1, 0.6) - 1
        assert float(sums.loss) == pytest.approx(first + _log_sum(0.8, 0) - 0.8)
        assert int(sums.false_negatives) == is_out
        assert int(sums.correct) == 2


def test_a_candidate_that_is_left_out_is_still_a_rival() -> None:
    # Else every query would be right as soon as what beats its document is left out.
    q_ND, d_ND = torch.eye(2, dtype=torch.float64), torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    sums = info_nce(Pairs(q_ND, d_ND, torch.arange(2)), 1.0, InfoNCEConfig(false_negative_margin=0.1))
    assert float(sums.loss) == 0
    assert (int(sums.correct), int(sums.false_negatives)) == (0, 2)


def test_hardness_by_hand() -> None:
    sums = _two_pairs(hardness_mode="in_batch_negatives", hardness_strength=3.0)
    assert float(sums.loss) == pytest.approx(_log_sum(1, 0.6 + 3 * 0.6) - 1 + _log_sum(0.8, 0) - 0.8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"directions": ["doc_to_query"]}, "has to hold query_to_doc"),
        ({"directions": ["query_to_doc", "query_to_doc"]}, "each once"),
        ({"partition_mode": "per_direction"}, "is for the directions query_to_doc and doc_to_query"),
        ({"partition_mode": "per_direction", "directions": cases.ALL_DIRECTIONS}, "is for the directions"),
        ({"false_negative_margin": 0.1, "false_negative_ratio": 0.95}, "not both"),
        ({"hardness_strength": 5.0}, "give both, or neither"),
        ({"hardness_mode": "all_negatives"}, "give both, or neither"),
        ({"hardness_mode": "hard_negatives", "hardness_strength": 5.0}, "num_negatives is 0"),
        ({"distillation": "kl"}, "num_negatives is 0"),
        ({"matryoshka_dims": [64, 64]}, "each once"),
        ({"matryoshka_dims": [64, 0]}, "numbers of coordinates"),
        ({"matryoshka_weights": [1.0]}, "for each of the 0 matryoshka_dims"),
        ({"matryoshka_dims": [64, 32], "matryoshka_weights": [1.0, 0.0]}, "a positive number"),
        ({"learn_temperature": True, "temperature": 0.005}, "below min_temperature"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ContrastiveConfig(**options)
