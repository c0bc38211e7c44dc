"""The libraries that compute a longspan model, each as a function from texts to vectors.

Each is used as its users would, on the files that `longspan export` writes; where that gives other vectors, a stack
says why and what to do.

Axes: N texts of one call, S padded sequence, D width.
"""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export.gguf import GgufPrecision, gguf_file, llama_rope_base, write_gguf
from longspan.export.onnx import OnnxForm, onnx_file, write_onnx
from longspan.export.onnx_graph import OnnxPrecision
from longspan.model.config import EmbeddingConfig
from longspan.model.inference import has_int8_kernels
from longspan.model.pooling import finish

LEAST_OURS, LEAST_EXPORT, LEAST_INT8 = 0.9999, 0.999, 0.99
"""Cosine to the float64 reference that a stack has to reach on every text."""

EmbedCall = Callable[[Sequence[str], str | None], np.ndarray]
"""Vectors of texts of one task, computed as one batch: float32, (N, D)."""

_TIMEOUT = 600.0


@dataclass(frozen=True)
class Stack:
    """One way to compute the model.

    Attributes:
        name: of the library and the precision.
        embed: see `EmbedCall`.
        least: the cosine that it has to reach.
        token_ids: the ids that the library reads a text as, where it tells them.
        alone: None; or why its vectors depend on the batch, so that texts in a mixed batch are only reported.
        past_training: None; or why texts past the trained length come out otherwise, so that they are only reported.
        remedy: what to do about either.
        refuses_empty: whether it is to refuse an empty text.
    """

    name: str
    embed: EmbedCall
    least: float
    token_ids: Callable[[str, str | None], list[int]] | None = None
    alone: str | None = None
    past_training: str | None = None
    remedy: str = ""
    refuses_empty: bool = False


class NotHere(Exception):
    """A stack cannot be run here; says why."""


Opener = Callable[[Embedder, Path], "contextlib.AbstractContextManager[Stack]"]
"""Opens a stack: given our embedder and a published folder, to which it adds the file it needs."""


# --- ours ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_float32(embedder: Embedder, folder: Path) -> Iterator[Stack]:
    """Our own encoder as it is used."""
    yield Stack(
        "longspan float32", lambda texts, task: embedder.embed(texts, task=task), LEAST_OURS, refuses_empty=True
    )


@contextlib.contextmanager
def open_int8(embedder: Embedder, folder: Path) -> Iterator[Stack]:
    """Our own encoder in int8."""
    if not has_int8_kernels():
        raise NotHere("this build of torch has no integer kernels for this processor")
    quantised = Embedder.load(folder, device="cpu", precision="int8")
    yield Stack("longspan int8", lambda texts, task: quantised.embed(texts, task=task), LEAST_INT8, refuses_empty=True)


# --- transformers ----------------------------------------------------------------------------------------------------

_BATCH_NTK = (
    "transformers takes the base of dynamic NTK from the longest text of a batch, and keeps it while texts past the "
    "trained length follow"
)
_RESET = "embed texts past the trained length one by one, and a short one before each"


@contextlib.contextmanager
def open_transformers(embedder: Embedder, folder: Path) -> Iterator[Stack]:
    """transformers' own class; pooling by hand."""
    transformers = _imported("transformers", "transformers", "st")
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config, trained = embedder.config, embedder.model.encoder.config.trained_length

    def run(texts: Sequence[str], task: str | None) -> np.ndarray:
        inputs = tokenizer(_prefixed(texts, task, config), padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            if inputs["input_ids"].shape[1] > trained:
                model(input_ids=inputs["input_ids"][:, :1])  # a short text: see _RESET
            states_NSD = model(**inputs).last_hidden_state
        return pooled(states_NSD.numpy(), inputs["attention_mask"].numpy(), config)

    def token_ids(text: str, task: str | None) -> list[int]:
        return tokenizer(_prefixed([text], task, config)[0])["input_ids"]

    yield Stack("transformers", run, LEAST_EXPORT, token_ids, alone=_batch_rule(embedder), remedy=_RESET)


@contextlib.contextmanager
def open_sentence_transformers(embedder: Embedder, folder: Path) -> Iterator[Stack]:
    """sentence-transformers, with the prompts of the folder."""
    library = _imported("sentence_transformers", "sentence-transformers", "st")
    model = library.SentenceTransformer(str(folder), device="cpu")
    trained = embedder.model.encoder.config.trained_length

    def run(texts: Sequence[str], task: str | None) -> np.ndarray:
        if max(embedder.num_tokens(texts, task=task)) > trained:
            model.encode(["a"])  # a short text: see _RESET
        return np.asarray(model.encode(list(texts), prompt_name=task, batch_size=len(texts), show_progress_bar=False))

    yield Stack("sentence-transformers", run, LEAST_EXPORT, alone=_batch_rule(embedder), remedy=_RESET)


# --- ONNX Runtime ----------------------------------------------------------------------------------------------------


def open_onnx(precision: OnnxPrecision, *, tokens: bool = False) -> Opener:
    """ONNX Runtime on the graph that pools, or (`tokens`) on the plain one, pooled by hand."""

    @contextlib.contextmanager
    def opened(embedder: Embedder, folder: Path) -> Iterator[Stack]:
        onnxruntime = _imported("onnxruntime", "onnxruntime", "onnx")
        rust = _imported("tokenizers", "tokenizers", "st").Tokenizer.from_file(str(folder / "tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        form: OnnxForm = "tokens" if tokens else "embed"
        path = folder / onnx_file(form, precision)
        _make(path, lambda: write_onnx(embedder, path, form=form, precision=precision))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {node.name for node in session.get_inputs()}
        rust.enable_padding(pad_id=embedder.tokenizer.pad_id)
        config = embedder.config

        def run(texts: Sequence[str], task: str | None) -> np.ndarray:
            encoded = rust.encode_batch(_prefixed(texts, task, config))
            inputs = {
                "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
                "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
                "token_type_ids": np.array([one.type_ids for one in encoded], dtype=np.int64),
            }
            found = session.run(None, {name: values for name, values in inputs.items() if name in names})[0]
            return pooled(found, inputs["attention_mask"], config) if tokens else found

        def token_ids(text: str, task: str | None) -> list[int]:
            return rust.encode(_prefixed([text], task, config)[0]).ids

        name = f"onnxruntime {precision}" + (", pooled by hand" if tokens else "")
        yield Stack(name, run, LEAST_INT8 if precision == "int8" else LEAST_EXPORT, token_ids)

    return opened


# --- llama.cpp -------------------------------------------------------------------------------------------------------


def open_llama(precision: GgufPrecision, *, rope_base: bool = True) -> Opener:
    """llama.cpp through llama-cpp-python, past the trained length with the rotary base of each text's length or not."""

    @contextlib.contextmanager
    def opened(embedder: Embedder, folder: Path) -> Iterator[Stack]:
        library = _imported("llama_cpp", "llama-cpp-python", None)
        config, settings = embedder.model.encoder.config, embedder.config
        if not rope_base and llama_rope_base(config, settings.max_length) is None:
            raise NotHere("the model reads all its texts with one rotary base, so there is nothing to compare")
        path = folder / gguf_file(precision)
        _make(path, lambda: write_gguf(embedder, path, precision=precision))
        with contextlib.ExitStack() as open_models:
            models: dict[float, Any] = {}

            def model(length: int) -> Any:
                base = (llama_rope_base(config, length) if rope_base else None) or 0.0
                if base not in models:
                    for last in [b for b in models if b]:
                        models.pop(last).close()
                    limit = length if base else (config.trained_length if rope_base else settings.max_length)
                    batch = -(-limit // 256) * 256  # as llama.cpp rounds the context
                    with _weights_as_they_lie(library):
                        models[base] = library.Llama(
                            str(path),
                            embedding=True,
                            n_ctx=batch,
                            n_batch=batch,
                            n_ubatch=batch,
                            n_threads=torch.get_num_threads(),
                            rope_freq_base=base,
                            verbose=False,
                        )
                return models[base]

            open_models.callback(lambda: [one.close() for one in models.values()])

            def run(texts: Sequence[str], task: str | None) -> np.ndarray:
                lengths = embedder.num_tokens(texts, task=task)
                rows = [
                    model(length).embed(text, normalize=False, truncate=False)
                    for text, length in zip(_prefixed(texts, task, settings), lengths, strict=True)
                ]
                return finish(torch.tensor(rows, dtype=torch.float32), settings).numpy()

            def token_ids(text: str, task: str | None) -> list[int]:
                return model(1).tokenize(_prefixed([text], task, settings)[0].encode(), add_bos=True, special=False)

            yield Stack(
                f"llama.cpp {precision}" + ("" if rope_base else ", as it opens"),
                run,
                LEAST_INT8 if precision == "q8_0" else LEAST_EXPORT,
                token_ids,
                past_training=None if rope_base else "llama.cpp has no dynamic NTK: it reads texts of any length alike",
                remedy="open the model with the rotary base of the text's length (--rope-freq-base; docs/export.md)",
            )

    return opened


@contextlib.contextmanager
def _weights_as_they_lie(library: Any) -> Iterator[None]:
    """Models opened inside keep the file's layout of weights, as with llama.cpp's own `--no-repack`.

    Its kernels for AMX, for which it lays 8-bit weights out anew, crash where Linux wants each thread to ask for the
    tile registers (ggml-org/llama.cpp, pull request 26954). llama-cpp-python has no argument for it.
    """
    module = library.llama.llama_cpp
    defaults = module.llama_model_default_params

    def kept() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    module.llama_model_default_params = kept
    try:
        yield
    finally:
        module.llama_model_default_params = defaults


# --- a server --------------------------------------------------------------------------------------------------------


def open_server(url: str, *, least: float = LEAST_OURS) -> Opener:
    """A running server with the route `POST /embed`: `longspan serve`, or text-embeddings-inference."""

    @contextlib.contextmanager
    def opened(embedder: Embedder, folder: Path) -> Iterator[Stack]:
        def run(texts: Sequence[str], task: str | None) -> np.ndarray:
            body: dict[str, Any] = {"inputs": list(texts), "truncate": False}
            if task is not None:
                body["prompt_name"] = task
            return np.array(_post(f"{url.rstrip('/')}/embed", body), dtype=np.float32)

        yield Stack(f"server {url}", run, least)

    return opened


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise LongspanError(
            f"the server refused with {error.code}: {error.read(500).decode(errors='replace')}",
            where=url,
            remedy="name a server of this model",
        ) from None
    except (OSError, ValueError) as error:
        raise LongspanError(
            f"the server did not answer: {error}", where=url, remedy="start it: longspan serve MODEL"
        ) from None


# --- what they share -------------------------------------------------------------------------------------------------


def pooled(states_NSD: np.ndarray, mask_NS: np.ndarray, config: EmbeddingConfig) -> np.ndarray:
    """Text vectors from padded token states, as a user of a plain encoder computes them; padding on the right."""
    lengths_N = mask_NS.sum(axis=1)
    if config.pooling == "mean":
        sums_ND = (states_NSD * mask_NS[:, :, None]).sum(axis=1, dtype=np.float32)
        e_ND = sums_ND / lengths_N[:, None].astype(np.float32)
    else:
        places_N = np.zeros_like(lengths_N) if config.pooling == "cls" else lengths_N - 1
        e_ND = states_NSD[np.arange(len(places_N)), places_N]
    return finish(torch.from_numpy(np.ascontiguousarray(e_ND, dtype=np.float32)), config).numpy()


def _batch_rule(embedder: Embedder) -> str | None:
    config = embedder.model.encoder.config
    return _BATCH_NTK if config.rope_scaling == "dynamic" and config.max_length > config.trained_length else None


def _prefixed(texts: Sequence[str], task: str | None, config: EmbeddingConfig) -> list[str]:
    return [config.prefixes.get(task or "", "") + text for text in texts]


def _make(path: Path, write: Callable[[], None]) -> None:
    """Write an exported file where it is not there yet."""
    if path.exists():
        return
    try:
        write()
    except LongspanError as error:
        raise NotHere(f"{error.what} ({error.remedy})") from None


def _imported(module: str, package: str, extra: str | None) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        how = f"pip install {package}" if extra is None else f"pip install 'longspan[{extra}]'"
        raise NotHere(f"{package} is not installed ({how})") from None
