"""Runs of seconds: a vocabulary of syllables, synthetic prepared data, and configurations of tiny models.

Nothing here depends on a library's version: the vocabulary is written out, not trained, and the texts come from
Python's own random numbers.
"""

import itertools
import json
import random
from pathlib import Path
from typing import Any

from longspan.data.prepare import prepare
from longspan.data.source import PairSource, TextSource
from longspan.model.config import EncoderConfig
from longspan.objective.contrastive import ContrastiveConfig
from longspan.objective.mlm import MaskedConfig
from longspan.text.tokenizer import SPECIAL_TOKENS, Tokenizer
from longspan.train.config import TrainConfig
from longspan.train.optim import OptimConfig
from longspan.train.schedule import ScheduleConfig

WORDS = [
    *("".join(pair) for pair in itertools.product("bdfgklmnprst", "aeiou")),
    "search",
    "query",
    "document",
    "classification",
    "clustering",
    "_",
    ":",
]
"""Every word of the texts and of the prefixes is one token."""

ENCODER = EncoderConfig(
    width=16, num_layers=2, num_heads=2, inner_width=24, trained_length=32, max_length=64, vocab_multiple=8
)
NUM_NEGATIVES = 5


def make_tokenizer(folder: Path) -> Tokenizer:
    """One token per word of `WORDS`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]), "utf-8")
    return Tokenizer.load(folder / "vocab.txt")


def prepare_text(folder: Path, *, num_documents: int = 60, seed: int = 0) -> Path:
    """Prepared running text; returns the folder for `TrainConfig.data`."""
    draw = random.Random(seed)
    rows = [{"text": _sentence(draw, 3, 40)} for _ in range(num_documents)]
    source = TextSource(name="prose", files=(_write(folder / "prose.jsonl", rows),))
    prepare([source], folder / "data", make_tokenizer(folder))
    return folder / "data"


def prepare_pairs(folder: Path, *, num_pairs: int = 40, seed: int = 0) -> Path:
    """Two sources of pairs with mined negatives; a document repeats some of its query's words."""
    draw = random.Random(seed)
    sources = []
    for name in ("first", "second"):
        rows = []
        for _ in range(num_pairs):
            query = _sentence(draw, 2, 8)
            document = f"{query} {_sentence(draw, 1, 12)}"
            negatives = [_sentence(draw, 2, 15) for _ in range(NUM_NEGATIVES)]
            rows.append({"query": query, "document": document, "negatives": negatives})
        files = (_write(folder / f"{name}.jsonl", rows),)
        sources.append(PairSource(name=name, files=files, negatives="negatives"))
    prepare(sources, folder / "data", make_tokenizer(folder))
    return folder / "data"


def masked_config(data: Path, **changes: Any) -> TrainConfig:
    """A run of masked language modelling of a few milliseconds a step."""
    config = TrainConfig(
        recipe="tiny-mlm",
        data=str(data),
        encoder=ENCODER,
        objective=MaskedConfig(row_length=24, micro_batch_tokens=50),
        batch_size=4,
        max_steps=6,
        optim=OptimConfig(lr=1e-2, beta2=0.98, clip_norm=1.0),
        schedule=ScheduleConfig(kind="linear", warmup_fraction=0.2),
        log_every=1,
        checkpoint_every=2,
        max_length=64,
        seed=3,
    )
    return config.replace(changes, where="test") if changes else config


def contrastive_config(data: Path, **changes: Any) -> TrainConfig:
    """A contrastive run with mined negatives, in several chunks, of a few milliseconds a step."""
    config = TrainConfig(
        recipe="tiny-contrastive",
        data=str(data),
        encoder=ENCODER,
        objective=ContrastiveConfig(
            temperature=0.05, num_negatives=2, max_query_tokens=16, max_document_tokens=20, chunk_tokens=100
        ),
        batch_size=4,
        max_steps=6,
        optim=OptimConfig(lr=5e-3, clip_norm=1.0),
        schedule=ScheduleConfig(kind="inverse_sqrt", warmup_steps=2),
        log_every=1,
        checkpoint_every=2,
        max_length=64,
        seed=3,
    )
    return config.replace(changes, where="test") if changes else config


def _sentence(draw: random.Random, shortest: int, longest: int) -> str:
    return " ".join(draw.choices(WORDS[:60], k=draw.randint(shortest, longest)))


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)
