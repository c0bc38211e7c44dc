"""From a teacher to a student: mined with scores, prepared, trained some steps."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from longspan.curate.consistency import Teacher
from longspan.curate.mining import MINED, mine_source
from longspan.curate.negatives import Mining
from longspan.data.prepare import prepare
from longspan.data.source import PairSource
from longspan.errors import LongspanError
from longspan.train.config import TrainConfig
from longspan.train.loop import start
from tests.curate.conftest import WordsEmbedder
from tests.train import tiny


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs mined by a teacher that puts texts with the same first word close together, and prepared."""
    folder, draw = tmp_path_factory.mktemp("scored"), random.Random(1)

    class ByWord(WordsEmbedder):
        def vector(self, text: str, task: str | None = None, max_length: int | None = None) -> Any:
            return super().vector(f"{tiny.WORDS.index(text.split()[0]) % 7} {text}", task, max_length)

    rows = []
    for _ in range(40):
        words = draw.choices(tiny.WORDS[:60], k=6)
        rows.append({"query": " ".join(words[:3]), "document": " ".join(words)})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    source = PairSource(name="pairs", files=(str(folder / "pairs.jsonl"),))
    mine_source(source, Teacher(ByWord()), folder / "mined", Mining(k=5, at_least=5))  # pyright: ignore[reportArgumentType]
    mined = PairSource(
        name="mined",
        files=(str(folder / "mined" / MINED),),
        negatives="negatives",
        positive_score="positive_score",
        negative_scores="negative_scores",
    )
    prepare([mined], folder / "data", tiny.make_tokenizer(folder))
    return folder / "data"


def _config(data: Path, **changes: Any) -> TrainConfig:
    changes = {"objective.distillation": "kl", "objective.teacher_temperature": 0.1, "batch_size": 8} | changes
    return tiny.contrastive_config(data, **changes)


@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
def test_a_student_comes_nearer_to_its_teacher(kind: str, scored: Path, tmp_path: Path) -> None:
    changes = {"objective.distillation": kind, "objective.distillation_weight": 10.0, "max_steps": 40}
    run = start(_config(scored, **changes, checkpoint_every=40), tmp_path / "run")
    found = [row["loss_distillation"] for row in run.logged()]
    assert sum(found[-8:]) < 0.7 * sum(found[:8])


def test_all_options_together(scored: Path, tmp_path: Path) -> None:
    changes = {"objective.matryoshka_dims": [16, 4], "objective.learn_temperature": True, "max_steps": 2}
    row = start(_config(scored, **changes), tmp_path / "run").logged()[-1]
    assert row["loss"] == pytest.approx(row["loss_16"] + row["loss_4"] + row["loss_distillation"])


def test_data_without_scores_is_refused_before_the_run_begins(pair_data: Path, tmp_path: Path) -> None:
    with pytest.raises(LongspanError, match="has no scores of a teacher"):
        start(_config(pair_data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
