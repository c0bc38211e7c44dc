"""Published checkpoints, both ways: their names, their `config.json`, and strictness about every weight.

Three layouts are read: *nomic* (the original release; also what llama.cpp and TEI read), *native* (transformers' own
`NomicBertModel`) and *bert*. The nomic layout is written, under a `config.json` that carries both families of keys, so
that one folder opens in all of them. Facts: peers.md E2, E3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longspan.errors import LongspanError
from longspan.files import atomic_path, read_json, write_json
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder

# Our module name -> the published modules whose weights are stacked to make it.
_NOMIC = {
    "embeddings.tokens": ["embeddings.word_embeddings"],
    "embeddings.token_types": ["embeddings.token_type_embeddings"],
    "embeddings.norm": ["emb_ln"],
    "layers.{i}.attention.qkv": ["encoder.layers.{i}.attn.Wqkv"],
    "layers.{i}.attention.out": ["encoder.layers.{i}.attn.out_proj"],
    "layers.{i}.norm1": ["encoder.layers.{i}.norm1"],
    "layers.{i}.mlp.up_gate": ["encoder.layers.{i}.mlp.fc11", "encoder.layers.{i}.mlp.fc12"],
    "layers.{i}.mlp.down": ["encoder.layers.{i}.mlp.fc2"],
    "layers.{i}.norm2": ["encoder.layers.{i}.norm2"],
}
_NATIVE = {
    "embeddings.tokens": ["embeddings.word_embeddings"],
    "embeddings.token_types": ["embeddings.token_type_embeddings"],
    "embeddings.norm": ["embeddings.LayerNorm"],
    "layers.{i}.attention.qkv": [f"layers.{{i}}.self_attn.{part}_proj" for part in "qkv"],
    "layers.{i}.attention.out": ["layers.{i}.self_attn.o_proj"],
    "layers.{i}.norm1": ["layers.{i}.post_attention_layernorm"],
    "layers.{i}.mlp.up_gate": ["layers.{i}.mlp.up_proj", "layers.{i}.mlp.gate_proj"],
    "layers.{i}.mlp.down": ["layers.{i}.mlp.down_proj"],
    "layers.{i}.norm2": ["layers.{i}.post_mlp_layernorm"],
}
_BERT = {
    "embeddings.tokens": ["embeddings.word_embeddings"],
    "embeddings.token_types": ["embeddings.token_type_embeddings"],
    "embeddings.positions": ["embeddings.position_embeddings"],
    "embeddings.norm": ["embeddings.LayerNorm"],
    "layers.{i}.attention.qkv": [f"encoder.layer.{{i}}.attention.self.{part}" for part in ("query", "key", "value")],
    "layers.{i}.attention.out": ["encoder.layer.{i}.attention.output.dense"],
    "layers.{i}.norm1": ["encoder.layer.{i}.attention.output.LayerNorm"],
    "layers.{i}.mlp.up": ["encoder.layer.{i}.intermediate.dense"],
    "layers.{i}.mlp.down": ["encoder.layer.{i}.output.dense"],
    "layers.{i}.norm2": ["encoder.layer.{i}.output.LayerNorm"],
}
# Beginnings of names that only one layout has; any one of them tells, so that a missing weight is named as the file
# would spell it.
_MARKS = {("emb_ln.", "encoder.layers."): _NOMIC, ("layers.",): _NATIVE}

_WRAPPER = re.compile(r"^(bert|nomic_bert|model)\.")
_NOT_THE_ENCODER = re.compile(r"^(pooler|cls|classifier)\.|(^|\.)(position_ids|inv_freq)$")
"""Heads and constants that published files carry beside the encoder; an embedder has no use for them."""


def load_encoder(folder: Path) -> Encoder:
    """Read `config.json` and `model.safetensors` (or its shards) into an `Encoder` in float32.

    Raises:
        LongspanError: a file is missing or torn, the architecture is not one we compute, or a weight is missing, left
            over, or of the wrong shape.
    """
    config = read_config(folder)
    # Every weight is read below, so none is drawn: it would take time, and move the caller's random state.
    with torch.device("meta"):
        encoder = Encoder(config)
    encoder = encoder.to_empty(device="cpu")
    read_state(encoder, _read_weights(folder), where=folder)
    return encoder


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` in the nomic layout, float32.

    Raises:
        LongspanError: the encoder is not of the nomic family, or the folder cannot be written.
    """
    if encoder.config.positions != "rotary" or encoder.config.activation != "swiglu" or encoder.config.bias:
        raise LongspanError(
            "only encoders of the nomic family are written (rotary, SwiGLU, no biases)",
            where=folder,
            remedy="publish a model trained by longspan from its own recipes",
        )
    weights: dict[str, Tensor] = {}
    for name, tensor in encoder.state_dict().items():
        parts = _published_names(name, _NOMIC)
        for part, piece in zip(parts, tensor.detach().float().cpu().chunk(len(parts)), strict=True):
            weights[part] = piece.contiguous()
    write_safetensors(folder / "model.safetensors", weights)
    write_json(folder / "config.json", published_config(encoder.config))


def read_state(encoder: Encoder, published: Mapping[str, Tensor], *, where: Path) -> None:
    """Copy published weights into `encoder`, by name, strictly.

    Raises:
        LongspanError: see `load_encoder`.
    """
    published = _unwrapped(published, where)
    layout = _layout(published)
    unused = {name for name in published if not _NOT_THE_ENCODER.search(name)}
    state: dict[str, Tensor] = {}
    for name, parameter in encoder.state_dict().items():
        parts = _published_names(name, layout)
        if not parts:
            raise LongspanError(
                f"config.json asks for {name}, which weights of this layout do not have",
                where=where,
                remedy="weights and config.json belong to different models: download both again",
            )
        unused.difference_update(parts)
        rows, *rest = parameter.shape
        shape = (rows // len(parts), *rest)
        state[name] = torch.cat([_weight(published, part, shape, where) for part in parts])
    if unused:
        raise LongspanError(
            f"the checkpoint has weights that the model has no place for: {', '.join(sorted(unused)[:5])}",
            where=where,
            remedy="its architecture is not the one its config.json describes; longspan reads BERT and nomic-bert",
        )
    encoder.load_state_dict(state)


def _unwrapped(published: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, tensor in published.items():
        short = _WRAPPER.sub("", name)
        if short in plain:
            raise LongspanError(
                f"the checkpoint has the weight {short} twice, with a wrapper's name before it and without",
                where=where,
                remedy="save the model alone, not together with a copy of it",
            )
        plain[short] = tensor
    return plain


def _layout(published: Mapping[str, Tensor]) -> Mapping[str, list[str]]:
    for beginnings, layout in _MARKS.items():
        if any(name.startswith(beginnings) for name in published):
            return layout
    return _BERT


def _weight(published: Mapping[str, Tensor], name: str, shape: tuple[int, ...], where: Path) -> Tensor:
    tensor = published.get(name)
    if tensor is None:
        raise LongspanError(
            f"the checkpoint lacks the weight {name}",
            where=where,
            remedy="it is incomplete or of another architecture than its config.json says: download it again",
        )
    if tensor.shape != shape:
        raise LongspanError(
            f"{name}: shape {tuple(tensor.shape)}, but config.json asks for {shape}",
            where=where,
            remedy="weights and config.json belong to different models: download both again",
        )
    if not torch.isfinite(tensor).all():
        raise LongspanError(
            f"{name} holds values that are not finite",
            where=where,
            remedy="the training run diverged or the file is damaged: take an earlier checkpoint",
        )
    return tensor


def read_config(folder: Path) -> EncoderConfig:
    """Read a published `config.json` of either key family.

    Raises:
        LongspanError: it is missing, or describes arithmetic that `Encoder` does not have.
    """
    path = folder / "config.json"
    published = read_json(path, remedy="name the folder of a published model (config.json, model.safetensors, ...)")
    if not isinstance(published, dict):
        raise LongspanError("config.json is not a JSON object", where=path, remedy="download the model again")
    # A key that says null says nothing.
    published = {key: value for key, value in published.items() if value is not None}
    kind = published.get("model_type")
    if kind == "nomic_bert":
        return EncoderConfig.parse(_nomic_settings(published, path), where=path)
    if kind == "bert":
        return EncoderConfig.parse(_bert_settings(published, path), where=path)
    raise LongspanError(
        f"model_type {kind!r} is not supported", where=path, remedy="use a model of type nomic_bert or bert"
    )


def published_config(config: EncoderConfig) -> dict[str, Any]:
    """The `config.json` of an encoder of the nomic family: the original keys and transformers' beside each other.

    Long texts: transformers reads `rope_type: dynamic`, whose `factor` is equation (5)'s alpha.
    """
    original = {
        "activation_function": "swiglu",
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.inner_width,
        "n_layer": config.num_layers,
        "n_positions": config.max_length,
        "max_trained_positions": config.trained_length,
        "rotary_emb_base": config.rotary_base,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": config.ntk_alpha,
        "layer_norm_epsilon": config.norm_eps,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "prenorm": False,
        "causal": False,
        "use_rms_norm": False,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "pad_vocab_size_multiple": config.vocab_multiple,
        "parallel_block": False,
    }
    native = {
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.inner_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.trained_length,
        "layer_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": config.rotary_base, "factor": config.ntk_alpha},
    }
    shared = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "vocab_size": config.padded_vocab_size,
        "type_vocab_size": config.num_token_types,
        "pad_token_id": 0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
    return shared | original | native


def _published_names(name: str, layout: Mapping[str, list[str]]) -> list[str]:
    module, _, kind = name.rpartition(".")
    number = re.search(r"^layers\.(\d+)\.", module)
    template = module if number is None else module.replace(f"layers.{number[1]}.", "layers.{i}.", 1)
    index = "" if number is None else number[1]
    parts = layout.get(template, [])
    return [f"{part.replace('{i}', index)}.{kind}" for part in parts]


def _nomic_settings(published: Mapping[str, Any], path: Path) -> dict[str, Any]:
    rope = published.get("rope_parameters", {})
    settings = rope | published

    def either(original: str, native: str, default: Any) -> Any:
        values = [settings[key] for key in (original, native) if key in settings]
        if len(values) == 2 and values[0] != values[1]:
            raise LongspanError(
                f"{original} = {values[0]!r} and {native} = {values[1]!r} contradict each other",
                where=path,
                remedy="correct the one that does not belong to the weights",
            )
        return values[0] if values else default

    expected = {
        "activation_function": "swiglu",
        "hidden_act": "silu",
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "prenorm": False,
        "parallel_block": False,
        "causal": False,
        "use_rms_norm": False,
    }
    _refuse_other_values(published, expected, path)
    if rope.get("rope_type", "default") != "default":
        _refuse_other_values(rope, {"rope_type": "dynamic"}, path)
    _refuse_other_values(rope, {"partial_rotary_factor": 1.0}, path)
    trained = either("max_trained_positions", "max_position_embeddings", 2048)
    return {
        "vocab_size": settings.get("vocab_size", 30528),
        "vocab_multiple": 1,
        "width": either("n_embd", "hidden_size", 768),
        "num_layers": either("n_layer", "num_hidden_layers", 12),
        "num_heads": either("n_head", "num_attention_heads", 12),
        "inner_width": either("n_inner", "intermediate_size", 3072),
        "rotary_base": either("rotary_emb_base", "rope_theta", 1000.0),
        "trained_length": trained,
        # transformers' own keys set no limit; the paper reads up to four times the trained length.
        "max_length": max(settings.get("n_positions", 4 * trained), trained),
        # Releases that leave alpha open (v1.5: null) get the paper's 2 (section 5.2.2) past their trained length.
        "ntk_alpha": either("rotary_scaling_factor", "factor", 2.0),
        "norm_eps": either("layer_norm_epsilon", "layer_norm_eps", 1e-12),
        "num_token_types": settings.get("type_vocab_size", 2),
    }


def _bert_settings(published: Mapping[str, Any], path: Path) -> dict[str, Any]:
    expected = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    _refuse_other_values(published, expected, path)
    return {
        "vocab_size": published.get("vocab_size", 30522),
        "vocab_multiple": 1,
        "width": published.get("hidden_size", 768),
        "num_layers": published.get("num_hidden_layers", 12),
        "num_heads": published.get("num_attention_heads", 12),
        "inner_width": published.get("intermediate_size", 3072),
        "positions": "learned",
        "trained_length": published.get("max_position_embeddings", 512),
        "max_length": published.get("max_position_embeddings", 512),
        "activation": "gelu",
        "bias": True,
        "norm_eps": published.get("layer_norm_eps", 1e-12),
        "num_token_types": published.get("type_vocab_size", 2),
    }


def _refuse_other_values(published: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    for key, value in expected.items():
        if published.get(key, value) != value:
            raise LongspanError(
                f"{key} = {published[key]!r}: the encoder computes only {value!r}",
                where=path,
                remedy="use a model of the nomic-bert or BERT family with this setting",
            )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table = read_json(index, remedy="download the model again")
        if not isinstance(table, dict) or not isinstance(table.get("weight_map"), dict):
            raise LongspanError(f"{index.name} names no files", where=index, remedy="download the model again")
        files = [folder / name for name in sorted(set(table["weight_map"].values()))]
    else:
        files = [folder / "model.safetensors"]
    weights: dict[str, Tensor] = {}
    for path in files:
        weights |= read_safetensors(path)
    return weights


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        LongspanError: the file is missing or torn. Pickled checkpoints are never read: they can run code.
    """
    if not path.is_file():
        raise LongspanError(
            f"{path.name} is missing",
            where=path,
            remedy="longspan reads safetensors only; convert a pytorch_model.bin first, or download the model again",
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
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
