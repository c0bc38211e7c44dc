"""A model as a folder for others: always what sentence-transformers and transformers load, and other forms beside it.

`nomic` adds what readers of the original release look for: vocabulary and special tokens in files of their own, and,
for transformers before it had a class for nomic-bert, the place of the release's code. `onnx` and `gguf` add files
(`export/onnx.py`, `export/gguf.py`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from longspan.config import Config
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export.gguf import GgufPrecision, gguf_file, write_gguf
from longspan.export.model_card import CardFacts, model_card
from longspan.export.onnx import OnnxForm, onnx_file, write_onnx
from longspan.export.onnx_graph import OnnxPrecision
from longspan.files import atomic_path, read_json, write_json, write_text
from longspan.model.folder import check_replaceable, write_model
from longspan.model.published_config import model_type
from longspan.text.tokenizer import Tokenizer

Format = Literal["sentence-transformers", "nomic", "onnx", "gguf"]
FORMATS: tuple[Format, ...] = ("sentence-transformers", "nomic", "onnx", "gguf")
_FORMS: tuple[OnnxForm, ...] = ("tokens", "embed")

_RELEASE = "nomic-ai/nomic-bert-2048--"


class Forms(Config):
    """In which forms a model is published."""

    formats: tuple[Format, ...] = ("sentence-transformers",)
    """The first is always written; the others beside it."""
    onnx: tuple[OnnxPrecision, ...] = ("float32", "int8")
    """Precisions of the ONNX files."""
    gguf: tuple[GgufPrecision, ...] = ("f16",)
    """Precisions of the GGUF files."""


def publish(
    embedder: Embedder,
    folder: Path,
    *,
    forms: Forms | None = None,
    facts: CardFacts | None = None,
    tell: Callable[[str], None] | None = None,
) -> tuple[str, ...]:
    """Write the folder, with a model card. All of it appears at once, or nothing.

    Args:
        facts: what the card tells beside the model itself.
        tell: called with the name of each file that takes time, before it is written.

    Returns:
        what users of these forms have to know; it is in the card, too.

    Raises:
        LongspanError: the folder holds something else than a published model, a form is not possible for this model,
            an extra is not installed, or the folder cannot be written.
    """
    forms, facts, tell = forms or Forms(), facts or CardFacts(), tell or (lambda name: None)
    check_replaceable(folder)
    notes = (*facts.notes, *_notes(embedder, forms))
    with atomic_path(folder) as unfinished:
        tell("model.safetensors")
        write_model(unfinished, embedder.exact_encoder(), embedder.tokenizer, embedder.config)
        if "nomic" in forms.formats:
            _add_release_files(unfinished, embedder)
        if "onnx" in forms.formats:
            _write_special_tokens(unfinished)
            for precision, form in itertools.product(forms.onnx, _FORMS):
                tell(onnx_file(form, precision))
                write_onnx(embedder, unfinished / onnx_file(form, precision), form=form, precision=precision)
        for precision in forms.gguf if "gguf" in forms.formats else ():
            tell(gguf_file(precision))
            write_gguf(embedder, unfinished / gguf_file(precision), precision=precision)
        told = CardFacts(facts.history, facts.results, facts.licence, notes, facts.body)
        write_text(unfinished / "README.md", model_card(embedder, unfinished, told))
    return notes


def _notes(embedder: Embedder, forms: Forms) -> list[str]:
    config, settings = embedder.model.encoder.config, embedder.config
    notes = []
    reaches = config.rope_scaling == "dynamic" and settings.max_length > config.trained_length
    if "gguf" in forms.formats and config.positions == "rotary" and reaches:
        notes.append(
            f"llama.cpp has no dynamic NTK: texts past {config.trained_length:,} tokens get longspan's vectors only "
            "with --rope-freq-base set for their length (docs/export.md has the rule)."
        )
    if "gguf" in forms.formats and settings.layer_norm:
        notes.append(
            "llama.cpp knows no layer norm after pooling: subtract from each of its vectors the mean of its "
            "coordinates and normalise again."
        )
    if "gguf" in forms.formats:
        notes.append("llama.cpp adds no prefix: put it before the text. Long texts need -b and -ub as large as -c.")
    if "onnx" in forms.formats:
        notes.append(
            "onnx/embed*.onnx give finished vectors; onnx/model*.onnx give token states, which their reader has to "
            f"pool ({settings.pooling}). Neither adds a prefix."
        )
    return notes


def _add_release_files(folder: Path, embedder: Embedder) -> None:
    if model_type(embedder.model.encoder.config, folder) != "nomic_bert":
        raise LongspanError(
            "only nomic_bert models were released in the nomic layout",
            where=embedder.name,
            remedy="leave out --format nomic: the sentence-transformers folder is what readers of this model want",
        )
    path = folder / "config.json"
    code = {
        "AutoConfig": "configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "modeling_hf_nomic_bert.NomicBertModel",
        "AutoModelForMaskedLM": "modeling_hf_nomic_bert.NomicBertForPreTraining",
    }
    places = {"auto_map": {name: _RELEASE + place for name, place in code.items()}}
    write_json(path, read_json(path, remedy="export it again") | places)
    write_text(folder / "vocab.txt", _vocabulary_file(embedder.tokenizer))
    _write_special_tokens(folder)


def _write_special_tokens(folder: Path) -> None:
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("UNK", "SEP", "PAD", "CLS", "MASK")}
    write_json(folder / "special_tokens_map.json", names)


def _vocabulary_file(tokenizer: Tokenizer) -> str:
    """A token a line, by number; numbers that no token has are [unusedN]."""
    definition = json.loads(tokenizer.definition())
    numbers = dict(definition["model"]["vocab"]) | {
        added["content"]: added["id"] for added in definition["added_tokens"]
    }
    names = [f"[unused{number}]" for number in range(tokenizer.vocab_size)]
    for token, number in numbers.items():
        names[number] = token
    return "".join(f"{name}\n" for name in names)
