"""AdamW with parameter groups, and gradient clipping."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from longspan.config import Config


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


def clip_gradients(model: nn.Module, clip_norm: float | None) -> float:
    """Scale the gradient down to `clip_norm` if it is longer; return its norm before."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf") if clip_norm is None else clip_norm)
    return float(norm)
