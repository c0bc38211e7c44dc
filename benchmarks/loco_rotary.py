"""How positions reach past the trained length: LoCo's QMSum and two further sets, on a rotary model trained here.

    python -m benchmarks.loco_rotary ../shared/data [--tokens 245760] [--lengths 512 2048 4096 8192] [--out FOLDER]

The model is all-MiniLM-L6-v2 with its learned positions taken out and rotary ones put in, which learns from the
original to give the same vectors for pieces of at most 512 tokens of running text (the cosine of both is made 1). So
2,048 to 8,192 tokens are four to sixteen times what it was trained on. Then `longspan.evaluate.loco` measures it with
dynamic NTK, without scaling, with position interpolation and with static NTK. Killed, it goes on from --out.
On two idle cores with AMX it takes about ten minutes, most of them for 8,192 tokens.

Axes: B pieces, D width.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import write_record
from longspan.demo.teacher import teacher_folder
from longspan.embedder import Embedder
from longspan.evaluate.loco import LENGTHS, SCALINGS, run_loco
from longspan.evaluate.loco_sets import load_loco
from longspan.files import atomic_path, read_json, write_json
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.folder import read_model
from longspan.model.pooling import PooledEncoder
from longspan.progress import Bar, Bars
from longspan.text.packed import Packed
from longspan.text.tokenizer import Tokenizer
from longspan.train.optim import OptimConfig, build_optimizer, clip_gradients, set_learning_rate

TRAINED_LENGTH = 512
TEXTS = ("qmsum_train", "wikitext2", "movie_reviews", "state_union", "gutenberg")
LENGTH_SHARES = {512: 0.5, 256: 0.2, 128: 0.15, 64: 0.1, 32: 0.05}
"""Length of a piece -> its share of the tokens of a step."""
STEP_TOKENS = 4096
LR = 3e-4
KEEP_EVERY = 5


def main() -> None:
    """Train where no trained weights are in --out, measure, and write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with text/ and longcontext/")
    parser.add_argument("--tokens", type=int, default=245_760, help="tokens to train on")
    parser.add_argument("--tasks", nargs="+", default=["qmsum", "gov_report", "big_patent"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[TRAINED_LENGTH, *LENGTHS])
    parser.add_argument("--out", type=Path, default=Path("loco-rotary"))
    parser.add_argument("--train-only", action="store_true")
    parsed = parser.parse_args()
    original, tokenizer, _ = read_model(teacher_folder())
    encoder = _rotary(original)
    weights, told = parsed.out / "weights.pt", parsed.out / "training.json"
    if not weights.exists():
        parsed.out.mkdir(parents=True, exist_ok=True)
        documents = _ids(parsed.data / "text", tokenizer)
        kept = parsed.out / "training.pt"
        training = _distil(encoder, PooledEncoder(original, "mean"), documents, tokenizer, parsed.tokens, kept)
        write_json(told, training)
        torch.save(encoder.state_dict(), weights)
    encoder.load_state_dict(torch.load(weights, weights_only=True))
    if parsed.train_only:
        return
    config = EmbeddingConfig(pooling="mean", max_length=max(parsed.lengths))
    embedder = Embedder(encoder, tokenizer, config, precision="bfloat16", name="MiniLM-L6 made rotary")
    sets = load_loco(parsed.data / "longcontext", parsed.tasks)
    with Bars("loco") as bars:
        results = run_loco(
            embedder, sets, parsed.out, lengths=parsed.lengths, scalings=SCALINGS, progress=bars.show,
        )  # fmt: skip
    training = read_json(told, remedy="delete the folder and run again")
    write_record("loco-rotary", {"training": training, "encoder": encoder.config.model_dump(), **results.as_json()})


def _rotary(original: Encoder) -> Encoder:
    """The same weights with rotary positions; what the learned ones have in common goes to the token types."""
    changes = {
        "positions": "rotary",
        "rotary_base": 1000.0,
        "trained_length": TRAINED_LENGTH,
        "max_length": 8192,
        "rope_scaling": "dynamic",
    }
    config = EncoderConfig.parse(original.config.model_dump() | changes, where="all-MiniLM-L6-v2")
    encoder = Encoder(config)
    state = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    state["embeddings.token_types.weight"] += state.pop("embeddings.positions.weight")[:TRAINED_LENGTH].mean(dim=0)
    state["embeddings.tokens.weight"] = state["embeddings.tokens.weight"][: config.padded_vocab_size]
    encoder.load_state_dict(state)
    return encoder


def _distil(
    encoder: Encoder,
    theirs: PooledEncoder,
    documents: list[np.ndarray],
    tokenizer: Tokenizer,
    num_tokens: int,
    kept: Path,
) -> dict[str, Any]:
    """Train, and say how it went; what is done is kept in a file now and then, from which a killed call goes on."""
    model = PooledEncoder(encoder, "mean").train()
    optimizer = build_optimizer(model, OptimConfig(lr=LR, weight_decay=0.01))
    total, cosines = num_tokens // STEP_TOKENS, []
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        cosines = state["cosines"]
    with Bar("learning rotary positions (steps)", total, done=len(cosines)) as bar:
        for step in range(len(cosines), total):
            set_learning_rate(optimizer, LR * min((step + 1) / (0.06 * total), (total - step) / (0.94 * total)))
            optimizer.zero_grad()
            cosines.append(_step(model, theirs, _pieces(documents, tokenizer, step)))
            clip_gradients(model, 1.0)
            optimizer.step()
            bar.advance(1, f"cosine {cosines[-1]:.3f}")
            if len(cosines) % KEEP_EVERY == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "cosines": cosines}
                with atomic_path(kept) as unfinished:
                    torch.save(state, unfinished)
    model.eval()
    return {
        "texts": list(TEXTS),
        "steps": total,
        "tokens": total * STEP_TOKENS,
        "cosine_at_first": round(cosines[0], 4),
        "cosine_at_last": round(float(np.mean(cosines[-max(1, total // 10) :])), 4),
    }


def _step(model: PooledEncoder, theirs: torch.nn.Module, pieces: list[list[np.ndarray]]) -> float:
    """Gradients of a step, and the mean cosine of the vectors to the teacher's."""
    count, total = sum(len(group) for group in pieces), 0.0
    for group in pieces:
        packed = Packed.of(group)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                wanted_BD = theirs(packed)
            cosine_B = torch.cosine_similarity(model(packed), wanted_BD.float(), dim=-1)
        # A piece counts by its tokens, so that the long ones are learnt as well as the many short ones.
        ((1 - cosine_B).sum() * len(group[0]) / STEP_TOKENS).backward()
        total += float(cosine_B.detach().sum())
    return total / count


def _ids(folder: Path, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Token ids of every document."""
    texts = []
    for name in TEXTS:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    return tokenizer.encode(texts)


def _pieces(documents: list[np.ndarray], tokenizer: Tokenizer, step: int) -> list[list[np.ndarray]]:
    """The pieces of a step, drawn from the documents at random, by length."""
    draw = np.random.default_rng([0, step])
    sizes = np.array([len(document) for document in documents], dtype=float)
    start, end = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    groups = []
    for length, share in LENGTH_SHARES.items():
        chosen = draw.choice(len(documents), size=round(STEP_TOKENS * share / length), p=sizes / sizes.sum())
        groups.append([])
        for number in chosen:
            first = int(draw.integers(max(1, len(documents[number]) - length + 3)))
            groups[-1].append(np.concatenate([start, documents[number][first : first + length - 2], end]))
    return groups


if __name__ == "__main__":
    main()
