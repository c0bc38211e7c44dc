"""What the page shows: passages by source, their vectors, and the map.

Axes: M passages, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longspan.search import Index, Passage
from longspan.ui.topics import Topic, topics


@dataclass(frozen=True)
class Source:
    """A source of passages: its name, and the numbers that its passages have."""

    name: str
    passages: range


class Corpus:
    """Passages that can be searched by source, and a map of them.

    Args:
        index: passages in the order of `by_source`, and their vectors.
        places_M2: the place of each on the map, between 0 and 1.
    """

    def __init__(self, index: Index, places_M2: np.ndarray) -> None:
        self.index = index
        self.passages = index.passages
        self.places_M2 = places_M2
        self.sources = _sources(self.passages)
        self.topics: list[Topic] = topics(places_M2, [passage.text for passage in self.passages])

    def nearest(self, query_D: np.ndarray, k: int, sources: Sequence[str] | None = None) -> list[tuple[int, float]]:
        """Numbers and scores of the `k` passages nearest to a vector, best first; only of `sources` if given.

        Raises:
            KeyError: there is no such source.
        """
        if sources is None:
            return self.index.nearest(query_D[None], k)
        by_name = {source.name: source.passages for source in self.sources}
        found = [hit for name in set(sources) for hit in self.index.nearest(query_D[None], k, by_name[name])]
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))[:k]


def by_source(passages: Sequence[Passage]) -> list[Passage]:
    """Passages with those of one source beside each other, so that a source's vectors are a slice; largest first."""
    sizes: dict[str, int] = {}
    for passage in passages:
        sizes[passage.source] = sizes.get(passage.source, 0) + 1
    return sorted(passages, key=lambda passage: (-sizes[passage.source], passage.source))


def _sources(passages: Sequence[Passage]) -> list[Source]:
    sources, start = [], 0
    for name, group in itertools.groupby(passages, key=lambda passage: passage.source):
        stop = start + sum(1 for _ in group)
        sources.append(Source(name, range(start, stop)))
        start = stop
    return sources
