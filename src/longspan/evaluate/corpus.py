"""One's own corpus as a retrieval set: a folder in BEIR's or MTEB's form, or a file of pairs."""

from __future__ import annotations

from pathlib import Path

from longspan.data.judged import has_beir_form, has_mteb_form, mteb_files, read_judgements, texts_by_id
from longspan.data.places import list_files
from longspan.data.readers import is_readable, is_running_text, read_rows
from longspan.errors import LongspanError
from longspan.evaluate.retrieval import RetrievalSet


def load_retrieval_set(place: Path, *, split: str = "test") -> RetrievalSet:
    """Queries, corpus and judgements from a folder (see `RetrievalSet.load`; MTEB's form too) or a file of pairs.

    In a file of pairs (JSON Lines, Parquet, CSV or TSV) each row has a `query` and the `document` that answers it; the
    corpus is all its documents. Equal texts are one query, one document.

    Args:
        place: the folder or file.
        split: of the judgements, where a folder has several.

    Raises:
        LongspanError: it is not there, is broken (named as file:line), or holds no query with a relevant document.
    """
    if place.is_file() and is_readable(str(place)) and not is_running_text(str(place)):
        return _from_pairs(place)
    if place.is_dir() and not has_beir_form(list_files(str(place))) and has_mteb_form(str(place)):
        return _from_mteb(place, split)
    return RetrievalSet.load(place, split=split)


def _from_pairs(file: Path) -> RetrievalSet:
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    qrels: dict[str, dict[str, float]] = {}
    for number, row in read_rows(str(file)):
        query, document = (_text(row, column, f"{file}:{number}") for column in ("query", "document"))
        query_id = queries.setdefault(query, f"q{len(queries):08d}")
        qrels.setdefault(query_id, {})[documents.setdefault(document, f"d{len(documents):08d}")] = 1.0
    if not queries:
        raise LongspanError("the file holds no pairs", where=file, remedy="give it rows with a query and a document")
    return RetrievalSet(
        file.name.partition(".")[0],
        {identity: text for text, identity in queries.items()},
        {identity: text for text, identity in documents.items()},
        qrels,
    )


def _text(row: dict[str, object], column: str, where: str) -> str:
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise LongspanError(
            f"the row has no text under {column!r}",
            where=where,
            remedy="give every row a query and a document, or leave it out; a BEIR folder is named by its folder",
        )
    return text


def _from_mteb(folder: Path, split: str) -> RetrievalSet:
    files = mteb_files(str(folder), None, split)
    corpus, queries = texts_by_id(files.corpus), texts_by_id(files.queries)
    qrels: dict[str, dict[str, float]] = {}
    for one in read_judgements(files.qrels):
        if one.query not in queries or one.document not in corpus:
            raise LongspanError(
                f"query {one.query!r} or document {one.document!r} is judged but has no text",
                where=f"{one.file}:{one.number}",
                remedy="add its text, or leave out the judgement",
            )
        qrels.setdefault(one.query, {})[one.document] = one.score
    qrels = {query: gains for query, gains in qrels.items() if max(gains.values()) > 0}
    return RetrievalSet(folder.resolve().name, {query: queries[query] for query in qrels}, corpus, qrels)
