"""Jina's long-context benchmark: mteb's tasks at several lengths."""

import json

import pytest

from longspan.errors import LongspanError

pytest.importorskip("mteb", reason="needs the extra mteb", exc_type=ImportError)

from longspan.evaluate.jina_long import SUMMARY, TASKS, run_jina_long
from longspan.evaluate.mteb_encoder import MtebProtocol
from longspan.evaluate.mteb_suite import run_mteb
from longspan.evaluate.mteb_tasks import tasks_by_name


def test_every_length_is_mtebs_score_at_that_length(small_embedder, mteb_data, tmp_path):
    data = mteb_data()
    results = run_jina_long(small_embedder, tmp_path / "out", tasks=["SciFact"], lengths=[8, 64], data=data)
    protocol = MtebProtocol.of(small_embedder, max_length=8)
    alone = run_mteb(small_embedder, tasks_by_name(["SciFact"]), tmp_path / "alone", protocol=protocol, data=data)
    assert results[0].scores[0].score == alone.scores[0].score
    scores = json.loads((tmp_path / "out" / SUMMARY).read_text())["scores"]
    assert [(one["max_length"], one["task"], one["metric"]) for one in scores] == [
        (8, "SciFact", "ndcg_at_10"),
        (64, "SciFact", "ndcg_at_10"),
    ]
    assert [one["score"] for one in scores] == [result.scores[0].score for result in results]


def test_the_four_tasks_are_mtebs():
    metrics = [task.metadata.main_score for task in tasks_by_name(TASKS)]
    assert metrics == ["ndcg_at_10", "v_measure", "ndcg_at_10", "v_measure"]


def test_what_is_not_of_the_benchmark_is_refused(small_embedder, tmp_path):
    with pytest.raises(LongspanError, match="STS12 is not in Jina's benchmark"):
        run_jina_long(small_embedder, tmp_path, tasks=["STS12"])
    with pytest.raises(LongspanError, match="reads at most 128 tokens, not 8,191"):
        run_jina_long(small_embedder, tmp_path)
