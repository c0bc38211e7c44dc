"""A part of one's own data is held out, so that what is trained is measured on documents that it has not seen.

What belongs together stays on one side: equal queries, equal documents, and the sections of one file. So no document
that is asked for in the held-out part is in training, neither as an answer nor as a negative.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from longspan.adapt.own_data import OwnData, OwnPair
from longspan.errors import LongspanError
from longspan.evaluate.retrieval import RetrievalSet
from longspan.files import write_json_lines, write_text

FEWEST_TRAINED, FEWEST_HELD_OUT = 4, 4
"""With fewer pairs or queries neither training nor its measure means anything at all."""


@dataclass(frozen=True)
class Parts:
    """One's own data in two parts.

    Attributes:
        train: pairs to learn from.
        negatives: the documents among which their negatives are looked for: none that a held-out query asks for.
        held_out: queries that are measured; its corpus has the documents of both parts, as a search in use would.
        num_dropped: pairs that are in neither part, because a held-out set that was given asks the same.
    """

    train: tuple[OwnPair, ...]
    negatives: tuple[str, ...]
    held_out: RetrievalSet
    num_dropped: int


def normal(text: str) -> str:
    """The text without differences of case and white space."""
    return " ".join(text.lower().split())


def hold_out(data: OwnData, part: float, *, seed: int = 0) -> Parts:
    """Hold out about `part` of the pairs: whole groups of what belongs together, in an order that the seed gives.

    Raises:
        LongspanError: there are too few pairs, or they all belong together.
    """
    groups = sorted(_together(data.pairs), key=lambda group: _draw(group, seed))
    wanted = max(FEWEST_HELD_OUT, math.ceil(part * len(data.pairs)))
    held: list[OwnPair] = []
    for group in groups:
        held.extend(group if len(held) + len(group) <= wanted else ())
    if len(held) < FEWEST_HELD_OUT:
        # Few large files: the smallest that is large enough, as long as more is left than goes.
        fitting = [group for group in groups if FEWEST_HELD_OUT <= len(group) <= len(data.pairs) // 2]
        held = min(fitting, key=len, default=[])
    unseen = set(held)
    train = [pair for pair in data.pairs if pair not in unseen]
    _check(len(train), len({pair.query for pair in held}), "one's own data")
    held_out = _retrieval_set((pair for pair in data.pairs if pair in unseen), data.documents)
    return _parts(data, train, held_out, num_dropped=0)


def hold_out_given(data: OwnData, held_out: RetrievalSet) -> Parts:
    """Measure on a retrieval set that is there already: what it asks for, and what it asks, leaves training.

    Raises:
        LongspanError: too little is left.
    """
    queries = {normal(text) for text in held_out.queries.values()}
    asked_for = _asked_for(held_out)
    train = [
        pair for pair in data.pairs if normal(pair.query) not in queries and normal(pair.document) not in asked_for
    ]
    _check(len(train), len(held_out.queries), held_out.name)
    return _parts(data, train, held_out, num_dropped=len(data.pairs) - len(train))


def write_retrieval_set(held_out: RetrievalSet, folder: Path) -> None:
    """Write a retrieval set in BEIR's form, for `RetrievalSet.load` and for other tools.

    Raises:
        LongspanError: the folder cannot be written.
    """
    for name, texts in (("corpus", held_out.corpus), ("queries", held_out.queries)):
        write_json_lines(folder / f"{name}.jsonl", ({"_id": key, "text": text} for key, text in texts.items()))
    lines = [f"{query}\t{key}\t{gain:g}\n" for query, gains in held_out.qrels.items() for key, gain in gains.items()]
    write_text(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n" + "".join(lines))


def _parts(data: OwnData, train: Sequence[OwnPair], held_out: RetrievalSet, *, num_dropped: int) -> Parts:
    asked_for = _asked_for(held_out)
    negatives = tuple(text for text in data.documents if normal(text) not in asked_for)
    return Parts(tuple(train), negatives, held_out, num_dropped)


def _asked_for(held_out: RetrievalSet) -> set[str]:
    """The documents that are relevant to some query, normalised."""
    relevant = {key for gains in held_out.qrels.values() for key, gain in gains.items() if gain > 0}
    return {normal(held_out.corpus[key]) for key in relevant}


def _retrieval_set(pairs: Iterable[OwnPair], documents: Sequence[str]) -> RetrievalSet:
    document_ids = {text: f"d{number:08d}" for number, text in enumerate(documents)}
    query_ids: dict[str, str] = {}
    qrels: dict[str, dict[str, float]] = {}
    for pair in pairs:
        key = query_ids.setdefault(pair.query, f"q{len(query_ids):08d}")
        qrels.setdefault(key, {})[document_ids[pair.document]] = 1.0
    queries = {key: text for text, key in query_ids.items()}
    return RetrievalSet("held-out", queries, {key: text for text, key in document_ids.items()}, qrels)


def _together(pairs: Sequence[OwnPair]) -> list[list[OwnPair]]:
    """Pairs that share a query, a document or a group, directly or through others (union-find)."""
    parent = list(range(len(pairs)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    sides: tuple[Callable[[OwnPair], tuple[str, str]], ...] = (
        lambda pair: ("query", normal(pair.query)),
        lambda pair: ("document", normal(pair.document)),
        lambda pair: ("group", pair.group),
    )
    first: dict[tuple[str, str], int] = {}
    for number, pair in enumerate(pairs):
        for side in sides:
            parent[root(number)] = root(first.setdefault(side(pair), number))
    groups: dict[int, list[OwnPair]] = {}
    for number, pair in enumerate(pairs):
        groups.setdefault(root(number), []).append(pair)
    return list(groups.values())


def _draw(group: Sequence[OwnPair], seed: int) -> str:
    # By content, so that neither the order of the files nor their place changes the choice.
    text = min(f"{pair.query}\0{pair.document}" for pair in group)
    return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _check(num_train: int, num_held_out: int, where: str) -> None:
    if num_train < FEWEST_TRAINED or num_held_out < FEWEST_HELD_OUT:
        raise LongspanError(
            f"{num_train} pairs to train on and {num_held_out} queries to measure with are too few",
            where=where,
            remedy="add documents or pairs: at least some dozens of files or of rows, better hundreds. Pairs that "
            "share a query, a document or a file cannot be parted; or give a set of your own with --held-out",
        )
