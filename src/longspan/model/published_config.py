"""`config.json` of published encoders, both ways: from its keys to `EncoderConfig`, and back.

Three model types, each computed by a class of transformers: `nomic_bert` (in the keys of the original release, in
transformers' own, or in both), `bert` and `modernbert`. Facts: peers.md E2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from longspan.errors import LongspanError
from longspan.files import read_json
from longspan.model.config import EncoderConfig
from longspan.model.rope import ntk_base

ModelType = Literal["nomic_bert", "bert", "modernbert"]

_CLASSES: dict[ModelType, str] = {"nomic_bert": "NomicBert", "bert": "Bert", "modernbert": "ModernBert"}

_GATES = {"silu": "swiglu", "gelu": "geglu"}
"""transformers' name of a gate's function -> ours of the block."""
_FUNCTIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
"""transformers' name of a plain block's function -> ours. `gelu_fast` rounds its constants, so it is none of these."""

_NUMBERS = {
    *("vocab_size", "pad_vocab_size_multiple", "type_vocab_size", "rotary_scaling_factor", "rotary_emb_base"),
    *("n_embd", "n_head", "n_inner", "n_layer", "n_positions", "max_trained_positions", "layer_norm_epsilon"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"),
    *("layer_norm_eps", "norm_eps", "global_rope_theta"),
}

_UNSCALED = "longspan_rope_scaling"
"""Our own key, only ever "none": published folders of the nomic family that name no scaling mean dynamic NTK."""


def model_type(config: EncoderConfig, where: str | Path) -> ModelType:
    """The published model type that computes what `config` says.

    Raises:
        LongspanError: there is none, so the encoder could not be published; names the setting that keeps it out of the
            type that it is nearest to.
    """
    gated = config.activation in ("swiglu", "geglu")
    kind: ModelType = "modernbert" if config.prenorm else "nomic_bert" if config.positions == "rotary" else "bert"
    needs = {
        "nomic_bert": {
            "a gated activation": gated,
            "no biases": not config.bias,
            "token types": config.num_token_types > 0,
        },
        "bert": {
            "an activation without gate": not gated,
            "biases": config.bias,
            "token types": config.num_token_types > 0,
        },
        "modernbert": {
            "rotary positions": config.positions == "rotary",
            "a gated activation": gated,
            "no token types": config.num_token_types == 0,
        },
    }
    lacking = [need for need, given in needs[kind].items() if not given]
    if lacking:
        raise LongspanError(
            f"no published model type computes this encoder: {kind} comes nearest, and needs {' and '.join(lacking)}",
            where=where,
            remedy="use the settings of nomic_bert (rotary, swiglu or geglu, no bias), bert (learned, gelu, bias) or "
            "modernbert (prenorm, rotary, swiglu or geglu, num_token_types 0): others could not be saved",
        )
    return kind


def read_config(folder: Path) -> EncoderConfig:
    """Read a published `config.json`.

    Raises:
        LongspanError: it is missing, or describes arithmetic that `Encoder` does not have.
    """
    path = folder / "config.json"
    published = read_json(path, remedy="name the folder of a published model (config.json, model.safetensors, ...)")
    if not isinstance(published, dict):
        raise LongspanError("config.json is not a JSON object", where=path, remedy="download the model again")
    # A key that says null says nothing.
    published = {key: value for key, value in published.items() if value is not None}
    for key in _NUMBERS & published.keys():
        if isinstance(published[key], bool) or not isinstance(published[key], int | float):
            raise LongspanError(
                f"{key} = {published[key]!r} is not a number", where=path, remedy="download the model again"
            )
    readers = {"nomic_bert": _nomic_settings, "bert": _bert_settings, "modernbert": _modernbert_settings}
    reader = readers.get(str(published.get("model_type")))
    if reader is None:
        raise LongspanError(
            f"model_type {published.get('model_type')!r} is not supported",
            where=path,
            remedy=f"use a model of type {', '.join(readers)}",
        )
    return EncoderConfig.parse(reader(published, path), where=path)


def published_config(config: EncoderConfig, *, masked: bool = False) -> dict[str, Any]:
    """The `config.json` of an encoder, or of one with a head for masked language modelling.

    The nomic family has the keys of the original release and transformers' beside each other. Long texts: transformers
    reads `rope_type: dynamic`, whose `factor` is equation (5)'s alpha.

    Raises:
        LongspanError: no model type computes this.
    """
    kind = model_type(config, "config.json")
    writers = {"nomic_bert": _nomic_keys, "bert": _bert_keys, "modernbert": _modernbert_keys}
    shared = {
        "model_type": kind,
        "architectures": [_CLASSES[kind] + ("ForMaskedLM" if masked else "Model")],
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.inner_width,
        "max_position_embeddings": config.trained_length,
        "pad_token_id": 0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
    return shared | writers[kind](config)


# --- nomic_bert ------------------------------------------------------------------------------------------------------


def _nomic_keys(config: EncoderConfig) -> dict[str, Any]:
    rope = _published_rope(config)
    original = {
        "activation_function": config.activation,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_inner": config.inner_width,
        "n_layer": config.num_layers,
        "n_positions": config.max_length,
        "max_trained_positions": config.trained_length,
        "rotary_emb_base": rope["rope_theta"],
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": config.ntk_alpha if config.rope_scaling == "dynamic" else None,
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
        "hidden_act": _key_of(_GATES, config.activation),
        "layer_norm_eps": config.norm_eps,
        "type_vocab_size": config.num_token_types,
        "rope_parameters": rope,
    }
    if config.rope_scaling == "linear":
        # The original keys cannot say it: who reads only them shall fail, not compute something else.
        original = {"n_positions": config.max_length}
    return original | native | _unscaled_mark(config)


def _nomic_settings(published: dict[str, Any], path: Path) -> dict[str, Any]:
    rope = _section(published, "rope_parameters", path)
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
    original = _translated(published, "activation_function", {"swiglu": "swiglu", "geglu": "geglu"}, path)
    native = _translated(published, "hidden_act", _GATES, path)
    if original and native and original != native:
        either("activation_function", "hidden_act", None)
    trained = either("max_trained_positions", "max_position_embeddings", 2048)
    base = either("rotary_emb_base", "rope_theta", 1000.0)
    scaling = _scaling(rope, published, path)
    if scaling == "dynamic":
        # Releases that leave alpha open (v1.5: null) get the paper's 2 (section 5.2.2) past their trained length.
        reach = {"ntk_alpha": either("rotary_scaling_factor", "factor", 2.0)}
    else:
        _refuse_other_values(published, {"rotary_scaling_factor": None}, path)
        reach = {"rope_factor": rope.get("factor")}
    return reach | {
        "vocab_size": settings.get("vocab_size", 30528),
        # The original code pads the table by itself, whether or not vocab_size is the padded number.
        "vocab_multiple": settings.get("pad_vocab_size_multiple", 1),
        "width": either("n_embd", "hidden_size", 768),
        "num_layers": either("n_layer", "num_hidden_layers", 12),
        "num_heads": either("n_head", "num_attention_heads", 12),
        "inner_width": either("n_inner", "intermediate_size", 3072),
        "activation": original or native or "swiglu",
        "rotary_base": base,
        "rope_scaling": scaling,
        "trained_length": trained,
        # transformers' own keys set no limit; the paper reads up to four times the trained length.
        "max_length": max(settings.get("n_positions", 4 * trained), trained),
        "norm_eps": either("layer_norm_epsilon", "layer_norm_eps", 1e-12),
        "num_token_types": settings.get("type_vocab_size", 2),
    }


# --- bert ------------------------------------------------------------------------------------------------------------


def _bert_keys(config: EncoderConfig) -> dict[str, Any]:
    return {
        "hidden_act": _key_of(_FUNCTIONS, config.activation),
        "layer_norm_eps": config.norm_eps,
        "type_vocab_size": config.num_token_types,
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _bert_settings(published: dict[str, Any], path: Path) -> dict[str, Any]:
    expected = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
    _refuse_other_values(published, expected, path)
    length = published.get("max_position_embeddings", 512)
    return {
        "vocab_size": published.get("vocab_size", 30522),
        "vocab_multiple": 1,
        "width": published.get("hidden_size", 768),
        "num_layers": published.get("num_hidden_layers", 12),
        "num_heads": published.get("num_attention_heads", 12),
        "inner_width": published.get("intermediate_size", 3072),
        "positions": "learned",
        "trained_length": length,
        "max_length": length,
        "activation": _translated(published, "hidden_act", _FUNCTIONS, path) or "gelu",
        "bias": True,
        "norm_eps": published.get("layer_norm_eps", 1e-12),
        "num_token_types": published.get("type_vocab_size", 2),
    }


# --- modernbert ------------------------------------------------------------------------------------------------------


def _modernbert_keys(config: EncoderConfig) -> dict[str, Any]:
    activation = _key_of(_GATES, config.activation)
    return {
        "n_positions": config.max_length,
        "hidden_activation": activation,
        "norm_eps": config.norm_eps,
        "norm_bias": True,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "classifier_activation": activation,
        "classifier_bias": True,
        "decoder_bias": True,
        "layer_types": ["full_attention"] * config.num_layers,
        "rope_parameters": {"full_attention": _published_rope(config)},
        # Its other special tokens are in the tokenizer; transformers' numbers are another vocabulary's.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
    } | _unscaled_mark(config)


def _modernbert_settings(published: dict[str, Any], path: Path) -> dict[str, Any]:
    num_layers = published.get("num_hidden_layers", 22)
    layer_types = published.get("layer_types")
    if layer_types is None and published.get("global_attn_every_n_layers") == 1:
        layer_types = ["full_attention"]
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise LongspanError(
            "some layers attend to a window only: the encoder computes only full attention",
            where=path,
            remedy="use a model whose layer_types are all full_attention, such as longspan's own pre-norm encoders",
        )
    expected = {"norm_bias": True, "classifier_bias": True, "decoder_bias": True}
    # transformers leaves these biases out by default.
    _refuse_other_values(dict.fromkeys(expected, False) | {"decoder_bias": True} | published, expected, path)
    biases = [published.get(key, False) for key in ("attention_bias", "mlp_bias")]
    if biases[0] != biases[1]:
        raise LongspanError(
            f"attention_bias = {biases[0]!r} and mlp_bias = {biases[1]!r}: the encoder has both or none",
            where=path,
            remedy="use a model with both or none",
        )
    activation = _translated(published, "hidden_activation", _GATES, path) or "geglu"
    _refuse_other_values(
        {"classifier_activation": "gelu"} | published, {"classifier_activation": _key_of(_GATES, activation)}, path
    )
    rope = _section(_section(published, "rope_parameters", path), "full_attention", path)
    scaling = _scaling(rope, published, path)
    trained = published.get("max_position_embeddings", 8192)
    return {
        "vocab_size": published.get("vocab_size", 50368),
        "vocab_multiple": 1,
        "width": published.get("hidden_size", 768),
        "num_layers": num_layers,
        "num_heads": published.get("num_attention_heads", 12),
        "inner_width": published.get("intermediate_size", 1152),
        "rotary_base": rope.get("rope_theta", published.get("global_rope_theta", 160_000.0)),
        "rope_scaling": scaling,
        "trained_length": trained,
        "max_length": max(published.get("n_positions", trained), trained),
        "activation": activation,
        "bias": biases[0],
        "prenorm": True,
        "norm_eps": published.get("norm_eps", 1e-5),
        "num_token_types": 0,
    } | ({"ntk_alpha": rope.get("factor", 2.0)} if scaling == "dynamic" else {"rope_factor": rope.get("factor")})


# --- rotary positions ------------------------------------------------------------------------------------------------


def _published_rope(config: EncoderConfig) -> dict[str, Any]:
    """transformers' `rope_parameters`. Equation (4) has no name there, and needs none: it is another base."""
    base = config.rotary_base
    if config.rope_scaling == "dynamic":
        return {"rope_type": "dynamic", "rope_theta": base, "factor": config.ntk_alpha}
    if config.rope_scaling == "linear":
        return {"rope_type": "linear", "rope_theta": base, "factor": config.stretch}
    if config.rope_scaling == "ntk":
        base = ntk_base(base, config.stretch, config.head_size)
    return {"rope_type": "default", "rope_theta": base}


def _unscaled_mark(config: EncoderConfig) -> dict[str, str]:
    return {_UNSCALED: "none"} if config.rope_scaling in ("none", "ntk") else {}


def _scaling(rope: Mapping[str, Any], published: Mapping[str, Any], path: Path) -> str:
    _refuse_other_values(rope, {"partial_rotary_factor": 1.0}, path)
    _refuse_other_values(published, {_UNSCALED: "none"}, path)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return published.get(_UNSCALED, "dynamic")
    if kind == "linear" and "factor" not in rope:
        raise LongspanError("rope_type 'linear' has no factor", where=path, remedy="write it beside rope_type")
    if kind not in ("dynamic", "linear"):
        raise LongspanError(
            f"rope_type = {kind!r}: the encoder computes only default, linear and dynamic",
            where=path,
            remedy="use a model with one of these",
        )
    return kind


# --- keys and values -------------------------------------------------------------------------------------------------


def _section(published: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    section = published.get(key) or {}
    if not isinstance(section, dict):
        raise LongspanError(f"{key} is not a JSON object", where=path, remedy="download the model again")
    return section


def _translated(published: Mapping[str, Any], key: str, table: Mapping[str, str], path: Path) -> str | None:
    value = published.get(key)
    if value is not None and not (isinstance(value, str) and value in table):
        raise LongspanError(
            f"{key} = {value!r}: the encoder computes only {', '.join(table)}",
            where=path,
            remedy="use a model with one of these",
        )
    return None if value is None else table[value]


def _key_of(table: Mapping[str, str], ours: str) -> str:
    return next(theirs for theirs, value in table.items() if value == ours)


def _refuse_other_values(published: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    for key, value in expected.items():
        if published.get(key, value) != value:
            raise LongspanError(
                f"{key} = {published[key]!r}: the encoder computes only {value!r}",
                where=path,
                remedy="use a model of the nomic-bert or BERT family with this setting",
            )
