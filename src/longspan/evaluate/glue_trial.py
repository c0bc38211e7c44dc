"""One trial of GLUE: an encoder is finetuned on one task and measured after every epoch.

A trial's folder holds `config.json`, `metrics.jsonl` (an epoch a line) and, once it is finished, `score.json`.

Axes: T tokens, B sequences, N rows, C labels.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from longspan.config import Config
from longspan.embedder import TOKENS_PER_BATCH
from longspan.errors import LongspanError
from longspan.evaluate.glue_tasks import GlueTask, read_glue, task_by_name
from longspan.files import atomic_path, read_json, sha256_file, sha256_json, write_json, write_json_lines
from longspan.model.encoder import Encoder, initialize
from longspan.model.folder import read_model
from longspan.model.heads import SequenceClassifier
from longspan.text.packed import Packed, chunks_of_similar_length
from longspan.text.tokenizer import Tokenizer
from longspan.train.optim import OptimConfig, build_optimizer, set_learning_rate
from longspan.train.schedule import ScheduleConfig

SCORE, METRICS, CONFIG, WEIGHTS = "score.json", "metrics.jsonl", "config.json", "encoder.safetensors"


class TrialConfig(Config):
    """What a trial does. The paper gives the first six (section 5.1); AdamW's settings are those of its released code.

    The encoder has no dropout, and the classifier reads the first token (`SequenceClassifier`).
    """

    task: str
    batch_size: int = Field(gt=0)
    lr: float = Field(gt=0)
    seed: int = Field(ge=0)
    epochs: int = Field(default=10, gt=0)
    warmup_fraction: float = Field(default=0.06, ge=0, lt=1)
    max_length: int = Field(default=128, ge=5)
    beta2: float = Field(default=0.98, ge=0, lt=1)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=1e-6, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"b{self.batch_size}-lr{self.lr:g}-s{self.seed}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial with everything that it needs, so that another process can run it.

    Attributes:
        config: what it does.
        folder: where it is kept.
        model: the encoder that is finetuned: a folder, a finished run or a hub id.
        data: folder of GLUE, or None for the hub.
        start: weights of a finished trial to start from instead of the model's own.
        keep_weights: whether the finetuned encoder is kept beside the score.
    """

    config: TrialConfig
    folder: Path
    model: str
    data: Path | None
    start: Path | None = None
    keep_weights: bool = False


class Rows(NamedTuple):
    """A split as the model reads it: N sequences, the length of the first segment of each, and the labels."""

    sequences: list[np.ndarray]
    firsts: list[int]
    labels_N: np.ndarray
    fingerprint: str


def run_trial(trial: Trial, device: str, advance: Callable[[int, int], None] | None = None) -> float:
    """Train and measure, or read the score if the same trial is finished.

    Args:
        trial: what to do.
        device: where.
        advance: called with the step and the number of all steps.

    Returns:
        The task's metric after the last epoch.

    Raises:
        LongspanError: model or data cannot be read, the loss is no longer finite, or the folder cannot be written.
    """
    encoder, _, identity = _model(trial.model)
    task = task_by_name(trial.config.task)
    length = trial.config.max_length
    train, test = (_encoded(trial.model, task.name, split, trial.data, length) for split in ("train", task.split))
    start = None if trial.start is None else sha256_file(trial.start)
    key = sha256_json([trial.config.model_dump(), identity, train.fingerprint, test.fingerprint, start])
    kept = _kept(trial, key)
    if kept is not None:
        return kept
    encoder = copy.deepcopy(encoder)
    if trial.start is not None:
        encoder.load_state_dict(load_file(trial.start))
    model = SequenceClassifier(encoder, task.num_labels)
    assert model.pooler is not None
    initialize(model.pooler, trial.config.seed)
    initialize(model.classifier, trial.config.seed + 1)
    began = time.monotonic()
    write_json(trial.folder / CONFIG, trial.config.model_dump())
    score = _train(model.to(device), trial, task, train, test, advance)
    if trial.keep_weights:
        with atomic_path(trial.folder / WEIGHTS) as unfinished:
            save_file({name: tensor.cpu().contiguous() for name, tensor in encoder.state_dict().items()}, unfinished)
    write_json(trial.folder / SCORE, {"key": key, "score": score, "seconds": round(time.monotonic() - began, 1)})
    return score


def pair_ids(
    tokenizer: Tokenizer, first: np.ndarray, second: np.ndarray | None, max_length: int
) -> tuple[np.ndarray, int]:
    """One or two texts as BERT reads them: `[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]`.

    What is too long loses its end, the longer of two texts first.

    Returns:
        The ids, at most `max_length`; and how many of them are of the first segment.
    """
    start, end = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    if second is None:
        ids = np.concatenate([start, first[: max_length - 2], end])
        return ids, len(ids)
    room = max_length - 3
    num_first, num_second = len(first), len(second)
    if num_first + num_second > room:
        shorter = min(num_first, num_second, room // 2)
        num_first, num_second = (room - shorter, shorter) if num_first > num_second else (shorter, room - shorter)
    ids = np.concatenate([start, first[:num_first], end, second[:num_second], end])
    return ids, num_first + 2


def _train(
    model: SequenceClassifier,
    trial: Trial,
    task: GlueTask,
    train: Rows,
    test: Rows,
    advance: Callable[[int, int], None] | None,
) -> float:
    config = trial.config
    optimizer = build_optimizer(
        model, OptimConfig(lr=config.lr, beta2=config.beta2, eps=config.eps, weight_decay=config.weight_decay)
    )
    schedule = ScheduleConfig(kind="linear", warmup_fraction=config.warmup_fraction)
    total = config.epochs * math.ceil(len(train.sequences) / config.batch_size)
    step, score, metrics = 0, math.nan, []
    for epoch in range(config.epochs):
        model.train()
        order = np.random.default_rng((config.seed, epoch)).permutation(len(train.sequences))
        losses = []
        for begin in range(0, len(order), config.batch_size):
            batch = order[begin : begin + config.batch_size].tolist()
            set_learning_rate(optimizer, config.lr * schedule.factor(step, total))
            optimizer.zero_grad()
            loss = _loss(_logits(model, train, batch, config.precision), train.labels_N[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            step += 1
            if advance is not None:
                advance(step, total)
        mean_loss = float(torch.stack(losses).mean())
        if not math.isfinite(mean_loss):
            raise LongspanError(
                f"the loss is {mean_loss} in epoch {epoch + 1}",
                where=trial.folder,
                remedy="look at the model's weights, or use a smaller learning rate",
            )
        score = _measure(model, task, test, config.precision)
        metrics.append({"epoch": epoch + 1, "step": step, "loss": mean_loss, "score": score})
        write_json_lines(trial.folder / METRICS, metrics)
    return score


def _measure(model: SequenceClassifier, task: GlueTask, rows: Rows, precision: str) -> float:
    model.eval()
    predicted_N = np.empty(len(rows.labels_N), dtype=rows.labels_N.dtype)
    device = next(model.parameters()).device.type
    with torch.inference_mode():
        for group in chunks_of_similar_length([len(s) for s in rows.sequences], TOKENS_PER_BATCH[device]):
            logits_BC = _logits(model, rows, group, precision)
            best_B = logits_BC[:, 0] if task.num_labels == 1 else logits_BC.argmax(dim=1)
            predicted_N[group] = best_B.cpu().numpy()
    return task.metric(predicted_N, rows.labels_N)


def _logits(model: SequenceClassifier, rows: Rows, numbers: Sequence[int], precision: str) -> Tensor:
    """(B, C), float32."""
    device = next(model.parameters()).device
    packed = Packed.of([rows.sequences[n] for n in numbers])
    if model.encoder.config.num_token_types > 1:
        types_T = np.concatenate([np.arange(len(rows.sequences[n])) >= rows.firsts[n] for n in numbers])
        packed = dataclasses.replace(packed, types_T=torch.from_numpy(types_T.astype(np.int64)))
    half = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
    with half:
        return model(packed.to(device)).float()


def _loss(logits_BC: Tensor, labels_B: np.ndarray) -> Tensor:
    wanted_B = torch.from_numpy(labels_B).to(logits_BC.device)
    if logits_BC.shape[1] == 1:
        return functional.mse_loss(logits_BC[:, 0], wanted_B)
    return functional.cross_entropy(logits_BC, wanted_B)


def _kept(trial: Trial, key: str) -> float | None:
    path = trial.folder / SCORE
    if not path.exists():
        return None
    values: dict[str, Any] = read_json(path, remedy="delete the trial's folder and run the same command again")
    return values["score"] if values.get("key") == key else None


@functools.lru_cache(maxsize=1)
def _model(place: str) -> tuple[Encoder, Tokenizer, str]:
    """Encoder, tokenizer, and a hash of both."""
    encoder, tokenizer, _ = read_model(place)
    encoder = encoder.float()
    digest = hashlib.sha256(sha256_json([encoder.config.model_dump(), tokenizer.fingerprint]).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return encoder, tokenizer, digest.hexdigest()


@functools.lru_cache(maxsize=2)
def _encoded(place: str, name: str, split: str, data: Path | None, max_length: int) -> Rows:
    encoder, tokenizer, _ = _model(place)
    rows = read_glue(task_by_name(name), split, data)
    columns = [tokenizer.encode(texts) for texts in rows.texts]
    limit = min(max_length, encoder.config.max_length)
    pairs = [pair_ids(tokenizer, ids[0], ids[1] if len(ids) > 1 else None, limit) for ids in zip(*columns, strict=True)]
    return Rows([ids for ids, _ in pairs], [first for _, first in pairs], rows.labels_N, rows.fingerprint())
