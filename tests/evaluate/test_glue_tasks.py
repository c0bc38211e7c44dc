"""GLUE's tasks: their rows on disk, and metrics equal to scikit-learn's and numpy's."""

import gzip
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.evaluate.glue_tasks import TASKS, accuracy, matthews, missing_tasks, pearson, read_glue, task_by_name
from longspan.files import write_json_lines

BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)
NUMBERS = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=30)


@settings(max_examples=20)
@given(BINARY)
def test_accuracy_and_matthews_are_scikit_learns(pairs):
    metrics = pytest.importorskip("sklearn.metrics", exc_type=ImportError)
    predicted_N, labels_N = np.array(pairs).T
    assert accuracy(predicted_N, labels_N) == pytest.approx(metrics.accuracy_score(labels_N, predicted_N))
    if len(set(map(tuple, pairs))) > 1:  # of a single pair scikit-learn warns
        expected = metrics.matthews_corrcoef(labels_N, predicted_N)
        assert matthews(predicted_N, labels_N) == pytest.approx(expected, abs=1e-12)


@given(NUMBERS)
def test_pearson_is_numpys(pairs):
    predicted_N, labels_N = np.array(pairs, dtype=np.float32).T
    if predicted_N.std() == 0 or labels_N.std() == 0:
        assert pearson(predicted_N, labels_N) == 0
    else:
        assert pearson(predicted_N, labels_N) == pytest.approx(np.corrcoef(predicted_N, labels_N)[0, 1], abs=1e-6)


def test_tasks_and_metrics_are_the_papers():
    assert [task.title for task in TASKS.values()] == [
        "CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE",
    ]  # fmt: skip
    metrics = {name: task.metric for name, task in TASKS.items()}
    assert metrics.pop("cola") is matthews
    assert metrics.pop("stsb") is pearson
    assert set(metrics.values()) == {accuracy}
    assert {name for name, task in TASKS.items() if task.from_mnli} == {"rte", "stsb", "mrpc"}


def test_rows_are_read_from_json_lines_and_from_the_hubs_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"premise": f"p{n}", "hypothesis": f"h{n}", "label": n, "idx": n} for n in range(3)]
    write_json_lines(tmp_path / "mnli" / "validation_matched.jsonl", rows)
    write_json_lines(tmp_path / "mnli" / "validation_mismatched.jsonl", rows[:1])
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "mnli" / "train-00000-of-00001.parquet")
    for split in ("train", "validation_matched"):
        read = read_glue(TASKS["mnli"], split, tmp_path)
        assert read.texts == (["p0", "p1", "p2"], ["h0", "h1", "h2"])
        assert read.labels_N.tolist() == [0, 1, 2]
        assert read.labels_N.dtype == np.int64


def test_regression_has_numbers(tmp_path):
    (tmp_path / "stsb").mkdir()
    row = {"sentence1": "a", "sentence2": "b", "label": 3.25}
    (tmp_path / "stsb" / "validation.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    read = read_glue(TASKS["stsb"], "validation", tmp_path)
    assert read.labels_N.dtype == np.float32
    assert read.labels_N.tolist() == [3.25]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"sentence": "a", "label": -1}, "the label -1 is not one of 0 to 1"),
        ({"sentence": "a", "label": 0.5}, "the label 0.5 is not one of 0 to 1"),
        ({"sentence": "a"}, "the label None is not one of 0 to 1"),
        ({"sentence": "", "label": 1}, "no text under 'sentence'"),
        ({"text": "a", "label": 1}, "no text under 'sentence'"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path, row, what):
    write_json_lines(tmp_path / "cola" / "train.jsonl", [{"sentence": "a", "label": 1}, row])
    with pytest.raises(LongspanError, match=re.escape(what)) as caught:
        read_glue(TASKS["cola"], "train", tmp_path)
    assert caught.value.where.endswith("train.jsonl:2")


def test_without_a_folder_the_hub_is_read_through_datasets(monkeypatch):
    def load_dataset(name, config, *, split):
        if config == "rte":
            raise OSError("no route to the hub")
        assert (name, config, split) == ("nyu-mll/glue", "cola", "train")
        return [{"sentence": "a", "label": 1, "idx": 0}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_glue(TASKS["cola"], "train", None).labels_N.tolist() == [1]
    with pytest.raises(LongspanError, match="rte cannot be read from the hub: no route to the hub"):
        read_glue(TASKS["rte"], "train", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LongspanError, match="datasets, which is not installed"):
        read_glue(TASKS["cola"], "train", None)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(LongspanError, match="folder of GLUE is not there"):
        missing_tasks(["cola"], tmp_path / "nowhere")
    write_json_lines(tmp_path / "cola" / "train.jsonl", [{"sentence": "a", "label": 1}])
    assert missing_tasks(["cola", "rte"], tmp_path) == ["rte"]
    assert missing_tasks(["cola"], None) == []
    with pytest.raises(LongspanError, match="cola has no validation"):
        read_glue(TASKS["cola"], "validation", tmp_path)
    with pytest.raises(LongspanError, match="no GLUE task 'wnli'"):
        task_by_name("wnli")
