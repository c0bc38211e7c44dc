"""The contrastive objective in all its variants, by name, for the tests that compare it with the plain computation."""

from typing import Any

from longspan.objective.contrastive import ContrastiveConfig

TEMPERATURE = 0.1
ALL_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"mask_duplicates": False},
    "own": {},
    "all": {"negatives_for": "all"},
    "gte": {"directions": ALL_DIRECTIONS},
    "gte-all": {"directions": ALL_DIRECTIONS, "negatives_for": "all"},
    "symmetric": SYMMETRIC,
    "margin": {"false_negative_margin": 0.05},
    "ratio-all": {"false_negative_ratio": 0.9, "negatives_for": "all", "directions": ALL_DIRECTIONS},
    "hard-all_negatives": {"hardness_mode": "all_negatives", "hardness_strength": 5.0, "negatives_for": "all"},
    "hard-in_batch": {"hardness_mode": "in_batch_negatives", "hardness_strength": 9.0, "negatives_for": "all"},
    "hard-in_batch-own": {"hardness_mode": "in_batch_negatives", "hardness_strength": 9.0},
    "hard-mined": {"hardness_mode": "hard_negatives", "hardness_strength": 5.0},
    "hard-mined-all": {"hardness_mode": "hard_negatives", "hardness_strength": 5.0, "negatives_for": "all"},
    "matryoshka": {"matryoshka_dims": (8, 5, 2), "matryoshka_weights": (1.0, 0.5, 2.0)},
    "distilled": {"distillation": "kl", "distillation_weight": 0.7, "teacher_temperature": 0.3},
    "distilled-all": {"distillation": "kl", "negatives_for": "all", "teacher_temperature": 0.2},
    "distilled-margin": {"distillation": "margin_mse", "distillation_weight": 3.0},
    "temperature": {"learn_temperature": True},
    "distilled-together": {
        "distillation": "kl",
        "teacher_temperature": 0.5,
        "matryoshka_dims": (8, 5, 2),
        "matryoshka_weights": (1.0, 0.5, 2.0),
        "learn_temperature": True,
        "false_negative_margin": 0.2,
    },
    "distilled-margin-matryoshka": {"distillation": "margin_mse", "matryoshka_dims": (8, 3), "negatives_for": "all"},
    "together": {
        **SYMMETRIC,
        "false_negative_margin": 0.2,
        "hardness_mode": "all_negatives",
        "hardness_strength": 2.0,
        "matryoshka_dims": (8, 3),
        "learn_temperature": True,
    },
}


def config(variant: str, num_negatives: int, **changes: Any) -> ContrastiveConfig:
    """The configuration of a variant."""
    values = {"temperature": TEMPERATURE, "num_negatives": num_negatives, **VARIANTS[variant], **changes}
    return ContrastiveConfig(**values)


def makes_sense(variant: str, num_negatives: int) -> bool:
    """Whether a variant can do without mined negatives, where there are none."""
    values = VARIANTS[variant]
    return num_negatives > 0 or not (values.get("hardness_mode") == "hard_negatives" or "distillation" in values)
