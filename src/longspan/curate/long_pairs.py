"""Pairs with long documents (paper, section 4.2.1): title -> body, abstract -> full text, section heading -> section.

The paper's are Wikipedia titles with their articles, and S2ORC abstracts with their full papers: most other sources are
shorter than the 2048 tokens that are trained on. Every pair that could be made is either written or counted under the
reason for which it was not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from longspan.config import Config
from longspan.curate.report import write_values
from longspan.curate.rows import excerpt, json_lines
from longspan.data.readers import Row, read_rows
from longspan.errors import LongspanError
from longspan.text.tasks import PREFIXES, Task
from longspan.text.tokenizer import Tokenizer

Kind = Literal["title-body", "abstract-body", "heading-section", "heading-body"]
"""What becomes the query, and what the document."""

PAIRS = "pairs.jsonl"
BODY_COLUMNS = ("body", "full_text", "text")
SECTION_COLUMNS = ("sections", "body_text")
HEADING_KEYS = ("heading", "section", "title")

HISTOGRAM_EDGES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""The histogram counts documents of up to so many tokens, and longer ones."""

NUM_EXAMPLES = 20
_DOCUMENTS_AT_A_TIME = 16
_SPECIAL_TOKENS = 2

# "== History ==" of wikis, also as WikiText's tokeniser leaves it, and "## History" of Markdown.
_HEADING = re.compile(
    r"^[ \t]*(?:=[ \t]?){2,6}(?P<wiki>[^=\n]*[^=\s])[ \t]*(?:=[ \t]?){2,6}$"
    r"|^#{2,6}[ \t]+(?P<mark>[^\n]*[^\n#\s])[ \t#]*$",
    re.M,
)
_TITLE = re.compile(r"^#[ \t]+([^\n]*[^\n#\s])[ \t#]*\n|^[ \t]*=[ \t]([^=\n]*[^=\s])[ \t]=[ \t]*\n")

Progress = Callable[[int], None]
"""Called with the number of rows read since the last call."""


class LongPairsConfig(Config):
    """Which pairs are made, and how long their documents are.

    Lengths are tokens of the document as the model reads it: prefix and special tokens included, nothing cut.
    """

    kinds: tuple[Kind, ...] = Field(default=("title-body", "abstract-body", "heading-section"), min_length=1)
    min_tokens: int = Field(default=512, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    long_tokens: int = Field(default=2048, ge=1)
    """A document with more tokens is a long one."""
    long_share: float | None = Field(default=None, gt=0, le=1)
    """Of the pairs at least this share has a long document: shorter ones are left out, drawn by `seed` and content."""
    document_task: Task = "search_document"
    """Its prefix is counted."""
    title: str = "title"
    abstract: str = "abstract"
    body: str | None = None
    """Column of the full text; None: the first of `BODY_COLUMNS` that a row has, or else its sections together."""
    sections: str | None = None
    """Column that lists sections, each with a heading and a text; None: the first of `SECTION_COLUMNS`, or else the
    headings in the full text (Markdown's and wikis')."""
    seed: int = 0

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"no document has at least {self.min_tokens} and at most {self.max_tokens} tokens")
        return self


class Section(NamedTuple):
    """A part of a document."""

    heading: str
    text: str


class Document(NamedTuple):
    """What a row says. A part that it does not have is empty."""

    title: str
    abstract: str
    body: str
    sections: list[Section]


class Candidate(NamedTuple):
    """A pair that can be made, or why it cannot."""

    kind: Kind
    query: str
    document: str
    reason: str | None = None


def make_long_pairs(
    files: Sequence[str],
    tokenizer: Tokenizer,
    out: Path,
    config: LongPairsConfig,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `out/pairs.jsonl` (query, document, tokens, kind) and `out/report.json`.

    Returns:
        The report: pairs and what was left out by kind and reason, lengths, and examples.

    Raises:
        LongspanError: a file is missing or broken, a column is not of its kind, no pair at all, or a share of long
            documents that cannot be had.
    """
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in config.kinds}
    tokens: list[int] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as made:
        keys = []
        for candidate, length in _measured(_candidates(files, config, progress), tokenizer, config):
            reason = candidate.reason or _length_reason(length, config)
            if reason is not None:
                counts[candidate.kind][reason] += 1
                continue
            pair = {"query": candidate.query, "document": candidate.document, "tokens": length, "kind": candidate.kind}
            made.write(json.dumps(pair, ensure_ascii=False) + "\n")
            tokens.append(length)
            keys.append(_draw(candidate, config.seed))
        if not tokens:
            raise LongspanError(
                f"no pair can be made: {_reasons(counts)}",
                where=", ".join(files),
                remedy="name the columns, other kinds or other lengths",
            )
        keep_N = _share(np.array(tokens), np.array(keys, np.uint64), config)
        pairs = _Written(out / PAIRS, counts)
        made.seek(0)
        pairs.write(made, keep_N)
    report = {
        "pairs": int(keep_N.sum()),
        "left_out": sum(sum(reasons.values()) - reasons["pairs"] for reasons in counts.values()),
        "kinds": {
            kind: {"pairs": reasons["pairs"], "left_out": {r: c for r, c in sorted(reasons.items()) if r != "pairs"}}
            for kind, reasons in counts.items()
        },
        "lengths": _lengths(np.array(tokens)[keep_N], config.long_tokens),
        "settings": config.model_dump(mode="json") | {"tokenizer": tokenizer.fingerprint},
        "examples": pairs.examples,
    }
    write_values(out, "long", report)
    return report


# --- documents --------------------------------------------------------------------------------------------------------


def read_document(row: Row, config: LongPairsConfig, where: str) -> Document:
    """The parts of a document that a row has.

    Raises:
        LongspanError: a part is not a text, or the sections are no list of objects with a heading and a text.
    """
    title, abstract = _text(row, config.title, where), _text(row, config.abstract, where)
    body_column = config.body or next((column for column in BODY_COLUMNS if row.get(column)), "")
    body = _text(row, body_column, where)
    list_column = config.sections or next((column for column in SECTION_COLUMNS if row.get(column)), "")
    if listed := row.get(list_column):
        sections = _listed_sections(listed, list_column, where)
        body = body or "\n\n".join("\n".join(filter(None, section)) for section in sections)
        return Document(title, abstract, body, sections)
    if not title and (heading := _TITLE.match(body)):
        title, body = heading[1] or heading[2], body[heading.end() :].strip()
    return Document(title, abstract, body, split_sections(body))


def split_sections(text: str) -> list[Section]:
    """The sections of a running text, by the headings of Markdown (## ...) and wikis (== ... ==).

    What stands before the first heading belongs to none; a heading of a lower level begins a section of its own.
    """
    headings = list(_HEADING.finditer(text))
    ends = [*(heading.start() for heading in headings[1:]), len(text)][: len(headings)]
    return [
        Section((heading["wiki"] or heading["mark"]).strip(), text[heading.end() : end].strip())
        for heading, end in zip(headings, ends, strict=True)
    ]


def _text(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise LongspanError(f"{column!r} is not a text", where=where, remedy="name another column, or correct the row")
    return (value or "").strip()


def _listed_sections(listed: Any, column: str, where: str) -> list[Section]:
    items = listed if isinstance(listed, list) else [listed]
    if not all(isinstance(item, dict) and isinstance(item.get("text"), str) for item in items):
        raise LongspanError(
            f"{column!r} does not list sections",
            where=where,
            remedy=f'write them as "{column}": [{{"heading": "...", "text": "..."}}, ...]',
        )
    headings = [next((item[key] for key in HEADING_KEYS if item.get(key)), "") for item in items]
    return [Section(str(heading).strip(), item["text"].strip()) for heading, item in zip(headings, items, strict=True)]


# --- pairs ------------------------------------------------------------------------------------------------------------


def _candidates(files: Sequence[str], config: LongPairsConfig, progress: Progress | None) -> Iterator[Candidate]:
    for file in files:
        for number, row in read_rows(file):
            document = read_document(row, config, f"{file}:{number}")
            for kind in config.kinds:
                yield from candidates(document, kind)
            if progress is not None:
                progress(1)


def candidates(document: Document, kind: Kind) -> Iterator[Candidate]:
    """The pairs of one kind that a document gives, or could have given."""
    if kind in ("title-body", "abstract-body"):
        name = kind.partition("-")[0]
        query = document.title if kind == "title-body" else document.abstract
        yield _candidate(kind, query, f"no {name}", document.body, "no body")
        return
    if not document.sections:
        yield Candidate(kind, "", "", "no sections")
    for section in document.sections:
        text, missing = (section.text, "empty section") if kind == "heading-section" else (document.body, "no body")
        # A heading alone, "History", says little: the title says whose.
        query = ": ".join(filter(None, (document.title, section.heading))) if section.heading else ""
        yield _candidate(kind, query, "no heading", text, missing)


def _candidate(kind: Kind, query: str, no_query: str, document: str, no_document: str) -> Candidate:
    if not query or not document:
        return Candidate(kind, query, document, no_document if query else no_query)
    # A document that repeats its query as a headline could be found without being understood. A query that begins its
    # first sentence, as titles do in Wikipedia, stays: the sentence would be broken.
    if document.startswith(query) and (rest := document[len(query) :].lstrip(" \t.:"))[:1] in ("", "\n"):
        document = rest.strip()
    return Candidate(kind, query, document, None if document else "query only")


def _measured(
    candidates: Iterator[Candidate], tokenizer: Tokenizer, config: LongPairsConfig
) -> Iterator[tuple[Candidate, int]]:
    """Candidates with the tokens of their documents (0 for those that cannot be made)."""
    prefix = PREFIXES[config.document_task]
    while batch := list(itertools.islice(candidates, _DOCUMENTS_AT_A_TIME)):
        ids = iter(tokenizer.encode([prefix + candidate.document for candidate in batch if candidate.reason is None]))
        for candidate in batch:
            yield candidate, 0 if candidate.reason else len(next(ids)) + _SPECIAL_TOKENS


def _length_reason(length: int, config: LongPairsConfig) -> str | None:
    if length < config.min_tokens:
        return f"fewer than {config.min_tokens} tokens"
    if config.max_tokens is not None and length > config.max_tokens:
        return f"more than {config.max_tokens} tokens"
    return None


def _draw(candidate: Candidate, seed: int) -> int:
    """A number of chance that belongs to the content, so that the order of the rows changes no choice."""
    text = json.dumps([seed, candidate.kind, candidate.query, candidate.document])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _share(tokens_N: np.ndarray, draws_N: np.ndarray, config: LongPairsConfig) -> np.ndarray:
    """Which pairs stay, so that `long_share` of them have a long document: all long ones and some of the others."""
    is_long_N = tokens_N > config.long_tokens
    keep_N = np.ones(len(tokens_N), bool)
    if config.long_share is None:
        return keep_N
    if not is_long_N.any():
        raise LongspanError(
            f"no document has more than {config.long_tokens} tokens, of {len(tokens_N):,}",
            where="long_share",
            remedy="leave the share out, or add longer documents",
        )
    # Rounded first: 7 * (1 - 0.3) / 0.3 is 16.333..., but 3 * (1 - 0.75) / 0.75 may come out below 1.
    num_short = math.floor(round(int(is_long_N.sum()) * (1 - config.long_share) / config.long_share, 9))
    short = np.flatnonzero(~is_long_N)
    keep_N[short[np.argsort(draws_N[short], kind="stable")[num_short:]]] = False
    return keep_N


class _Written:
    """The pairs that stay, counted by kind."""

    def __init__(self, path: Path, counts: dict[str, Counter[str]]) -> None:
        self._path, self._counts = path, counts
        self.examples: list[dict[str, Any]] = []

    def write(self, made: IO[str], keep_N: np.ndarray) -> None:
        every = max(1, int(keep_N.sum()) // NUM_EXAMPLES)
        num_kept = 0
        with json_lines(self._path) as write:
            for line, keep in zip(made, keep_N, strict=True):
                pair = json.loads(line)
                self._counts[pair["kind"]]["pairs" if keep else "beyond the share of short ones"] += 1
                if not keep:
                    continue
                write(pair)
                if num_kept % every == 0 and len(self.examples) < NUM_EXAMPLES:
                    self.examples.append(pair | {side: excerpt(pair[side]) for side in ("query", "document")})
                num_kept += 1


def _lengths(tokens_N: np.ndarray, long_tokens: int) -> dict[str, Any]:
    place_N = np.searchsorted(HISTOGRAM_EDGES, tokens_N)  # up to an edge, the edge included
    counts = np.bincount(place_N, minlength=len(HISTOGRAM_EDGES) + 1).tolist()
    names = [f"up to {edge}" for edge in HISTOGRAM_EDGES] + [f"over {HISTOGRAM_EDGES[-1]}"]
    quantiles = {str(q): int(np.quantile(tokens_N, q, method="inverted_cdf")) for q in (0.1, 0.5, 0.9, 0.99)}
    return {
        "tokens": int(tokens_N.sum()),
        "mean": round(float(tokens_N.mean()), 1),
        "longest": int(tokens_N.max()),
        "quantiles": quantiles,
        f"share_over_{long_tokens}": round(float((tokens_N > long_tokens).mean()), 4),
        "histogram": dict(zip(names, counts, strict=True)),
    }


def _reasons(counts: dict[str, Counter[str]]) -> str:
    parts = [f"{kind}: {count:,} x {reason}" for kind, reasons in counts.items() for reason, count in reasons.items()]
    return "; ".join(parts) or "there are no rows"
