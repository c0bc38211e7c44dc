"""nomic-bert-2048: masked language modelling on packed text (paper, section 4.1)."""

from __future__ import annotations

from longspan.model.config import EncoderConfig
from longspan.objective.mlm import MaskedConfig
from longspan.train.config import TrainConfig
from longspan.train.optim import OptimConfig
from longspan.train.schedule import ScheduleConfig


def mlm(data: str, init: str | None = None) -> TrainConfig:
    """Masked language modelling from random weights, or on from `init`.

    Paper: section 4.1.2; 100,000 steps (Table 2) of 4,096 rows of 2,048 tokens, 30 % masked.
    Command: torchrun --nproc-per-node 8 -m longspan train mlm --data DIR --out runs/mlm
    Hardware: one node of 8 H100; about 4 days (appendix A).
    Expected: GLUE average 0.84 (Table 2).

    The released weights and the paper agree on the rotary base (1,000). The paper accumulates over 8 micro-batches;
    here micro-batches are filled by tokens, which gives the same gradient.
    """
    return TrainConfig(
        recipe="mlm",
        data=data,
        init=init,
        encoder=None if init else EncoderConfig(),
        objective=MaskedConfig(mask_rate=0.30, row_length=2048),
        batch_size=4096,
        max_steps=100_000,
        optim=OptimConfig(lr=5e-4, beta1=0.9, beta2=0.98, weight_decay=1e-5, clip_norm=None),
        schedule=ScheduleConfig(kind="linear", warmup_fraction=0.06),
        precision="bf16",
    )
