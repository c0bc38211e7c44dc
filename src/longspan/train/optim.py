"""AdamW with parameter groups, and gradient clipping."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import nn

from longspan.config import Config
from longspan.train.parallel import norms, own_part


class OptimConfig(Config):
    """AdamW (Loshchilov & Hutter, 2019)."""

    lr: float = Field(gt=0)
    """Top learning rate, which the schedule scales."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    """For matrices and embedding tables; norms and biases are never decayed."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the whole gradient; None: not clipped."""


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over two groups: what has at least two axes decays, what has one does not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class Gradient(NamedTuple):
    """What is known of a whole gradient: its norm (before clipping), and the weights where it is zero or missing."""

    norm: float
    zero: list[str]


def clip_gradients(model: nn.Module, clip_norm: float | None) -> Gradient:
    """Scale the gradient down to `clip_norm` if it is longer; collective where the model is sharded."""
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: gradient for name, gradient in trained.items() if gradient is not None}
    norm_by_weight = norms(list(gradients.values()))
    norm = torch.linalg.vector_norm(norm_by_weight)
    if clip_norm is not None:
        factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
        own_parts = [own_part(gradient) for gradient in gradients.values()]
        torch._foreach_mul_(own_parts, factor)  # pyright: ignore[reportPrivateImportUsage]
    lengths = dict(zip(gradients, norm_by_weight.tolist(), strict=True))
    return Gradient(float(norm), [name for name in trained if lengths.get(name, 0.0) == 0.0])
