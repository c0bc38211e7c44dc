"""Why the consistency filter kept or dropped one pair: what its query found before its own document.

Read from what the filter has left; the teacher is not needed. Axes: M distinct documents of the pair's sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longspan.curate.consistency import PairVectors, Rule, Sample, nearest_wrong, num_samples, sample_pairs
from longspan.curate.filter_state import (
    NUMBERS,
    RANKS,
    WORK,
    State,
    known_ranks,
    open_vectors,
    read_array,
    read_searches,
    read_state,
)
from longspan.curate.pairs import Pair, PairReader
from longspan.curate.report import Other
from longspan.curate.rows import REPORT
from longspan.curate.vectors import VectorBlocks
from longspan.errors import LongspanError
from longspan.files import read_json

NUM_SHOWN = 10


@dataclass(frozen=True)
class Explanation:
    """What the filter knows of a pair.

    Attributes:
        row: number of the pair in its source, from 1.
        score, rank: of its own document: the cosine, and how many others score above it.
        num_documents: distinct documents that it was judged among.
        nearest: the other documents nearest to the query, best first.
        kept: whether the pair was kept, by `rule`.
        ranks_known_to: up to which rank the filter's index looked; None: at all documents.
    """

    source: str
    row: int
    query: str
    document: str
    score: float
    rank: int
    num_documents: int
    rule: Rule
    kept: bool
    nearest: tuple[Other, ...]
    ranks_known_to: int | None = None

    @property
    def verdict(self) -> str:
        """One sentence."""
        word = "kept" if self.kept else "dropped"
        if self.rule.threshold is not None:
            side = "at or above" if self.kept else "below"
            return f"{word}: its score {self.score:.4f} is {side} the threshold {self.rule.threshold:g}"
        later = " or later" if self.rank == self.ranks_known_to else ""
        place = f"is number {self.rank + 1:,}{later} of {self.num_documents:,} for this query"
        return f"{word}: its document {place}, and the first {self.rule.k:,} are kept"


def explain(out: Path, row: int, *, num_shown: int = NUM_SHOWN) -> Explanation:
    """Explain pair number `row` (from 1) of the source that was filtered into `out`.

    Raises:
        LongspanError: the filter has not finished there, its vectors or the source's files are gone or have changed, or
            there is no such row.
    """
    state, rule = read_state(out), _rule(out)
    if not 1 <= row <= state.num_pairs:
        raise LongspanError(
            f"there is no row {row}", where=state.source.name, remedy=f"name one from 1 to {state.num_pairs:,}"
        )
    vectors, pair = open_vectors(out, state), row - 1
    judged = read_array(out / WORK / RANKS)[pair]
    sample = _sample_of(pair, vectors, state)
    scores_1K, pairs_1K = nearest_wrong(vectors, sample, np.array([pair]), num_shown)
    found = [(float(score), int(other)) for score, other in zip(scores_1K[0], pairs_1K[0], strict=True) if other >= 0]
    texts = _texts(state, {pair, *(other for _, other in found)})
    _check(out, state, texts)
    return Explanation(
        source=state.source.name,
        row=row,
        query=texts[pair].query,
        document=texts[pair].document,
        score=float(judged["score"]),
        rank=int(judged["rank"]),
        num_documents=len(sample.documents_M),
        rule=rule,
        kept=bool(rule.keeps(judged)),
        nearest=tuple(Other(texts[other].document, score, other + 1) for score, other in found),
        ranks_known_to=known_ranks(state, read_searches(out)),
    )


def rows_with_query(out: Path, text: str) -> list[int]:
    """The rows (from 1) whose query is this text; where there is none, those whose query holds it, whatever its case.

    Raises:
        LongspanError: no filter was begun in `out`, the source's files are gone, or no query matches.
    """
    wanted = text.strip()
    exact, holding = [], []
    for number, pair in enumerate(PairReader(read_state(out).source), 1):
        if pair.query.strip() == wanted:
            exact.append(number)
        elif wanted.lower() in pair.query.lower():
            holding.append(number)
    if not exact and not holding:
        raise LongspanError(f"no query holds {text!r}", where=out, remedy="name the pair by --row")
    return exact or holding


def _rule(out: Path) -> Rule:
    report = read_json(out / REPORT, remedy="run `longspan curate filter` again, to its end")
    return Rule(report["k"], report["threshold"])


def _sample_of(pair: int, vectors: PairVectors, state: State) -> Sample:
    numbers = range(num_samples(state.num_pairs, state.sample_size))
    number = next(n for n in numbers if pair in sample_pairs(n, state.num_pairs, state.sample_size, state.seed))
    return Sample.draw(number, vectors, state.sample_size, state.seed)


def _texts(state: State, pairs: set[int]) -> dict[int, Pair]:
    found, last = {}, max(pairs)
    for number, pair in enumerate(PairReader(state.source)):
        if number in pairs:
            found[number] = pair
        if number == last:
            break
    if len(found) < len(pairs):
        raise _changed(state)
    return found


def _check(out: Path, state: State, texts: dict[int, Pair]) -> None:
    """Refuse texts that are not those of the vectors."""
    numbers_N2 = read_array(out / WORK / NUMBERS)
    queries, documents = (
        VectorBlocks(out / folder, state.dim) for folder in (state.query_vectors, state.document_vectors)
    )
    for number, pair in texts.items():
        query, document = numbers_N2[number].tolist()
        if not queries.holds(query, pair.query) or not documents.holds(document, pair.document):
            raise _changed(state)


def _changed(state: State) -> LongspanError:
    return LongspanError(
        "the source has changed since it was filtered",
        where=", ".join(state.source.files) or state.source.name,
        remedy="filter it again",
    )
