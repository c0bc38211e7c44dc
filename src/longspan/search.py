"""Search in files: passages, their vectors, and the nearest to a query.

Axes: M passages, D width, K kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longspan.curate.neighbours import top_k
from longspan.curate.vectors import VectorStore
from longspan.data.places import find_files
from longspan.data.readers import is_running_text, read_rows
from longspan.embedder import Embedder
from longspan.errors import LongspanError

QUERY, DOCUMENT = "search_query", "search_document"
TEXT_COLUMNS = ("text", "document", "body", "content")
"""Columns looked for in files of rows."""
ID_COLUMNS = ("_id", "id")
"""Columns by which a row is named beside its place."""
SOURCE_COLUMN = "source"
"""The column by which rows of one file are told apart; without it, the file is the source of its passages."""


@dataclass(frozen=True)
class Passage:
    """A text to be found, where it is (`file:line`), and the source that it belongs to."""

    where: str
    text: str
    source: str = ""


@dataclass(frozen=True)
class Hit:
    """A passage and its score: the cosine with the query."""

    score: float
    passage: Passage


class Index:
    """Passages with their vectors."""

    def __init__(self, embedder: Embedder, passages: Sequence[Passage], vectors_MD: np.ndarray) -> None:
        self._embedder = embedder
        self.passages = passages
        self.vectors_MD = vectors_MD

    @classmethod
    def build(
        cls,
        embedder: Embedder,
        passages: Sequence[Passage],
        *,
        cache: Path | None = None,
        progress: Callable[[int], None] | None = None,
        on_cut: Callable[[int], None] | None = None,
    ) -> Index:
        """Embed passages, cut at the model's limit; with `cache`, vectors are kept there and reused.

        Args:
            progress: called with the number of passages done since the last call.
            on_cut: called with the number of passages that were embedded now and cut, where any were.
        """
        if not passages:
            raise LongspanError("there is nothing to search in", where="FILES", remedy="name files that hold text")
        texts = [passage.text for passage in passages]
        if cache is None:
            vectors_MD = embedder.embed(texts, task=DOCUMENT, truncate=True, progress=progress, on_cut=on_cut)
        else:
            vectors_MD = VectorStore(cache, embedder, task=DOCUMENT).embed(texts, progress, on_cut)
        return cls(embedder, passages, vectors_MD)

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """The `k` passages nearest to a query, best first."""
        query_1D = self._embedder.embed([query], task=QUERY, truncate=True)
        return [Hit(score, self.passages[i]) for i, score in self.nearest(query_1D, k)]

    def nearest(self, query_1D: np.ndarray, k: int, among: range | None = None) -> list[tuple[int, float]]:
        """Numbers and scores of the `k` passages nearest to a vector, best first; `among`: only these passages."""
        among = range(len(self.passages)) if among is None else among
        vectors_MD = self.vectors_MD[among.start : among.stop]
        scores_1K, indices_1K = top_k(query_1D, vectors_MD, min(k, len(among)))
        return [(among.start + int(i), float(s)) for s, i in zip(scores_1K[0], indices_1K[0], strict=True)]


def read_passages(files: Sequence[str], *, max_words: int = 400) -> list[Passage]:
    """Passages of files: a row of a table or of JSON Lines is one; running text is cut at blank lines.

    Paragraphs of running text are joined up to `max_words` words, so that a passage says something by itself.

    Raises:
        LongspanError: a missing file, an unknown kind, or rows without a text column.
    """
    passages = []
    for file in find_files(tuple(files)):
        running = is_running_text(file)
        for number, row in read_rows(file):
            if running:
                passages += _paragraphs(file, row["text"], max_words)
                continue
            column = next((name for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)
            if column is None:
                raise LongspanError(
                    f"the row has no text: its columns are {', '.join(row)}",
                    where=f"{file}:{number}",
                    remedy=f"name the column of the text one of: {', '.join(TEXT_COLUMNS)}",
                )
            text = f"{row['title']} {row[column]}" if isinstance(row.get("title"), str) else row[column]
            if text.strip():
                passages.append(Passage(_place(file, number, row), text.strip(), _source(file, row)))
    return passages


def _place(file: str, number: int, row: dict[str, Any]) -> str:
    name = next((row[key] for key in ID_COLUMNS if isinstance(row.get(key), str)), None)
    return f"{file}:{number}" if name is None else f"{file}:{number} ({name})"


def _source(file: str, row: dict[str, Any]) -> str:
    named = row.get(SOURCE_COLUMN)
    return named if isinstance(named, str) and named else file


def _paragraphs(file: str, text: str, max_words: int) -> list[Passage]:
    passages: list[Passage] = []
    kept: list[str] = []
    first_line = line = 1
    for paragraph in re.split(r"(\n\s*\n)", text):
        if paragraph.strip():
            if kept and len(" ".join([*kept, paragraph]).split()) > max_words:
                passages.append(Passage(f"{file}:{first_line}", "\n\n".join(kept), file))
                kept = []
            if not kept:
                first_line = line + paragraph[: -len(paragraph.lstrip())].count("\n")
            kept.append(re.sub(r"\A\s*\n", "", paragraph).rstrip())
        line += paragraph.count("\n")
    if kept:
        passages.append(Passage(f"{file}:{first_line}", "\n\n".join(kept), file))
    return passages
