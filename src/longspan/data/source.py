"""A source: a named corpus, where its files are, and what its columns mean."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from longspan.config import Config
from longspan.errors import LongspanError
from longspan.text.tasks import Task


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name, re.ASCII):
        raise ValueError("a source's name becomes a folder's: letters, digits, '.', '_' and '-', and no sign first")
    return name


SourceName = Annotated[str, AfterValidator(_check_name)]


class PairSource(Config):
    """Query-document pairs, optionally with mined negatives."""

    kind: Literal["pairs"] = "pairs"
    name: SourceName
    files: tuple[str, ...] = Field(min_length=1)
    """Paths, globs or fsspec URLs."""
    query: str = "query"
    """Column of the query text."""
    document: str = "document"
    """Column of the text that answers it."""
    negatives: str | None = None
    """Column that lists the texts of hard negatives."""
    query_task: Task = "search_query"
    document_task: Task = "search_document"
    weight: float = Field(default=1.0, gt=0)
    """How often the source is drawn, relative to its size."""


class TextSource(Config):
    """Running text for masked language modelling."""

    kind: Literal["text"] = "text"
    name: SourceName
    files: tuple[str, ...] = Field(min_length=1)
    text: str = "text"
    """Column of the text."""


Source = PairSource | TextSource


class SourceList(Config):
    """The content of a sources file."""

    source: tuple[Annotated[Source, Field(discriminator="kind")], ...] = Field(min_length=1)


def read_sources(path: Path) -> tuple[Source, ...]:
    """Read a TOML file of `[[source]]` tables; relative file names are relative to it.

    Raises:
        LongspanError: the file is missing, is not TOML, has an unknown key, or names a source twice.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise LongspanError(
            "there is no such sources file", where=path, remedy="see docs/data.md for how to write one"
        ) from None
    except OSError as error:
        raise LongspanError(
            f"the sources file cannot be read: {error.strerror}", where=path, remedy="name a .toml file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LongspanError(f"not valid TOML: {error}", where=path, remedy="correct the line and run again") from None
    if not isinstance(values.get("source", []), list):
        raise LongspanError("'source' is not a list of tables", where=path, remedy="begin each with [[source]]")
    for table in values.get("source", []):
        if isinstance(table, dict) and isinstance(table.get("files"), str):
            table["files"] = [table["files"]]
        if isinstance(table, dict):
            table.setdefault("kind", "text" if "text" in table else "pairs")
    sources = tuple(_beside(source, path.parent) for source in SourceList.parse(values, where=path).source)
    check_names(sources, where=path)
    return sources


def check_names(sources: tuple[Source, ...], *, where: str | Path) -> None:
    """Raise a LongspanError if two sources have one name."""
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LongspanError(f"two sources are called {twice[0]!r}", where=where, remedy="give each its own name")


def _beside(source: Source, folder: Path) -> Source:
    def resolve(file: str) -> str:
        return file if "://" in file or Path(file).is_absolute() else str(folder / file)

    changes: dict[str, Any] = {"files": tuple(resolve(file) for file in source.files)}
    return source.model_copy(update=changes)
