"""Adapting a finished model to one's own documents."""

from __future__ import annotations

from longspan.objective.contrastive import ContrastiveConfig
from longspan.train.config import TrainConfig
from longspan.train.optim import OptimConfig
from longspan.train.schedule import ScheduleConfig

LR, LR_WIDTH = 2e-5, 768
"""The paper's rate of finetuning, and the width of its model."""


def adapt(data: str, init: str | None = "model") -> TrainConfig:
    """Some epochs over own pairs with mined negatives, from a finished model, at a small learning rate.

    Paper: as section 4.2.5, but for what few pairs need: small batches whose negatives serve every query, two epochs, a
    warm-up by part. The temperature is the one with which most published models were trained.
    Command: longspan adapt --model MODEL --data FILES --out DIR (it mines, measures and publishes too)
    Hardware: one GPU, or a CPU; on 2 cores some minutes for a thousand pairs and a model of 6 layers.
    Expected: a gain on documents like one's own, which `longspan adapt` measures on a part that it holds out.

    `longspan adapt` takes pooling, prefixes and length from the model, and scales the learning rate to its width.
    """
    return TrainConfig(
        recipe="adapt",
        data=data,
        init=init,
        objective=ContrastiveConfig(
            temperature=0.05,
            num_negatives=2,
            negatives_for="all",
            max_query_tokens=128,
            max_document_tokens=256,
            chunk_tokens=4096,
        ),
        batch_size=32,
        epochs=2.0,
        optim=OptimConfig(lr=LR, weight_decay=0.01, clip_norm=1.0),
        schedule=ScheduleConfig(kind="linear", warmup_fraction=0.1),
        log_every=1,
        checkpoint_every=20,
    )


def scaled_lr(width: int) -> float:
    """The learning rate for a model of another width than the paper's: as one over the width.

    Under Adam the best rate of hidden layers falls so (Yang et al., "Tensor Programs V", 2021, table 3).
    """
    return LR * LR_WIDTH / width
