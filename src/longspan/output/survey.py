"""What there is to embed, found by reading it once: how many texts, in which blocks, and a sample of them.

The number of texts tells how long the rest takes and how large the file becomes; a digest tells a run that goes on
whether the texts are still the same. Texts that the model does not read whole are found before anything is embedded.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from longspan.embedder import TOKENS_PER_BATCH, Embedder
from longspan.errors import LongspanError
from longspan.output.texts import Text

SAMPLE = 4096
"""Texts whose vectors calibrate int8, drawn from all of them."""

_TEXTS_PER_BLOCK = 16_384
_CHARACTERS_PER_TOKEN_OF_A_BATCH = 128
"""A block holds some thirty batches: enough to sort texts by length, and what a kill costs at most."""
_LONGEST_PER_TOKEN = 8
"""Of a text that will be cut, so many characters for each token that is read are counted."""
_TOKENS_PER_CHARACTER = 4
"""At most: a syllable of Hangul is taken apart into three letters. Shorter texts need no look."""
_TEXTS_PER_LOOK = 256


@dataclass
class Survey:
    """What one reading has found.

    Attributes:
        num_texts: how many.
        digest: hex hash of all texts in their order.
        starts: number of the first text of each block.
        sample: texts drawn from all with equal chance, at most `SAMPLE`; empty if none was asked for.
    """

    num_texts: int = 0
    digest: str = ""
    starts: list[int] = field(default_factory=list)
    sample: list[str] = field(default_factory=list)

    def end(self, block: int) -> int:
        """Number of the text behind a block."""
        return self.starts[block + 1] if block + 1 < len(self.starts) else self.num_texts


def survey(
    texts: Iterable[Text],
    embedder: Embedder,
    *,
    task: str | None,
    max_length: int | None,
    truncate: bool,
    with_sample: bool,
) -> Survey:
    """Read all texts once.

    Args:
        truncate: texts that are too long will be cut; otherwise they are refused here.
        with_sample: draw a sample.

    Raises:
        LongspanError: a text that is too long (named by its place); whatever reading raises.
    """
    limit = embedder.config.max_length if max_length is None else max_length
    room = TOKENS_PER_BATCH.get(embedder.device.type, TOKENS_PER_BATCH["cpu"]) * _CHARACTERS_PER_TOKEN_OF_A_BATCH
    found, digest, drawn = Survey(), hashlib.sha256(), random.Random(0)
    overhead = 0 if truncate else embedder.num_tokens(["."], task=task)[0]
    left = 0
    suspects: list[Text] = []
    for number, text in enumerate(texts):
        if left <= 0 or number - found.starts[-1] == _TEXTS_PER_BLOCK:
            found.starts.append(number)
            left = room
        left -= min(len(text.text), limit * _LONGEST_PER_TOKEN)
        encoded = text.text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
        if with_sample:
            _draw(found.sample, text.text, number, drawn)
        if not truncate and len(text.text) * _TOKENS_PER_CHARACTER + overhead > limit:
            suspects.append(text)
            if len(suspects) == _TEXTS_PER_LOOK:
                _refuse_long(suspects, embedder, task, limit)
                suspects = []
        found.num_texts = number + 1
    _refuse_long(suspects, embedder, task, limit)
    found.digest = digest.hexdigest()
    return found


def _draw(sample: list[str], text: str, number: int, drawn: random.Random) -> None:
    """Reservoir sampling (Vitter's algorithm R): text `number` takes the place of another with the right chance."""
    if number < SAMPLE:
        sample.append(text)
    elif (place := drawn.randrange(number + 1)) < SAMPLE:
        sample[place] = text


def _refuse_long(texts: list[Text], embedder: Embedder, task: str | None, limit: int) -> None:
    for text, num_tokens in zip(texts, embedder.num_tokens([text.text for text in texts], task=task), strict=True):
        if num_tokens > limit:
            raise LongspanError(
                f"the text has {num_tokens:,} tokens, more than {limit:,}",
                where=text.where,
                remedy="split it, or pass --truncate to read only its beginning",
            )
