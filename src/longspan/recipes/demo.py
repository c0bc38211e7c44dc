"""The three stages at a size that a laptop trains in minutes. Same structure as the paper's, smaller numbers.

What differs and why: two layers of width 192 instead of twelve of 768, rows of 512 tokens, float32 (few CPUs multiply
bfloat16 fast), learning rates and warm-ups for some hundred steps instead of many thousands.
"""

from __future__ import annotations

from longspan.model.config import EncoderConfig
from longspan.objective.contrastive import ContrastiveConfig
from longspan.objective.mlm import MaskedConfig
from longspan.train.config import TrainConfig
from longspan.train.optim import OptimConfig
from longspan.train.schedule import ScheduleConfig

ENCODER = EncoderConfig(width=192, num_layers=2, num_heads=3, inner_width=512, trained_length=512, max_length=8192)
CHUNK_TOKENS = 4096
"""On a CPU a chunk's activations should stay in the last-level cache."""


def demo_mlm(data: str, init: str | None = None) -> TrainConfig:
    """Masked language modelling on documentation and source code (as section 4.1).

    Command: longspan demo (the whole road), or longspan train demo-mlm --data DIR --out DIR
    Hardware: 2 CPU cores; about a minute.
    Expected: the loss falls from 6.0 (guessing by frequency) to about 5.6.
    """
    return TrainConfig(
        recipe="demo-mlm",
        data=data,
        init=init,
        encoder=None if init else ENCODER,
        objective=MaskedConfig(mask_rate=0.30, row_length=512, bias_from_counts=True, micro_batch_tokens=CHUNK_TOKENS),
        batch_size=4,
        max_steps=180,
        optim=OptimConfig(lr=3e-4, beta1=0.9, beta2=0.98, weight_decay=1e-5, clip_norm=1.0),
        schedule=ScheduleConfig(kind="linear", warmup_fraction=0.06),
        log_every=1,
        checkpoint_every=40,
    )


def demo_contrastive(data: str, init: str | None = "runs/mlm") -> TrainConfig:
    """Contrastive pretraining, one source per batch, GradCache (as section 4.2.2).

    Command: longspan demo (the whole road), or longspan train demo-contrastive --data DIR --init RUN --out DIR
    Hardware: 2 CPU cores; under a minute.
    Expected: an in-batch accuracy of about 0.7 at the end.
    """
    return TrainConfig(
        recipe="demo-contrastive",
        data=data,
        init=init,
        objective=ContrastiveConfig(
            max_query_tokens=32,
            max_document_tokens=64,
            max_document_tokens_of={"long": 512},
            chunk_tokens=CHUNK_TOKENS,
        ),
        batch_size=64,
        epochs=1.0,
        optim=OptimConfig(lr=2e-3, weight_decay=0.01, clip_norm=1.0),
        schedule=ScheduleConfig(kind="inverse_sqrt", warmup_steps=10),
        log_every=1,
        checkpoint_every=20,
    )


def demo_finetune(data: str, init: str | None = "runs/contrastive") -> TrainConfig:
    """Finetuning with seven of twenty mined negatives (as section 4.2.5).

    Command: longspan demo (the whole road), or longspan train demo-finetune --data DIR --init RUN --out DIR
    Hardware: 2 CPU cores; about a minute and a half.
    Expected: about the nDCG@10 of contrastive pretraining on held-out queries, or a little more (EXPERIMENTS.md).
    """
    return TrainConfig(
        recipe="demo-finetune",
        data=data,
        init=init,
        objective=ContrastiveConfig(
            num_negatives=7,
            negatives_for="all",
            max_query_tokens=32,
            max_document_tokens=64,
            chunk_tokens=CHUNK_TOKENS,
        ),
        batch_size=32,
        epochs=1.0,
        optim=OptimConfig(lr=6e-4, weight_decay=0.01, clip_norm=1.0),
        schedule=ScheduleConfig(kind="linear", warmup_steps=6),
        log_every=1,
        checkpoint_every=10,
    )
