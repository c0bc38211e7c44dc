"""Forward and backward of a ragged batch on a CPU: longspan beside sentence-transformers.

Same weights (six layers of width 384, published as a folder that both load), same texts, float32, same loss: the
inner product of the vectors with fixed directions. sentence-transformers runs its padded batches, sorted by length, at
several mini-batch sizes, and its best counts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from benchmarks.record import compare, take_turns, write_record
from longspan.bench import texts_of_this_machine
from longspan.embedder import Embedder
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.pooling import PooledEncoder, finish
from longspan.text.packed import Packed, chunks_of_similar_length
from longspan.text.tokenizer import Tokenizer
from longspan.train.cost import Workload, operations

ROUNDS = 3
TEXTS = 12
MAX_TOKENS = 2048
CHUNK_TOKENS = 2048
MINI_BATCHES = (1, 4, 12)
WIDTH = 384


def main() -> None:
    """Measure one step of both, check that the losses agree, and write a record."""
    texts, _ = texts_of_this_machine(TEXTS, 0)
    tokenizer = Tokenizer.train(texts, 8192)
    encoder = Encoder(
        EncoderConfig(vocab_size=tokenizer.vocab_size, width=WIDTH, num_heads=6, num_layers=6, inner_width=4 * WIDTH)
    )
    initialize(encoder, seed=0)
    config = EmbeddingConfig(max_length=MAX_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        Embedder(encoder, tokenizer, config, device="cpu").save(Path(folder) / "model")
        theirs = SentenceTransformer(str(Path(folder) / "model"), device="cpu").train()
    direction_BD = torch.randn(TEXTS, WIDTH, generator=torch.Generator().manual_seed(0))
    ids = [[tokenizer.cls_id, *i, tokenizer.sep_id][:MAX_TOKENS] for i in tokenizer.encode(texts)]
    lengths = [len(i) for i in ids]
    ours = PooledEncoder(encoder, config.pooling).train()
    losses: dict[str, float] = {}

    def our_step() -> None:
        ours.zero_grad()
        losses["longspan"] = 0.0
        for group in chunks_of_similar_length(lengths, CHUNK_TOKENS):
            packed = Packed.of([torch.tensor(ids[i]).numpy() for i in group])
            losses["longspan"] += _backward(finish(ours(packed), config), direction_BD[group])

    candidates = {"longspan": our_step}
    order = sorted(range(TEXTS), key=lengths.__getitem__)
    for size in MINI_BATCHES:

        def their_step(size: int = size, name: str = f"sentence-transformers, mini-batch {size}") -> None:
            theirs.zero_grad()
            losses[name] = 0.0
            for start in range(0, TEXTS, size):
                group = order[start : start + size]
                e_BD = theirs(theirs.preprocess([texts[i] for i in group]))["sentence_embedding"]
                losses[name] += _backward(e_BD, direction_BD[group])

        candidates[f"sentence-transformers, mini-batch {size}"] = their_step
    measured = compare(take_turns(candidates, ROUNDS), "longspan", sum(lengths))
    work = Workload(
        num_steps=1,
        num_sequences=TEXTS,
        num_tokens=sum(lengths),
        sum_of_squares=sum(length**2 for length in lengths),
        longest=max(lengths),
    )
    # With the machine's matrix rate, which the record holds: the time below which nobody can get.
    gflop = operations(encoder.config, work).total / 1e9
    write_record("training-step-cpu", measured | {"texts": TEXTS, "losses": losses, "gflop": round(gflop, 1)})


def _backward(e_BD: Tensor, direction_BD: Tensor) -> float:
    loss = (e_BD * direction_BD).sum()
    loss.backward()
    return float(loss.detach())


if __name__ == "__main__":
    main()
