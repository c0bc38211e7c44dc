"""The paper's data sets: what they are, where they are, how many rows they have, and how sure we are of it.

The entries stand in `catalog.toml`: the 29 sources of Table 7, the 10 of Table 3, and the corpora of section 4.1.1.
"""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

from longspan.config import Config
from longspan.data.source import PairSource, Source, SourceName, TextSource
from longspan.errors import LongspanError
from longspan.text.tasks import Task

Stage = Literal["mlm", "contrastive", "finetune"]
"""What a data set is for: sections 4.1, 4.2.1 to 4.2.2, and 4.2.3 to 4.2.5."""

Fact = Literal["paper_rows", "release", "tasks", "origin", "licence"]
"""What there can be evidence for."""


class Entry(Config):
    """A data set of the paper."""

    name: SourceName
    title: str
    """As the paper calls it."""
    stage: Stage
    pair: str
    """What is paired with what; or "running text"."""
    query_task: Task | None = None
    document_task: Task | None = None
    mined_negatives: bool
    """Whether the paper mines hard negatives for it (top 20 by gte-base); in finetuning the others have random ones."""
    paper_rows: int | None = None
    """Count of Table 7 or 3: after consistency filtering, whole batches only."""

    hub: str
    """Where rows that can be prepared as they are lie on the Hugging Face hub."""
    config: str | None = None
    split: str
    revision: str | None = None
    """Commit or branch on the hub; None: the newest."""
    query: str | None = None
    document: str | None = None
    negatives: str | None = None
    text: str | None = None
    """The columns; either the text, or query and document and in finetuning the list of negatives."""
    released_rows: int | None = None
    """Rows there, after consistency filtering."""

    origin: str
    """Where the raw data comes from: a URL."""
    origin_files: str | None = None
    origin_columns: str | None = None
    """What a raw row holds."""
    origin_rows: int | None = None
    """Raw rows, before consistency filtering."""

    licence: str
    """As stated at the origin."""
    evidence: dict[Fact, str]
    """Fact -> the public document in which it was read; a fact that is not here is recalled."""
    notes: tuple[str, ...] = ()

    @property
    def form(self) -> Literal["pairs", "triplets", "text"]:
        """Pairs, pairs with a list of negatives, or running text."""
        if self.text is not None:
            return "text"
        return "pairs" if self.negatives is None else "triplets"

    @property
    def symmetric(self) -> bool:
        """Whether both sides have the same task (section 4.2.2)."""
        return self.query_task == self.document_task

    @property
    def num_rows(self) -> int | None:
        """The paper's count, or where it has none that of the rows to be had."""
        return self.released_rows if self.paper_rows is None else self.paper_rows


@functools.cache
def catalog() -> Mapping[str, Entry]:
    """All entries by name, in the order of the paper's tables."""
    content = tomllib.loads(resources.files("longspan.data").joinpath("catalog.toml").read_text("utf-8"))
    entries = [_entry(values, content["stage"][values["stage"]]) for values in content["entry"]]
    return {entry.name: entry for entry in entries}


def find_entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        LongspanError: there is none.
    """
    entries = catalog()
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(close)}?" if close else "longspan data list shows all"
        raise LongspanError(f"there is no data set {name!r} in the catalogue", where=name, remedy=remedy)
    return entries[name]


def source_of(entry: Entry) -> Source:
    """The source that reads the entry's rows from the hub."""
    keys = ("name", "hub", "config", "split", "revision", "query", "document", "negatives", "text", "query_task")
    values = {key: getattr(entry, key) for key in (*keys, "document_task", "licence", "origin")}
    cls = PairSource if entry.text is None else TextSource
    return cls.parse({key: value for key, value in values.items() if value is not None}, where=f"entry {entry.name}")


def source_toml(source: Source) -> str:
    """A `[[source]]` table that `longspan prepare` accepts."""
    # Text and numbers are written alike in JSON and TOML.
    values = source.model_dump(mode="json", exclude_unset=True)
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["[[source]]", *lines]) + "\n"


def _entry(values: dict[str, Any], defaults: dict[str, Any]) -> Entry:
    evidence = defaults["evidence"] | values.get("evidence", {})
    merged = defaults | values | {"evidence": evidence}
    return Entry.parse(merged, where=f"catalog.toml, {values['name']}")
