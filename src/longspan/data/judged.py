"""Retrieval sets on disk, in BEIR's and in MTEB's form: a corpus, queries, and judgements that join them.

BEIR (https://github.com/beir-cellar/beir): `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv` or `qrels.tsv`.
MTEB: tables as on the Hugging Face hub, called `corpus`, `queries` and `default` or `qrels`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from longspan.data.hub import TRAIN, Tables, choose, hub_tables, split_by_name
from longspan.data.parts import files_fingerprint
from longspan.data.places import inside, list_files
from longspan.data.readers import Row, is_readable, is_running_text, read_rows
from longspan.data.skipped import BrokenRow, OnError, stop_on_error
from longspan.data.source import PairSource, Source
from longspan.errors import LongspanError

_QRELS = ("query-id", "corpus-id", "score")


@dataclass(frozen=True)
class JudgedFiles:
    """Where a retrieval set's three tables are; as a part of a source, its pairs of a query and a relevant document."""

    corpus: tuple[str, ...]
    queries: tuple[str, ...]
    qrels: tuple[str, ...]

    @property
    def name(self) -> str:
        """See `Part`."""
        return self.qrels[0]

    @property
    def files(self) -> tuple[str, ...]:
        """All three tables' files."""
        return (*self.qrels, *self.queries, *self.corpus)

    def read(self, source: Source, on_error: OnError) -> Iterator[tuple[int, Row]]:
        """See `Part`: `query` and `document` of each judgement of at least `min_score`, in the order of judgements.

        Only the texts that are judged are held in memory.
        """
        assert isinstance(source, PairSource)
        relevant = [one for one in read_judgements(self.qrels, on_error) if one.score >= source.min_score]
        queries = texts_by_id(self.queries, {one.query for one in relevant})
        corpus = texts_by_id(self.corpus, {one.document for one in relevant})
        for place, one in enumerate(relevant, 1):
            number = one.number if len(self.qrels) == 1 else place
            if one.query not in queries:
                on_error(unknown_text(one, "query", one.query))
            elif one.document not in corpus:
                on_error(unknown_text(one, "document", one.document))
            else:
                yield number, {"query": queries[one.query], "document": corpus[one.document]}

    def fingerprint(self, source: Source) -> str:
        """See `Part`."""
        return files_fingerprint(self.files, source)


class Judgement(NamedTuple):
    """How relevant a document is to a query, and where that is said."""

    query: str
    document: str
    score: float
    file: str
    number: int


def beir_files(folder: str, split: str | None) -> JudgedFiles:
    """The files of a folder in BEIR's form.

    Args:
        split: which file of `qrels/`, where there is that folder; None: the only one, or else train.

    Raises:
        LongspanError: a file is missing or there twice, or there are several splits and none is named.
    """
    names = list_files(folder)
    corpus, queries = (_only(folder, names, table) for table in ("corpus", "queries"))
    splits = {name.removeprefix("qrels/").partition(".")[0]: name for name in names if _is_qrels(name)}
    if not splits:
        if "qrels.tsv" not in names:
            raise _missing("qrels/test.tsv or qrels.tsv", folder)
        chosen = "qrels.tsv"
    else:
        chosen = splits[choose("split", split, list(splits), preferred=TRAIN, where=folder)]
    return JudgedFiles((corpus,), (queries,), (inside(folder, chosen),))


def mteb_files(folder: str, config: str | None, split: str | None) -> JudgedFiles:
    """The files of a folder in MTEB's form.

    Args:
        config: what stands before `-corpus`, `-queries` and `-qrels` in sets of several languages.
        split: of the judgements; None: the only one, or else train.

    Raises:
        LongspanError: a table is missing, or there are several splits and none is named.
    """
    tables = _mteb_tables(folder)
    prefix = "" if config is None else f"{config}-"
    qrels = _table(tables, folder, f"{prefix}qrels", *([] if config else ["default", "data"]))
    chosen = choose("split", split, list(qrels), preferred=TRAIN, where=folder)
    corpus, queries = (
        _split_of(_table(tables, folder, f"{prefix}{name}"), chosen, name, folder) for name in ("corpus", "queries")
    )
    return JudgedFiles(tuple(corpus), tuple(queries), tuple(qrels[chosen]))


def has_mteb_form(folder: str) -> bool:
    """Whether a folder has tables called corpus and queries."""
    try:
        tables = _mteb_tables(folder)
    except LongspanError:
        return False
    return any(name.endswith("corpus") for name in tables) and any(name.endswith("queries") for name in tables)


def has_beir_form(names: Collection[str]) -> bool:
    """Whether these are the files of a folder in BEIR's form."""
    tables = {name.partition(".jsonl")[0] for name in names if ".jsonl" in name}
    return {"corpus", "queries"} <= tables and any(name == "qrels.tsv" or _is_qrels(name) for name in names)


def texts_by_id(files: tuple[str, ...], wanted: Collection[str] | None = None) -> dict[str, str]:
    """Id -> text of a corpus or of queries; a document's text is its title, one space and its text.

    Args:
        wanted: the ids that are needed (all).

    Raises:
        LongspanError: a file is missing or broken, a row has no id or text, or two have one id.
    """
    texts: dict[str, str] = {}
    for file in files:
        for number, row in read_rows(file):
            where = f"{file}:{number}"
            identity = _field(row, "_id" if "_id" in row or "id" not in row else "id", where)
            if identity in texts:
                raise _broken(f"_id {identity!r} is there a second time", where, "keep one line per _id")
            if wanted is not None and identity not in wanted:
                continue
            title = _field(row, "title", where) if row.get("title") is not None else ""
            texts[identity] = f"{title} {_field(row, 'text', where)}".strip()
    return texts


def read_judgements(files: tuple[str, ...], on_error: OnError = stop_on_error) -> Iterator[Judgement]:
    """The judgements of qrels files (TSV with a header, JSON Lines or Parquet), in order.

    Raises:
        LongspanError: a file is missing, torn or without a header, or whatever `on_error` raises for a broken row.
    """
    for file in files:
        for number, row in read_rows(file, on_error):
            fields = _judged_fields(row, file)
            score = _number(fields[2])
            if score is None:
                on_error(_broken_row(f"the score {fields[2]!r} is not a finite number", file, number))
            elif not isinstance(fields[0], str) or not isinstance(fields[1], str):
                on_error(_broken_row(f"the ids {fields[0]!r}, {fields[1]!r} are not strings", file, number))
            else:
                yield Judgement(fields[0], fields[1], score, file, number)


def unknown_text(judgement: Judgement, what: str, identity: str) -> BrokenRow:
    """The error for a judgement whose query or document has no text."""
    where = "queries" if what == "query" else "corpus"
    return BrokenRow(
        f"the {what} {identity!r} is judged but has no text",
        file=judgement.file,
        number=judgement.number,
        remedy=f"add it to the {where}",
        raw="\t".join([judgement.query, judgement.document, f"{judgement.score:g}"]),
    )


def _judged_fields(row: Row, file: str) -> list[Any]:
    if all(name in row for name in _QRELS):
        return [row[name] for name in _QRELS]
    names = list(row)
    if len(names) == 3 and _number(names[2]) is None:
        return list(row.values())  # BEIR's sets agree on the order of the columns rather than on their names
    raise _broken(
        f"the first line is not a header: {' '.join(map(str, names))[:60]!r}",
        f"{file}:1",
        "begin the file with the line query-id, corpus-id, score, separated by tabs",
    )


def _mteb_tables(folder: str) -> Tables:
    """Table -> split -> files: as the README.md says, or by the folders."""
    tables = hub_tables(folder)
    if len(tables) > 1:
        return tables
    by_folder: dict[str, list[str]] = {}
    for name in list_files(folder):
        table, slash, file = name.partition("/")
        if slash and is_readable(file) and not is_running_text(file):
            by_folder.setdefault(table, []).append(file)
    return {
        table: {
            split: [inside(folder, f"{table}/{file}") for file in chosen]
            for split, chosen in (split_by_name(files) or {table: files}).items()
        }
        for table, files in by_folder.items()
    }


def _table(tables: Tables, folder: str, *names: str) -> dict[str, list[str]]:
    found = next((name for name in names if name in tables), None)
    if found is None:
        known = ", ".join(tables)
        raise LongspanError(
            f"there is no table {' or '.join(names)}",
            where=folder,
            remedy=f"its tables are: {known}; in a set of several languages name one as config",
        )
    return tables[found]


def _split_of(table: dict[str, list[str]], split: str, name: str, folder: str) -> list[str]:
    return (
        table[split]
        if split in table
        else table[choose(f"{name} split", None, list(table), preferred=name, where=folder)]
    )


def _is_qrels(name: str) -> bool:
    return name.startswith("qrels/") and ".tsv" in name


def _only(folder: str, names: Collection[str], table: str) -> str:
    found = sorted(name for name in names if name.startswith(f"{table}.jsonl"))
    if not found:
        raise _missing(f"{table}.jsonl or {table}.jsonl.gz", folder)
    if len(found) > 1:
        raise _broken(f"there are both {' and '.join(found)}", folder, "keep the one you mean")
    return inside(folder, found[0])


def _field(row: Row, name: str, where: str) -> str:
    if name not in row:
        raise _broken(f"the field {name!r} is missing", where)
    if not isinstance(row[name], str):
        raise _broken(f"the field {name!r} is {str(row[name])[:40]} and not a string", where)
    return row[name]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _missing(what: str, folder: str) -> LongspanError:
    return _broken(f"there is no {what}", folder, "put that file there (BEIR's layout)")


def _broken(what: str, where: str, remedy: str = "mend that line, or fetch the data again") -> LongspanError:
    return LongspanError(what, where=where, remedy=remedy)


def _broken_row(what: str, file: str, number: int) -> BrokenRow:
    return BrokenRow(what, file=file, number=number, remedy="mend that line, or fetch the data again")
