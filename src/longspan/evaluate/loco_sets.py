"""The retrieval sets of LoCo, read from disk: the five that the paper measures (v0), and the twelve of LoCoV1.

v0 is made of SCROLLS (a summary or an answer is to find the text it is about) and QASPER (a title or an abstract is to
find its article), as section 5.2.4 of the paper says; LoCoV1 was published as two tables (Saad-Falcon et al., 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longspan.data.hub import split_by_name
from longspan.data.judged import has_beir_form, has_mteb_form
from longspan.data.places import list_files
from longspan.data.readers import Row, is_readable, is_running_text, read_rows
from longspan.errors import LongspanError
from longspan.evaluate.corpus import load_retrieval_set
from longspan.evaluate.retrieval import RetrievalSet

V0 = ("summ_screen_fd", "gov_report", "qmsum", "qasper_title", "qasper_abstract")
"""In the order of Table 6."""

V1 = (
    *V0,
    "multifieldqa",
    "2wikimqa",
    "passage_retrieval",
    "courtlistener_Plain_Text",
    "courtlistener_HTML",
    "legal_case_reports",
    "stackoverflow",
)

_V1_QUERIES, _V1_DOCUMENTS = "LoCoV1-Queries", "LoCoV1-Documents"
_SCROLLS = ("output", "input")
_REMEDY = "give each set a folder in BEIR's layout, or put the published tables there (docs/evaluation.md)"


def load_loco(data: Path, names: Sequence[str] | None = None) -> list[RetrievalSet]:
    """Read sets of LoCo.

    `data` holds LoCoV1's two tables in `LoCoV1-Queries` and `LoCoV1-Documents`; or a folder per set, called as the set,
    in BEIR's layout or with the rows of SCROLLS (`validation.jsonl` with `input` and `output`; Parquet and other tables
    too); and `qasper` with QASPER's rows (`test.jsonl` with `title`, `abstract`, `full_text`). Case, `-` and `_` of
    folder names do not matter.

    Args:
        data: the folder.
        names: which sets; also other folders in BEIR's layout. None: all that the benchmark has, V1's if its tables are
            there and else v0's.

    Raises:
        LongspanError: the folder or a set is not there (all missing ones are named), or is broken.
    """
    if not data.is_dir():
        raise LongspanError("the folder of LoCo is not there", where=data, remedy=_REMEDY)
    folders = {_plain(child.name): child for child in sorted(data.iterdir()) if child.is_dir()}
    is_v1 = _plain(_V1_QUERIES) in folders
    wanted = names or (V1 if is_v1 else V0)
    if is_v1:
        return _v1_sets(folders, wanted, data)
    there = [name for name in wanted if _folder_of(name, folders) is not None]
    if missing := [name for name in wanted if name not in there]:
        or_less = f"; or measure what is there: --tasks {','.join(there)}" if there else ""
        raise LongspanError(f"there is no set {', '.join(missing)}", where=data, remedy=_REMEDY + or_less)
    return [_v0_set(name, folders) for name in wanted]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _folder_of(name: str, folders: Mapping[str, Path]) -> Path | None:
    return folders.get(_plain(name)) or (folders.get("qasper") if name.startswith("qasper_") else None)


def _v0_set(name: str, folders: Mapping[str, Path]) -> RetrievalSet:
    folder = _folder_of(name, folders)
    assert folder is not None
    if has_beir_form(list_files(str(folder))) or has_mteb_form(str(folder)):
        loaded = load_retrieval_set(folder)
        return RetrievalSet(name, loaded.queries, loaded.corpus, loaded.qrels)
    is_qasper = _plain(folder.name) == "qasper"
    query, document = (name.removeprefix("qasper_"), "full_text") if is_qasper else _SCROLLS
    queries, corpus = {}, {}
    for file in _table_files(folder, "test" if is_qasper else "validation"):
        for number, row in read_rows(str(file)):
            where = f"{file}:{number}"
            queries[f"Query_{len(queries)}"] = _text(row, query, where)
            corpus[f"Passage_{len(corpus)}"] = _article(row, where) if is_qasper else _text(row, document, where)
    return RetrievalSet(name, queries, corpus, {f"Query_{n}": {f"Passage_{n}": 1.0} for n in range(len(queries))})


def _v1_sets(folders: Mapping[str, Path], wanted: Sequence[str], data: Path) -> list[RetrievalSet]:
    if _plain(_V1_DOCUMENTS) not in folders:
        raise LongspanError(f"there are queries of LoCoV1 but no {_V1_DOCUMENTS}", where=data, remedy=_REMEDY)
    corpus: dict[str, dict[str, str]] = {}
    for where, row in _v1_rows(folders[_plain(_V1_DOCUMENTS)]):
        texts = corpus.setdefault(_text(row, "dataset", where), {})
        texts[_text(row, "pid", where)] = _text(row, "passage", where)
    queries: dict[str, dict[str, str]] = {}
    qrels: dict[str, dict[str, dict[str, float]]] = {}
    for where, row in _v1_rows(folders[_plain(_V1_QUERIES)]):
        name, identity, answers = _text(row, "dataset", where), _text(row, "qid", where), row.get("answer_pids")
        if not isinstance(answers, list | tuple) or not answers:
            raise _broken("answer_pids is not a list of documents", where)
        queries.setdefault(name, {})[identity] = _text(row, "query", where)
        qrels.setdefault(name, {})[identity] = {str(answer): 1.0 for answer in answers}
    if missing := [name for name in wanted if name not in queries or name not in corpus]:
        known = ", ".join(sorted(queries.keys() & corpus.keys()))
        raise LongspanError(
            f"LoCoV1's tables have no set {', '.join(missing)}", where=data, remedy=f"the sets there are: {known}"
        )
    return [RetrievalSet(name, queries[name], corpus[name], qrels[name]) for name in wanted]


def _v1_rows(folder: Path) -> Any:
    for file in _table_files(folder, "test"):
        for number, row in read_rows(str(file)):
            yield f"{file}:{number}", row


def _table_files(folder: Path, split: str) -> list[Path]:
    """The tables of a split; every table of the folder where no name tells a split."""
    names = [name for name in list_files(str(folder)) if is_readable(name) and not is_running_text(name)]
    found = split_by_name(names).get(split, []) if split_by_name(names) else names
    if not found:
        raise LongspanError(f"there is no table of the split {split}", where=folder, remedy=_REMEDY)
    return [folder / name for name in sorted(found)]


def _article(row: Row, where: str) -> str:
    """QASPER's article in one piece: the name of each section, a line end, and its paragraphs with spaces between."""
    full_text = row.get("full_text")
    if isinstance(full_text, str) and full_text.strip():
        return full_text
    try:
        sections = list(zip(full_text["section_name"], full_text["paragraphs"], strict=True))  # pyright: ignore
        lines = [line for name, paragraphs in sections for line in (name, " ".join(paragraphs)) if line is not None]
    except (KeyError, TypeError, ValueError):
        raise _broken("full_text has no section_name and paragraphs of one length", where) from None
    return "\n".join(lines).strip()


def _text(row: Row, column: str, where: str) -> str:
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise _broken(f"the row has no text under {column!r}", where)
    return text


def _broken(what: str, where: str) -> LongspanError:
    return LongspanError(what, where=where, remedy="mend that line, or fetch the data again")
