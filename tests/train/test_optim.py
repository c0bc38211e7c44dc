"""AdamW's groups and arithmetic, and clipping."""

import math

import pytest
import torch
from torch import nn

from longspan.errors import LongspanError
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.heads import MaskedLanguageModel
from longspan.model.pooling import PooledEncoder
from longspan.train.optim import OptimConfig, build_optimizer, clip_gradients, set_learning_rate
from tests.train import tiny

BERT = EncoderConfig(
    vocab_size=40, width=16, num_layers=2, num_heads=2, inner_width=24, positions="learned", trained_length=32,
    max_length=32, activation="gelu", bias=True,
)  # fmt: skip
CONFIG = OptimConfig(lr=0.1, weight_decay=0.05)


@pytest.mark.parametrize(
    "model",
    [
        MaskedLanguageModel(Encoder(tiny.ENCODER)),
        PooledEncoder(Encoder(tiny.ENCODER), "mean"),
        MaskedLanguageModel(Encoder(BERT)),
    ],
    ids=["mlm", "contrastive", "bert"],
)
def test_groups(model: nn.Module) -> None:
    optimizer = build_optimizer(model, CONFIG)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_norm_or_bias = "norm" in name or name.endswith("bias")
        assert decay[id(parameter)] == (0.0 if is_norm_or_bias else 0.05), name


def test_the_tied_table_is_there_once() -> None:
    model = MaskedLanguageModel(Encoder(tiny.ENCODER))
    table = model.encoder.embeddings.tokens.weight
    optimizer = build_optimizer(model, CONFIG)
    assert sum(p is table for group in optimizer.param_groups for p in group["params"]) == 1
    assert sum(tensor.shape == table.shape for tensor in model.state_dict().values()) == 1


def test_what_is_frozen_is_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [len(group["params"]) for group in build_optimizer(model, CONFIG).param_groups] == [1, 0]


def test_adamw_by_the_formula() -> None:
    # Loshchilov & Hutter, algorithm 2: decay on the weight itself, scaled by the rate only.
    model = nn.Linear(3, 2)
    config = OptimConfig(lr=0.5, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.1)
    optimizer = build_optimizer(model.double(), config)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    means = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
    for step, lr in enumerate([0.5, 0.1, 0.3], 1):
        set_learning_rate(optimizer, lr)
        for number, (name, parameter) in enumerate(model.named_parameters()):
            gradient = torch.full_like(parameter, 0.3 * step - number)
            parameter.grad = gradient.clone()
            m, v = means[name]
            m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
            means[name] = m, v
            decayed = expected[name] * (1 - lr * (0.1 if name == "weight" else 0.0))
            expected[name] = decayed - lr * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-3)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-12)


def _with_gradient_of_norm_5() -> nn.Linear:
    model = nn.Linear(2, 2)
    model.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    model.bias.grad = torch.tensor([0.0, 4.0])
    return model


@pytest.mark.parametrize(("clip_norm", "after"), [(1.0, 1.0), (4.999, 4.999), (5.001, 5.0), (100.0, 5.0), (None, 5.0)])
def test_clipping(clip_norm: float | None, after: float) -> None:
    model = _with_gradient_of_norm_5()
    assert clip_gradients(model, clip_norm).norm == pytest.approx(5.0, rel=1e-6)
    assert model.weight.grad is not None
    assert model.bias.grad is not None
    norm = math.sqrt(float(model.weight.grad.square().sum() + model.bias.grad.square().sum()))
    assert norm == pytest.approx(after, rel=1e-5)  # torch adds 1e-6 to the norm it divides by
    assert float(model.weight.grad[0, 0]) / float(model.bias.grad[1]) == pytest.approx(3 / 4, rel=1e-6)


def test_not_clipped_is_not_touched() -> None:
    model = _with_gradient_of_norm_5()
    assert model.weight.grad is not None
    before = model.weight.grad.clone()
    clip_gradients(model, None)
    assert torch.equal(model.weight.grad, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_the_norm_tells_of_what_is_not_finite(value: float, clip_norm: float | None) -> None:
    model = _with_gradient_of_norm_5()
    assert model.bias.grad is not None
    model.bias.grad[0] = value
    assert not math.isfinite(clip_gradients(model, clip_norm).norm)


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0},
        {"lr": float("inf")},
        {"lr": 1, "beta1": 1.0},
        {"lr": 1, "clip_norm": 0.0},
        {"lr": 1, "weight_decay": -1},
    ],
)
def test_no_such_optimiser(values: dict[str, float]) -> None:
    with pytest.raises(LongspanError):
        OptimConfig.parse(values, where="test")
