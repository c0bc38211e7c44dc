"""A teacher without a model: a text's vector is a function of its words, quick and exact."""

import functools
import hashlib
import json
import re
import zlib

import numpy as np
import pytest

from longspan.errors import LongspanError


class WordsEmbedder:
    """Texts with the same first number are near each other; a text always has the same vector.

    Counts what it embeds, and can break off after some calls, as a killed process does.
    """

    dim = 24
    name = "words"

    def __init__(self, fingerprint: str = "words-1") -> None:
        self.fingerprint, self.precision = fingerprint, "float32"
        self.embedded: list[tuple[str, str | None, int | None]] = []
        self.calls_left: int | None = None

    def embed(
        self, texts, *, task=None, dim=None, max_length=None, truncate=False, progress=None, on_cut=None, on_tokens=None
    ):
        if self.calls_left is not None:
            if not self.calls_left:
                raise KeyboardInterrupt
            self.calls_left -= 1
        if not truncate:
            raise LongspanError("a store cuts long texts", where="-", remedy="-")
        self.embedded += [(text, task, max_length) for text in texts]
        if on_tokens is not None:
            on_tokens(sum(len(text.split()) for text in texts))
        return np.stack([self.vector(text, task, max_length) for text in texts])

    def vector(self, text, task=None, max_length=None) -> np.ndarray:
        number = re.search(r"\d+", text)
        about = _random(number[0] if number else text)
        own = _random(f"{text}|{task}|{max_length}|{self.fingerprint}")
        vector_D = about + 0.15 * own
        return (vector_D / np.linalg.norm(vector_D)).astype(np.float32)


class BagOfWords:
    """A teacher that needs no weights: the words of a text, hashed to random directions, rare words counting more."""

    dim, name, fingerprint, precision = 256, "words", "bag-1", "float32"

    def embed(self, texts, **options):
        vectors_ND = np.stack([sum(map(self._direction, set(re.findall(r"\w+", text.lower())))) for text in texts])
        return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)

    @functools.cache  # noqa: B019
    def _direction(self, word: str) -> np.ndarray:
        return len(word) * np.random.default_rng(zlib.crc32(word.encode())).normal(size=self.dim)


def _random(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(size=WordsEmbedder.dim)


@pytest.fixture(scope="session")
def make_embedder():
    """Makes `WordsEmbedder`s."""
    return WordsEmbedder


@pytest.fixture(scope="session")
def bag_of_words():
    """A `BagOfWords`."""
    return BagOfWords()


@pytest.fixture
def word_pairs(tmp_path) -> str:
    """A file of 30 pairs in the words of the small models; some queries and documents stand in several."""
    words = "the quick brown fox jumps over lazy dogs".split()
    rows = [
        {
            "query": " ".join(words[n % 7 : n % 7 + n // 7 + 1]),
            "document": " ".join(words[-(n % 6) - 1 :] * (n % 4 + 1)),
        }
        for n in range(30)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "pairs.jsonl")
