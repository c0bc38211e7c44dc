"""Texts on which stacks are compared: every length that matters, every task, and what tokenizers stumble over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longspan.embedder import Embedder

ODD_TEXTS = (
    "Straße, naïve café, 東京 — ½ and a number: 3.14159",
    "e\u0301le\u0300ve, A\u030angstro\u0308m, \ufb01n, \uff21\uff22\uff23, \U0001d49c",  # combining, ligature, wide
    "מה שלומך؟ كيف حالك, नमस्ते दुनिया, 안녕하세요, Привет, мир",
    "👩\u200d👩\u200d👧 family, 🏳️\u200d🌈 flag, 😀😀😀",
    "İstanbul ISPARTA ǅungla ΣΊΣΥΦΟΣ",
    "tabs\tand\nlines\r\nand\u00a0spaces\u3000of\u2009every\u200bkind ",
    "null\x00bell\x07escape\x1b soft\u00adhyphen \ufeffmark \ufffd",
    "?!...---###$$$",
    "[MASK] is a token, and so are [SEP], [CLS] and [PAD].",
    "##ing ##s # # a##b",
    "def area(radius: float) -> float:\n    return math.pi * radius ** 2  # πr²",
    "x" * 150,  # WordPiece reads words of more than 100 characters as unknown
    "https://example.org/a?b=c&d=%20#e_f-g",
    "fox",
    "?",
)
"""Unicode in its forms, white space, control characters, special tokens as text, code, very long words, one token."""

_EDGES = (16, 128, 512, 2048, 8192)
_MIXED_LENGTHS = (3, 12, 40, 100)
ODD, MIXED = "odd texts", "a mixed batch, in two orders"
"""Names of groups; the others are ranges of lengths."""


@dataclass(frozen=True)
class Probe:
    """One text to be embedded.

    Attributes:
        group: what it is reported under.
        num_tokens: with prefix and special tokens.
    """

    text: str
    task: str | None
    group: str
    num_tokens: int


def make_probes(embedder: Embedder, max_length: int) -> list[Probe]:
    """Probes of at most `max_length` tokens, the short ones of every task, in the order in which they are reported."""
    trained = embedder.model.encoder.config.trained_length
    tasks: list[str | None] = list(embedder.config.prefixes) or [None]
    wanted = [
        *_EDGES,
        *(2**power for power in range(13)),
        trained - 1,
        trained,
        trained + 1,
        trained * 3 // 2,
        max_length,
    ]
    lengths = sorted({length for length in wanted if length <= max_length})
    pairs = []
    for number, length in enumerate(lengths):
        chosen = tasks if length <= 128 else [tasks[number % len(tasks)]]
        pairs += [(task, _text(embedder, task, length)) for task in chosen]
    edges = sorted({edge for edge in (*_EDGES, trained) if edge < max_length} | {max_length})
    probes = [_probe(embedder, text, task, edges) for task, text in dict.fromkeys(pairs)]
    for number, text in enumerate(ODD_TEXTS):
        task = tasks[number % len(tasks)]
        probe = _probe(embedder, text, task, edges)
        if probe.num_tokens <= max_length:
            probes.append(Probe(text, task, ODD, probe.num_tokens))
    return probes


def mixed_batch(embedder: Embedder, max_length: int) -> list[Probe]:
    """Probes of one task for one batch: short ones, and one past the trained length if `max_length` allows it."""
    trained = embedder.model.encoder.config.trained_length
    task = next(iter(embedder.config.prefixes), None)
    lengths = sorted({length for length in (*_MIXED_LENGTHS, trained + 1) if length <= max_length})
    texts = dict.fromkeys(_text(embedder, task, length) for length in lengths)
    counts = embedder.num_tokens(list(texts), task=task)
    return [Probe(text, task, MIXED, count) for text, count in zip(texts, counts, strict=True)]


def _probe(embedder: Embedder, text: str, task: str | None, edges: Sequence[int]) -> Probe:
    num_tokens = embedder.num_tokens([text], task=task)[0]
    above = next((edge for edge in edges if num_tokens <= edge), num_tokens)
    below = max((edge for edge in edges if edge < above), default=0)
    return Probe(text, task, f"{below + 1:,} to {above:,} tokens", num_tokens)


def _text(embedder: Embedder, task: str | None, length: int) -> str:
    """A text of `length` tokens, prefix and special tokens included, but of at least one word."""
    words = whole_words(embedder)
    overhead = embedder.num_tokens([words[0]], task=task)[0] - 1
    chosen = np.random.default_rng([length, overhead]).integers(len(words), size=max(1, length - overhead))
    return " ".join(words[number] for number in chosen)


def whole_words(embedder: Embedder) -> list[str]:
    """Words that are one token each, so that texts of any length can be made of them."""
    vocabulary = json.loads(embedder.tokenizer.definition())["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and word.islower())
    whole = [word for word, ids in zip(words, embedder.tokenizer.encode(words), strict=True) if len(ids) == 1]
    return [word for word in whole if len(word) > 2] or whole
