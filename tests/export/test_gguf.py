"""A GGUF file, read back: the weights under llama.cpp's names, and the vocabulary as its tokenizer wants it."""

import json

import numpy as np
import pytest

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export.gguf import GGUF_PRECISIONS, llama_rope_base, write_gguf
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.rope import dynamic_ntk_base
from longspan.text.tasks import PREFIXES

gguf = pytest.importorskip("gguf")

BERT = {"positions": "learned", "activation": "gelu", "bias": True, "trained_length": 128}


def read(path):
    """Settings, and tensors in float32."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


@pytest.fixture(scope="module")
def bert(small_encoder, small_tokenizer):
    config = EmbeddingConfig(max_length=128, pooling="cls")
    return Embedder(small_encoder(**BERT), small_tokenizer, config, device="cpu", name="some/bert")


@pytest.mark.parametrize("precision", GGUF_PRECISIONS)
def test_nomic_weights_come_back_under_their_names(small_embedder, tmp_path, precision):
    write_gguf(small_embedder, tmp_path / "m.gguf", precision=precision)
    _, tensors = read(tmp_path / "m.gguf")
    state = {name: tensor.numpy() for name, tensor in small_embedder.exact_encoder().state_dict().items()}
    up, gate = np.split(state["layers.1.mlp.up_gate.weight"], 2)
    expected = {
        "token_embd.weight": state["embeddings.tokens.weight"],
        "token_types.weight": state["embeddings.token_types.weight"],
        "token_embd_norm.bias": state["embeddings.norm.bias"],
        "blk.1.attn_qkv.weight": state["layers.1.attention.qkv.weight"],
        "blk.1.attn_output.weight": state["layers.1.attention.out.weight"],
        "blk.1.attn_output_norm.weight": state["layers.1.norm1.weight"],
        "blk.1.ffn_up.weight": up,
        "blk.1.ffn_gate.weight": gate,
        "blk.1.ffn_down.weight": state["layers.1.mlp.down.weight"],
        "blk.1.layer_output_norm.bias": state["layers.1.norm2.bias"],
    }
    assert len(tensors) == 4 + 2 * 9
    bound = {"f32": 0.0, "f16": 1e-3, "q8_0": 0.02}[precision]
    for name, values in expected.items():
        exact = values.ndim == 1 or name == "token_types.weight"
        np.testing.assert_allclose(tensors[name], values, rtol=0, atol=0 if exact else bound, err_msg=name)


def test_bert_weights_come_back_in_three_parts(bert, tmp_path):
    write_gguf(bert, tmp_path / "m.gguf", precision="f32")
    fields, tensors = read(tmp_path / "m.gguf")
    state = {name: tensor.numpy() for name, tensor in bert.exact_encoder().state_dict().items()}
    for part, values in zip("qkv", np.split(state["layers.0.attention.qkv.bias"], 3), strict=True):
        np.testing.assert_array_equal(tensors[f"blk.0.attn_{part}.bias"], values)
    np.testing.assert_array_equal(tensors["position_embd.weight"], state["embeddings.positions.weight"])
    assert fields["general.architecture"] == "bert"
    assert fields["bert.context_length"] == 128
    assert fields["bert.pooling_type"] == gguf.PoolingType.CLS
    assert fields["general.name"] == "bert"


def test_the_settings_are_the_models(small_embedder, tmp_path):
    write_gguf(small_embedder, tmp_path / "m.gguf")
    fields, _ = read(tmp_path / "m.gguf")
    expected = {
        "general.architecture": "nomic-bert",
        "nomic-bert.context_length": 128,  # all that the model reads, not only what it was trained to
        "nomic-bert.embedding_length": 64,
        "nomic-bert.block_count": 2,
        "nomic-bert.feed_forward_length": 96,
        "nomic-bert.attention.head_count": 4,
        "nomic-bert.attention.layer_norm_epsilon": pytest.approx(1e-12),
        "nomic-bert.attention.causal": False,
        "nomic-bert.pooling_type": gguf.PoolingType.MEAN,
        "nomic-bert.rope.freq_base": 1000.0,
        "tokenizer.ggml.token_type_count": 2,
        "longspan.trained_length": 32,
    }
    assert {name: fields[name] for name in expected} == expected
    assert json.loads(fields["longspan.prefixes"]) == PREFIXES


def test_the_vocabulary_marks_beginnings_of_words(small_embedder, tmp_path):
    write_gguf(small_embedder, tmp_path / "m.gguf")
    fields, tensors = read(tmp_path / "m.gguf")
    tokenizer, tokens, types = (
        small_embedder.tokenizer,
        fields["tokenizer.ggml.tokens"],
        fields["tokenizer.ggml.token_type"],
    )
    assert len(tokens) == len(types) == len(tensors["token_embd.weight"])
    vocabulary = json.loads(tokenizer.definition())["model"]["vocab"]
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    for token, number in vocabulary.items():
        if token in special:
            assert (tokens[number], types[number]) == (token, gguf.TokenType.CONTROL)
        else:
            spelled = token[2:] if token.startswith("##") else f"\u2581{token}"
            assert (tokens[number], types[number]) == (spelled, gguf.TokenType.NORMAL)
    assert all(kind == gguf.TokenType.UNUSED for kind in types[tokenizer.vocab_size :])
    names = {"bos": "cls_id", "seperator": "sep_id", "unknown": "unk_id", "padding": "pad_id", "mask": "mask_id"}
    for theirs, ours in names.items():
        assert fields[f"tokenizer.ggml.{theirs}_token_id"] == getattr(tokenizer, ours)
    assert fields["tokenizer.ggml.normalizer.lowercase"] is True


@pytest.mark.parametrize(
    ("scaling", "base", "factor"),
    [("none", 1000.0, None), ("linear", 1000.0, 4.0), ("ntk", 1000.0 * 4 ** (16 / 14), None)],
)
def test_fixed_scalings_are_in_the_file(small_encoder, small_tokenizer, tmp_path, scaling, base, factor):
    encoder = small_encoder(rope_scaling=scaling)
    write_gguf(Embedder(encoder, small_tokenizer, EmbeddingConfig(max_length=128), device="cpu"), tmp_path / "m.gguf")
    fields, _ = read(tmp_path / "m.gguf")
    assert fields["nomic-bert.rope.freq_base"] == pytest.approx(base)
    assert fields.get("nomic-bert.rope.scaling.factor") == factor
    assert llama_rope_base(encoder.config, 128) is None


def test_the_base_of_a_long_text_is_equation_5s():
    config = EncoderConfig()
    assert llama_rope_base(config, 2048) is None
    assert llama_rope_base(config, 8192) == dynamic_ntk_base(1000.0, 8192, 2048, 2.0, 64)


@pytest.mark.parametrize(
    "settings", [{"activation": "geglu"}, BERT | {"activation": "relu"}, {"prenorm": True, "num_token_types": 0}]
)
def test_what_llama_cpp_does_not_compute_is_refused(small_encoder, small_tokenizer, tmp_path, settings):
    embedder = Embedder(small_encoder(**settings), small_tokenizer, EmbeddingConfig(max_length=128), device="cpu")
    with pytest.raises(LongspanError, match=r"llama\.cpp computes nomic_bert with swiglu and bert with gelu, not"):
        write_gguf(embedder, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
