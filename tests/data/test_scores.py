"""A teacher's scores on their way: from rows through shards into batches; kept with their texts, or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longspan.cli import main
from longspan.data.collate import PairCollator
from longspan.data.dataset import Dataset
from longspan.data.manifest import read_manifest
from longspan.data.plan import PlannedBatch
from longspan.data.prepare import prepare
from longspan.data.source import PairSource
from longspan.errors import LongspanError
from tests.train import tiny

COLUMNS: dict[str, Any] = {
    "negatives": "negatives",
    "positive_score": "positive_score",
    "negative_scores": "negative_scores",
}


def _rows(counts: list[int]) -> list[dict[str, Any]]:
    """Row n has `counts[n]` negatives; a score says which row it is of, and which text."""
    return [
        {
            "query": tiny.WORDS[n],
            "document": f"{tiny.WORDS[n]} {tiny.WORDS[0]}",
            "negatives": [f"{tiny.WORDS[n]} {tiny.WORDS[1 + k]}" for k in range(count)],
            "positive_score": float(n),
            "negative_scores": [n + (1 + k) / 64 for k in range(count)],
        }
        for n, count in enumerate(counts)
    ]


def _prepared(folder: Path, rows: list[dict[str, Any]], **columns: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    source = PairSource(name="scored", files=(str(folder / "scored.jsonl"),), **(columns or COLUMNS))
    prepare([source], folder / "data", tiny.make_tokenizer(folder))
    return folder / "data"


def _collator(data: Path, num_negatives: int, *, scores: bool = True) -> PairCollator:
    cuts = {"max_query_tokens": 16, "max_document_tokens": 16, "prefixes": {}}
    return PairCollator(Dataset(data, "pairs"), num_negatives=num_negatives, scores=scores, seed=1, **cuts)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(counts=st.lists(st.integers(2, 5), min_size=3, max_size=12), step=st.integers(0, 5), data=st.data())
def test_every_text_has_its_own_score(
    counts: list[int], step: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = _prepared(tmp_path_factory.mktemp("scored"), _rows(counts))
    assert read_manifest(folder / "scored").scores
    rows = np.array(data.draw(st.permutations(range(len(counts)))), dtype=np.int64)
    batch = _collator(folder, 2)(step, PlannedBatch(0, rows), slice(None))
    assert batch.teacher_scores is not None
    assert batch.teacher_scores.shape == (len(counts), 3)
    first_word = tiny.make_tokenizer(folder.parent).encode([tiny.WORDS[0]])[0][0]
    queries = [int(ids[1]) - first_word for ids in batch.queries.ids_T.split(batch.queries.lengths)]
    last = [int(ids[-2]) - first_word for ids in batch.documents.ids_T.split(batch.documents.lengths)]
    expected = [
        [query + last[place] / 64 for place in (n, len(rows) + 2 * n, len(rows) + 2 * n + 1)]
        for n, query in enumerate(queries)
    ]
    np.testing.assert_array_equal(batch.teacher_scores.numpy(), np.array(expected, dtype=np.float32))


def test_scores_change_nothing_else_and_are_vouched_for(tmp_path: Path) -> None:
    with_scores = _prepared(tmp_path / "with", _rows([3] * 8))
    without = _prepared(tmp_path / "without", _rows([3] * 8), negatives="negatives")
    manifests = [read_manifest(folder / "scored") for folder in (with_scores, without)]
    assert manifests[0].columns == manifests[1].columns
    assert manifests[0].fingerprint != manifests[1].fingerprint
    rows = np.arange(8)
    batches = [
        _collator(folder, 2, scores=scores)(3, PlannedBatch(0, rows), slice(None))
        for folder, scores in ((with_scores, True), (with_scores, False), (without, False))
    ]
    assert batches[1].teacher_scores is None
    for other in batches[1:]:
        assert other.documents.ids_T.equal(batches[0].documents.ids_T)
    other = _rows([3] * 8)
    other[2]["positive_score"] += 1
    assert read_manifest(_prepared(tmp_path / "other", other) / "scored").fingerprint != manifests[0].fingerprint


def test_a_folder_that_was_prepared_before_there_were_scores_still_opens(tmp_path: Path) -> None:
    data = _prepared(tmp_path, _rows([2] * 4), negatives="negatives")
    path = data / "scored/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["scores"]
    path.write_text(json.dumps(manifest))
    assert len(Dataset(data, "pairs").sources[0]) == 4
    _prepared(tmp_path, _rows([2] * 4), negatives="negatives")  # and is what the same request gives today


def test_a_source_without_scores_is_refused_with_the_remedy(tmp_path: Path) -> None:
    data = _prepared(tmp_path, _rows([2] * 4), negatives="negatives")
    with pytest.raises(LongspanError, match=r"'scored' has no scores of a teacher") as refused:
        _collator(data, 2)
    assert "longspan curate mine" in refused.value.remedy
    assert "--scores" in refused.value.remedy


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"negative_scores": [0.5]}, "does not list a score for each of the 2 negatives"),
        ({"negative_scores": None}, "does not list a score for each"),
        ({"positive_score": "high"}, "a score is not a number"),
        ({"negative_scores": [0.5, float("nan")]}, "a score is not a number"),
    ],
)
def test_scores_that_are_none_are_refused_by_their_row(wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    rows = _rows([2] * 3)
    rows[1] |= wrong
    with pytest.raises(LongspanError, match=said) as refused:
        _prepared(tmp_path, rows)
    assert "scored.jsonl:2" in str(refused.value.where)


def test_the_command_line_keeps_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows([2] * 4)), "utf-8")
    tiny.make_tokenizer(tmp_path)
    asked = ["prepare", str(tmp_path / "rows.jsonl"), "--tokenizer", str(tmp_path / "vocab.txt")]
    assert main([*asked, "--scores", "--out", str(tmp_path / "wrong")]) == 2
    assert "negative_scores are of negatives" in capsys.readouterr().err
    assert not main([*asked, "--negatives", "negatives", "--scores", "--out", str(tmp_path / "data")])
    assert read_manifest(tmp_path / "data/rows").scores
