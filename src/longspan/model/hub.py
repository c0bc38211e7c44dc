"""Published checkpoints, both ways, and strictness about every weight.

`model/layouts.py` has the names of the weights, `model/published_config.py` the keys of `config.json`. Weights are read
from safetensors, one file or several with an index. Not read, because it changes nothing that is computed here: tables
that follow from `config.json` (`position_ids`, `token_type_ids`, `inv_freq` and its kind), copies of the token table as
the tied output's weight, and heads that nobody asked for (`pooler.dense`, `cls.seq_relationship`, `classifier`; for an
encoder alone also `cls.predictions`, and ModernBERT's `head` and `decoder`). Any other weight too many is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longspan.errors import LongspanError
from longspan.files import atomic_path, read_json, write_json
from longspan.model.encoder import Encoder
from longspan.model.heads import MaskedLanguageModel
from longspan.model.layouts import (
    BERT,
    MODERNBERT,
    NATIVE,
    NOMIC,
    Layout,
    canonical,
    in_published_order,
    layout_of,
    published_names,
    to_published,
)
from longspan.model.published_config import model_type, published_config, read_config

LayoutName = Literal["nomic", "native"]
"""The names of the original release of nomic-bert, which servers know too, or of transformers' own class."""

_INDEX = "model.safetensors.index.json"

_CONSTANT = re.compile(r"(^|[._])(position_ids|token_type_ids|inv_freq)$")
_TIED = re.compile(r"^(cls\.predictions\.)?decoder\.weight$")
_UNUSED_HEAD = re.compile(r"^(pooler\.dense|cls\.seq_relationship|classifier)\.(weight|bias)$")
_MASKED_SIGN = re.compile(r"^(cls\.predictions\..*|decoder\.bias)$")
"""What only a head for masked language modelling has: ModernBERT's classifier has `head` too."""
_MASKED_HEAD = re.compile(
    r"^(cls\.predictions\.transform\.(dense|LayerNorm|layer_norm)|head\.(dense|norm))\.(weight|bias)$"
    r"|^(cls\.predictions|decoder)\.bias$"
)


# --- reading ---------------------------------------------------------------------------------------------------------


def load_encoder(folder: Path) -> Encoder:
    """Read `config.json` and `model.safetensors` (or its shards) into an `Encoder` in float32.

    Raises:
        LongspanError: a file is missing or torn, the architecture is not one we compute, or a weight is missing, left
            over, of the wrong shape or not finite.
    """
    # Every weight is read below, so none is drawn: it would take time, and move the caller's random state.
    with torch.device("meta"):
        encoder = Encoder(read_config(folder))
    read_state(encoder, _read_weights(folder), where=folder)
    return encoder


def load_masked_model(folder: Path) -> MaskedLanguageModel:
    """Read an encoder together with its head for masked language modelling, in float32.

    In the nomic layout dense and output may both be without bias, as the original code leaves them where `mlp_fc1_bias`
    is false: the biases are zero then.

    Raises:
        LongspanError: see `load_encoder`; or there is no such head, or its output is not tied to the token table.
    """
    with torch.device("meta"):
        model = MaskedLanguageModel(Encoder(read_config(folder)))
    weights = _read_weights(folder)
    if not any(_MASKED_SIGN.search(canonical(name)) for name in weights):
        raise LongspanError(
            "the checkpoint has no head for masked language modelling",
            where=folder,
            remedy="use a model that was published with its head, or load the encoder alone",
        )
    published = _Published(weights, folder)
    del weights
    biases = {
        "cls.predictions.transform.dense.bias": torch.zeros(model.head.dense.out_features),
        "cls.predictions.bias": torch.zeros(model.encoder.config.padded_vocab_size),
    }
    if published.layout is NOMIC and not biases.keys() & published.weights.keys():
        published.weights |= biases
    published.fill(model.encoder, published.layout.modules)
    published.fill(model.head, published.layout.head)
    published.check_tied(model.encoder.embeddings.tokens.weight)
    published.check_rest()
    return model


def read_state(encoder: Encoder, weights: Mapping[str, Tensor], *, where: Path) -> None:
    """Copy published weights into `encoder`, by name, strictly; one without weights (on "meta") takes them over.

    Raises:
        LongspanError: see `load_encoder`.
    """
    published = _Published(weights, where)
    del weights  # what is stacked is freed piece by piece
    published.fill(encoder, published.layout.modules)
    published.check_rest(_MASKED_HEAD, _TIED)


def has_masked_head(folder: Path) -> bool:
    """Whether the weights in a folder have a head for masked language modelling; reads their names only.

    Raises:
        LongspanError: a file is missing or torn.
    """
    index = _read_index(folder)
    names = _names(folder / "model.safetensors") if index is None else index
    return any(_MASKED_SIGN.search(canonical(name)) for name in names)


class _Published:
    """Published weights under their canonical names, and which of them found a place.

    Attributes:
        weights: canonical name -> tensor.
        layout: which the names are of.
    """

    def __init__(self, weights: Mapping[str, Tensor], where: Path) -> None:
        self.where = where
        self.weights: dict[str, Tensor] = {}
        self._placed: set[str] = set()
        for name, tensor in weights.items():
            short = canonical(name)
            if short in self.weights and not torch.equal(tensor, self.weights[short]):
                raise LongspanError(
                    f"the checkpoint has the weight {short} twice, under two names and with different values",
                    where=where,
                    remedy="save the model alone, not together with a copy of it",
                )
            self.weights[short] = tensor
        self.layout = layout_of(self.weights, where)

    def fill(self, module: torch.nn.Module, names: Mapping[str, tuple[str, ...]]) -> None:
        """Put the weights that `names` (of the layout) gives to `module` into it: each must be there, and fit.

        Weights that found a place are not kept here, and those of a module without any are not copied where they need
        not be stacked or cast: a model is in memory once.
        """
        taken_over: dict[str, Tensor] = {}
        for name, parameter in module.state_dict().items():
            parts = [canonical(part) for part in published_names(name, names)]
            if not parts:
                raise LongspanError(
                    f"config.json asks for {name}, which weights of this layout do not have",
                    where=self.where,
                    remedy="weights and config.json belong to different models: download both again",
                )
            rows, *rest = parameter.shape
            shape = (rows // len(parts), *rest)
            pieces = [self._weight(part, shape) for part in parts]
            stacked = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            weight = in_published_order(name, stacked, self.layout)
            if parameter.is_meta:
                taken_over[name] = weight.float()
            else:
                parameter.copy_(weight)
        if taken_over:
            module.load_state_dict(taken_over, assign=True)

    def check_tied(self, tokens_VD: Tensor) -> None:
        """Refuse an output weight that is not the token table."""
        for name in (name for name in self.weights if _TIED.search(name)):
            if not torch.equal(self.weights[name].float(), tokens_VD):
                raise LongspanError(
                    f"{name} is not the token table, which the output is tied to",
                    where=self.where,
                    remedy="use a model with tie_word_embeddings, or load the encoder alone",
                )
            self._placed.add(name)

    def check_rest(self, *unused: re.Pattern[str]) -> None:
        """Refuse weights that found no place, but for those that change nothing and those that are `unused`."""
        known = (_CONSTANT, _UNUSED_HEAD, *unused)
        left = sorted(self.weights.keys() - self._placed)
        unknown = [name for name in left if not any(pattern.search(name) for pattern in known)]
        if unknown:
            raise LongspanError(
                f"the checkpoint has weights that the model has no place for: {', '.join(unknown[:5])}",
                where=self.where,
                remedy="its architecture is not the one its config.json describes: download both again",
            )

    def _weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self.weights.get(name)
        if tensor is None:
            raise LongspanError(
                f"the checkpoint lacks the weight {name}",
                where=self.where,
                remedy="it is incomplete or of another architecture than its config.json says: download it again",
            )
        if tensor.shape != shape:
            raise LongspanError(
                f"{name}: shape {tuple(tensor.shape)}, but config.json asks for {shape}",
                where=self.where,
                remedy="weights and config.json belong to different models: download both again",
            )
        if not tensor.is_floating_point():
            raise LongspanError(
                f"{name} holds {tensor.dtype}, not floating-point numbers",
                where=self.where,
                remedy="use the checkpoint before its quantisation",
            )
        if not torch.isfinite(tensor.float()).all():
            raise LongspanError(
                f"{name} holds values that are not finite",
                where=self.where,
                remedy="the training run diverged or the file is damaged: take an earlier checkpoint",
            )
        self._placed.add(name)
        return self.weights.pop(name)


# --- writing ---------------------------------------------------------------------------------------------------------


def save_encoder(encoder: Encoder, folder: Path, *, layout: LayoutName = "nomic") -> None:
    """Write `config.json` and `model.safetensors` in float32.

    Args:
        layout: names of the weights in the nomic family; the others have transformers' only.

    Raises:
        LongspanError: no published model type computes this encoder, or the folder cannot be written.
    """
    names = _layout(encoder, layout, folder)
    _write(folder, to_published(_float32(encoder), names.modules, names), published_config(encoder.config))


def save_masked_model(model: MaskedLanguageModel, folder: Path, *, layout: LayoutName = "native") -> None:
    """Write encoder and head together, in float32: what transformers' `...ForMaskedLM` reads.

    Args:
        layout: see `save_encoder`. With a head the nomic layout is what the original code reads; transformers does not
            know its wrapper `bert.`, and would start from random weights.

    Raises:
        LongspanError: see `save_encoder`.
    """
    names = _layout(model.encoder, layout, folder)
    encoder = to_published(_float32(model.encoder), names.modules, names)
    weights = {names.wrapper + name: tensor for name, tensor in encoder.items()}
    weights |= to_published(_float32(model.head), names.head, names)
    if names.writes_tied is not None:
        weights[names.writes_tied] = model.encoder.embeddings.tokens.weight.detach().float().clone()
    _write(folder, weights, published_config(model.encoder.config, masked=True))


def _layout(encoder: Encoder, layout: LayoutName, folder: Path) -> Layout:
    kind = model_type(encoder.config, folder)
    nomic = {"nomic": NOMIC, "native": NATIVE}[layout]
    return {"nomic_bert": nomic, "bert": BERT, "modernbert": MODERNBERT}[kind]


def _float32(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().float() for name, tensor in module.state_dict().items()}


def _write(folder: Path, weights: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    write_safetensors(folder / "model.safetensors", weights)
    write_json(folder / "config.json", config)


# --- safetensors -----------------------------------------------------------------------------------------------------


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files = _read_index(folder)
    if files is None:
        return read_safetensors(folder / "model.safetensors")
    weights: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        tensors = read_safetensors(folder / file)
        misplaced = [name for name in tensors if files.get(name) != file]
        misplaced += [name for name in files if files[name] == file and name not in tensors]
        if misplaced:
            raise LongspanError(
                f"{_INDEX} and {file} disagree on where {', '.join(sorted(misplaced)[:5])} is",
                where=folder,
                remedy="files of two models are mixed: download the model again",
            )
        weights |= tensors
    return weights


def _read_index(folder: Path) -> dict[str, str] | None:
    """Name of each weight -> its file; None where there is no index."""
    path = folder / _INDEX
    if not path.is_file():
        return None
    table = read_json(path, remedy="download the model again")
    files = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise LongspanError(f"{_INDEX} names no files", where=path, remedy="download the model again")
    return files


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in memory of their own.

    Raises:
        LongspanError: the file is missing or torn. Pickled checkpoints are never read: they can run code.
    """
    return {name: _read_tensor(path, name) for name in _names(path)}


def _read_tensor(path: Path, name: str) -> Tensor:
    # Opened for every tensor: what is read stays mapped, and counts as this process's memory, until the file is closed.
    with _opened(path) as file:
        return file.get_tensor(name).clone()


def _names(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise LongspanError(
            f"{path.name} is missing",
            where=path,
            remedy="longspan reads safetensors only; convert a pytorch_model.bin first where you trust it "
            "(transformers: from_pretrained, then save_pretrained), or download the model again",
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise LongspanError(
            f"{path.name} is torn or not a safetensors file: {error}", where=path, remedy="download or save it again"
        ) from None


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file, atomically, in the order of their names.

    Raises:
        LongspanError: the disk is full or the place cannot be written.
    """
    on_host = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with atomic_path(path) as unfinished:
        try:
            save_file(on_host, unfinished, metadata={"format": "pt"})
        except SafetensorError as error:
            # The library hides the operating system's error in its text.
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else 0, str(error)) from error
