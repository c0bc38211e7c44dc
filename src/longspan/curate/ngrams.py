"""Texts as sets of word n-grams, for finding copies.

A word's hash depends on the word alone: it is the same in every process and on every machine.

Axes: W words, G n-grams.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np

# Scripts that put no spaces between words: there, every character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_WORD_OR_SIGN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")

_WORDS_REMEMBERED = 2**20
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def normalised(text: str) -> str:
    """The text without what copies differ in: compatibility forms (NFKC), case, and kinds and number of spaces."""
    if not text.isascii():  # what is ASCII is in this form already
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def words(text: str, *, signs: bool = False) -> list[str]:
    """The words of the normalised text.

    Args:
        signs: every punctuation mark and symbol is a word too, so that "C++" and "C#" differ.
    """
    return (_WORD_OR_SIGN if signs else _WORD).findall(normalised(text))


class _WordHashes(dict[str, int]):
    """A word's 64-bit hash, computed when it is first asked for."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = number = int.from_bytes(digest, "little")
        return number


class NgramHasher:
    """Word n-grams as 64-bit hashes. Two different n-grams have one hash with a chance of 2^-64."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._hash_of = _WordHashes()

    def hashes(self, words: list[str]) -> np.ndarray:
        """The distinct n-grams, ascending uint64; of fewer than n words the only one is the whole text."""
        if len(self._hash_of) > _WORDS_REMEMBERED:
            self._hash_of.clear()
        words_W = np.fromiter(map(self._hash_of.__getitem__, words), np.uint64, len(words))
        length = min(self.n, len(words))
        ngrams_G = np.zeros(len(words) - length + 1 if words else 0, np.uint64)
        for place in range(length):
            ngrams_G = ngrams_G * _FACTOR + words_W[place : place + len(ngrams_G)]
        ngrams_G ^= ngrams_G >> np.uint64(31)
        ngrams_G *= _MIX
        return np.unique(ngrams_G ^ (ngrams_G >> np.uint64(29)))
