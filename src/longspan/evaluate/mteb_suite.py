"""MTEB from beginning to end: the tasks of a benchmark measured one by one, kept on disk, and averaged as in Table 4.

Each task's scores are written when they are there, in the layout of mteb's own results repository; a second call reads
them. Vectors of the task in work are kept too, so that a kill costs a thousand texts at most.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.curate.engine import Engine
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.mteb_encoder import MtebEncoder, MtebProtocol
from longspan.evaluate.mteb_tasks import TaskFiles, find_task_files, leaves, mteb, read_task, wrong_rows
from longspan.files import read_json, write_json
from longspan.progress import Tell

CATEGORIES = (
    "Classification",
    "Clustering",
    "PairClassification",
    "Reranking",
    "Retrieval",
    "STS",
    "Summarization",
)
"""The columns of Table 4, in its order; other kinds of tasks follow them."""

VECTORS = "vectors"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class TaskScore:
    """What a model scores on a task.

    Attributes:
        task: its name.
        category: its type.
        metric: the name of its main score.
        score: the main score in [0, 1] (a correlation: [-1, 1]), mean over languages and splits.
        revision: of the data: a commit of the hub, or a hash of the files that were read.
        seconds: how long the evaluation took when it was done.
    """

    task: str
    category: str
    metric: str
    score: float
    revision: str
    seconds: float


@dataclass(frozen=True)
class MtebResults:
    """Scores of a model on some tasks.

    Attributes:
        model: the name under which they are kept.
        revision: hash of the model and the protocol.
        protocol: how it was measured.
        folder: where mteb's own files are: one a task, and `model_meta.json`.
        scores: of every task, in the order of the benchmark.
        precision: arithmetic.
        width: coordinates of the model's vectors, where `by_dim` is compared with them.
        by_dim: the same with vectors cut to fewer coordinates, where that was measured.
    """

    model: str
    revision: str
    protocol: MtebProtocol
    folder: Path
    scores: tuple[TaskScore, ...]
    precision: str = "float32"
    width: int | None = None
    by_dim: tuple[MtebResults, ...] = ()

    def categories(self) -> dict[str, float]:
        """Category -> mean over its tasks, as in Table 4."""
        there = {score.category for score in self.scores}
        order = [*(name for name in CATEGORIES if name in there), *sorted(there - set(CATEGORIES))]
        return {name: _mean([s.score for s in self.scores if s.category == name]) for name in order}

    def average(self) -> float:
        """Mean over all tasks, each with the same weight: "Avg" of Table 4."""
        return _mean([score.score for score in self.scores])

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "model": self.model,
            "revision": self.revision,
            "precision": self.precision,
            "protocol": self.protocol.model_dump(),
            "average": self.average(),
            "categories": self.categories(),
            "tasks": {score.task: {k: v for k, v in vars(score).items() if k != "task"} for score in self.scores},
        } | ({"width": self.width, "by_dim": [result.as_json() for result in self.by_dim]} if self.by_dim else {})


def run_mteb(
    embedder: Embedder,
    tasks: Sequence[Any],
    out: Path,
    *,
    protocol: MtebProtocol | None = None,
    name: str | None = None,
    data: Path | None = None,
    dims: Sequence[int] = (),
    engine: Engine | None = None,
    progress: Tell | None = None,
) -> MtebResults:
    """Measure a model on tasks of mteb, skipping those whose scores are in `out`.

    Scores are kept by the model's weights and settings and the protocol (`MtebEncoder.revision`), the revision of the
    task's data and the version of mteb: a change of any of these measures again.

    Args:
        embedder: the model.
        tasks: from `tasks_by_name` or `tasks_of_benchmark`.
        out: folder of results.
        protocol: None: `MtebProtocol.of(embedder)`.
        name: what mteb calls the model, `organization/model`.
        data: read the data from this folder and not from the hub (see `find_task_files`).
        dims: measure vectors cut to so many coordinates too; each text is embedded once for all of them.
        engine: where `without_lengths(embedder)` computes (`open_engine`); None: in this process.
        progress: told of texts embedded.

    Raises:
        LongspanError: mteb is not installed, the data are missing (before anything is measured) or broken, or the
            folder cannot be written.
    """
    library = mteb()
    protocol = MtebProtocol.of(embedder) if protocol is None else protocol
    encoders = [
        MtebEncoder(embedder, protocol=one, name=name, progress=progress, engine=engine)
        for one in (protocol, *(protocol.model_copy(update={"dim": dim}) for dim in dims))
    ]
    files = _all_files(tasks, data)
    folders = [_begin(encoder, out) for encoder in encoders]
    scores: list[list[TaskScore]] = [[] for _ in encoders]
    for task in tasks:
        results: list[list[Any]] = [[] for _ in encoders]
        for part in leaves(task):
            its_files = files.get(part.metadata.name)
            vectors = out / VECTORS / part.metadata.name
            for encoder, folder, parts in zip(encoders, folders, results, strict=True):
                encoder.vectors = vectors
                parts.append(_measured(library, encoder, part, folder / f"{part.metadata.name}.json", its_files))
            shutil.rmtree(vectors, ignore_errors=True)
        for parts, of_encoder in zip(results, scores, strict=True):
            of_encoder.append(_score(task, task.combine_task_results(parts) if task.is_aggregate else parts[0]))
    whole, *by_dim = (
        MtebResults(encoder.name, encoder.revision, encoder.protocol, folder, tuple(its), embedder.precision)
        for encoder, folder, its in zip(encoders, folders, scores, strict=True)
    )
    whole = dataclasses.replace(whole, width=embedder.dim if dims else None, by_dim=tuple(by_dim))
    write_json(out / SUMMARY, whole.as_json())
    return whole


def _begin(encoder: MtebEncoder, out: Path) -> Path:
    """The folder of an encoder's scores, with its `model_meta.json`."""
    meta = encoder.mteb_model_meta
    folder = out / "results" / meta.model_name_as_path() / encoder.revision
    write_json(folder / "model_meta.json", json.loads(json.dumps(meta.to_dict(), default=str)))
    return folder


def _all_files(tasks: Sequence[Any], data: Path | None) -> dict[str, TaskFiles]:
    """The files of every task, all found before the first is measured."""
    if data is None:
        return {}
    found: dict[str, TaskFiles] = {}
    missing: list[tuple[str, LongspanError]] = []
    for part in (part for task in tasks for part in leaves(task)):
        try:
            found[part.metadata.name] = find_task_files(part, data)
        except LongspanError as error:
            missing.append((part.metadata.name, error))
    if len(missing) > 1:
        names = ", ".join(name for name, _ in missing[:5]) + (", ..." if len(missing) > 5 else "")
        there = f"evaluate what is there: --tasks {','.join(found)}" if found else "name a folder that holds some"
        first = missing[0][1]
        raise LongspanError(
            f"{len(missing)} tasks cannot be read from this folder: {names} (the first: {first.what})",
            where=first.where,
            remedy=f"{first.remedy}; or {there}",
        )
    if missing:
        raise missing[0][1]
    return found


def _measured(library: Any, encoder: MtebEncoder, task: Any, path: Path, files: TaskFiles | None) -> Any:
    """mteb's `TaskResult`: from the file, or measured now and written there."""
    revision = task.metadata.revision if files is None else files.revision
    kept = _kept(library, task, revision, path)
    if kept is not None:
        return kept
    with _quiet():
        if files is not None:
            read_task(task, files)
        try:
            result = library.evaluate(
                encoder,
                task,
                cache=None,
                co2_tracker=False,
                show_progress_bar=False,
                encode_kwargs={"batch_size": 32, "show_progress_bar": False},
            ).task_results[0]
        except (KeyError, ValueError, TypeError, IndexError) as error:
            if files is None:
                raise
            raise wrong_rows(task, files, error) from error
        finally:
            if task.data_loaded:
                task.unload_data()
    write_json(path, result.model_dump(mode="json"))
    return result


def _kept(library: Any, task: Any, revision: str, path: Path) -> Any | None:
    if not path.exists():
        return None
    remedy = f"delete {path.name} and run the same command again: the task is measured again"
    try:
        result = library.results.TaskResult.model_validate(read_json(path, remedy=remedy))
    except ValueError as error:
        raise LongspanError(f"the scores are not mteb's: {error}"[:300], where=path, remedy=remedy) from None
    is_current = result.dataset_revision == revision and result.mteb_version == library.__version__
    return result if is_current and not result.get_missing_evaluations(task) else None


def _score(task: Any, result: Any) -> TaskScore:
    return TaskScore(
        task=task.metadata.name,
        category=str(task.metadata.type),
        metric=str(task.metadata.main_score),
        score=float(result.get_score()),
        revision=str(result.dataset_revision),
        seconds=round(float(result.evaluation_time or 0.0), 2),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without mteb's advice, as warning and in its log, to take a newer version of a task: a benchmark is fixed.

    And without the bars of `datasets`, which would come between ours.
    """
    import datasets

    logger = logging.getLogger("mteb")
    level, had_bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The task .* is superseded by")
            yield
    finally:
        logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
