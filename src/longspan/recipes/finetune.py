"""Supervised finetuning with mined hard negatives (paper, sections 4.2.3 to 4.2.5)."""

from __future__ import annotations

from longspan.objective.contrastive import ContrastiveConfig
from longspan.train.config import TrainConfig
from longspan.train.optim import OptimConfig
from longspan.train.schedule import ScheduleConfig


def finetune(data: str, init: str | None = "runs/contrastive") -> TrainConfig:
    """One epoch over labelled pairs with seven negatives each, drawn at random from the mined ones.

    Paper: section 4.2.5; 256 pairs a step, 1.6 million pairs of 10 sources (Table 3).
    Command: torchrun --nproc-per-node 8 -m longspan train finetune --data DIR --init runs/con --out runs/finetune
    Hardware: one node of 8 H100; about one hour (appendix A).
    Expected: MTEB average 62.39 (Table 4, nomic-embed-text-v1).

    Equation (2) gives every query its own negatives, which is `negatives_for="own"`; the released code lets every query
    meet every negative of the batch, which is `negatives_for="all"`.
    """
    return TrainConfig(
        recipe="finetune",
        data=data,
        init=init,
        objective=ContrastiveConfig(
            temperature=0.02,
            num_negatives=7,
            negatives_for="own",
            mask_duplicates=False,
            max_query_tokens=2048,
            max_document_tokens=2048,
        ),
        batch_size=256,
        epochs=1.0,
        optim=OptimConfig(lr=2e-5, beta1=0.9, beta2=0.999, weight_decay=0.01, clip_norm=1.0),
        schedule=ScheduleConfig(kind="linear", warmup_steps=400),
        precision="bf16",
    )
