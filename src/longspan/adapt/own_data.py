"""One's own data as pairs of a query and the document that answers it, whatever form it has.

Rows with a query and a document are pairs as they are. A judged retrieval set (BEIR's or MTEB's form) gives a pair for
each judgement. Running documents, which nobody has asked for yet, give pairs of their own headings and what stands
below (`curate/long_pairs.py`): headings are the nearest thing to a query that every collection of documents has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from longspan.curate.long_pairs import LongPairsConfig, candidates, read_document
from longspan.curate.rows import column_text
from longspan.data.cache import file_fingerprint
from longspan.data.judged import JudgedFiles, has_beir_form, has_mteb_form, texts_by_id
from longspan.data.layouts import source_parts
from longspan.data.places import inside, is_folder, list_files
from longspan.data.readers import Row, is_readable, is_running_text, read_rows
from longspan.data.skipped import stop_on_error
from longspan.data.source import PairSource
from longspan.errors import LongspanError
from longspan.files import sha256_json

FEWEST_WORDS = 5
"""A section with fewer words says too little to be found."""
MOST_WORDS_OF_TITLE = 15
"""A first line with more words is no title."""

_TITLE = re.compile(r"^# +(\S[^\n]*)$", re.M)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.S)
# A line of text with a line of one sign below it that is at least three long: reStructuredText's headings.
_UNDERLINED = re.compile(r"^(\S[^\n]*)\n([=\-~^\"'*+#])\2{2,}[ \t]*$", re.M)


class OwnPair(NamedTuple):
    """A query, the document that answers it, and what the document is a part of: a file, or nothing but itself."""

    query: str
    document: str
    group: str


@dataclass(frozen=True)
class OwnData:
    """Everything that was read.

    Attributes:
        pairs: in the order of the files; none is there twice.
        documents: the distinct documents of the pairs, and those of a retrieval set that no query asks for.
        form: what was found: "pairs and documents" of files, or "judged".
    """

    pairs: tuple[OwnPair, ...]
    documents: tuple[str, ...]
    form: str


def own_files(place: str) -> list[str]:
    """The files that `read_own_data` reads.

    Raises:
        LongspanError: there is none of a kind that is read.
    """
    files = [inside(place, name) for name in list_files(place)] if is_folder(place) else [place]
    readable = [file for file in files if is_readable(file)]
    if not readable:
        raise LongspanError(
            "there is nothing here that is read",
            where=place,
            remedy="name a file or folder of .jsonl, .csv, .tsv or .parquet with the columns query and document, of "
            ".md, .rst or .txt documents, or in BEIR's form",
        )
    return readable


def fingerprint(place: str) -> str:
    """What changes when a file of one's own data changes.

    Raises:
        LongspanError: as `own_files`.
    """
    return sha256_json([file_fingerprint(file) for file in own_files(place)])


def read_own_data(place: str, *, split: str | None = None, query: str = "query", document: str = "document") -> OwnData:
    """The pairs and documents at a place.

    Args:
        place: a file, or a folder with files in it, or a retrieval set.
        split: of a retrieval set's judgements; None: the only one, or else train.
        query, document: columns of rows that are pairs. Rows without them need a `title` and a `text` (or what else
            `curate/long_pairs.py` knows: `abstract`, `sections`).

    Raises:
        LongspanError: nothing is there, a file is broken, or a row has neither.
    """
    if is_folder(place) and (has_beir_form(list_files(place)) or has_mteb_form(place)):
        pairs, documents = _judged(place, split)
        form = "judged"
    else:
        pairs, documents, form = list(_of_files(place, query, document)), [], "pairs and documents"
    pairs = tuple(dict.fromkeys(pairs))
    if not pairs:
        raise LongspanError(
            "no pair of a query and a document can be made here",
            where=place,
            remedy="give documents headings or titles, or give queries: rows with the columns query and document",
        )
    documents = tuple(dict.fromkeys([*documents, *(pair.document for pair in pairs)]))
    return OwnData(pairs, documents, form)


def _judged(place: str, split: str | None) -> tuple[list[OwnPair], list[str]]:
    source = PairSource(name="own", files=(place,), split=split)
    pairs, documents = [], []
    for part in source_parts(source):
        assert isinstance(part, JudgedFiles)
        for _, row in part.read(source, stop_on_error):
            pairs.append(OwnPair(row["query"], row["document"], row["document"]))
        documents += [text for text in texts_by_id(part.corpus).values() if text.strip()]
    return pairs, documents


def _of_files(place: str, query: str, document: str) -> Iterator[OwnPair]:
    for file in own_files(place):
        for number, row in read_rows(file):
            where = f"{file}:{number}"
            if query in row and document in row:
                text = column_text(row, document, where)
                yield OwnPair(column_text(row, query, where), text, text)
            elif is_running_text(file):
                yield from _headed(_with_title(row["text"], file), file, file)
            elif "title" in row or "sections" in row:
                yield from _headed(row, where, where)
            else:
                raise LongspanError(
                    f"the row has no {query!r} with a {document!r}, and no title: its columns are {', '.join(row)}",
                    where=where,
                    remedy="name the columns with --query and --document",
                )


def _headed(row: Row, where: str, group: str) -> Iterator[OwnPair]:
    """Headings with their sections, or the title with the whole where there are none."""
    document = read_document(row, LongPairsConfig(), where)
    for one in candidates(document, "heading-section" if document.sections else "title-body"):
        if one.reason is None and len(one.document.split()) >= FEWEST_WORDS:
            yield OwnPair(one.query, one.document, group)


def _with_title(text: str, file: str) -> Row:
    """A running text as a row with a title: its first heading, else its first line if it is short, else its name."""
    if PurePosixPath(file).name.partition(".")[2].startswith("rst"):
        text = _markdown_headings(text)
    text = _FRONT_MATTER.sub("", text).strip()
    if heading := _TITLE.search(text):
        return {"title": heading[1].strip(" #"), "text": (text[: heading.start()] + text[heading.end() :]).strip()}
    first, _, rest = text.partition("\n")
    if first[:1].isalnum() and rest.strip() and len(first.split()) <= MOST_WORDS_OF_TITLE:
        return {"title": first.strip(), "text": rest.strip()}
    return {"title": re.sub(r"[_-]+", " ", Path(file).name.partition(".")[0]), "text": text}


def _markdown_headings(text: str) -> str:
    """reStructuredText's headings in Markdown's form: the first is the title, the others are sections."""
    levels = iter(["# "])
    return _UNDERLINED.sub(lambda found: next(levels, "## ") + found[1], text)
