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
    Hardware: one node of 8 H100.
    Hours: about 96 in the paper (4 days, appendix A); `longspan plan mlm` forecasts our own.
    Memory: 19 GiB of each GPU at micro-batches of 32,768 tokens (`longspan plan mlm`); less with smaller ones.
    Expected: the loss begins at about ln(30,528) = 10.3, which is knowing nothing; at the end a GLUE average of 0.84
    (Table 2). The paper shows no curve of the loss.
    Differs: the released weights have the paper's rotary base, 1,000, and so has this recipe; the published training
    configuration was later changed to 500,000 for another model. It also sets Adam's eps to 1e-6, of which the paper
    says nothing (here 1e-8). The paper accumulates over 8 micro-batches; here they are filled by tokens
    (objective.micro_batch_tokens), which gives the same gradient.
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
