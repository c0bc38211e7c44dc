"""The held-out retrieval set of the demo: queries, and a small library in which each has one answer.

Whole modules are held out, so that no query shares a file with a training text. Packages copy from each other, too:
a query or document that occurs anywhere in the other modules is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from longspan.demo.installed import order
from longspan.demo.pairs import Pair, Sampler, as_query, code_pair, docstring_pair, is_for_code, normal
from longspan.demo.python_docs import Module

PART = 0.15
"""Part of the modules that is held out."""

MOST_WORDS = 300
"""Longest held-out document, so that an evaluation takes seconds."""

FEWEST_QUERY_WORDS = 5
"""Shorter queries fit too many documents."""


@dataclass(frozen=True)
class Heldout:
    """`queries` have their one relevant document in `corpus`, under the same id; the rest of `corpus` distracts."""

    queries: Sequence[Pair]
    corpus: Sequence[Pair]


def is_held_out(module: str, seed: int) -> bool:
    """Whether a module belongs to the held-out set: a pure function of its name and the seed."""
    return int(order(seed, "held out", module)[:8], 16) < PART * 16**8


@dataclass(frozen=True)
class Seen:
    """What training may see: whole texts (summaries, docstring bodies, function bodies), normalised, and lines."""

    texts: Set[str]
    lines: Set[str]

    @classmethod
    def of(cls, modules: Iterable[Module]) -> Seen:
        """Gather the texts and lines of modules that are not held out."""
        texts: set[str] = set()
        lines: set[str] = set()
        for module in modules:
            texts |= {normal(as_query(module.summary)), normal(module.body)}
            for item in module.objects:
                texts |= {normal(as_query(item.summary)), normal(item.body), normal(item.code)}
            for text in (module.body, module.source):
                lines.update(map(str.strip, text.split("\n")))
        return cls(texts, lines)

    def holds(self, pair: Pair) -> bool:
        """Whether the query or the document was seen: as a whole, or every single line of it somewhere."""
        if not self.texts.isdisjoint({normal(pair.query), normal(pair.document)}):
            return True
        return all(line.strip() in self.lines for line in pair.document.split("\n"))


def build(
    modules: Iterable[Module], *, seen: Seen, num_queries: int, num_distractors: int, share: float, seed: int
) -> Heldout:
    """Choose queries and distractors from held-out modules: half of either ask for documentation, half for code.

    Args:
        modules: held-out modules only.
        seen: what training may see; no query or document of it is used.
        num_queries: how many there should be; there are fewer if the modules hold fewer.
        num_distractors: likewise.
        share: the largest part that one package may give.
        seed: another seed, another choice.
    """
    pairs: dict[str, list[Pair]] = {"docstring": [], "code": []}
    for module in modules:
        for item in module.objects:
            source, make = ("code", code_pair) if is_for_code(item) else ("docstring", docstring_pair)
            pair = make(item, module.package)
            if len(pair.document.split()) <= MOST_WORDS and not seen.holds(pair):
                pairs[source].append(pair)
    sampler = Sampler(share=share, seed=seed)
    queries: list[Pair] = []
    distractors: list[Pair] = []
    for position, source in enumerate(pairs):
        asked = sampler.take(source, pairs[source], most=(num_queries + position) // 2, fewest_words=FEWEST_QUERY_WORDS)
        used = {pair.id for pair in asked}
        others = [pair for pair in pairs[source] if pair.id not in used]
        queries += asked
        distractors += sampler.take(source, others, most=(num_distractors + position) // 2)
    return Heldout(queries, sorted(queries + distractors, key=lambda pair: pair.id))
