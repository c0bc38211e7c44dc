"""The eight tasks of GLUE (Wang et al., 2019) that the paper measures: their rows, and what a prediction is worth.

Axes: N rows, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longspan.data.hub import split_by_name
from longspan.data.places import list_files
from longspan.data.readers import is_readable, is_running_text, read_rows
from longspan.errors import LongspanError
from longspan.files import sha256_json


def accuracy(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Part of the predictions that are right."""
    return float(np.mean(predicted_N == labels_N))


def matthews(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Matthews' correlation of two binary arrays; 0 where one of them is constant, as in scikit-learn."""
    return pearson(predicted_N, labels_N)  # which it is, for two values


def pearson(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Pearson's correlation; 0 where an array is constant: who says the same of all rows has learned nothing."""
    p_N, l_N = (x_N - x_N.mean() for x_N in (predicted_N.astype(np.float64), labels_N.astype(np.float64)))
    spread = math.sqrt(float(p_N @ p_N)) * math.sqrt(float(l_N @ l_N))
    return min(1.0, max(-1.0, float(p_N @ l_N) / spread)) if spread > 0 else 0.0


@dataclass(frozen=True)
class GlueTask:
    """What a task asks.

    Attributes:
        name: as on the Hugging Face hub.
        title: as in Table 2.
        columns: of the one text or the two.
        num_labels: C; 1 is regression.
        metric: of the paper: accuracy also for MRPC and QQP, Pearson for STS-B, Matthews for CoLA.
        split: on which it is measured.
        from_mnli: whether training starts from the MNLI checkpoint (section 5.1).
    """

    name: str
    title: str
    columns: tuple[str, ...]
    num_labels: int
    metric: Callable[[np.ndarray, np.ndarray], float] = accuracy
    split: str = "validation"
    from_mnli: bool = False


_SENTENCES = ("sentence1", "sentence2")

TASKS = {
    task.name: task
    for task in (
        GlueTask("cola", "CoLA", ("sentence",), 2, matthews),
        GlueTask("sst2", "SST-2", ("sentence",), 2),
        GlueTask("mrpc", "MRPC", _SENTENCES, 2, from_mnli=True),
        GlueTask("stsb", "STS-B", _SENTENCES, 1, pearson, from_mnli=True),
        GlueTask("qqp", "QQP", ("question1", "question2"), 2),
        GlueTask("mnli", "MNLI", ("premise", "hypothesis"), 3, split="validation_matched"),
        GlueTask("qnli", "QNLI", ("question", "sentence"), 2),
        GlueTask("rte", "RTE", _SENTENCES, 2, from_mnli=True),
    )
}
"""In the order of Table 2. WNLI is left out, as in the paper."""


@dataclass(frozen=True)
class GlueRows:
    """A split of a task.

    Attributes:
        texts: for each of the task's columns, N texts.
        labels_N: int64 classes, or float32 for regression.
    """

    texts: tuple[list[str], ...]
    labels_N: np.ndarray

    def fingerprint(self) -> str:
        """Hex SHA-256 of texts and labels."""
        return sha256_json([self.texts, self.labels_N.tolist()])


def task_by_name(name: str) -> GlueTask:
    """The task.

    Raises:
        LongspanError: there is no such task.
    """
    if name not in TASKS:
        raise LongspanError(
            f"there is no GLUE task {name!r}", where="tasks", remedy=f"choose some of: {', '.join(TASKS)}"
        )
    return TASKS[name]


def missing_tasks(names: Iterable[str], data: Path | None) -> list[str]:
    """Those of the tasks that have no folder in `data`.

    Raises:
        LongspanError: `data` is not a folder.
    """
    if data is None:
        return []
    if not data.is_dir():
        remedy = "name a folder with a folder per task in it, such as cola/train.jsonl and cola/validation.jsonl"
        raise LongspanError("the folder of GLUE is not there", where=data, remedy=remedy)
    return [name for name in names if not (data / name).is_dir()]


def read_glue(task: GlueTask, split: str, data: Path | None) -> GlueRows:
    """Rows of a split.

    Args:
        task: which.
        split: "train" or the task's own.
        data: folder with a folder per task, called as on the hub, in it `train` and `validation` (MNLI:
            `validation_matched`) as JSON Lines, Parquet or another table, also compressed; or a copy of the hub's
            repository. None: from the Hugging Face hub, through `datasets`.

    Raises:
        LongspanError: the task or split is not there, a row has no text or no label of the task, or `datasets` is not
            installed.
    """
    columns: tuple[list[str], ...] = tuple([] for _ in task.columns)
    labels = []
    for where, row in _hub_rows(task, split) if data is None else _disk_rows(task, split, data):
        for column, texts in zip(task.columns, columns, strict=True):
            text = row.get(column)
            if not isinstance(text, str) or not text.strip():
                raise LongspanError(f"the row has no text under {column!r}", where=where, remedy="mend that line")
            texts.append(text)
        labels.append(_label(task, row.get("label"), where))
    if not labels:
        where = "the hub" if data is None else data / task.name
        raise LongspanError(f"{task.name} has no rows in {split}", where=where, remedy="fetch the data again")
    return GlueRows(columns, np.array(labels, dtype=np.float32 if task.num_labels == 1 else np.int64))


def _label(task: GlueTask, label: Any, where: str) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    is_class = number.is_integer() and 0 <= number < task.num_labels
    if not (math.isfinite(number) if task.num_labels == 1 else is_class):
        wanted = "a number" if task.num_labels == 1 else f"one of 0 to {task.num_labels - 1}"
        raise LongspanError(
            f"the label {label!r} is not {wanted}",
            where=where,
            remedy="mend that line; GLUE's test splits have no labels and cannot be measured here",
        )
    return number


def _disk_rows(task: GlueTask, split: str, data: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    missing_tasks([task.name], data)
    folder = data / task.name
    names = [name for name in list_files(str(folder)) if is_readable(name) and not is_running_text(name)]
    # Of MNLI's two validation sets a split's name is only the beginning, so the whole name comes first.
    files = [name for name in names if Path(name).name.partition(".")[0].partition("-0")[0] == split]
    files = files or split_by_name(names).get(split, [])
    if not files:
        raise LongspanError(
            f"{task.name} has no {split}", where=folder, remedy=f"put {split}.jsonl with {_fields(task)} there"
        )
    for name in sorted(files):
        for number, row in read_rows(str(folder / name)):
            yield f"{folder / name}:{number}", row


def _hub_rows(task: GlueTask, split: str) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        import datasets
    except ImportError:
        raise LongspanError(
            "GLUE is read from the hub through the library datasets, which is not installed",
            where="package datasets",
            remedy="pip install 'longspan[data]', or name a folder of the data: --data",
        ) from None
    try:
        rows: Sequence[Any] = datasets.load_dataset("nyu-mll/glue", task.name, split=split)  # pyright: ignore
    except (OSError, ValueError) as error:
        raise LongspanError(
            f"GLUE's {task.name} cannot be read from the hub: {error}"[:300],
            where="nyu-mll/glue",
            remedy="look at the connection, or name a folder of the data: --data",
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"nyu-mll/glue {task.name} {split}:{number}", row


def _fields(task: GlueTask) -> str:
    return ", ".join(task.columns) + " and label"
