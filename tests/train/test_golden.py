"""The losses of tiny runs of every objective as they were when last looked at: any change of the arithmetic shows here.

The records are golden/<name>.json. When a change is meant, write them anew and say why in the commit:

    LONGSPAN_WRITE_GOLDEN=1 python -m pytest tests/train/test_golden.py

Tolerance: 1e-5 relative. The runs are in float32; another processor or number of threads sums in another order, which
over a dozen small steps stays below 1e-6.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.train.config import TrainConfig
from longspan.train.loop import start
from tests.train import folders, tiny

GOLDEN = Path(__file__).parent / "golden"
WRITE = "LONGSPAN_WRITE_GOLDEN"
NUM_STEPS = 12


TEXT: dict[str, dict[str, Any]] = {"mlm": {}, "mlm-within-documents": {"objective.within_documents": True}}
PAIRS: dict[str, dict[str, Any]] = {
    "contrastive": {},  # each query has negatives of its own: equation (2) of the paper
    "contrastive-without-negatives": {"objective.num_negatives": 0},  # equation (1)
    "contrastive-shared-negatives": {"objective.negatives_for": "all"},  # the released code
    "contrastive-options": {
        "objective.directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
        "objective.false_negative_margin": 0.1,
        "objective.hardness_mode": "all_negatives",
        "objective.hardness_strength": 5.0,
        "objective.matryoshka_dims": (16, 8),
        "objective.learn_temperature": True,
    },
}


@pytest.mark.parametrize("name", [*TEXT, *PAIRS])
def test_losses(name: str, text_data: Path, pair_data: Path, tmp_path: Path) -> None:
    # Small rates: a dozen steps of Adam at a large one amplify rounding.
    changes: dict[str, Any] = {"max_steps": NUM_STEPS, "optim.lr": 1e-3}
    if name in TEXT:
        config = tiny.masked_config(text_data, **changes | TEXT[name])
    else:
        config = tiny.contrastive_config(pair_data, **changes | PAIRS[name])
    rows = folders.metrics(start(config, tmp_path / "run").folder)
    found = {key: [row[key] for row in rows] for key in ("loss", "gradient_norm", "tokens")}
    path = GOLDEN / f"{name}.json"
    if os.environ.get(WRITE):
        path.write_text(json.dumps(_record(config, found), indent=1) + "\n", "utf-8")
        pytest.skip(f"{path} was written anew")
    golden = json.loads(path.read_text("utf-8"))
    assert len(golden["loss"]) == NUM_STEPS
    assert found["tokens"] == golden["tokens"], "other data, not other arithmetic"
    assert found["loss"] == pytest.approx(golden["loss"], rel=1e-5)
    assert found["gradient_norm"] == pytest.approx(golden["gradient_norm"], rel=1e-4)


def _record(config: TrainConfig, found: dict[str, list[float]]) -> dict[str, object]:
    settings = config.model_dump(mode="json", exclude={"data"})
    return {"origin": f"tests/train/test_golden.py, torch {torch.__version__}", "config": settings, **found}
