"""The folder of a published model: encoder, tokenizer, and how a text becomes a vector.

The layout is sentence-transformers' (with stock module classes only, so that nobody needs `trust_remote_code`):
`config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json`, `modules.json`, `1_Pooling/config.json`,
where vectors are layer-normed `2_LayerNorm/`, `sentence_bert_config.json` and `config_sentence_transformers.json`.
Facts: peers.md E1, E4, E5, E6.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from longspan.errors import LongspanError
from longspan.files import UNFINISHED, read_json, write_json
from longspan.model.config import EmbeddingConfig
from longspan.model.encoder import Encoder
from longspan.model.heads import MaskedLanguageModel
from longspan.model.hub import load_encoder, read_safetensors, save_encoder, save_masked_model, write_safetensors
from longspan.text.tokenizer import Tokenizer

_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
_COMPACT_POOLING = {"cls": "cls", "mean": "mean", "lasttoken": "last"}

_OURS = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "1_Pooling",
    "2_LayerNorm",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "README.md",
    # what `longspan export` adds in other forms
    "vocab.txt",
    "special_tokens_map.json",
    "onnx",
    "model-f32.gguf",
    "model-f16.gguf",
    "model-q8_0.gguf",
}
"""What a folder that longspan published holds."""


def find_model(path_or_id: str | os.PathLike[str]) -> Path:
    """The local folder of a model: the folder itself, a finished run's `model/`, or a download from the hub.

    Raises:
        LongspanError: there is no such folder and the hub does not give it.
    """
    path = Path(path_or_id)
    if path.is_dir():
        if (path / "config.json").is_file() and not (path / "run.json").is_file():
            return path
        if (path / "model" / "config.json").is_file():
            return path / "model"
        if (path / "run.json").is_file():
            raise LongspanError(
                "this run is not finished: it has no model yet",
                where=path,
                remedy=f"finish it first: longspan train --resume {path}",
            )
        raise LongspanError(
            "the folder is not a model: it has no config.json",
            where=path,
            remedy="name a published model's folder or a finished run",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=["*.json", "*.safetensors", "vocab.txt"]))
    except Exception as error:  # the hub client raises many kinds; each means "not to be had"
        raise LongspanError(
            f"no model {str(path_or_id)!r}: no such folder, and the hub did not give it ({type(error).__name__})",
            where=str(path_or_id),
            remedy="check the spelling; without a network, download the model first and name its folder",
        ) from None


def read_model(path_or_id: str | os.PathLike[str]) -> tuple[Encoder, Tokenizer, EmbeddingConfig]:
    """Everything that a published folder says.

    Raises:
        LongspanError: a part is missing, torn or of a kind that longspan does not compute.
    """
    folder = find_model(path_or_id)
    encoder = load_encoder(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > encoder.config.padded_vocab_size:
        raise LongspanError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the encoder only {encoder.config.padded_vocab_size}",
            where=folder,
            remedy="tokenizer and weights belong to different models: download both again",
        )
    return encoder, tokenizer, _read_embedding_config(folder, encoder.config.max_length)


def check_replaceable(folder: Path) -> None:
    """Refuse to put a model in the place of anything but a model: what stands there would be deleted.

    Raises:
        LongspanError: `folder` holds something that longspan does not publish, or is a file.
    """
    if folder.is_file():
        raise LongspanError("a model is a folder, and this is a file", where=folder, remedy="choose another folder")
    if not folder.is_dir():
        return
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in _OURS)
    foreign = [name for name in foreign if not name.startswith(UNFINISHED)]
    if foreign:
        raise LongspanError(
            f"the folder holds something else than a published model: {', '.join(foreign[:5])}",
            where=folder,
            remedy="choose another folder, or move these files away first: the whole folder is replaced",
        )


def write_model(
    folder: Path, model: Encoder | MaskedLanguageModel, tokenizer: Tokenizer, config: EmbeddingConfig
) -> None:
    """Write a whole model folder, with the head if the model has one: `read_model` needs none, and skips it.

    Not atomic: callers write to an unfinished name (`files.atomic_path`).

    Raises:
        LongspanError: no published model type computes this encoder, or the folder cannot be written.
    """
    if isinstance(model, MaskedLanguageModel):
        encoder = model.encoder
        save_masked_model(model, folder)
    else:
        encoder = model
        save_encoder(encoder, folder)
    config = config.within(encoder.config)
    tokenizer.save(folder / "tokenizer.json")
    write_json(folder / "tokenizer_config.json", _tokenizer_config(config))
    write_json(folder / "modules.json", _modules(config))
    write_json(folder / "1_Pooling" / "config.json", _pooling(config, encoder.config.width))
    if config.layer_norm:
        _write_layer_norm(folder / "2_LayerNorm", encoder.config.width)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_length, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", _sentence_transformers_config(config))


def _tokenizer_config(config: EmbeddingConfig) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_length,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }


def _modules(config: EmbeddingConfig) -> list[dict[str, Any]]:
    # The old class paths load in every release; the new ones only from 5.4 on.
    names = ["Transformer", "Pooling"] + ["LayerNorm"] * config.layer_norm + ["Normalize"] * config.normalize
    return [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]


def _pooling(config: EmbeddingConfig, width: int) -> dict[str, Any]:
    # The verbose form: some servers mis-read the compact one as CLS pooling.
    modes = {key: mode == config.pooling for mode, key in _POOLING_KEYS.items()}
    return {"word_embedding_dimension": width, **modes, "include_prompt": True}


def _write_layer_norm(folder: Path, width: int) -> None:
    # The stock module has weights: with these it computes what `pooling.finish` does. Releases before 5.0 want them
    # pickled, which we never write.
    write_json(folder / "config.json", {"dimension": width})
    weights = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    write_safetensors(folder / "model.safetensors", weights)


def _sentence_transformers_config(config: EmbeddingConfig) -> dict[str, Any]:
    return {
        "__version__": {"sentence_transformers": "2.7.0", "transformers": "4.40.0", "pytorch": "2.3.0"},
        "prompts": dict(config.prefixes),
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }


def _read_embedding_config(folder: Path, longest: int) -> EmbeddingConfig:
    if not (folder / "modules.json").is_file():
        raise LongspanError(
            "modules.json is missing, so nothing says how token vectors become a text vector",
            where=folder,
            remedy="name a folder in the layout of sentence-transformers, or start training from it with --init",
        )
    modules = read_json(folder / "modules.json", remedy="download the model again")
    pooling = ""
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    for kind, module in zip(kinds, modules, strict=True):
        if kind == "Pooling":
            pooling = _read_pooling(folder / module["path"] / "config.json")
        elif kind == "LayerNorm":
            _check_layer_norm(folder / module["path"])
        elif kind not in ("Transformer", "Normalize"):
            raise LongspanError(
                f"module {kind!r} is not supported",
                where=folder / "modules.json",
                remedy="use a model made of Transformer, Pooling, LayerNorm and Normalize",
            )
    if not pooling:
        raise LongspanError("there is no Pooling module", where=folder / "modules.json", remedy="download it again")
    if kinds != [kind for kind in ("Transformer", "Pooling", "LayerNorm", "Normalize") if kind in kinds]:
        raise LongspanError(
            f"the modules {', '.join(kinds)} are not supported in this order",
            where=folder / "modules.json",
            remedy="use a model made of Transformer, Pooling, LayerNorm and Normalize, in this order",
        )
    return EmbeddingConfig.parse(
        {
            "pooling": pooling,
            "layer_norm": "LayerNorm" in kinds,
            "normalize": "Normalize" in kinds,
            "max_length": min(_read_limit(folder) or longest, longest),
            "prefixes": _read_prefixes(folder),
        },
        where=folder,
    )


def _check_layer_norm(folder: Path) -> None:
    weights = read_safetensors(folder / "model.safetensors")
    trivial = {"norm.weight": 1.0, "norm.bias": 0.0}
    if weights.keys() != trivial.keys() or any(bool((weights[name] != value).any()) for name, value in trivial.items()):
        raise LongspanError(
            "a LayerNorm module with weights of its own is not supported",
            where=folder,
            remedy="use a model whose layer norm after pooling has no weights (all ones and zeros), or none",
        )


def _read_limit(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    settings = _optional(path)
    if settings.get("do_lower_case"):
        raise LongspanError(
            "do_lower_case is set: sentence-transformers would lower-case texts before the tokenizer sees them",
            where=path,
            remedy="set it to false if the tokenizer lower-cases by itself; otherwise the model is not supported",
        )
    return settings.get("max_seq_length") or _optional(folder / "tokenizer_config.json").get("model_max_length")


def _read_prefixes(folder: Path) -> dict[str, str]:
    prompts = _optional(folder / "config_sentence_transformers.json").get("prompts") or {}
    if not prompts.get("query") and not prompts.get("document"):
        # sentence-transformers writes these two, empty, into every model it saves. Where one of them says something,
        # the other is a task that needs no prefix.
        prompts = {name: text for name, text in prompts.items() if name not in ("query", "document")}
    return prompts if any(prompts.values()) else {}


def _read_pooling(path: Path) -> str:
    published = read_json(path, remedy="download the model again")
    if "pooling_mode" in published:
        modes = [published["pooling_mode"]] if isinstance(published["pooling_mode"], str) else published["pooling_mode"]
        modes = [_COMPACT_POOLING.get(mode, mode) for mode in modes]
    else:
        modes = [mode for mode, key in _POOLING_KEYS.items() if published.get(key)]
    if len(modes) != 1 or modes[0] not in ("mean", "cls", "last"):
        raise LongspanError(
            f"pooling {modes} is not supported", where=path, remedy="use a model with mean, cls or last-token pooling"
        )
    if published.get("include_prompt") is False:
        raise LongspanError(
            "pooling that leaves out the prompt is not supported",
            where=path,
            remedy="use a model that pools all tokens",
        )
    return modes[0]


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, remedy="download the model again") if path.is_file() else {}
