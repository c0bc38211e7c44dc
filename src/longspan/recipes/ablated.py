"""Supervised finetuning without the data whose benchmarks it would be measured on (paper, section 5.2)."""

from __future__ import annotations

from longspan.recipes.finetune import finetune
from longspan.train.config import TrainConfig

SOURCES = ("msmarco", "nli", "reddit", "nq")
"""Those of Table 3 but FEVER, HotpotQA and the four of MEDI."""


def ablated(data: str, init: str | None = "runs/contrastive") -> TrainConfig:
    """The recipe `finetune` without FEVER, HotpotQA and MEDI, for zero-shot figures on BEIR.

    Paper: section 5.2 (nomic-embed-text-v1-ablated); everything else as section 4.2.5, 1.0 million pairs.
    Command: torchrun --nproc-per-node 8 -m longspan train ablated --data DIR --init runs/con --out runs/ablated
    Hardware: one node of 8 H100.
    Hours: the paper gives none; in proportion to its pairs about 0.6 of `finetune`'s hour.
    Memory: as `finetune`.
    Expected: as `finetune`, and at the end an MTEB average of 61.4 (Table 4, nomic-embed-text-v1-ablated).
    Differs: as `finetune`.
    """
    return finetune(data, init).model_copy(update={"recipe": "ablated", "sources": SOURCES})
