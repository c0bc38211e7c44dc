"""A source: a named corpus, where its files are, and what its columns mean."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from longspan.config import Config
from longspan.errors import LongspanError
from longspan.text.tasks import Task


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name, re.ASCII):
        raise ValueError("a source's name becomes a folder's: letters, digits, '.', '_' and '-', and no sign first")
    return name


SourceName = Annotated[str, AfterValidator(_check_name)]


POSITIVE_SCORE, NEGATIVE_SCORES = "positive_score", "negative_scores"
"""The columns in which mining leaves the scores of its teacher."""
CLUSTER = "cluster"
"""The column in which clustering leaves the number of a pair's cluster."""

Layout = Literal["files", "text", "hub", "release", "beir", "mteb"]
"""How a source's rows lie: in files; in a folder of running texts; in a folder as on the Hugging Face hub; as the
original authors have released theirs; in a retrieval set of BEIR's or MTEB's form."""

_ONLY_FOR: dict[str, tuple[Layout, ...]] = {
    "config": ("hub", "mteb"),
    "split": ("hub", "beir", "mteb"),
    "min_score": ("beir", "mteb"),
}

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _AnySource(Config):
    """What every source says of its place and its origin."""

    name: SourceName
    files: tuple[str, ...] = Field(default=(), min_length=1)
    """Paths, globs or fsspec URLs; or one folder."""
    hub: str | None = None
    """Instead of files: a data set of the Hugging Face hub, owner/name, read through `datasets`."""
    layout: Layout | None = None
    """How the rows lie there; None: told from what the folder holds."""
    config: str | None = None
    """Which configuration of a hub or MTEB data set."""
    split: str | None = None
    """Which split; None: the only one, or else train."""
    revision: str | None = None
    """Which version of the data; on the hub a commit, branch or tag."""
    streaming: bool = False
    """Read the hub's data set while it comes, rather than download it whole first."""
    sha256: dict[str, Sha256] = Field(default_factory=dict)
    """File name (or the end of its path) -> what its SHA-256 has to be."""
    max_rows: int | None = Field(default=None, ge=1)
    """Take only so many rows, the first."""
    licence: str | None = None
    origin: str | None = None
    """Where the data comes from: a URL."""

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if bool(self.files) == (self.hub is not None):
            raise ValueError("name either its files or a data set of the hub (files = ..., or hub = ...)")
        if self.hub is not None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.hub, re.ASCII):
            raise ValueError(f"hub is {self.hub!r} and not owner/name; a folder of this machine belongs in files")
        if self.hub is not None and self.layout not in (None, "hub"):
            raise ValueError(f"a data set of the hub cannot have the layout {self.layout!r}")
        if self.streaming and self.hub is None:
            raise ValueError("streaming is for hub = ...; files are read piece by piece anyway")
        layout = "hub" if self.hub is not None else self.layout
        if layout is not None and (wrong := self.misplaced(layout)):
            raise ValueError(wrong)
        return self

    def misplaced(self, layout: Layout) -> str | None:
        """What this source says that has no meaning in a layout, as a sentence."""
        for key, layouts in _ONLY_FOR.items():
            if key in self.model_fields_set and getattr(self, key) is not None and layout not in layouts:
                return f"{key} has no meaning for the layout {layout!r}, only for {' and '.join(layouts)}"
        return None


class PairSource(_AnySource):
    """Query-document pairs, optionally with mined negatives."""

    kind: Literal["pairs"] = "pairs"
    query: str = "query"
    """Column of the query text. Of a column that lists texts, "set.0" is the first; of a JSON array, "0" is."""
    document: str = "document"
    """Column of the text that answers it."""
    negatives: str | None = None
    """Column that lists the texts of hard negatives."""
    positive_score: str | None = None
    """Column of a teacher's score of the pair, for distillation; `curate mine` writes `positive_score`."""
    negative_scores: str | None = None
    """Column that lists the teacher's scores of the negatives, in their order; `curate mine`: `negative_scores`."""
    cluster: str | None = None
    """Column of the number of the pair's cluster, for batches that come from one; `curate cluster` writes `cluster`."""
    query_task: Task = "search_query"
    document_task: Task = "search_document"
    weight: float = Field(default=1.0, gt=0)
    """How often the source is drawn, relative to its size."""
    min_score: float = 1.0
    """Judgement from which on a document of a retrieval set is a pair with its query."""

    @model_validator(mode="after")
    def _scores_are_whole(self) -> Self:
        if (self.positive_score is None) != (self.negative_scores is None):
            raise ValueError("positive_score and negative_scores belong together: give both, or neither")
        if self.negative_scores is not None and self.negatives is None:
            raise ValueError("negative_scores are of negatives: name the column of these as well")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        named = (self.query, self.document, self.negatives, self.positive_score, self.negative_scores, self.cluster)
        return tuple(column for column in named if column is not None)

    def misplaced(self, layout: Layout) -> str | None:
        """What this source says that has no meaning in a layout, as a sentence."""
        return "running text has no pairs" if layout == "text" else super().misplaced(layout)


class TextSource(_AnySource):
    """Running text for masked language modelling."""

    kind: Literal["text"] = "text"
    text: str = "text"
    """Column of the text."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.text,)

    def misplaced(self, layout: Layout) -> str | None:
        """What this source says that has no meaning in a layout, as a sentence."""
        if layout in ("beir", "mteb"):
            return "a retrieval set is a source of pairs; for running text name the file of its corpus"
        return super().misplaced(layout)


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
