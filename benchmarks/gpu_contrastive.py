"""Contrastive steps on a GPU beside sentence-transformers' cached loss, and what the paper's training would take.

Pairs are docstrings of the installed packages, and one pair in thirty-two has a whole module as its document, so that
lengths are as mixed as in the paper's data. Both libraries start from the same published folder, read the same texts
under bf16 autocast, and must find the same loss.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_setup import Setup, forget_peak, peak_gib, seconds_of
from longspan.data.batch import PairBatch
from longspan.demo import installed
from longspan.demo.python_docs import is_bare, read_module
from longspan.embedder import Embedder
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.pooling import PooledEncoder
from longspan.objective.contrastive import Contrastive, ContrastiveConfig
from longspan.text.packed import Packed
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import Tokenizer
from longspan.train.blocks import prepare_blocks

LONG_SHARE = 32
NUM_NEGATIVES = 7
STEPS = 3
MIN_CHARACTERS, MAX_CHARACTERS = 40, 12_000
# The paper: tokens of masked language modelling (100k steps of 4,096 rows of 2,048, Table 2), pairs of contrastive
# pretraining (Table 7) and of finetuning (Table 3, its ten rows added up).
PAPER_MLM_TOKENS = 100_000 * 4096 * 2048
PAPER_PAIRS = 234_553_344
PAPER_FINETUNING_PAIRS = 1_692_672
PAPER_DAYS = 7.5
"""Appendix A: roughly 4 and 3.5 days, on eight H100s."""


def contrastive_step(setup: Setup, matrix_tflops: float) -> dict[str, Any]:
    """One step of weakly supervised pairs: no mined negatives, GradCache."""
    return _side_by_side(setup, setup.pairs, 0, matrix_tflops)


def finetuning_step(setup: Setup, matrix_tflops: float) -> dict[str, Any]:
    """One step of finetuning: seven negatives for each pair (other documents stand for mined ones)."""
    return _side_by_side(setup, setup.finetune_pairs, NUM_NEGATIVES, matrix_tflops)


def projection(result: dict[str, Any], gpus: int = 8, efficiency: float = 0.93) -> dict[str, Any]:
    """Days of the paper's whole training on several such GPUs, from what one reached here.

    Assumes that several GPUs reach `efficiency` of their sum, that pairs are as long as the ones measured, and counts
    no evaluation, checkpoints or restarts.
    """
    try:
        mlm = max(result[name]["tokens_per_second"] for name in ("mlm_step", "mlm_step_compiled") if name in result)
        pairs = result["contrastive_step"]["pairs_per_second"]
        triplets = result["finetuning_step"]["pairs_per_second"]
    except (KeyError, TypeError, ValueError):
        return {"left out": "a section that it needs has not run or has failed"}
    days = {
        "mlm": PAPER_MLM_TOKENS / mlm,
        "contrastive": PAPER_PAIRS / pairs,
        "finetuning": PAPER_FINETUNING_PAIRS / triplets,
    }
    days = {name: seconds / gpus / efficiency / 86_400 for name, seconds in days.items()}
    return {
        "gpus": gpus,
        "efficiency_assumed": efficiency,
        "days": days | {"all": sum(days.values())},
        "paper_days": PAPER_DAYS,
    }


# --- one step, side by side ------------------------------------------------------------------------------------------


def _side_by_side(setup: Setup, num_pairs: int, num_negatives: int, matrix_tflops: float) -> dict[str, Any]:
    queries, documents = _pairs(num_pairs)
    columns = [documents[i:] + documents[:i] for i in range(num_negatives + 1)]  # the positives, then the negatives
    tokenizer = Tokenizer.train(documents, 8192)
    encoder = Encoder(setup.encoder.model_copy(update={"vocab_size": tokenizer.vocab_size, "vocab_multiple": 64}))
    initialize(encoder, seed=0)
    settings = EmbeddingConfig(prefixes=dict(PREFIXES), max_length=setup.row)
    with tempfile.TemporaryDirectory() as folder:
        Embedder(encoder, tokenizer, settings, device="cpu").save(Path(folder) / "model")
        theirs = _their_steps(Path(folder) / "model", queries, columns, setup)
    batch = _batch(queries, columns, tokenizer, setup)
    losses: dict[str, float] = {}
    candidates = _our_steps(encoder, batch, setup, losses) | {
        name: _keeping(run, name, losses) for name, run in theirs.items()
    }
    seconds, memory, failed = {}, {}, []
    for name, run in candidates.items():
        forget_peak(setup)
        try:
            seconds[name] = seconds_of(run, setup, STEPS)
        except torch.OutOfMemoryError:
            failed.append(name)
            continue
        memory[name] = peak_gib(setup)
    ours = {name: s for name, s in seconds.items() if name.startswith("longspan")}
    peers = {name: s for name, s in seconds.items() if name not in ours}
    best, best_peer = min(ours, key=ours.__getitem__), min(peers, key=peers.__getitem__)
    lengths = [*batch.queries.lengths, *batch.documents.lengths]
    tflops = 4 / 3 * _train_operations(encoder.config, encoder, lengths) / seconds[best] / 1e12
    return {
        "pairs": num_pairs,
        "negatives": num_negatives,
        "tokens": sum(lengths),
        "document_tokens": {q: int(np.quantile(batch.documents.lengths, q)) for q in (0.5, 0.9, 0.99, 1.0)},
        "seconds": seconds,
        "losses": losses,
        "peak_memory_gib": memory,
        "out_of_memory": failed,
        "best": best,
        "best_peer": best_peer,
        "ratio": seconds[best_peer] / seconds[best],
        "pairs_per_second": num_pairs / seconds[best],
        "tokens_per_second": sum(lengths) / seconds[best],
        "tflops_with_second_forward": tflops,
        "share_of_matrix_rate": tflops / matrix_tflops,
    }


def _train_operations(shape: EncoderConfig, encoder: Encoder, lengths: list[int]) -> float:
    """Of one forward and one backward pass: linear layers and attention, as `longspan plan` counts."""
    weights = sum(p.numel() for p in encoder.layers.parameters())
    return 6 * weights * sum(lengths) + 12 * shape.num_layers * shape.width * sum(n * n for n in lengths)


def _our_steps(
    encoder: Encoder, batch: PairBatch, setup: Setup, losses: dict[str, float]
) -> dict[str, Callable[[], Any]]:
    steps: dict[str, Callable[[], Any]] = {}
    for compiled in (False, True):
        model = PooledEncoder(Encoder(encoder.config), "mean")
        model.encoder.load_state_dict(encoder.state_dict())
        model = model.to(setup.device).train()
        if compiled:
            prepare_blocks(model, compiled=True, checkpointed=False)
        for chunk in setup.chunks:
            objective = Contrastive(
                ContrastiveConfig(
                    chunk_tokens=chunk,
                    num_negatives=batch.num_negatives,
                    negatives_for="all",
                    mask_duplicates=False,  # the peer does not know them
                ),
                autocast=torch.bfloat16,
            )
            name = f"longspan, chunks of {chunk} tokens{', compiled' if compiled else ''}"

            def step(model: PooledEncoder = model, objective: Contrastive = objective, name: str = name) -> None:
                model.zero_grad(set_to_none=True)
                losses[name] = float(objective.backward(model, batch)["loss"])

            steps[name] = step
    return steps


def _their_steps(
    folder: Path, queries: list[str], columns: list[list[str]], setup: Setup
) -> dict[str, Callable[[], float]]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = SentenceTransformer(str(folder), device=setup.device.type).train()
    texts = [[PREFIXES["search_query"] + q for q in queries]]
    texts += [[PREFIXES["search_document"] + d for d in column] for column in columns]
    features = [model.preprocess(column) for column in texts]  # before the clock starts, as ours are
    features = [{k: v.to(setup.device) if torch.is_tensor(v) else v for k, v in one.items()} for one in features]
    settings: list[dict[str, int]] = [{"mini_batch_size": size} for size in setup.mini_batches]
    if "mini_batch_num_tokens" in inspect.signature(CachedMultipleNegativesRankingLoss).parameters:
        settings += [{"mini_batch_num_tokens": chunk} for chunk in setup.chunks]
    steps: dict[str, Callable[[], float]] = {}
    for setting in settings:
        loss = CachedMultipleNegativesRankingLoss(model, scale=50.0, **setting)  # pyright: ignore[reportArgumentType]

        def step(loss: torch.nn.Module = loss) -> float:
            model.zero_grad(set_to_none=True)
            with torch.autocast(setup.device.type, dtype=torch.bfloat16):
                value = loss([dict(one) for one in features], None)
            value.backward()
            return float(value.detach())

        ((name, value),) = setting.items()
        steps[f"sentence-transformers, {name} {value}"] = step
    return steps


def _keeping(run: Callable[[], float], name: str, losses: dict[str, float]) -> Callable[[], None]:
    def step() -> None:
        losses[name] = run()

    return step


def _batch(queries: list[str], columns: list[list[str]], tokenizer: Tokenizer, setup: Setup) -> PairBatch:
    def ids(texts: list[str], task: str) -> list[np.ndarray]:
        rows = tokenizer.encode([PREFIXES[task] + text for text in texts])
        room = setup.row - 2
        return [np.array([tokenizer.cls_id, *row[:room], tokenizer.sep_id]) for row in rows]

    encoded = [ids(column, "search_document") for column in columns]
    negatives = [column[i] for i in range(len(queries)) for column in encoded[1:]]
    return PairBatch(
        queries=Packed.of(ids(queries, "search_query")),
        documents=Packed.of([*encoded[0], *negatives]),
        num_negatives=len(columns) - 1,
        source="docstrings",
        num_cut=0,
    )


def _pairs(count: int) -> tuple[list[str], list[str]]:
    files = [file for file in installed.find_files(installed.default_roots()).files if file.kind == "python"]
    files.sort(key=lambda file: installed.order(0, file.name))
    queries: list[str] = []
    documents: list[str] = []
    seen: set[str] = set()
    for file in files:
        try:
            text = file.path.read_text("utf-8")
            module = None if is_bare(text) else read_module(text, name=file.name, package=file.package)
        except (OSError, ValueError, SyntaxError):
            continue
        for found in module.objects if module is not None else ():
            document = text[:MAX_CHARACTERS] if len(queries) % LONG_SHARE == 0 else found.body[:MAX_CHARACTERS]
            if len(document) < MIN_CHARACTERS or found.summary in seen or document in seen:
                continue
            seen |= {found.summary, document}
            queries.append(found.summary)
            documents.append(document)
            if len(queries) == count:
                return queries, documents
    raise RuntimeError(f"only {len(queries)} pairs were found in the installed packages")
