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
# A weight that only its own layout has tells which layout a file is in.
_MARKS = {"emb_ln.weight": _NOMIC, "layers.0.self_attn.q_proj.weight": _NATIVE}

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
    encoder = Encoder(config)
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
    published = {_WRAPPER.sub("", name): tensor for name, tensor in published.items()}
    layout = next((names for mark, names in _MARKS.items() if mark in published), _BERT)
    unused = {name for name in published if not _NOT_THE_ENCODER.search(name)}
    state: dict[str, Tensor] = {}
    for name, parameter in encoder.state_dict().items():
        parts = _published_names(name, layout)
        missing = [part for part in parts if part not in published]
        if missing:
            raise LongspanError(
                f"the checkpoint lacks the weight {missing[0]}",
                where=where,
                remedy="it is incomplete or of another architecture than its config.json says: download it again",
            )
        unused.difference_update(parts)
        tensor = torch.cat([published[part] for part in parts])
        if tensor.shape != parameter.shape:
            raise LongspanError(
                f"{', '.join(parts)}: shape {tuple(tensor.shape)}, but config.json asks for {tuple(parameter.shape)}",
                where=where,
                remedy="weights and config.json belong to different models: download both again",
            )
        if not torch.isfinite(tensor).all():
            raise LongspanError(
                f"{', '.join(parts)} holds values that are not finite",
                where=where,
                remedy="the training run diverged or the file is damaged: take an earlier checkpoint",
            )
        state[name] = tensor
    if unused:
        raise LongspanError(
            f"the checkpoint has weights that the model has no place for: {', '.join(sorted(unused)[:5])}",
            where=where,
            remedy="its architecture is not the one its config.json describes; longspan reads BERT and nomic-bert",
        )
    encoder.load_state_dict(state)


def read_config(folder: Path) -> EncoderConfig:
    """Read a published `config.json` of either key family.

    Raises:
        LongspanError: it is missing, or describes arithmetic that `Encoder` does not have.
    """
    path = folder / "config.json"
    published = read_json(path, remedy="name the folder of a published model (config.json, model.safetensors, ...)")
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
    parts = layout.get(template, [f"(no {template} in this layout)"])
    return [f"{part.replace('{i}', index)}.{kind}" for part in parts]


def _nomic_settings(published: Mapping[str, Any], path: Path) -> dict[str, Any]:
    def either(original: str, native: str, default: Any) -> Any:
        return published.get(original, published.get(native, default))

    expected = {
        "activation_function": "swiglu",
        "hidden_act": "silu",
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "prenorm": False,
        "causal": False,
        "use_rms_norm": False,
    }
    _refuse_other_values(published, expected, path)
    rope = published.get("rope_parameters") or {}
    trained = published.get("max_trained_positions") or published.get("max_position_embeddings", 2048)
    return {
        "vocab_size": published.get("vocab_size", 30528),
        "vocab_multiple": 1,
        "width": either("n_embd", "hidden_size", 768),
        "num_layers": either("n_layer", "num_hidden_layers", 12),
        "num_heads": either("n_head", "num_attention_heads", 12),
        "inner_width": either("n_inner", "intermediate_size", 3072),
        "rotary_base": published.get("rotary_emb_base", rope.get("rope_theta", 1000.0)),
        "trained_length": trained,
        "max_length": max(published.get("n_positions", 4 * trained), trained),
        "ntk_alpha": published.get("rotary_scaling_factor") or rope.get("factor") or 2.0,
        "norm_eps": either("layer_norm_epsilon", "layer_norm_eps", 1e-12),
        "num_token_types": published.get("type_vocab_size", 2),
    }


def _bert_settings(published: Mapping[str, Any], path: Path) -> dict[str, Any]:
    _refuse_other_values(published, {"hidden_act": "gelu", "position_embedding_type": "absolute"}, path)
    length = published["max_position_embeddings"]
    return {
        "vocab_size": published["vocab_size"],
        "vocab_multiple": 1,
        "width": published["hidden_size"],
        "num_layers": published["num_hidden_layers"],
        "num_heads": published["num_attention_heads"],
        "inner_width": published["intermediate_size"],
        "positions": "learned",
        "trained_length": length,
        "max_length": length,
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
        table = read_json(index, remedy="download the model again")["weight_map"]
        files = [folder / name for name in sorted(set(table.values()))]
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
