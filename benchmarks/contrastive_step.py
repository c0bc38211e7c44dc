"""One contrastive step with GradCache on a CPU: longspan beside sentence-transformers' cached loss.

Same weights (the demo's encoder shape, published as a folder that both load), same pairs, float32, equal loss. Texts
are docstring pairs of the installed packages, cut at the same lengths. sentence-transformers runs at several mini-batch
sizes, and its best counts.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from benchmarks.record import compare, take_turns, write_record
from longspan.data.collate import PairCollator, pair_plan
from longspan.data.dataset import Dataset
from longspan.data.loader import Loader
from longspan.data.prepare import prepare
from longspan.data.source import PairSource
from longspan.demo.collect import collect
from longspan.embedder import Embedder
from longspan.model.config import EmbeddingConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.pooling import PooledEncoder
from longspan.objective.contrastive import Contrastive, ContrastiveConfig
from longspan.recipes.demo import ENCODER
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import Tokenizer

ROUNDS = 3
PAIRS = 128
MAX_TOKENS = 512
CHUNK_TOKENS = 4096
MINI_BATCHES = (1, 2, 4, 8, 32)


def main() -> None:
    """Measure one step of both, check that the losses agree, and write a record."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        collect(root / "collect")
        result = _measure(root)
    write_record("contrastive-step-cpu", result)


def _measure(root: Path) -> dict[str, object]:
    file = root / "collect" / "pairs" / "docstring.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    tokenizer = Tokenizer.train((row["document"] for row in rows), 8192)
    prepare([PairSource(name="docstring", files=(str(file),))], root / "data", tokenizer)
    encoder = Encoder(ENCODER.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    initialize(encoder, seed=0)
    config = EmbeddingConfig(prefixes=dict(PREFIXES), max_length=MAX_TOKENS)
    embedder = Embedder(encoder, tokenizer, config, device="cpu")
    embedder.save(root / "model")

    dataset = Dataset(root / "data", "pairs")
    collate = PairCollator(
        dataset, num_negatives=0, max_query_tokens=MAX_TOKENS, max_document_tokens=MAX_TOKENS, seed=0
    )
    plan = pair_plan(dataset, PAIRS, seed=0)
    batch = Loader(plan, collate).batch(0)
    picked = [rows[row] for row in plan(0).rows]
    model = PooledEncoder(encoder, config.pooling).train()
    objective = Contrastive(ContrastiveConfig(chunk_tokens=CHUNK_TOKENS))
    losses: dict[str, float] = {}

    def our_step() -> None:
        model.zero_grad()
        losses["longspan"] = float(objective.backward(model, batch)["loss"])

    candidates = {"longspan": our_step}
    theirs = SentenceTransformer(str(root / "model"), device="cpu").train()
    queries = [PREFIXES["search_query"] + row["query"] for row in picked]
    documents = [PREFIXES["search_document"] + row["document"] for row in picked]
    for size in MINI_BATCHES:
        loss = CachedMultipleNegativesRankingLoss(theirs, scale=50.0, mini_batch_size=size)

        def their_step(name: str = f"sentence-transformers, mini-batch {size}", loss: torch.nn.Module = loss) -> None:
            theirs.zero_grad()
            value = loss([theirs.preprocess(queries), theirs.preprocess(documents)], None)
            value.backward()
            losses[name] = float(value.detach())

        candidates[f"sentence-transformers, mini-batch {size}"] = their_step
    tokens = batch.queries.num_tokens + batch.documents.num_tokens
    return compare(take_turns(candidates, ROUNDS), "longspan", tokens) | {"pairs": PAIRS, "losses": losses}


if __name__ == "__main__":
    main()
