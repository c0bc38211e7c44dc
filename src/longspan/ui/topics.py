"""Regions of a map and the words that stand out in them, as signposts for people.

Axes: M passages, C regions, V words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longspan.ui.words import STOP_WORDS, WORD

_LEVELS = (150, 30)
"""Passages of a region on average: of the few large ones, and of the small ones that show when one comes nearer."""
_MOST_REGIONS = (14, 90)
_SHORTEST_WORD = 3
_FEWEST_PASSAGES = 3
"""A word that fewer passages of a region have is no word for it."""
_COMMON_START = 4
"""Two words that begin alike so far say the same on a signpost."""
_STEPS = 25


@dataclass(frozen=True)
class Topic:
    """A signpost: words at a place of the map; level 0 from afar, level 1 from near."""

    x: float
    y: float
    words: str
    level: int


def topics(places_M2: np.ndarray, texts: Sequence[str]) -> list[Topic]:
    """Signposts of a map, few where there are few passages."""
    words_M = [_words(text) for text in texts]
    everywhere: Counter[str] = Counter(word for words in words_M for word in words)
    found = []
    for level, (size, most) in enumerate(zip(_LEVELS, _MOST_REGIONS, strict=True)):
        regions_M = regions(places_M2, min(most, max(1, len(texts) // size)))
        for region in range(int(regions_M.max()) + 1):
            members = np.flatnonzero(regions_M == region)
            words = _standing_out([words_M[m] for m in members], everywhere, len(texts))
            if words:
                x, y = np.median(places_M2[members], axis=0).tolist()
                found.append(Topic(x, y, words, level))
    return found


def regions(places_M2: np.ndarray, num_regions: int, seed: int = 0) -> np.ndarray:
    """The region of each place, int64 (M,), by k-means; there may be fewer regions than asked for."""
    random = np.random.default_rng(seed)
    centres_C2 = places_M2[random.choice(len(places_M2), 1)]
    while len(centres_C2) < num_regions:  # k-means++
        nearest_M = _squared_distances(places_M2, centres_C2).min(axis=1)
        if not nearest_M.sum():
            break
        chosen = random.choice(len(places_M2), p=nearest_M / nearest_M.sum())
        centres_C2 = np.concatenate([centres_C2, places_M2[[chosen]]])
    for _ in range(_STEPS):
        regions_M = _squared_distances(places_M2, centres_C2).argmin(axis=1)
        members = [places_M2[regions_M == c] for c in range(len(centres_C2))]
        centres_C2 = np.stack([m.mean(axis=0) if len(m) else centres_C2[c] for c, m in enumerate(members)])
    return _squared_distances(places_M2, centres_C2).argmin(axis=1)


def _squared_distances(places_M2: np.ndarray, centres_C2: np.ndarray) -> np.ndarray:
    # Coordinate by coordinate, so that no (M, C, 2) array is made.
    return sum(
        np.square(np.subtract.outer(places_M2[:, axis].astype(np.float64), centres_C2[:, axis])) for axis in range(2)
    )  # pyright: ignore[reportReturnType]


def _words(text: str) -> frozenset[str]:
    found = (match[0].casefold() for match in WORD.finditer(text))
    return frozenset(w for w in found if len(w) >= _SHORTEST_WORD and w.isalpha() and w not in STOP_WORDS)


def _standing_out(words_of_members: Sequence[frozenset[str]], everywhere: Counter[str], num_texts: int) -> str:
    """The two words whose share of the passages here goes most beyond that of all: p log(p / q)."""
    here: Counter[str] = Counter(word for words in words_of_members for word in words)
    scores = {}
    for word, count in here.items():
        share, share_everywhere = count / len(words_of_members), everywhere[word] / num_texts
        if count >= min(_FEWEST_PASSAGES, num_texts) and (
            share > share_everywhere or len(words_of_members) == num_texts
        ):
            scores[word] = share * np.log(share / share_everywhere)
    chosen: list[str] = []
    for word in sorted(scores, key=lambda word: (-scores[word], word)):
        if all(word[:_COMMON_START] != other[:_COMMON_START] for other in chosen):
            chosen.append(word)
        if len(chosen) == 2:
            break
    return ", ".join(chosen)
