"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from longspan.config import Config


class ScheduleConfig(Config):
    """Linear warm-up, then one of the paper's decays.

    The paper: MLM `linear` with 6 % warm-up (section 4.1.2); contrastive pretraining `inverse_sqrt` with 700 steps
    (4.2.2); finetuning `linear` with 400 steps (4.2.5).
    """

    kind: Literal["linear", "inverse_sqrt", "constant"] = "linear"
    warmup_steps: int | None = Field(default=None, ge=0)
    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Warm-up as a part of all steps, instead of `warmup_steps`."""

    @model_validator(mode="after")
    def _one_warmup(self) -> ScheduleConfig:
        if (self.warmup_steps is None) == (self.warmup_fraction is None):
            raise ValueError("give either warmup_steps or warmup_fraction")
        return self

    def factor(self, step: int, total_steps: int) -> float:
        """What the top learning rate is multiplied with in `step` (from 0) of `total_steps`."""
        if self.warmup_steps is not None:
            warmup = self.warmup_steps
        else:
            warmup = round((self.warmup_fraction or 0.0) * total_steps)
        if step < warmup:
            return linear_warmup(step, warmup)
        if self.kind == "linear":
            return linear_decay(step, warmup, total_steps)
        if self.kind == "inverse_sqrt":
            return inverse_sqrt_decay(step, warmup)
        return 1.0


def linear_warmup(step: int, warmup: int) -> float:
    """`(step + 1) / warmup`: the first step already learns, the last of the warm-up runs at the top rate."""
    return (step + 1) / warmup


def linear_decay(step: int, warmup: int, total_steps: int) -> float:
    """From 1 in the first step after the warm-up straight down to 0, which would be reached one step after the last."""
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup))


def inverse_sqrt_decay(step: int, warmup: int) -> float:
    """`sqrt(warmup / (step + 1))`, which goes on from the warm-up's end without a jump."""
    return math.sqrt(max(warmup, 1) / (step + 1))
