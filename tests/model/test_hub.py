"""Published checkpoints: every layout and both families of keys are read, and nothing that does not fit is."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from longspan.errors import LongspanError
from longspan.files import write_json
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.hub import load_encoder, published_config, read_config, read_safetensors, save_encoder

transformers = pytest.importorskip("transformers")


@pytest.fixture
def saved(small_encoder, tmp_path):
    """A saved encoder and its folder."""
    encoder = small_encoder()
    save_encoder(encoder, tmp_path)
    return encoder, tmp_path


def change_weights(folder, change):
    """Rewrite model.safetensors after `change(weights)`."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def change_config(folder, **changes):
    """Rewrite config.json with other values; `...` removes a key."""
    config = json.loads((folder / "config.json").read_text()) | changes
    write_json(folder / "config.json", {key: value for key, value in config.items() if value is not ...})


def assert_same_weights(encoder, other):
    ours, theirs = encoder.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


# --- reading and writing ---------------------------------------------------------------------------------------------


def test_round_trip_is_bitwise(saved):
    encoder, folder = saved
    loaded = load_encoder(folder)
    assert_same_weights(loaded, encoder)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in loaded.parameters())
    same = {"vocab_size": encoder.config.padded_vocab_size, "vocab_multiple": 1}  # padding rows are rows like others
    assert loaded.config == encoder.config.model_copy(update=same)
    again = folder / "again"
    again.mkdir()
    save_encoder(loaded, again)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_loading_leaves_the_random_state_alone(saved):
    _, folder = saved
    state = torch.get_rng_state()
    load_encoder(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_half_precision_encoder_is_saved_in_float32(small_encoder, tmp_path):
    encoder = small_encoder().bfloat16()
    save_encoder(encoder, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    assert_same_weights(load_encoder(tmp_path).bfloat16(), encoder)


def test_written_names_are_the_original_releases(saved):
    encoder, folder = saved
    names = set(load_file(folder / "model.safetensors"))
    layer = {
        "attn.Wqkv.weight",
        "attn.out_proj.weight",
        "norm1.weight",
        "norm1.bias",
        "mlp.fc11.weight",
        "mlp.fc12.weight",
        "mlp.fc2.weight",
        "norm2.weight",
        "norm2.bias",
    }
    expected = {"embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"}
    expected |= {"emb_ln.weight", "emb_ln.bias"}
    expected |= {f"encoder.layers.{i}.{name}" for i in range(encoder.config.num_layers) for name in layer}
    assert names == expected


def test_reads_what_transformers_saves(saved, tmp_path):
    """transformers writes its own layout and keys, or the original layout, as its version likes: both are ours."""
    encoder, folder = saved
    theirs = transformers.AutoModel.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "resaved")
    assert_same_weights(load_encoder(tmp_path / "resaved"), encoder)


def test_reads_transformers_own_layout_with_its_own_keys_only(saved, tmp_path):
    encoder, folder = saved
    theirs = transformers.AutoModel.from_pretrained(folder)
    native = tmp_path / "native"
    native.mkdir()
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    assert "layers.0.self_attn.q_proj.weight" in state
    save_file(state, native / "model.safetensors")
    write_json(native / "config.json", without_original_keys(encoder.config) | {"n_positions": 128})
    loaded = load_encoder(native)
    assert_same_weights(loaded, encoder)
    assert loaded.config == load_encoder(folder).config


def bert_model():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=36,
        max_position_embeddings=20,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config).eval()


def test_reads_bert_with_its_wrapper_and_heads(tmp_path, pack, padded):
    theirs = bert_model()
    theirs.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert "bert.embeddings.word_embeddings.weight" in names
    assert any(name.startswith("cls.") for name in names)
    encoder = load_encoder(tmp_path)
    assert encoder.config.positions == "learned"
    packed = pack((20, 3), vocab_size=50)
    inputs, unpad = padded(packed)
    with torch.no_grad():
        expected_TD = unpad(theirs.bert(**inputs).last_hidden_state)
        torch.testing.assert_close(encoder(packed), expected_TD, rtol=0, atol=1e-5)


def test_reads_bert_without_wrapper_and_with_its_constants(tmp_path):
    theirs = bert_model()
    theirs.config.save_pretrained(tmp_path)
    state = {name: tensor.contiguous() for name, tensor in theirs.bert.state_dict().items()}
    state["embeddings.position_ids"] = torch.arange(20)[None]
    state["pooler.dense.weight"] = torch.zeros(24, 24)
    save_file(state, tmp_path / "model.safetensors")
    encoder = load_encoder(tmp_path)
    assert torch.equal(encoder.embeddings.tokens.weight, theirs.bert.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("wrapper", ["bert.", "nomic_bert.", "model."])
def test_reads_names_behind_a_wrapper(saved, wrapper):
    encoder, folder = saved

    def wrap(weights):
        for name in list(weights):
            weights[wrapper + name] = weights.pop(name)
        weights["cls.predictions.bias"] = torch.zeros(3)

    change_weights(folder, wrap)
    assert_same_weights(load_encoder(folder), encoder)


def test_reads_shards(saved):
    encoder, folder = saved
    weights = load_file(folder / "model.safetensors")
    table = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(table.values()):
        save_file({name: weights[name] for name in table if table[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": table})
    assert_same_weights(load_encoder(folder), encoder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(LongspanError, match=r"model-1\.safetensors is missing"):
        load_encoder(folder)
    write_json(folder / "model.safetensors.index.json", [])
    with pytest.raises(LongspanError, match=r"index\.json names no files"):
        load_encoder(folder)


# --- weights that do not fit -----------------------------------------------------------------------------------------

EVERY_NAME = [
    "embeddings.word_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "emb_ln.weight",
    "emb_ln.bias",
    "encoder.layers.0.attn.Wqkv.weight",
    "encoder.layers.1.mlp.fc11.weight",
    "encoder.layers.1.mlp.fc12.weight",
    "encoder.layers.1.norm2.bias",
]


@pytest.mark.parametrize("name", EVERY_NAME)
def test_refuses_a_missing_weight(saved, name):
    _, folder = saved
    change_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(LongspanError, match=re.escape(f"lacks the weight {name}")) as caught:
        load_encoder(folder)
    assert caught.value.where == str(folder)


@pytest.mark.parametrize("name", ["encoder.layers.2.norm1.weight", "encoder.layers.0.attn.Wqkv.bias", "surprise"])
def test_refuses_an_unexpected_weight(saved, name):
    _, folder = saved
    change_weights(folder, lambda weights: weights.update({name: torch.zeros(4)}))
    with pytest.raises(LongspanError, match=re.escape(f"no place for: {name}")):
        load_encoder(folder)


@pytest.mark.parametrize("name", EVERY_NAME)
def test_refuses_a_wrong_shape(saved, name):
    _, folder = saved
    change_weights(folder, lambda weights: weights.update({name: weights[name][:-1]}))
    with pytest.raises(LongspanError, match=rf"{re.escape(name)}: shape .* but config\.json asks for"):
        load_encoder(folder)


def test_refuses_stacked_weights_whose_shapes_only_add_up(saved):
    """The two input projections of a layer, one row more and one row less."""
    _, folder = saved
    one, other = "encoder.layers.0.mlp.fc11.weight", "encoder.layers.0.mlp.fc12.weight"

    def move_a_row(weights):
        weights[one], weights[other] = torch.cat([weights[one], weights[other][:1]]), weights[other][1:]

    change_weights(folder, move_a_row)
    with pytest.raises(LongspanError, match=re.escape(f"{one}: shape (97, 64)")):
        load_encoder(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", EVERY_NAME)
def test_refuses_a_weight_that_is_not_finite(saved, name, value):
    _, folder = saved
    change_weights(folder, lambda weights: weights[name].view(-1)[-1].fill_(value))
    with pytest.raises(LongspanError, match=re.escape(f"{name} holds values that are not finite")):
        load_encoder(folder)


def test_refuses_one_weight_under_two_names(saved):
    _, folder = saved
    change_weights(folder, lambda weights: weights.update({"bert.emb_ln.bias": weights["emb_ln.bias"] + 1}))
    with pytest.raises(LongspanError, match=r"emb_ln\.bias twice"):
        load_encoder(folder)


def test_refuses_weights_of_another_architecture(saved):
    _, folder = saved
    theirs = bert_model().config.to_dict() | {"vocab_size": 192, "hidden_size": 64}
    write_json(folder / "config.json", theirs)
    with pytest.raises(LongspanError, match=r"asks for embeddings\.positions\.weight"):
        load_encoder(folder)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_refuses_a_torn_file(saved, keep):
    _, folder = saved
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LongspanError, match=r"model\.safetensors is torn or not a safetensors file") as caught:
        load_encoder(folder)
    assert caught.value.where == str(path)


def test_refuses_pickles(saved):
    _, folder = saved
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LongspanError, match=r"model\.safetensors is missing") as caught:
        load_encoder(folder)
    assert "pytorch_model.bin" in caught.value.remedy


def test_refuses_to_write_what_the_nomic_family_is_not(tmp_path):
    config = EncoderConfig(vocab_size=50, width=24, num_heads=2, num_layers=1, inner_width=30, bias=True)
    with pytest.raises(LongspanError, match="only encoders of the nomic family"):
        save_encoder(Encoder(config), tmp_path)
    assert not list(tmp_path.iterdir())


def test_read_safetensors_of_nothing(tmp_path):
    with pytest.raises(LongspanError, match=r"nothing\.safetensors is missing"):
        read_safetensors(tmp_path / "nothing.safetensors")


# --- config.json -----------------------------------------------------------------------------------------------------

CONFIG = EncoderConfig(
    vocab_size=128, vocab_multiple=1, width=48, num_heads=3, num_layers=5, inner_width=80, rotary_base=500.0,
    trained_length=64, max_length=192, ntk_alpha=3.0, norm_eps=1e-6, num_token_types=1,
)  # fmt: skip
SHARED = {"model_type", "vocab_size", "type_vocab_size"}
NATIVE = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "layer_norm_eps",
    "rope_parameters",
}


def without_original_keys(config):
    return {key: value for key, value in published_config(config).items() if key in SHARED | NATIVE}


def without_native_keys(config):
    return {key: value for key, value in published_config(config).items() if key not in NATIVE}


def read(tmp_path, published):
    write_json(tmp_path / "config.json", published)
    return read_config(tmp_path)


def test_both_families_of_keys_say_the_same(tmp_path):
    assert read(tmp_path, published_config(CONFIG)) == CONFIG
    assert read(tmp_path, without_native_keys(CONFIG)) == CONFIG
    # transformers' keys have no limit: four times the trained length, as in the paper.
    assert read(tmp_path, without_original_keys(CONFIG)) == CONFIG.model_copy(update={"max_length": 256})


def test_reads_the_original_release(tmp_path):
    """What nomic-embed-text-v1.5 said in its first release (peers.md, E2): alpha left open, max 8,192."""
    published = {
        "model_type": "nomic_bert", "activation_function": "swiglu", "n_embd": 768, "n_head": 12, "n_inner": 3072,
        "n_layer": 12, "n_positions": 8192, "max_trained_positions": 2048, "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None, "layer_norm_epsilon": 1e-12, "qkv_proj_bias": False, "mlp_fc1_bias": False,
        "mlp_fc2_bias": False, "prenorm": False, "causal": False, "type_vocab_size": 2, "vocab_size": 30528,
        "pad_vocab_size_multiple": 64, "auto_map": {"AutoModel": "somewhere"},
    }  # fmt: skip
    expected = EncoderConfig(vocab_size=30528, vocab_multiple=1)
    assert read(tmp_path, published) == expected
    native = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "max_position_embeddings": 2048, "rope_parameters": {"rope_theta": 1000, "rope_type": "default"},
    }  # fmt: skip
    assert read(tmp_path, published | native) == expected
    assert read(tmp_path, {"model_type": "nomic_bert"} | native) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta' is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"activation_function": "gelu"}, "activation_function = 'gelu'"),
        ({"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new'"),
        ({"rotary_emb_fraction": 0.5}, r"rotary_emb_fraction = 0\.5"),
        ({"rotary_emb_interleaved": True}, "rotary_emb_interleaved = True"),
        ({"rotary_emb_scale_base": 512}, "rotary_emb_scale_base = 512"),
        ({"qkv_proj_bias": True}, "qkv_proj_bias = True"),
        ({"prenorm": True}, "prenorm = True"),
        ({"parallel_block": True}, "parallel_block = True"),
        ({"causal": True}, "causal = True"),
        ({"use_rms_norm": True}, "use_rms_norm = True"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 3.0}}, "rope_type = 'yarn'"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"hidden_size": 96}, "n_embd = 48 and hidden_size = 96 contradict each other"),
        ({"n_layer": 6}, "n_layer = 6 and num_hidden_layers = 5 contradict"),
        ({"max_position_embeddings": 192}, "max_trained_positions = 64 and max_position_embeddings = 192"),
        ({"rotary_emb_base": 1000}, r"rotary_emb_base = 1000 and rope_theta = 500\.0"),
        ({"rotary_scaling_factor": 2.0}, r"rotary_scaling_factor = 2\.0 and factor = 3\.0"),
        ({"n_head": 5, "num_attention_heads": 5}, "does not divide into 5 heads"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_refuses_arithmetic_that_the_encoder_does_not_have(tmp_path, changes, message):
    with pytest.raises(LongspanError, match=message) as caught:
        read(tmp_path, published_config(CONFIG) | changes)
    assert caught.value.where.endswith("config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder = True"),
    ],
)
def test_refuses_kinds_of_bert(tmp_path, changes, message):
    with pytest.raises(LongspanError, match=message):
        read(tmp_path, bert_model().config.to_dict() | changes)


def test_bert_keys_have_transformers_defaults(tmp_path):
    ours, theirs = read(tmp_path, {"model_type": "bert"}), transformers.BertConfig()
    assert (ours.padded_vocab_size, ours.width, ours.num_layers) == (theirs.vocab_size, theirs.hidden_size, 12)
    assert (ours.trained_length, ours.inner_width, ours.norm_eps) == (512, 3072, theirs.layer_norm_eps)


@pytest.mark.parametrize("content", ["[]", "3", "{", ""])
def test_refuses_a_config_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(LongspanError, match=r"config\.json is not"):
        read_config(tmp_path)


def test_refuses_a_folder_without_config(tmp_path):
    with pytest.raises(LongspanError, match=r"config\.json is missing"):
        read_config(tmp_path)


def test_published_config_is_read_by_transformers_as_meant():
    config = transformers.NomicBertConfig(**published_config(CONFIG))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 5, 3)
    assert (config.max_position_embeddings, config.layer_norm_eps) == (64, 1e-6)
    assert config.rope_parameters == {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0}


def test_saved_folder_says_both_families(saved):
    encoder, folder = saved
    assert json.loads((folder / "config.json").read_text()) == published_config(encoder.config)
    change_config(folder, n_embd=...)
    assert_same_weights(load_encoder(folder), encoder)
