"""One contrastive step with GradCache on a CPU: longspan beside sentence-transformers' cached loss.

    LONGSPAN_SHARED_DATA=DIR python -m benchmarks.contrastive_step [--types float32 bf16]

Same weights, published as a folder that both load, same 128 pairs cut at 512 tokens, in float32 and under bf16
autocast. With `LONGSPAN_SHARED_DATA`: nomic-bert with six layers of width 384 on SQuAD's first 128 paragraphs, each
with its first question. Without: the demo's encoder on docstrings of the installed packages. sentence-transformers runs
at several mini-batch sizes, and its best counts (benchmarks/steps.py).
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from benchmarks.record import write_record
from benchmarks.steps import AUTOCAST, OURS, Step, measure, wanted_types
from longspan.data.batch import PairBatch
from longspan.demo.collect import collect
from longspan.embedder import Embedder
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.folder import find_model
from longspan.model.hub import load_encoder
from longspan.model.pooling import PooledEncoder
from longspan.objective.contrastive import Contrastive, ContrastiveConfig
from longspan.recipes.demo import ENCODER
from longspan.text.packed import Packed
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import Tokenizer
from longspan.train.cost import Workload, operations

PAIRS = 128
MAX_TOKENS = 512
CHUNK_TOKENS = 8192
SETTINGS = {
    **{f"mini-batch {size}": {"mini_batch_size": size} for size in (4, 8, 32)},
    **{f"mini-batch of {tokens} tokens": {"mini_batch_num_tokens": tokens} for tokens in (2048, 4096)},
}
PUBLISHED_SHAPE = EncoderConfig(width=384, num_heads=6, num_layers=6, inner_width=4 * 384)


def main() -> None:
    """Measure one step of both, and write a record."""
    types = wanted_types(__doc__)
    shared = os.environ.get("LONGSPAN_SHARED_DATA")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = _squad(Path(shared)) if shared else _docstrings(place)
        tokenizer = (
            Tokenizer.load(Path(shared) / "vocab" / "bert-base-uncased-vocab.txt")
            if shared
            else Tokenizer.train((row["document"] for row in rows), 8192)
        )
        shape = (PUBLISHED_SHAPE if shared else ENCODER).model_copy(update={"vocab_size": tokenizer.vocab_size})
        _save(place, shape, tokenizer, rows)
        batch = _batch(place)
        lengths = [*batch.queries.lengths, *batch.documents.lengths]
        gflop = operations(shape, Workload.of_lengths(lengths, num_forwards=2)).total / 1e9
        about = {
            "pairs": PAIRS,
            "texts": "SQuAD" if shared else "docstrings",
            "layers": shape.num_layers,
            "width": shape.width,
            "chunk_tokens": CHUNK_TOKENS,
            "gflop": round(gflop, 1),
        }
        result = about | measure(make_step, place, list(SETTINGS), sum(lengths), types)
    write_record("contrastive-step-cpu", result)


def make_step(place: Path, precision: str, name: str) -> Step:
    """The step of one candidate (see `steps.measure`)."""
    return _our_step(place, precision) if name == OURS else _their_step(place, precision, name)


def _our_step(place: Path, precision: str) -> Step:
    model = PooledEncoder(load_encoder(find_model(str(place / "model"))), "mean").train()
    objective = Contrastive(ContrastiveConfig(chunk_tokens=CHUNK_TOKENS), autocast=AUTOCAST[precision])
    batch = _batch(place)

    def step() -> float:
        model.zero_grad()
        return float(objective.backward(model, batch)["loss"])

    return step


def _their_step(place: Path, precision: str, name: str) -> Step:
    model = SentenceTransformer(str(place / "model"), device="cpu").train()
    loss = CachedMultipleNegativesRankingLoss(model, scale=50.0, **SETTINGS[name])
    # Tokenised once, as ours is: a trainer does that in other processes.
    features = [model.preprocess(texts) for texts in _texts(place)]
    autocast = AUTOCAST[precision]

    def step() -> float:
        model.zero_grad()
        # Backward inside too: that is where the cached loss makes its second forward pass.
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            value = loss([dict(each) for each in features], None)
            value.backward()
        return float(value.detach())

    return step


def _squad(shared: Path) -> list[dict[str, str]]:
    """The first question of each of the first paragraphs: no text twice, which the peer would not notice."""
    rows: dict[str, dict[str, str]] = {}
    with gzip.open(shared / "pairs" / "squad.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            rows.setdefault(row["document"], row)
    return list(rows.values())[:PAIRS]


def _docstrings(place: Path) -> list[dict[str, str]]:
    collect(place / "collect")
    file = place / "collect" / "pairs" / "docstring.jsonl"
    rows = {row["document"]: row for row in map(json.loads, file.read_text("utf-8").splitlines())}
    return list(rows.values())[:PAIRS]


def _save(place: Path, shape: EncoderConfig, tokenizer: Tokenizer, rows: list[dict[str, str]]) -> None:
    encoder = Encoder(shape)
    initialize(encoder, seed=0)
    config = EmbeddingConfig(prefixes=dict(PREFIXES), max_length=MAX_TOKENS)
    Embedder(encoder, tokenizer, config, device="cpu").save(place / "model")
    queries = [PREFIXES["search_query"] + row["query"] for row in rows]
    documents = [PREFIXES["search_document"] + row["document"] for row in rows]
    (place / "texts.json").write_text(json.dumps([queries, documents]), "utf-8")


def _texts(place: Path) -> list[list[str]]:
    return json.loads((place / "texts.json").read_text("utf-8"))


def _batch(place: Path) -> PairBatch:
    tokenizer = Tokenizer.load(place / "model")
    queries, documents = (
        Packed.of(
            [
                np.concatenate([[tokenizer.cls_id], ids[: MAX_TOKENS - 2], [tokenizer.sep_id]]).astype(np.int64)
                for ids in tokenizer.encode(texts)
            ]
        )
        for texts in _texts(place)
    )
    return PairBatch(queries, documents, num_negatives=0, source="pairs", num_cut=0)


if __name__ == "__main__":
    main()
