"""LoCo: nDCG@10 of long documents, by how much of them is read and by how positions reach past the trained length.

Paper, section 5.2.4 and Table 6: prefixes search_query and search_document, 2,048, 4,096 and 8,192 tokens, dynamic NTK
with alpha 2. Every measurement is a file that is written when it is there; a second call measures what is missing.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longspan.curate.engine import Engine
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.embedding import embed_texts, open_engine
from longspan.evaluate.loco_sets import V0, V1
from longspan.evaluate.retrieval import RetrievalResult, RetrievalSet, evaluate_retrieval
from longspan.files import read_json, sha256_json, write_json
from longspan.model.config import EncoderConfig
from longspan.model.pooling import PooledEncoder
from longspan.progress import Tell, counted

LENGTHS = (2048, 4096, 8192)
"""Tokens that are read of a text, as in Table 6."""

SCALINGS = ("dynamic", "none", "linear", "ntk")

SUMMARY = "loco.json"

_VERSION = 1
"""Changes when measurements of before are no longer the same measurements."""


@dataclass(frozen=True)
class LocoScore:
    """One measurement.

    Attributes:
        task: the set.
        max_length: texts were cut at this many tokens.
        rope_scaling: how positions reached past the trained length; None where the model has no rotary positions.
        score: mean nDCG@10 over the queries, in [0, 1].
        interval: its 95 % bootstrap interval (low, high).
        queries, documents: how many.
        cut: how many texts were longer than what was read.
        seconds: how long it took.
    """

    task: str
    max_length: int
    rope_scaling: str | None
    score: float
    interval: tuple[float, float]
    queries: int
    documents: int
    cut: int
    seconds: float


@dataclass(frozen=True)
class LocoResults:
    """Scores of a model on sets of LoCo.

    Attributes:
        model: its name.
        precision: arithmetic.
        trained_length: longest sequence of its training, in tokens.
        num_parameters: of its encoder.
        scores: by set, length and scaling.
    """

    model: str
    precision: str
    trained_length: int
    num_parameters: int
    scores: tuple[LocoScore, ...]

    def averages(self) -> list[dict[str, Any]]:
        """Mean over the sets for every length and scaling; `benchmark` names the one whose sets are all there."""
        rows = []
        for length, scaling in dict.fromkeys((one.max_length, one.rope_scaling) for one in self.scores):
            tasks = {s.task: s.score for s in self.scores if (s.max_length, s.rope_scaling) == (length, scaling)}
            whole = {frozenset(V0): "LoCo v0", frozenset(V1): "LoCoV1"}.get(frozenset(tasks))
            mean = sum(tasks.values()) / len(tasks)
            rows.append({"max_length": length, "rope_scaling": scaling, "score": mean, "benchmark": whole})
        return rows

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "suite": "loco",
            "model": self.model,
            "precision": self.precision,
            "trained_length": self.trained_length,
            "num_parameters": self.num_parameters,
            "averages": self.averages(),
            "scores": [vars(score) for score in self.scores],
        }


def run_loco(
    embedder: Embedder,
    sets: Sequence[RetrievalSet],
    out: Path,
    *,
    lengths: Sequence[int] = LENGTHS,
    scalings: Sequence[str] | None = None,
    model: str | None = None,
    processes: int | None = 1,
    progress: Tell | None = None,
) -> LocoResults:
    """Measure a model on sets of LoCo, skipping what is in `out`.

    A measurement is kept by the model's weights and settings, the texts and judgements, and the length; a change of
    any of these measures again. Up to the trained length all scalings are the same model, and are measured once.

    Args:
        embedder: the model.
        sets: from `load_loco`.
        out: folder of results.
        lengths: cut texts at so many tokens, prefix and special tokens included.
        scalings: some of `SCALINGS`; None: the model's own.
        model: what the embedder was loaded from (its name); other processes load it from there.
        processes: as in `open_engine`.
        progress: told of texts embedded.

    Raises:
        LongspanError: the model does not read so many tokens or cannot be scaled so (before anything is measured), or
            the folder cannot be written.
    """
    config = embedder.model.encoder.config
    own = config.rope_scaling if config.positions == "rotary" else None
    chosen: list[str | None] = [own] if scalings is None else list(scalings)
    plan = [
        (length, scaling, functools.partial(rescaled, scaling=None if scalings is None else scaling, length=length))
        for length in lengths
        for scaling in chosen
    ]
    made = [change(embedder) for _, _, change in plan]  # so that what cannot be is refused before all else
    folder = out / embedder.fingerprint[:16]
    scores = []
    for one in sets:
        contents = sha256_json([one.queries, one.corpus, one.qrels])
        for (length, scaling, change), scaled in zip(plan, made, strict=True):
            reaches = "own" if scalings is None else scaling if length > config.trained_length else "trained"
            path = folder / f"{one.name}-{length}-{reaches}.json"
            settings = scaled.model.encoder.config
            key = [_VERSION, embedder.fingerprint, settings.rope_scaling, settings.rope_factor, contents, length]
            kept = _kept(path, sha256_json(key))
            if kept is None:
                with open_engine(model or embedder.name, embedder, processes, change) as engine:
                    kept = _measured(scaled, engine, one, length, progress)
                write_json(path, {"key": sha256_json(key), **kept})
            interval = (kept["interval"][0], kept["interval"][1])
            scores.append(LocoScore(one.name, length, scaling, **{**kept, "interval": interval}))
    num_parameters = sum(tensor.numel() for tensor in embedder.model.encoder.state_dict().values())
    results = LocoResults(embedder.name, embedder.precision, config.trained_length, num_parameters, tuple(scores))
    write_json(out / SUMMARY, results.as_json())
    return results


def rescaled(embedder: Embedder, scaling: str | None, length: int) -> Embedder:
    """The same weights, with rotary positions that reach `length` tokens in another way.

    L of equations (3) and (4) is the trained length and L' is `length`: what is measured is stretched just as far as it
    must. So up to the trained length nothing is stretched, whatever the scaling.

    Args:
        embedder: the model.
        scaling: one of `SCALINGS`, or None to leave the model as it is.
        length: tokens that are to be read.

    Raises:
        LongspanError: the model has no rotary positions, or does not read so many tokens; there is no such scaling.
    """
    if length > embedder.config.max_length:
        raise LongspanError(
            f"the model reads at most {embedder.config.max_length:,} tokens, not {length:,}",
            where=embedder.name,
            remedy=f"measure shorter lengths: --lengths {embedder.config.max_length}; or publish it with a larger "
            "max_length if its positions are rotary",
        )
    if scaling is None:
        return embedder
    encoder = copy.copy(embedder.model.encoder)  # shares the weights; only the settings are its own
    if encoder.config.positions != "rotary":
        what = f"rope scaling {scaling} is for rotary positions, and this model's are {encoder.config.positions}"
        raise LongspanError(what, where=embedder.name, remedy="leave out --rope-scaling")
    beyond = length > encoder.config.trained_length
    factor = length / encoder.config.trained_length if beyond and scaling in ("linear", "ntk") else None
    changes = {"rope_scaling": scaling if beyond else "none", "rope_factor": factor}
    encoder.config = EncoderConfig.parse(encoder.config.model_dump() | changes, where=embedder.name)
    other = copy.copy(embedder)
    other.__dict__.pop("fingerprint", None)  # it covers the encoder's settings
    other.model = PooledEncoder(encoder, embedder.config.pooling).eval()
    return other


def _measured(
    embedder: Embedder, engine: Engine, one: RetrievalSet, length: int, progress: Tell | None
) -> dict[str, Any]:
    began, cut = time.monotonic(), []
    config = embedder.model.encoder.config
    scaling = f" ({config.rope_scaling})" if config.positions == "rotary" else ""
    advance = counted(progress, f"{one.name} at {length:,}{scaling}", len(one.queries) + len(one.corpus))

    def embed(texts: Sequence[str], *, task: str) -> np.ndarray:
        return embed_texts(engine, texts, task=task, max_length=length, progress=advance, on_cut=cut.append)

    result: RetrievalResult = evaluate_retrieval(one, embed)
    return {
        "score": result.metrics["ndcg@10"],
        "interval": list(result.interval),
        "queries": len(one.queries),
        "documents": result.num_documents,
        "cut": sum(cut),
        "seconds": round(time.monotonic() - began, 2),
    }


def _kept(path: Path, key: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    values = read_json(path, remedy="delete the file and run the same command again: it is measured again")
    return values if values.pop("key", None) == key else None
