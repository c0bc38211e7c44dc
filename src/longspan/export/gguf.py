"""GGUF files for llama.cpp and what is built on it: architectures `nomic-bert` and `bert`.

Names and keys: the readers and converters of llama.cpp (2026-11), peers.md E8. What llama.cpp cannot do is said where
the file is written, because nobody would look for it: it has no dynamic NTK (`llama_rope_base` has the remedy), and no
layer norm between pooling and normalisation (`publish` names the remedy).

Axes: V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import atomic_path
from longspan.model.config import EncoderConfig
from longspan.model.layouts import Layout, to_published
from longspan.model.published_config import model_type
from longspan.model.rope import dynamic_ntk_base, ntk_base
from longspan.text.tokenizer import Tokenizer

GgufPrecision = Literal["f32", "f16", "q8_0"]
GGUF_PRECISIONS: tuple[GgufPrecision, ...] = ("f32", "f16", "q8_0")

_SHARED = {
    "embeddings.tokens": ("token_embd",),
    "embeddings.token_types": ("token_types",),
    "embeddings.norm": ("token_embd_norm",),
    "layers.{i}.attention.out": ("blk.{i}.attn_output",),
    "layers.{i}.norm1": ("blk.{i}.attn_output_norm",),
    "layers.{i}.mlp.down": ("blk.{i}.ffn_down",),
    "layers.{i}.norm2": ("blk.{i}.layer_output_norm",),
}
_NOMIC = Layout(
    marks=(),
    modules=_SHARED
    | {
        "layers.{i}.attention.qkv": ("blk.{i}.attn_qkv",),
        "layers.{i}.mlp.up_gate": ("blk.{i}.ffn_up", "blk.{i}.ffn_gate"),
    },
    head={},
    wrapper="",
)
_BERT = Layout(
    marks=(),
    modules=_SHARED
    | {
        "embeddings.positions": ("position_embd",),
        "layers.{i}.attention.qkv": tuple(f"blk.{{i}}.attn_{part}" for part in "qkv"),
        "layers.{i}.mlp.up": ("blk.{i}.ffn_up",),
    },
    head={},
    wrapper="",
)
_ALWAYS_FLOAT32 = ("token_types.weight", "position_embd.weight")
"""Besides vectors: llama.cpp adds them to states of float32."""
_BLOCK = 32
"""Numbers that share a scale in q8_0; rows of other lengths are kept in f16."""


def gguf_file(precision: GgufPrecision) -> str:
    """Where in a published folder the file is."""
    return f"model-{precision}.gguf"


def write_gguf(embedder: Embedder, path: Path, *, precision: GgufPrecision = "f16") -> None:
    """Write one GGUF file.

    Raises:
        LongspanError: the `gguf` package is not installed, llama.cpp cannot compute this encoder or read this
            tokenizer, the embedder was not loaded in float32, or the file cannot be written.
    """
    try:
        import gguf
    except ImportError:
        raise LongspanError(
            "gguf is not installed", where="the export", remedy="pip install 'longspan[gguf]'"
        ) from None
    encoder = embedder.exact_encoder()
    layout = _layout(encoder.config, embedder.name)
    tokens, types, lowercase, strips_accents = _vocabulary(embedder.tokenizer, encoder.config.padded_vocab_size)
    weights = to_published(
        {name: tensor.detach().float().cpu() for name, tensor in encoder.state_dict().items()}, layout.modules, layout
    )
    with atomic_path(path) as unfinished:
        writer = gguf.GGUFWriter(unfinished, "nomic-bert" if layout is _NOMIC else "bert")
        _add_settings(writer, embedder, precision)
        _add_vocabulary(writer, embedder.tokenizer, tokens, types)
        writer.add_bool("tokenizer.ggml.normalizer.lowercase", lowercase)
        writer.add_bool("tokenizer.ggml.normalizer.strip_accents", strips_accents)
        for name, tensor in weights.items():
            kind = gguf.GGMLQuantizationType[_kind(name, tuple(tensor.shape), precision)]
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def llama_rope_base(config: EncoderConfig, length: int) -> float | None:
    """What to give llama.cpp as `--rope-freq-base` for a text of `length` tokens; None: what the file says is right.

    llama.cpp reads every text with one base. For a text past the trained length the right one is equation (5)'s for
    that length, so long texts take a context each (or one for each length).
    """
    if config.positions != "rotary" or config.rope_scaling != "dynamic" or length <= config.trained_length:
        return None
    return dynamic_ntk_base(config.rotary_base, length, config.trained_length, config.ntk_alpha, config.head_size)


def _layout(config: EncoderConfig, name: str) -> Layout:
    kind = model_type(config, name)
    known = {"nomic_bert": (_NOMIC, ("swiglu",)), "bert": (_BERT, ("gelu", "gelu_tanh"))}
    layout, activations = known.get(kind, (_BERT, ()))
    if config.activation not in activations:
        raise LongspanError(
            f"llama.cpp computes nomic_bert with swiglu and bert with gelu, not {kind} with {config.activation}",
            where=name,
            remedy="export this model as ONNX",
        )
    return layout


def _kind(name: str, shape: tuple[int, ...], precision: GgufPrecision) -> str:
    if len(shape) < 2 or name in _ALWAYS_FLOAT32:
        return "F32"
    if precision == "q8_0" and shape[-1] % _BLOCK:
        return "F16"
    return precision.upper()


def _add_settings(writer: Any, embedder: Embedder, precision: GgufPrecision) -> None:
    import gguf

    config, settings = embedder.model.encoder.config, embedder.config
    writer.add_name(Path(embedder.name).name)
    writer.add_description("A text embedder, written by longspan")
    writer.add_file_type(
        {
            "f32": gguf.LlamaFileType.ALL_F32,
            "f16": gguf.LlamaFileType.MOSTLY_F16,
            "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        }[precision]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # The table of learned positions must have as many rows as this says; rotary positions reach as far as the model.
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.inner_width)
    writer.add_head_count(config.num_heads)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_causal_attention(False)
    writer.add_token_type_count(config.num_token_types)
    pooling = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS, "last": gguf.PoolingType.LAST}
    writer.add_pooling_type(pooling[settings.pooling])
    if config.positions == "rotary":
        scaled = config.rope_scaling == "ntk"
        base = ntk_base(config.rotary_base, config.stretch, config.head_size) if scaled else config.rotary_base
        writer.add_rope_freq_base(base)
    if config.rope_scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.stretch)
    # What a reader of the file should know, and llama.cpp has no key for.
    writer.add_string("longspan.fingerprint", embedder.fingerprint)
    writer.add_string("longspan.prefixes", json.dumps(settings.prefixes))
    writer.add_bool("longspan.layer_norm", settings.layer_norm)
    writer.add_string("longspan.rope_scaling", config.rope_scaling)
    writer.add_uint32("longspan.trained_length", config.trained_length)
    writer.add_float32("longspan.ntk_alpha", config.ntk_alpha)


def _add_vocabulary(writer: Any, tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # Left out, llama.cpp takes the numbers of BERT's own vocabulary.
    writer.add_bos_token_id(tokenizer.cls_id)
    writer.add_sep_token_id(tokenizer.sep_id)
    writer.add_unk_token_id(tokenizer.unk_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_mask_token_id(tokenizer.mask_id)


def _vocabulary(tokenizer: Tokenizer, num_rows: int) -> tuple[list[str], list[int], bool, bool]:
    """Tokens in llama.cpp's spelling and their types, for every row of the table; lower-casing; stripping accents.

    llama.cpp marks the beginning of a word (with U+2581) where WordPiece marks its continuation (with ##).
    """
    import gguf

    definition = json.loads(tokenizer.definition())
    model, normalizer = definition["model"], definition["normalizer"] or {}
    if model["type"] != "WordPiece" or normalizer.get("type") != "BertNormalizer":
        raise LongspanError(
            f"llama.cpp reads BERT's tokenizer here, not {model['type']} with {normalizer.get('type')}",
            where="tokenizer.json",
            remedy="export this model as ONNX",
        )
    tokens = [f"[PAD{i}]" for i in range(num_rows)]
    types = [int(gguf.TokenType.UNUSED)] * num_rows
    for token, number in model["vocab"].items():
        is_inside = token.startswith(model["continuing_subword_prefix"])
        tokens[number] = token.removeprefix("##") if is_inside else f"\u2581{token}"
        types[number] = int(gguf.TokenType.NORMAL)
    for added in definition["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = int(gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED)
    lowercase = bool(normalizer["lowercase"])
    strips = normalizer.get("strip_accents")
    return tokens, types, lowercase, lowercase if strips is None else bool(strips)
