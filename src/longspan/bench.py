"""How fast texts become vectors on this CPU: longspan, its peers at each of their settings, and the machine's limit.

Machines are noisy, so candidates take turns in one process, and what counts is the ratio within a round. All settings
run in the first round; the best of each library go on. Peers that are not installed are said to be absent.

Axes: N texts, D width, B texts of a peer's batch, L the longest of them.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from longspan.demo import installed
from longspan.demo.python_docs import is_bare, read_module
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.machine import installed_versions, read_machine
from longspan.model.compiled import load_fused
from longspan.model.compiled_linear import CompiledFloatLinear, CompiledLinear
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.folder import find_model
from longspan.model.fused import FusedEncoder, fused_precisions, random_product
from longspan.model.inference import Precision
from longspan.model.prepacked import FloatLinear, Int8Linear, has_float_kernels, has_int8_kernels
from longspan.model.rows import Product, Rows
from longspan.text.tokenizer import Tokenizer

MAX_TOKENS = 2048
NUM_LAYERS = 12
"""Of the stand-in model, which is nomic-bert-2048 with random weights."""
KINDS = ("documents", "queries", "linear", "memory")
"""What is measured: speed on two kinds of text; and on some documents what the linear layers sustain, as a share of
the rate of such products alone, and the peak memory of a process."""
BATCHES = {"documents": (1, 4), "queries": (8, 32, 128)}
"""Texts in a batch of a peer, by kind: a few long ones, where padding costs least, or enough short ones to fill it."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
LONG_CHARACTERS = 2_200
"""Docstrings shorter than this are not documents here."""
PACKAGES = ("longspan", "torch", "transformers", "sentence-transformers", "onnxruntime", "numpy")

Say = Callable[[str], None]
Embed = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """One way to make vectors: a library at one precision (`family`) at one of its settings."""

    family: str
    setting: str
    embed: Embed
    batch: int | None = None
    """Texts in a batch, where that is its setting."""
    share: int = 1
    """Every how many texts it is given: hopelessly slow ones read fewer."""

    @property
    def name(self) -> str:
        return f"{self.family}, {self.setting}" if self.setting else self.family


@dataclass(frozen=True)
class _Place:
    """A model on disk and how its texts are read."""

    folder: Path
    task: str | None
    limit: int


def bench_encoder(
    model: str | None = None,
    *,
    kinds: Sequence[str] = KINDS,
    peers: Sequence[Precision] = PRECISIONS,
    num_documents: int = 16,
    quick: bool = False,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Measure embedding of documents and of short queries.

    Args:
        model: folder, finished run or hub id; None: a stand-in of nomic-bert's size with random weights.
        kinds: some of `KINDS`.
        peers: the precisions in which peers are measured.
        num_documents: how many long texts are read.
        quick: fewer texts, settings and rounds.
        say: told what is measured next.

    Returns:
        What a record keeps: machine, versions, limits in GFLOP/s, and for both kinds of text tokens per second and peak
        memory in MiB of every candidate, ratios by round, and how near the vectors are.

    Raises:
        LongspanError: the model cannot be read, or there is too little text on this machine.
    """
    documents, queries = texts_of_this_machine(8 if quick else num_documents, 64 if quick else 256)
    with tempfile.TemporaryDirectory() as scratch:
        place = _place(model, documents + queries, Path(scratch) / "model", num_layers=2 if quick else NUM_LAYERS)
        say("the limit: matrix products alone")
        limits = _limits()
        say("loading")
        candidates, absent = _candidates(place, Path(scratch), peers, quick)
        result = {"limits_gflops": limits, "absent": absent}
        rounds = 2 if quick else 3
        for kind, texts in (("documents", documents), ("queries", queries)):
            if kind in kinds:
                say(kind)
                able = [c for c in candidates if c.batch is None or c.batch in BATCHES[kind]]
                result[kind] = _side_by_side(able, texts, place, rounds, say)
        if "linear" in kinds:
            result["linear_layers_share_of_limit"] = {}
            for precision in _our_precisions():
                say(f"linear layers: {precision}")
                share = _linear_share(precision, documents[:4], place)
                result["linear_layers_share_of_limit"][precision] = share
        families = {candidate.family for candidate in candidates if not candidate.family.startswith("onnxruntime")}
        del candidates
        gc.collect()
        for family in sorted(families) if "memory" in kinds else ():
            say(f"memory: {family}")
            result.setdefault("memory_mib", {})[family] = _peak_memory(family, place, documents[:8])
    return {
        "model": model or f"nomic-bert-2048 with {2 if quick else NUM_LAYERS} of its 12 layers, random weights",
        "compiled_passes": load_fused().reason,
        "machine": read_machine().model_dump(),
        "threads": torch.get_num_threads(),
        "versions": installed_versions(PACKAGES),
        "result": result,
    }


# --- texts and model -------------------------------------------------------------------------------------------------


def texts_of_this_machine(num_documents: int, num_queries: int) -> tuple[list[str], list[str]]:
    """Long docstrings and first sentences of others, from the installed packages; the same ones every time."""
    files = [file for file in installed.find_files(installed.default_roots()).files if file.kind == "python"]
    files.sort(key=lambda file: installed.order(0, file.name))
    documents, queries = [], []
    for file in files:
        if len(documents) >= num_documents and len(queries) >= num_queries:
            return documents[:num_documents], queries[:num_queries]
        try:
            text = file.path.read_text("utf-8")
            module = None if is_bare(text) else read_module(text, name=file.name, package=file.package)
        except (OSError, ValueError, SyntaxError):
            continue
        for found in module.objects if module is not None else ():
            whole = f"{found.summary}\n\n{found.body}"
            if len(whole) >= LONG_CHARACTERS:
                documents.append(whole)
            elif 5 <= len(found.summary.split()) <= 30:
                queries.append(found.summary)
    raise LongspanError(
        f"only {len(documents)} long and {len(queries)} short docstrings were found",
        where="the installed packages",
        remedy="install more packages beside longspan (`pip install scikit-learn transformers` is plenty)",
    )


def _place(model: str | None, texts: Sequence[str], folder: Path, num_layers: int) -> _Place:
    if model is not None:
        embedder = Embedder.load(model, device="cpu")
        task = min(embedder.config.prefixes, default=None)
        return _Place(find_model(model), task, min(MAX_TOKENS, embedder.config.max_length))
    tokenizer = Tokenizer.train(texts, 8192)
    encoder = Encoder(EncoderConfig(vocab_size=tokenizer.vocab_size, num_layers=num_layers))
    initialize(encoder, seed=0)
    Embedder(encoder, tokenizer, EmbeddingConfig(max_length=MAX_TOKENS), device="cpu").save(folder)
    return _Place(folder, None, MAX_TOKENS)


# --- candidates ------------------------------------------------------------------------------------------------------


def _candidates(
    place: _Place, scratch: Path, peers: Sequence[Precision], quick: bool
) -> tuple[list[Candidate], list[str]]:
    found, absent = [_ours(place, precision) for precision in _our_precisions()], []
    for name, make in (("sentence-transformers", _sentence_transformers), ("onnxruntime", _onnxruntime)):
        needed = (name.replace("-", "_"), *(("onnx", "sentence_transformers") if name == "onnxruntime" else ()))
        if all(importlib.util.find_spec(module) is not None for module in needed):
            found += [c for c in make(place, scratch, quick) if c.family.rpartition(" ")[2] in peers]
        else:
            absent.append(name)
    return found, absent


def _our_precisions() -> list[Precision]:
    """Those that this processor computes in their own arithmetic."""
    able = {"float32": True, "bfloat16": has_float_kernels(torch.bfloat16), "int8": has_int8_kernels()}
    return [precision for precision in PRECISIONS if able[precision]]


def _share(precision: str) -> int:
    """Every how many texts a candidate reads: so few that no precision takes much longer than another."""
    if has_float_kernels(torch.bfloat16):
        return {"float32": 4, "bfloat16": 1, "int8": 1}[precision]
    return {"float32": 1, "bfloat16": 8, "int8": 1}[precision]


def _batches(quick: bool) -> list[int]:
    return [size for sizes in BATCHES.values() for size in (sizes[:1] if quick else sizes)]


def _ours(place: _Place, precision: Precision) -> Candidate:
    embedder = Embedder.load(place.folder, device="cpu", precision=precision)
    return Candidate(
        f"longspan {precision}",
        "",
        lambda texts: embedder.embed(texts, task=place.task, max_length=place.limit, truncate=True),
        share=_share(precision),
    )


def _load_theirs(place: _Place, dtype: torch.dtype = torch.float32) -> Any:
    from sentence_transformers import SentenceTransformer

    settings = {"dtype": dtype, "attn_implementation": "sdpa"}
    theirs = SentenceTransformer(str(place.folder), device="cpu", model_kwargs=settings)
    theirs.max_seq_length = place.limit
    return theirs


def _sentence_transformers(place: _Place, scratch: Path, quick: bool) -> list[Candidate]:
    """At several batch sizes, with torch's fused attention; it sorts texts by length itself."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        theirs, precision = _load_theirs(place, dtype), str(dtype).removeprefix("torch.")
        share = _share(precision)

        def embed(texts: list[str], size: int, theirs: Any = theirs) -> np.ndarray:
            vectors = theirs.encode(
                texts, prompt_name=place.task, batch_size=size, show_progress_bar=False, convert_to_tensor=True
            )
            return vectors.float().numpy()

        family = f"sentence-transformers {precision}"
        found += [
            Candidate(family, f"batch {size}", lambda texts, size=size, embed=embed: embed(texts, size), size, share)
            for size in _batches(quick)
        ]
    return found


class _TokenVectors(nn.Module):
    """What is exported to ONNX: ids and mask (B, L) in, token vectors (B, L, D) out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _onnxruntime(place: _Place, scratch: Path, quick: bool) -> list[Candidate]:
    """transformers' model in float32, and with ONNX Runtime's own dynamic 8-bit quantisation; mean pooling in numpy."""
    import warnings

    import onnxruntime  # pyright: ignore[reportMissingImports]
    from onnxruntime.quantization import quantize_dynamic  # pyright: ignore[reportMissingImports]

    theirs = _load_theirs(place)
    paths = {"float32": scratch / "float32.onnx", "int8": scratch / "int8.onnx"}
    ids = torch.ones((2, 9), dtype=torch.int64)
    axes = {0: "texts", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is the old one, and says so
        torch.onnx.export(
            _TokenVectors(theirs[0].auto_model).eval(),
            (ids, ids),
            str(paths["float32"]),
            input_names=["input_ids", "attention_mask"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes},
            dynamo=False,
        )
    quantize_dynamic(paths["float32"], paths["int8"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    found = []
    for precision, path in paths.items():
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def embed(texts: list[str], size: int, session: Any = session) -> np.ndarray:
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
            pieces = []
            for start in range(0, len(order), size):
                prompt = theirs.prompts.get(place.task, "")
                features = theirs.preprocess([prompt + texts[i] for i in order[start : start + size]])
                inputs = {name: features[name].numpy() for name in ("input_ids", "attention_mask")}
                (h_BLD,) = session.run(None, inputs)
                mask_BL1 = inputs["attention_mask"][..., None]
                e_BD = (h_BLD * mask_BL1).sum(axis=1) / mask_BL1.sum(axis=1)
                pieces.append(e_BD / np.linalg.norm(e_BD, axis=1, keepdims=True))
            return np.concatenate(pieces)[np.argsort(order)]

        for size in _batches(quick):
            found.append(
                Candidate(
                    f"onnxruntime {precision}",
                    f"batch {size}",
                    lambda texts, size=size, embed=embed: embed(texts, size),
                    size,
                    _share(precision),
                )
            )
    return found


# --- measuring -------------------------------------------------------------------------------------------------------


def _side_by_side(
    candidates: Sequence[Candidate], texts: list[str], place: _Place, rounds: int, say: Say
) -> dict[str, Any]:
    exact = next(c for c in candidates if c.name == "longspan float32")
    lengths = [min(length, place.limit) for length in _num_tokens(place, texts)]
    seconds_per_token: dict[str, list[float]] = {}
    vectors: dict[str, np.ndarray] = {}

    def turn(candidate: Candidate) -> None:
        say(candidate.name)
        given = texts[:: candidate.share]
        began = time.perf_counter()
        vectors[candidate.name] = candidate.embed(given)
        seconds = time.perf_counter() - began
        seconds_per_token.setdefault(candidate.name, []).append(seconds / sum(lengths[:: candidate.share]))

    for candidate in candidates:
        candidate.embed(texts[:1])  # the first call allocates and chooses kernels
        turn(candidate)
    best = {}
    for candidate in sorted(candidates, key=lambda c: seconds_per_token[c.name][0], reverse=True):
        best[candidate.family] = candidate
    for _ in range(rounds - 1):
        for candidate in best.values():
            turn(candidate)
    medians = {name: statistics.median(times) for name, times in seconds_per_token.items()}
    peers = [c.name for c in best.values() if not c.family.startswith("longspan")]
    kinds = [[name for name in peers if precision in name] for precision in PRECISIONS]
    return {
        "texts": len(texts),
        "tokens": sum(lengths),
        "mean_tokens": round(statistics.mean(lengths), 1),
        "tokens_per_second": {name: round(1 / median, 1) for name, median in medians.items()},
        "every_nth_text": {c.name: c.share for c in candidates if c.share > 1},
        "ratios": {
            name: [_ratio(seconds_per_token, name, min(group, key=medians.__getitem__)) for group in kinds if group]
            for name in vectors
            if name.startswith("longspan")
        },
        "smallest_cosine_to_float32": {
            c.name: _smallest_cosine(vectors, c, exact) for c in best.values() if c.name != exact.name
        },
    }


def _num_tokens(place: _Place, texts: list[str]) -> list[int]:
    return Embedder.load(place.folder, device="cpu").num_tokens(texts, task=place.task)


def _smallest_cosine(vectors: dict[str, np.ndarray], one: Candidate, other: Candidate) -> float:
    """Over the texts that both read; one's share divides the other's."""
    share = max(one.share, other.share)
    pair = (vectors[candidate.name][:: share // candidate.share] for candidate in (one, other))
    return round(float(np.prod(list(pair), axis=0).sum(axis=1).min()), 6)


def _ratio(seconds: dict[str, list[float]], ours: str, peer: str) -> dict[str, Any]:
    by_round = [theirs / mine for mine, theirs in zip(seconds[ours], seconds[peer], strict=False)]
    return {"to": peer, "median": round(statistics.median(by_round), 2), "by_round": [round(r, 2) for r in by_round]}


def _linear_share(precision: Precision, texts: list[str], place: _Place) -> float | None:
    """What the linear layers sustain while texts are embedded, as a share of the rate of such products alone."""
    limits = _limits()
    if precision not in limits:
        return None
    ours = Embedder.load(place.folder, device="cpu", precision=precision)
    spent, operations = 0.0, 0
    encoder: Any = ours.model.encoder
    kind = type(encoder.layers[0].attention.qkv)
    multiply = "of_integers" if isinstance(encoder, FusedEncoder) and kind is Int8Linear else "forward"
    forward = getattr(kind, multiply)

    def timed(self: nn.Module, x: torch.Tensor | Rows) -> torch.Tensor | Product:
        nonlocal spent, operations
        began = time.perf_counter()
        y = forward(self, x)
        spent += time.perf_counter() - began
        x_TI, y_TO = x.values_TI if isinstance(x, Rows) else x, y.values_TO if isinstance(y, Product) else y
        is_compiled = isinstance(self, CompiledLinear | CompiledFloatLinear)
        outputs = self.num_weights if is_compiled else y_TO.shape[1]  # a gate halves what comes out
        operations += 2 * x_TI.shape[0] * x_TI.shape[1] * outputs
        return y

    rates = []
    for _ in range(3):
        alone = _limits()[precision]
        setattr(kind, multiply, timed)
        try:
            spent, operations = 0.0, 0
            ours.embed(texts, task=place.task, max_length=place.limit, truncate=True)
        finally:
            setattr(kind, multiply, forward)
        rates.append(operations / spent / 1e9 / alone)
    return round(statistics.median(rates), 3)


def _limits(seconds: float = 0.25) -> dict[str, float]:
    """GFLOP/s of matrix products alone, at the shape of nomic-bert's feed-forward block; of each precision the best."""
    x_TI, weight_OI = torch.randn(1024, 768), torch.randn(3072, 768)
    runs: dict[str, Callable[[], object]] = {}
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x, weight = x_TI.to(dtype), weight_OI.to(dtype)
        runs[f"{precision} (torch)"] = lambda x=x, weight=weight: nn.functional.linear(x, weight)
        if has_float_kernels(dtype):
            prepacked = FloatLinear(weight, None)
            runs[f"{precision} (prepacked)"] = lambda x=x, prepacked=prepacked: prepacked(x)
    if has_int8_kernels():
        int8 = Int8Linear(weight_OI, None)
        runs["int8 (rounding included)"] = lambda: int8(x_TI)
    for precision in fused_precisions():
        runs[f"{precision} (product)"] = random_product(weight_OI, len(x_TI), precision)
    rates = {}
    with torch.inference_mode():
        for name, run in runs.items():
            run()
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                run()
                count += 1
            rates[name] = round(2 * 1024 * 768 * 3072 * count / (time.perf_counter() - began) / 1e9, 1)
    of_each = {p: [rate for name, rate in rates.items() if name.startswith(p)] for p in PRECISIONS}
    return rates | {precision: max(found) for precision, found in of_each.items() if found}


def _peak_memory(family: str, place: _Place, texts: list[str]) -> float | None:
    """Of a process that loads the model and embeds; None where the system does not tell."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_embed_and_tell, args=(family, place, texts, results))
    process.start()
    process.join()
    return None if process.exitcode or results.empty() else results.get()


def _embed_and_tell(family: str, place: _Place, texts: list[str], results: SimpleQueue[float | None]) -> None:
    library, _, precision = family.rpartition(" ")
    if library == "sentence-transformers":
        theirs = _load_theirs(place, getattr(torch, precision))
        theirs.encode(texts, prompt_name=place.task, batch_size=1, show_progress_bar=False)
    else:
        embedder = Embedder.load(place.folder, device="cpu", precision=precision)  # pyright: ignore[reportArgumentType]
        embedder.embed(texts, task=place.task, max_length=place.limit, truncate=True)
    # Not ru_maxrss: a child inherits its parent's peak.
    status = Path(f"/proc/{os.getpid()}/status")
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text("utf-8"), re.MULTILINE) if status.exists() else None
    results.put(round(int(peak[1]) / 1024) if peak else None)
