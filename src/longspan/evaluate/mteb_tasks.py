"""The tasks of MTEB: by name, and with their data from a folder instead of the hub.

Nothing of mteb is replaced: its task classes say what their data set is, `dataset` and `data_loaded` are attributes
that may be set from outside, and everything from there on (transformations, sampling, scores) is mteb's.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.data.hub import Tables, hub_tables, split_by_name
from longspan.data.judged import (
    JudgedFiles,
    beir_files,
    has_beir_form,
    has_mteb_form,
    mteb_files,
    read_judgements,
)
from longspan.data.places import list_files
from longspan.data.readers import read_rows
from longspan.errors import LongspanError
from longspan.files import sha256_file, sha256_json

ROWS_AT_A_TIME = 10_000
"""Rows are brought into Arrow's form so many at a time, which bounds what Python objects take."""

_DEFAULT = "default"
_TOP_RANKED = "top_ranked"
_IN_BEIRS_LAYOUT = " as corpus.jsonl and queries.jsonl (_id, text) and qrels/test.tsv"


def mteb() -> Any:
    """The library.

    Raises:
        LongspanError: it is not installed.
    """
    try:
        import mteb
    except ImportError:
        raise LongspanError(
            "MTEB is measured through the library mteb, which is not installed",
            where="package mteb",
            remedy="pip install 'longspan[mteb]'",
        ) from None
    return mteb


def tasks_by_name(names: Sequence[str]) -> list[Any]:
    """mteb's tasks of these names, in English where they are in several languages.

    Raises:
        LongspanError: there is no such task, or mteb is not installed.
    """
    return [_in_english(_task(name)) for name in names]


def tasks_of_benchmark(name: str) -> list[Any]:
    """The tasks of a benchmark, such as "MTEB(eng, v1)", with the languages and splits that it asks for.

    Raises:
        LongspanError: there is no such benchmark, or mteb is not installed.
    """
    library = mteb()
    try:
        return list(library.get_benchmark(name).tasks)
    except KeyError as error:
        raise _unknown("benchmark", name, error) from None


def leaves(task: Any) -> list[Any]:
    """The tasks that are measured for a task: its parts if it is an average of several (CQADupstack), or itself."""
    return list(task.metadata.tasks) if task.is_aggregate else [task]


@dataclass(frozen=True)
class TaskFiles:
    """The files of a task on disk.

    Attributes:
        folder: where they are.
        tables: subset -> split -> files, of a task that is one table.
        judged: subset -> split -> corpus, queries and qrels, of a retrieval or reranking task.
        top_ranked: split -> files that name the documents to rank again for each query, of a reranking task.
    """

    folder: Path
    tables: Tables
    judged: dict[str, dict[str, JudgedFiles]]
    top_ranked: dict[str, list[str]]

    @functools.cached_property
    def revision(self) -> str:
        """Stands for the commit of the hub's data set: a hash of the files' contents."""
        names = {file for splits in self.tables.values() for files in splits.values() for file in files}
        names |= {file for splits in self.judged.values() for one in splits.values() for file in one.files}
        names |= {file for files in self.top_ranked.values() for file in files}
        return "files-" + sha256_json([[Path(name).name, sha256_file(name)] for name in sorted(names)])[:34]


def find_task_files(task: Any, data: Path) -> TaskFiles:
    """The files of one task under a data folder.

    The task's own folder may be called as the task (`STSBenchmark`) or as its data set on the hub
    (`mteb/stsbenchmark-sts` or `stsbenchmark-sts`; of LongEmbed `LongEmbed/qmsum`); case, `-` and `_` do not matter. In
    it are BEIR's or MTEB's tables
    for retrieval, and `SPLIT.jsonl` (.parquet, .csv, ...) or the hub's own layout for all else.

    Raises:
        LongspanError: the data folder or the task's is not there, it lacks a table or split that the task reads, or
            the task is one that builds its data by a program of its own.
    """
    if not data.is_dir():
        raise LongspanError("the data folder is not there", where=data, remedy="name a folder with one folder per task")
    is_retrieval = task.metadata.type in ("Retrieval", "Reranking")
    by_program = not type(task).load_data.__module__.startswith("mteb.abstasks.") and not _is_long_embed(task)
    if by_program or (not is_retrieval and hasattr(task, "k_values")):
        raise LongspanError(
            f"the data of {task.metadata.name} are made by its own program in mteb and not read from files",
            where=task.metadata.name,
            remedy="evaluate this task by itself without --data, on a machine that reaches the Hugging Face hub",
        )
    folder = _task_folder(task, data)
    names = list_files(str(folder))
    if is_retrieval:
        judged = {
            subset: {split: _judged(folder, names, subset, split) for split in task.eval_splits}
            for subset in task.hf_subsets
        }
        top_ranked = _top_ranked_files(task, folder, names) if task.metadata.type == "Reranking" else {}
        return TaskFiles(folder, {}, judged, top_ranked)
    tables = hub_tables(str(folder))
    wanted = {
        subset: {split: _split(task, _table(tables, subset, folder), split, folder) for split in _splits(task)}
        for subset in task.hf_subsets
    }
    return TaskFiles(folder, wanted, {}, {})


def read_task(task: Any, files: TaskFiles) -> None:
    """Give a task of mteb its data from files, and let it prepare them as it prepares those of the hub.

    Raises:
        LongspanError: a file is torn, or the columns are not those that the task reads.
    """
    import datasets

    if files.judged:
        task.dataset = {
            subset: {split: _judged_split(one, files.top_ranked.get(split)) for split, one in splits.items()}
            for subset, splits in files.judged.items()
        }
    else:
        subsets = {
            subset: datasets.DatasetDict({split: _rows(names, subset) for split, names in splits.items()})
            for subset, splits in files.tables.items()
        }
        _check_columns(task, subsets, files.folder)
        task.dataset = subsets if task.metadata.is_multilingual else subsets[_DEFAULT]
    # The task's own copy: its scores then say that they were measured on these files and not on the hub's commit.
    task.metadata = task.metadata.model_copy(update={"dataset": {**task.metadata.dataset, "revision": files.revision}})
    try:
        task.dataset_transform(num_proc=None)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise wrong_rows(task, files, error) from error
    task.data_loaded = True


def wrong_rows(task: Any, files: TaskFiles, error: Exception) -> LongspanError:
    """What to say when mteb fails over the rows of a folder."""
    return LongspanError(
        f"mteb fails over the rows of {task.metadata.name}: {error!r}",
        where=files.folder,
        remedy=f"give the rows the columns and values of {_repository(task)} on the hub",
    )


def _task(name: str) -> Any:
    try:
        return mteb().get_task(name)
    except KeyError as error:
        raise _unknown("task", name, error) from None


def _in_english(task: Any) -> Any:
    subsets = task.metadata.hf_subsets_to_langscripts
    english = [subset for subset, languages in subsets.items() if all(one.startswith("eng-") for one in languages)]
    return task.filter_languages(None, hf_subsets=english) if english and len(english) < len(subsets) else task


def _task_folder(task: Any, data: Path) -> Path:
    repository = _repository(task)
    part = f"/{task.metadata.dataset['name']}" if _is_long_embed(task) else ""
    wanted = [task.metadata.name, repository + part, repository.rpartition("/")[2] + part]
    depth_one = [path for path in sorted(data.iterdir()) if path.is_dir()]
    depth_two = [inner for path in depth_one for inner in sorted(path.iterdir()) if inner.is_dir()]
    folders = {_plain(str(path.relative_to(data))): path for path in [*depth_two, *depth_one]}
    for name in wanted:
        if (found := folders.get(_plain(name))) is not None:
            return found
    raise LongspanError(
        f"there is no folder for the task {task.metadata.name}",
        where=data,
        remedy=f"put the files of {repository}{part} (from the Hugging Face hub) into {data / task.metadata.name}"
        f"{_IN_BEIRS_LAYOUT if part else ''}, or name other tasks",
    )


def _is_long_embed(task: Any) -> bool:
    """Whether the task's own program only brings a part of LongEmbed (`qmsum`, ...) into the form of all others.

    The needle's does more: it has other documents for each split.
    """
    is_part = _repository(task).endswith("/LongEmbed") and "name" in task.metadata.dataset
    return is_part and len(task.eval_splits) == 1


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name).lower()


def _repository(task: Any) -> str:
    return str(task.metadata.dataset["path"])


def _splits(task: Any) -> list[str]:
    train = [task.train_split] if hasattr(task, "train_split") else []
    return list(dict.fromkeys([*train, *task.eval_splits]))


def _table(tables: Tables, subset: str, folder: Path) -> dict[str, list[str]]:
    if subset in tables:
        return tables[subset]
    if len(tables) == 1:
        return next(iter(tables.values()))
    raise LongspanError(
        f"there is no table {subset!r}", where=folder, remedy=f"the tables there are: {', '.join(sorted(tables))}"
    )


def _split(task: Any, splits: dict[str, list[str]], split: str, folder: Path) -> list[str]:
    if split in splits:
        return splits[split]
    raise LongspanError(
        f"{task.metadata.name} needs the split {split!r}, and there are: {', '.join(sorted(splits))}",
        where=folder,
        remedy=f"add {split}.jsonl (or .parquet, .csv) with the rows of {_repository(task)} on the hub",
    )


def _judged(folder: Path, names: list[str], subset: str, split: str) -> JudgedFiles:
    if not has_beir_form(names) and has_mteb_form(str(folder)):
        return mteb_files(str(folder), None if subset == _DEFAULT else subset, split)
    return beir_files(str(folder), split)


def _top_ranked_files(task: Any, folder: Path, names: list[str]) -> dict[str, list[str]]:
    ranked = [name for name in names if name.startswith(_TOP_RANKED)]
    splits = split_by_name(ranked) or dict.fromkeys(task.eval_splits, ranked)
    for split in task.eval_splits:
        if not splits.get(split):
            raise LongspanError(
                f"{task.metadata.name} needs the documents that are to be ranked again",
                where=folder / _TOP_RANKED,
                remedy=f"add {_TOP_RANKED}/{split}.jsonl with query-id and corpus-ids, as {_repository(task)} has it",
            )
    return {split: [str(folder / name) for name in splits[split]] for split in task.eval_splits}


def _judged_split(files: JudgedFiles, top_ranked: list[str] | None) -> dict[str, Any]:
    """What mteb's `RetrievalDatasetLoader` makes of the hub's tables."""
    relevant: dict[str, dict[str, int]] = {}
    for one in read_judgements(files.qrels):
        relevant.setdefault(one.query, {})[one.document] = int(one.score)
    queries = _table_of_texts(files.queries).remove_columns("title")
    judged = [place for place, identity in enumerate(queries["id"]) if identity in relevant]
    return {
        "corpus": _table_of_texts(files.corpus),
        "queries": queries.select(judged),
        "relevant_docs": relevant,
        "top_ranked": None if top_ranked is None else _ranked_before(top_ranked),
    }


def _ranked_before(files: list[str]) -> dict[str, list[str]]:
    ranked: dict[str, list[str]] = {}
    for file in files:
        for number, row in read_rows(file):
            query, documents = row.get("query-id"), row.get("corpus-ids")
            if query is None or not isinstance(documents, list):
                raise LongspanError(
                    "a row does not name a query and its documents",
                    where=f"{file}:{number}",
                    remedy="give every row query-id and the list corpus-ids",
                )
            ranked[str(query)] = [str(document) for document in documents]
    return ranked


def _rows(files: Iterable[str], subset: str) -> Any:
    """The rows of files as a `datasets.Dataset`; of a table of several languages, those of the subset."""
    import datasets
    import pyarrow.compute as pc

    table = _arrow(row for file in files for _, row in read_rows(file))
    if subset != _DEFAULT and "lang" in table.column_names:
        table = table.filter(pc.field("lang") == subset)
    return datasets.Dataset(table)


def _table_of_texts(files: Iterable[str]) -> Any:
    """A corpus or queries as a `datasets.Dataset` with `id`, `text` and `title`."""
    import datasets

    return datasets.Dataset(_arrow(_with_id(row, f"{file}:{n}") for file in files for n, row in read_rows(file)))


def _arrow(rows: Iterable[dict[str, Any]]) -> Any:
    import pyarrow as pa

    rest = iter(rows)
    parts = [pa.Table.from_pylist(part) for part in iter(lambda: list(itertools.islice(rest, ROWS_AT_A_TIME)), [])]
    return pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({})


def _with_id(row: dict[str, Any], where: str) -> dict[str, Any]:
    identity = row.get("_id", row.get("id"))
    if identity is None:
        raise LongspanError("a row has no _id", where=where, remedy="give every row an _id and a text")
    # A title in every row: where some rows had none, mteb would stumble over the gaps.
    return {"id": str(identity), "text": row.get("text") or "", "title": row.get("title") or ""}


def _check_columns(task: Any, subsets: dict[str, Any], folder: Path) -> None:
    needed = _columns(task)
    for splits in subsets.values():
        for split, rows in splits.items():
            if missing := sorted(needed - set(rows.column_names)):
                raise LongspanError(
                    f"{task.metadata.name} reads the column {missing[0]!r}, which the split {split} lacks",
                    where=folder,
                    remedy=f"give the rows the columns {', '.join(sorted(needed))}, as {_repository(task)} has them",
                )


def _columns(task: Any) -> set[str]:
    """The columns that a task reads before any transformation, as far as its class declares them."""
    if task.metadata.type == "STS":
        return {*task.column_names, "score"}
    if task.metadata.type == "Classification":
        return {task.input_column_name, task.label_column_name}
    return set()


def _unknown(what: str, name: str, error: KeyError) -> LongspanError:
    _, _, close = str(error.args[0]).partition("Did you mean: ")  # mteb looks for a similar name itself
    remedy = (
        "did you mean " + repr(close.strip("'?")) + "?" if close else f"see the list of {what}s in mteb's documentation"
    )
    return LongspanError(f"mteb has no {what} {name!r}", where=f"{what} {name}", remedy=remedy)
