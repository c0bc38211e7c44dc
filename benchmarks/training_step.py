"""Forward and backward of a ragged batch on a CPU: longspan beside sentence-transformers.

    python -m benchmarks.training_step [--types float32 bf16]

Same weights (six layers of width 384, published as a folder that both load), same texts (docstrings of the installed
packages, cut at 2,048 tokens), same loss: the inner product of the vectors with fixed directions. In float32 and under
bf16 autocast. sentence-transformers runs its padded batches, sorted by length, at several mini-batch sizes, and its
best counts (benchmarks/steps.py).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from benchmarks.record import write_record
from benchmarks.steps import AUTOCAST, OURS, Step, measure, wanted_types
from longspan.bench import texts_of_this_machine
from longspan.embedder import Embedder
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.folder import find_model
from longspan.model.hub import load_encoder
from longspan.model.pooling import PooledEncoder, finish
from longspan.text.packed import Packed, chunks_of_similar_length
from longspan.text.tokenizer import Tokenizer
from longspan.train.cost import Workload, operations

TEXTS = 12
MAX_TOKENS = 2048
CHUNK_TOKENS = 8192
MINI_BATCHES = {f"mini-batch {size}": size for size in (1, 2, 4, 12)}
WIDTH = 384
CONFIG = EmbeddingConfig(max_length=MAX_TOKENS)


def main() -> None:
    """Measure one step of both, and write a record."""
    types = wanted_types(__doc__)
    texts, _ = texts_of_this_machine(TEXTS, 0)
    tokenizer = Tokenizer.train(texts, 8192)
    shape = EncoderConfig(
        vocab_size=tokenizer.vocab_size, width=WIDTH, num_heads=6, num_layers=6, inner_width=4 * WIDTH
    )
    encoder = Encoder(shape)
    initialize(encoder, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        Embedder(encoder, tokenizer, CONFIG, device="cpu").save(place / "model")
        (place / "texts.json").write_text(json.dumps(texts), "utf-8")
        lengths = [len(ids) for ids in _ids(place)]
        gflop = operations(shape, Workload.of_lengths(lengths, num_forwards=1)).total / 1e9
        about = {"texts": TEXTS, "chunk_tokens": CHUNK_TOKENS, "gflop": round(gflop, 1)}
        result = about | measure(make_step, place, list(MINI_BATCHES), sum(lengths), types)
    write_record("training-step-cpu", result)


def make_step(place: Path, precision: str, name: str) -> Step:
    """The step of one candidate (see `steps.measure`)."""
    return _our_step(place, precision) if name == OURS else _their_step(place, precision, MINI_BATCHES[name])


def _our_step(place: Path, precision: str) -> Step:
    model = PooledEncoder(load_encoder(find_model(str(place / "model"))), CONFIG.pooling).train()
    ids, autocast = _ids(place), AUTOCAST[precision]
    direction_BD = _directions()

    def step() -> float:
        model.zero_grad()
        loss = 0.0
        for group in chunks_of_similar_length([len(i) for i in ids], CHUNK_TOKENS):
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                e_BD = model(Packed.of([ids[i] for i in group]))
            loss += _backward(finish(e_BD, CONFIG), direction_BD[group])
        return loss

    return step


def _their_step(place: Path, precision: str, size: int) -> Step:
    model = SentenceTransformer(str(place / "model"), device="cpu").train()
    texts = json.loads((place / "texts.json").read_text("utf-8"))
    lengths = [len(ids) for ids in _ids(place)]
    order = sorted(range(TEXTS), key=lengths.__getitem__)
    groups = [order[start : start + size] for start in range(0, TEXTS, size)]
    # Tokenised once, as ours are: a trainer does that in other processes.
    features = [model.preprocess([texts[i] for i in group]) for group in groups]
    direction_BD, autocast = _directions(), AUTOCAST[precision]

    def step() -> float:
        model.zero_grad()
        loss = 0.0
        for group, each in zip(groups, features, strict=True):
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                e_BD = model(dict(each))["sentence_embedding"]
            loss += _backward(e_BD.float(), direction_BD[group])
        return loss

    return step


def _backward(e_BD: Tensor, direction_BD: Tensor) -> float:
    loss = (e_BD * direction_BD).sum()
    loss.backward()
    return float(loss.detach())


def _directions() -> Tensor:
    return torch.randn(TEXTS, WIDTH, generator=torch.Generator().manual_seed(0))


def _ids(place: Path) -> list[np.ndarray]:
    tokenizer = Tokenizer.load(place / "model")
    texts = json.loads((place / "texts.json").read_text("utf-8"))
    return [
        np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]])[:MAX_TOKENS].astype(np.int64)
        for ids in tokenizer.encode(texts)
    ]


if __name__ == "__main__":
    main()
