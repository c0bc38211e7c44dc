"""One vector everywhere: the same texts through every library that computes a longspan model, beside float64.

The reference is our encoder in float64, one text at a time. Every stack reads the files that `longspan export` writes,
text in and vector out.

Axes: N texts, D width.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from longspan.config import Config
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export.probes import MIXED, ODD, Probe, make_probes, mixed_batch
from longspan.export.publish import publish
from longspan.export.stacks import (
    LEAST_INT8,
    NotHere,
    Opener,
    Stack,
    open_float32,
    open_int8,
    open_llama,
    open_onnx,
    open_sentence_transformers,
    open_server,
    open_transformers,
)
from longspan.machine import installed_versions
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.folder import find_model, read_model
from longspan.model.pooling import PooledEncoder, finish
from longspan.text.packed import Packed

STACKS: dict[str, dict[str, Opener]] = {
    "longspan": {"longspan float32": open_float32, "longspan int8": open_int8},
    "transformers": {"transformers": open_transformers},
    "sentence-transformers": {"sentence-transformers": open_sentence_transformers},
    "onnx": {
        "onnxruntime float32": open_onnx("float32"),
        "onnxruntime float32, pooled by hand": open_onnx("float32", tokens=True),
        "onnxruntime float16": open_onnx("float16"),
        "onnxruntime int8": open_onnx("int8"),
    },
    "llama.cpp": {
        "llama.cpp f32": open_llama("f32"),
        "llama.cpp f16": open_llama("f16"),
        "llama.cpp q8_0": open_llama("q8_0"),
        "llama.cpp f16, as it opens": open_llama("f16", rope_base=False),
    },
}
"""Family -> the stacks of it, in the order in which they run."""

_OTHER_TOKENIZER = "the library's own tokenizer reads these texts as other tokens than the model's tokenizer.json"
_REPORT = "do not publish this form; report the model and the versions in this report"
_WRONG = ("the arithmetic or the exported file is wrong", _REPORT)
_COARSE = (
    "8 bits are too coarse for this text, or the exported file is wrong",
    "use float32 or float16 for this model",
)
_REMEDIES = {_OTHER_TOKENIZER: "give the library the token ids of tokenizer.json instead of the text"}
PACKAGES = ("longspan", "torch", "transformers", "sentence-transformers", "onnxruntime", "llama-cpp-python")
EMPTY, OTHER_TOKENS = "empty text", ", read as other tokens"
_CALIBRATION, _SHORTEST_LIMIT = 256, 16


class Row(Config):
    """One stack on one group of texts."""

    stack: str
    group: str
    num_texts: int
    worst_cosine: float | None = None
    """To the float64 reference."""
    largest_difference: float | None = None
    """Of a coordinate."""
    worst_text: str = ""
    """Beginning of the text of the worst cosine, with its task and its tokens."""
    least: float | None = None
    """The cosine that is asked for; None: the row is only reported."""
    held: bool = True
    reason: str = ""
    """Why the vectors are others, where they are."""
    remedy: str = ""
    seconds: float = 0.0


class ParityReport(Config):
    """What `longspan parity` found."""

    model: str
    fingerprint: str
    encoder: EncoderConfig
    embedding: EmbeddingConfig
    max_length: int
    num_texts: int
    versions: dict[str, str]
    rows: tuple[Row, ...]
    left_out: dict[str, str]
    """Stacks that could not be run here, and why."""

    @property
    def passed(self) -> bool:
        """Whether every row that is asked for a cosine reached it."""
        return all(row.held for row in self.rows)


def check_parity(
    model: str | Path,
    work: Path,
    *,
    max_length: int | None = None,
    families: Sequence[str] = tuple(STACKS),
    server: str | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_plan: Callable[[float, int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ParityReport:
    """Embed the probe texts with every stack, and compare with float64.

    What `model` has no file for is exported into the folder `work`; ONNX and GGUF files that it has are used as they
    are.

    Args:
        max_length: longest probe text in tokens; None: what the model reads.
        families: of `STACKS`; stacks whose library is not installed are left out, and said to be.
        server: address of a running server of this model, compared as one more stack.
        on_row: called with each row as soon as it is known.
        on_plan: called once with the seconds that all will take, roughly, and the number of tokens.
        progress: called with the number of tokens embedded since the last call.

    Raises:
        LongspanError: there is no such model, it cannot be exported, or the server does not answer.
    """
    encoder, tokenizer, config = read_model(model)
    exact = copy.deepcopy(encoder).double()  # before `Embedder`, which prepares the weights
    embedder = Embedder(encoder, tokenizer, config, device="cpu", name=str(model))
    limit = _limit(embedder, max_length)
    probes = [*make_probes(embedder, limit), *mixed_batch(embedder, limit)]
    openers = {name: opener for family in families for name, opener in STACKS[family].items()}
    if server is not None:
        openers[f"server {server}"] = open_server(server)
    advance = progress or (lambda count: None)
    num_tokens = sum(probe.num_tokens for probe in probes)
    if on_plan is not None:
        on_plan(_estimate(embedder, probes, len(openers)), num_tokens * (len(openers) + 1))
    folder = _exported(embedder, find_model(model), work / "exported")
    truth = {probe: _exact_vector(exact, embedder, probe, advance) for probe in probes}
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for name, opener in openers.items():
        try:
            with opener(embedder, folder) as stack:
                for row in _rows(stack, embedder, truth):
                    rows.append(row)
                    if on_row is not None:
                        on_row(row)
        except NotHere as error:
            left_out[name] = str(error)
        advance(num_tokens)
    return ParityReport(
        model=Path(model).name,
        fingerprint=embedder.fingerprint,
        encoder=embedder.model.encoder.config,
        embedding=embedder.config,
        max_length=limit,
        num_texts=len(probes),
        versions=installed_versions(PACKAGES),
        rows=tuple(rows),
        left_out=left_out,
    )


def _limit(embedder: Embedder, max_length: int | None) -> int:
    longest = embedder.config.max_length
    if max_length is not None and max_length < _SHORTEST_LIMIT:
        raise LongspanError(
            f"max_length {max_length} leaves no texts to compare",
            where=embedder.name,
            remedy=f"let it be at least {_SHORTEST_LIMIT}",
        )
    return longest if max_length is None else min(max_length, longest)


def _exported(embedder: Embedder, source: Path, folder: Path) -> Path:
    """A published folder of the model, in which its own ONNX and GGUF files are found."""
    publish(embedder, folder)
    for path in [*source.glob("onnx/*.onnx"), *source.glob("model-*.gguf")]:
        link = folder / path.relative_to(source)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path.resolve())
    return folder


def _exact_vector(encoder: Encoder, embedder: Embedder, probe: Probe, advance: Callable[[int], None]) -> np.ndarray:
    """The vector of one text in float64, (D)."""
    packed = Packed.of([_ids(embedder, probe)])
    with torch.inference_mode():
        e_1D = finish(PooledEncoder(encoder, embedder.config.pooling)(packed), embedder.config)
    advance(probe.num_tokens)
    return e_1D[0].numpy()


def _ids(embedder: Embedder, probe: Probe) -> np.ndarray:
    (ids,), _ = embedder.sequences([probe.text], task=probe.task)
    return ids


def _rows(stack: Stack, embedder: Embedder, truth: dict[Probe, np.ndarray]) -> Iterator[Row]:
    trained = embedder.model.encoder.config.trained_length
    groups: dict[str, list[Probe]] = {}
    for probe in truth:
        groups.setdefault(probe.group, []).append(probe)
    for group, probes in groups.items():
        is_past = group not in (MIXED, ODD) and probes[0].num_tokens > trained
        if stack.past_training is not None:
            if is_past:
                yield _row(stack, group, probes, truth, alone=True, only_told=stack.past_training)
        elif group == MIXED:
            yield _row(stack, group, probes, truth, alone=False, only_told=stack.alone)
        else:
            same = [probe for probe in probes if _read_alike(stack, embedder, probe)]
            others = [probe for probe in probes if probe not in same]
            if same:
                yield _row(stack, group, same, truth, alone=True)
            if others:
                yield _row(stack, group + OTHER_TOKENS, others, truth, alone=True, only_told=_OTHER_TOKENIZER)
    if stack.refuses_empty:
        yield _empty_row(stack, next(iter(truth)).task)


def _row(
    stack: Stack,
    group: str,
    probes: Sequence[Probe],
    truth: dict[Probe, np.ndarray],
    *,
    alone: bool,
    only_told: str | None = None,
) -> Row:
    """Compare one group.

    Args:
        alone: embed text by text; otherwise all in one batch, and once more in the opposite order.
        only_told: why the row is only reported, and not asked for a cosine; None: it is.
    """
    began = time.perf_counter()
    found: list[tuple[Probe, np.ndarray]] = []
    if alone:
        found = [(probe, stack.embed([probe.text], probe.task)[0]) for probe in probes]
    else:
        for batch in (probes, probes[::-1]):
            found += zip(batch, stack.embed([probe.text for probe in batch], batch[0].task), strict=True)
    seconds = time.perf_counter() - began
    cosines = [_cosine(vector_D, truth[probe]) for probe, vector_D in found]
    difference = max(float(np.abs(vector_D - truth[probe]).max()) for probe, vector_D in found)
    worst = int(np.argmin(cosines))
    least = stack.least if only_told is None else None
    held = least is None or cosines[worst] >= least
    deviates = cosines[worst] < stack.least
    if only_told is not None:
        reason, remedy = only_told, _REMEDIES.get(only_told, stack.remedy)
    else:
        reason, remedy = _COARSE if stack.least == LEAST_INT8 else _WRONG
    return Row(
        stack=stack.name,
        group=group,
        num_texts=len(probes),
        worst_cosine=cosines[worst],
        largest_difference=difference,
        worst_text=_describe(found[worst][0]),
        least=least,
        held=held,
        reason=reason if deviates else "",
        remedy=remedy if deviates else "",
        seconds=round(seconds, 3),
    )


def _empty_row(stack: Stack, task: str | None) -> Row:
    try:
        stack.embed([""], task)
    except LongspanError as error:
        return Row(stack=stack.name, group=EMPTY, num_texts=1, reason=f"refused: {error.what}")
    return Row(stack=stack.name, group=EMPTY, num_texts=1, held=False, reason="it was embedded", remedy=_REPORT)


def _read_alike(stack: Stack, embedder: Embedder, probe: Probe) -> bool:
    return stack.token_ids is None or stack.token_ids(probe.text, probe.task) == _ids(embedder, probe).tolist()


def _cosine(a_D: np.ndarray, b_D: np.ndarray) -> float:
    a_D, b_D = a_D.astype(np.float64), b_D.astype(np.float64)
    cosine = float(a_D @ b_D / (np.linalg.norm(a_D) * np.linalg.norm(b_D)))
    return cosine if np.isfinite(cosine) else -1.0


def _describe(probe: Probe) -> str:
    task = "" if probe.task is None else f"{probe.task}, "
    return f"{probe.text[:40]!r} ({task}{probe.num_tokens:,} tokens)"


def _estimate(embedder: Embedder, probes: Sequence[Probe], num_stacks: int) -> float:
    """Seconds for everything, from the time of one text; stacks are taken to be as fast as ours, float64 half so."""
    config = embedder.model.encoder.config
    weights = sum(w.numel() for name, w in embedder.model.encoder.state_dict().items() if name.startswith("layers."))

    def work(num_tokens: int) -> float:
        return num_tokens * (2.0 * weights + 4.0 * config.num_layers * config.width * num_tokens)

    sample = min(probes, key=lambda probe: abs(probe.num_tokens - _CALIBRATION))
    embedder.embed([sample.text], task=sample.task)
    began = time.perf_counter()
    embedder.embed([sample.text], task=sample.task)
    seconds_per_work = (time.perf_counter() - began) / work(sample.num_tokens)
    return seconds_per_work * sum(work(probe.num_tokens) for probe in probes) * (num_stacks + 2)
