"""Weakly supervised contrastive pretraining (paper, section 4.2.2)."""

from __future__ import annotations

from longspan.objective.contrastive import ContrastiveConfig
from longspan.train.config import TrainConfig
from longspan.train.optim import OptimConfig
from longspan.train.schedule import ScheduleConfig


def contrastive(data: str, init: str | None = "runs/mlm") -> TrainConfig:
    """One epoch over the weakly supervised pairs, one source per batch.

    Paper: section 4.2.2; 16,384 pairs a step, 235 million pairs of 29 sources (Table 7): 14,316 steps.
    Command: torchrun --nproc-per-node 8 -m longspan train contrastive --data DIR --init runs/mlm --out runs/contrastive
    Hardware: one node of 8 H100.
    Hours: about 84 in the paper (3.5 days, appendix A); `longspan plan contrastive` forecasts our own.
    Memory: 35 GiB of each GPU at chunks of 65,536 tokens (`longspan plan contrastive`); less with smaller ones.
    Expected: the loss begins at most at ln(16,384) = 9.7, which is knowing nothing; at the end an MTEB average of 59.9
    (Table 4, nomic-embed-text-v1 unsup). The paper shows no curve of the loss.
    Differs: the paper does not give the temperature; 0.02 is the published configuration's (a scale of 50, not
    trained). The paper's schedule, inverse square root, is this recipe's; a published configuration of the same stage
    says cosine, for a model of rotary base 500,000. Which of them the released weights had is not said.
    """
    return TrainConfig(
        recipe="contrastive",
        data=data,
        init=init,
        objective=ContrastiveConfig(
            temperature=0.02,
            num_negatives=0,
            mask_duplicates=False,
            max_query_tokens=2048,
            max_document_tokens=2048,
        ),
        batch_size=16_384,
        epochs=1.0,
        optim=OptimConfig(lr=2e-4, beta1=0.9, beta2=0.999, weight_decay=0.01, clip_norm=1.0),
        schedule=ScheduleConfig(kind="inverse_sqrt", warmup_steps=700),
        precision="bf16",
    )
