"""Documentation and code -> pairs of a query and the document that answers it.

There are four kinds, which are four sources of training: `docstring`, `code`, `name` and `long`. All functions are
pure; a pair that is not worth learning from is refused with a reason, so that a report can count them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from longspan.demo.installed import Distribution, order
from longspan.demo.python_docs import Module, PythonObject, clean, name_words

LONG_TOKENS = 2600
"""A text with more of these tokens (`num_tokens`) has more than 2048 of any tokenizer's."""

FEWEST_LONG_TOKENS, MOST_LONG_TOKENS = 1_000, 12_000
"""Lengths allowed in the source `long`. A longer text is left out, never cut."""

MOST_SHORT_TOKENS = 1_000
"""Longest document of the other sources, so that a step's cost is foreseeable."""

MOST_WORDS_OF_QUERY = 40

FEWEST_WORDS = {"docstring": 20, "name": 10}
"""Of the document, by source."""

LEAST_DOCUMENTATION = 0.05
"""Part of the characters of a whole file that is documentation."""

_TOKEN = re.compile(r"\w+|[^\w\s]")
_ROLE = re.compile(r":[\w:]+:`[~!]?([^`<]*?)(?:\s*<[^`>]*>)?`")
_NUMBERED = re.compile(r":(rfc|pep|issue):`([^`]*)`")
_LINK = re.compile(r"\[([^\[\]]+)\](?:\([^()\s]*\)|\[[^\[\]]*\])")  # Markdown
_NOT_A_QUERY = re.compile(
    r"^(\W*(todo|fixme|xxx|deprecated|see\b|alias\b|same as|internal|helper|docstring|test\b|copyright|licen[sc]ed|"
    r"args?:|arguments:|parameters:|returns:|example|note:|warning:|inherited|"
    r"(adapted|copied|taken) from)|[^\w`'\"\[(*]|\.\.|>>>|https?:)",
    re.I,
)


@dataclass(frozen=True)
class Pair:
    """A query and its document. `id` is the dotted name of what they describe, `package` the group it counts for."""

    id: str
    package: str
    query: str
    document: str


def num_tokens(text: str) -> int:
    """Words and punctuation marks of a text: a lower bound of the tokens any sub-word tokenizer makes of it."""
    return len(_TOKEN.findall(text))


def normal(text: str) -> str:
    """The text without differences of case, white space and backticks: equal here means equal to a reader."""
    return " ".join(text.lower().replace("`", "").split())


def as_query(summary: str) -> str:
    """A summary line as a person would type it: without markup and the final full stop."""
    text = _NUMBERED.sub(r"\1 \2", summary)  # :rfc:`3986` is RFC 3986
    text = _LINK.sub(r"\1", _ROLE.sub(r"\1", text)).replace("``", "`").replace("`", "").replace("**", "")
    return text.strip().rstrip(".:").strip()


def docstring_pair(item: PythonObject, package: str) -> Pair:
    """First sentence -> the rest of the docstring."""
    return Pair(item.id, package, as_query(item.summary), item.body)


def code_pair(item: PythonObject, package: str) -> Pair:
    """First sentence of the docstring -> the function's source without it."""
    return Pair(item.id, package, as_query(item.summary), item.code)


def name_pair(item: PythonObject, package: str) -> Pair:
    """Where a thing stands and what it takes, in words <-> what it is: two views of one thing."""
    query = name_words(item.id, *item.parameters[:12])
    return Pair(item.id, package, query, f"{item.summary}\n\n{item.body}".strip())


def long_pair(module: Module) -> Pair:
    """What a module is for (its title, else its name in words) -> the whole rest of the file."""
    title = as_query(module.summary)
    if _query_refusal(title, 3):
        return Pair(module.name, module.package, name_words(module.name), module.source)
    document = f'"""{module.body}\n"""\n\n{module.source}' if module.body else module.source
    return Pair(module.name, module.package, title, document)


def readme_pair(distribution: Distribution) -> Pair:
    """Name and one-line summary of a distribution -> its README."""
    name, text = distribution.name, clean(distribution.description).strip()
    return Pair(f"{name}.README", name, f"{name}: {distribution.summary}", text)


def document_pair(name: str, package: str, text: str) -> Pair:
    """First heading of a Markdown or reStructuredText file -> what follows it."""
    title, _, rest = clean(text).strip().partition("\n")
    return Pair(name, package, title.lstrip("# ").strip(), rest.lstrip("=-~*#\n ").rstrip())


def is_documented(module: Module) -> bool:
    """Whether enough of a file is documentation to be a text: tables and bare scripts are not."""
    size = len(module.body) + sum(len(item.summary) + len(item.body) for item in module.objects)
    return bool(module.objects) and size >= LEAST_DOCUMENTATION * len(module.source)


def is_for_code(item: PythonObject) -> bool:
    """Which of `docstring` and `code` an object goes to. It goes to one only: their queries would be the same."""
    if not item.code or item.code.count("\n") < 4:
        return False
    return len(item.body.split()) < 20 or int(order(0, item.id)[0], 16) < 8


def refusal(source: str, pair: Pair, *, fewest_words: int) -> str | None:
    """Why a pair is not worth learning from, or None if it is. `fewest_words` is for the query."""
    return (
        _query_refusal(pair.query, fewest_words)
        or _document_refusal(source, pair.document)
        or ("query stands in its document" if normal(pair.query) in normal(pair.document) else None)
    )


def _query_refusal(query: str, fewest_words: int) -> str | None:
    if len(re.findall(r"[^\W\d_]{2,}", query)) < fewest_words:
        return "query too short"
    if len(query.split()) > MOST_WORDS_OF_QUERY:
        return "query too long"
    if _NOT_A_QUERY.match(query):
        return "query says nothing"
    return "mostly not ASCII" if _is_foreign(query) else None


def _document_refusal(source: str, document: str) -> str | None:
    num_words = len(document.split())
    num_lines = sum(1 for line in document.split("\n") if line.strip())
    least, most = (FEWEST_LONG_TOKENS, MOST_LONG_TOKENS) if source == "long" else (0, MOST_SHORT_TOKENS)
    tokens = num_words if num_words > most else num_tokens(document)  # counting tokens is the dear part
    if num_words < FEWEST_WORDS.get(source, 0) or (source == "code" and num_lines < 5) or tokens < least:
        return "document too short"
    if tokens > most:
        return "document too long"
    if sum(map(document.count, "0123456789")) > len(document) * 0.12:
        return "document is a table"
    return "mostly not ASCII" if _is_foreign(document) else None


class Sampler:
    """Takes pairs in an order that depends on the seed, and lets every query and every document through once.

    One sampler serves all the sources, so that nothing occurs in two of them. `dropped` counts what was refused, as
    "source: reason".

    Args:
        share: the largest part of a source that one package may give.
    """

    def __init__(self, *, share: float, seed: int) -> None:
        self.dropped: Counter[str] = Counter()
        self._share, self._seed = share, seed
        self._seen: set[str] = set()

    def take(self, source: str, pairs: Iterable[Pair], *, most: int, fewest_words: int = 3) -> list[Pair]:
        """At most `most` of the pairs, of which no package gives more than its share."""
        of_package: Counter[str] = Counter()
        taken: list[Pair] = []
        for pair in sorted(pairs, key=lambda pair: order(self._seed, source, pair.id)):
            if len(taken) == most:
                break
            if of_package[pair.package] >= self._share * most:
                continue
            reason = refusal(source, pair, fewest_words=fewest_words) or self._duplicate(pair)
            if reason:
                self.dropped[f"{source}: {reason}"] += 1
            else:
                of_package[pair.package] += 1
                taken.append(pair)
        return taken

    def _duplicate(self, pair: Pair) -> str | None:
        keys = {f"query {normal(pair.query)}", f"document {normal(pair.document)}"}
        if keys & self._seen:
            return "duplicate"
        self._seen |= keys
        return None


def _is_foreign(text: str) -> bool:
    return len(text.encode("ascii", "ignore")) < 0.7 * len(text)
