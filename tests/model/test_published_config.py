"""`config.json`: both families of keys and every model type are read and written, and no other arithmetic is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.files import write_json
from longspan.model.config import EncoderConfig
from longspan.model.published_config import model_type, published_config, read_config
from longspan.model.rope import rotary_frequencies
from tests.model.published import CLASSES, FAMILIES, encoder_configs, small

transformers = pytest.importorskip("transformers")


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


def theirs_of(config):
    """What transformers reads of it."""
    published = published_config(config)
    return getattr(transformers, CLASSES[published["model_type"]] + "Config")(**published)


def read(tmp_path, published):
    write_json(tmp_path / "config.json", published)
    return read_config(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_any_encoder_comes_back(tmp_path_factory, family, data):
    config = data.draw(encoder_configs(family))
    assert model_type(config, "test") == family
    folder = tmp_path_factory.mktemp("config")
    assert read(folder, published_config(config)) == config
    # Rewritten by transformers, which keeps what it does not know. What it counts as its own it may spell otherwise.
    theirs_of(config).save_pretrained(folder)
    assert read_config(folder) == config


@given(config=encoder_configs("nomic_bert"))
def test_what_only_one_family_of_keys_says(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("config")
    known = {"n_positions", "longspan_rope_scaling"}
    native = {key: value for key, value in published_config(config).items() if key in SHARED | NATIVE | known}
    assert read(folder, native) == config
    if config.rope_scaling != "linear":
        assert read(folder, without_native_keys(config)) == config


def test_ntk_aware_scaling_is_written_as_the_base_that_it_is(tmp_path):
    """Equation (4) has no name in published files: 1,000 * 4 ** (8 / 6)."""
    config = small("nomic_bert", rope_scaling="ntk")
    read_back = read(tmp_path, published_config(config))
    assert read_back.rotary_base == pytest.approx(1000 * 4 ** (8 / 6))
    assert read_back.rope_scaling == "none"
    for length in (1, 40, 160):
        assert rotary_frequencies(length, read_back).equal(rotary_frequencies(length, config))


def test_linear_scaling_has_no_original_keys():
    """Servers that read only those would compute without it."""
    published = published_config(small("nomic_bert", rope_scaling="linear"))
    assert published["rope_parameters"] == {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
    assert not {"n_embd", "n_head", "n_layer", "rotary_emb_base"} & published.keys()


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
    expected = EncoderConfig(vocab_size=30528)
    assert read(tmp_path, published) == expected
    native = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "max_position_embeddings": 2048, "rope_parameters": {"rope_theta": 1000, "rope_type": "default"},
    }  # fmt: skip
    assert read(tmp_path, published | native) == expected
    unpadded = {"model_type": "nomic_bert"} | native
    assert read(tmp_path, unpadded) == expected.model_copy(update={"vocab_multiple": 1})


def test_the_original_code_pads_the_vocabulary_by_itself(tmp_path):
    published = published_config(CONFIG) | {"vocab_size": 30522, "pad_vocab_size_multiple": 64}
    assert read(tmp_path, published).padded_vocab_size == 30528


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
        ({"vocab_size": "many"}, "vocab_size = 'many' is not a number"),
        ({"n_positions": True}, "n_positions = True is not a number"),
        ({"rope_parameters": [3]}, "rope_parameters is not a JSON object"),
        ({"activation_function": "geglu"}, "activation_function = 'geglu' and hidden_act = 'silu' contradict"),
        ({"longspan_rope_scaling": "yes"}, "longspan_rope_scaling = 'yes'"),
    ],
)
def test_refuses_arithmetic_that_the_encoder_does_not_have(tmp_path, changes, message):
    with pytest.raises(LongspanError, match=message) as caught:
        read(tmp_path, published_config(CONFIG) | changes)
    assert caught.value.where.endswith("config.json")


def test_linear_scaling_is_read(tmp_path):
    linear = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    published = published_config(CONFIG) | {"rotary_scaling_factor": None, "rope_parameters": linear}
    expected = CONFIG.model_copy(update={"rope_scaling": "linear", "rope_factor": 4.0})
    assert rotary_frequencies(9, read(tmp_path, published)).equal(rotary_frequencies(9, expected))
    with pytest.raises(LongspanError, match="'linear' has no factor"):
        read(tmp_path, published | {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0}})
    with pytest.raises(LongspanError, match="rotary_scaling_factor"):
        read(tmp_path, published | {"rotary_scaling_factor": 2.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act = 'silu'"),
        ({"hidden_act": "gelu_fast"}, "hidden_act = 'gelu_fast'"),  # its constants are rounded
        ({"hidden_act": ["gelu"]}, r"hidden_act = \['gelu'\]"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder = True"),
    ],
)
def test_refuses_kinds_of_bert(tmp_path, changes, message):
    with pytest.raises(LongspanError, match=message):
        read(tmp_path, theirs_of(small("bert")).to_dict() | changes)


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
    config = theirs_of(CONFIG)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 5, 3)
    assert (config.max_position_embeddings, config.layer_norm_eps) == (64, 1e-6)
    assert config.rope_parameters == {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0}


# --- bert and modernbert ---------------------------------------------------------------------------------------------


def test_what_transformers_reads_of_bert_and_modernbert():
    bert = theirs_of(small("bert", activation="gelu_tanh"))
    assert (bert.hidden_act, bert.max_position_embeddings, bert.hidden_dropout_prob) == ("gelu_new", 40, 0.0)
    modern = theirs_of(small("modernbert", bias=True))
    assert (modern.layer_types, modern.attention_bias, modern.mlp_bias) == (["full_attention"] * 2, True, True)
    assert modern.rope_parameters["full_attention"] == {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0}
    assert (modern.hidden_activation, modern.classifier_activation) == ("gelu", "gelu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "attend to a window only"),
        ({"layer_types": None}, "attend to a window only"),  # transformers' default
        ({"layer_types": "full_attention"}, "attend to a window only"),
        ({"norm_bias": False}, "norm_bias = False"),
        ({"norm_bias": None}, "norm_bias = False"),  # transformers' default
        ({"classifier_bias": None}, "classifier_bias = False"),
        ({"decoder_bias": False}, "decoder_bias = False"),
        ({"mlp_bias": True}, "attention_bias = False and mlp_bias = True"),
        ({"hidden_activation": "relu"}, "hidden_activation = 'relu'"),
        ({"classifier_activation": "silu"}, "classifier_activation = 'silu'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type = 'yarn'"),
        ({"rope_parameters": {"full_attention": 3}}, "full_attention is not a JSON object"),
    ],
)
def test_refuses_kinds_of_modernbert(tmp_path, changes, message):
    with pytest.raises(LongspanError, match=message):
        read(tmp_path, published_config(small("modernbert")) | changes)


def test_an_older_way_to_say_that_all_layers_attend_to_everything(tmp_path):
    published = published_config(small("modernbert")) | {"layer_types": None}
    assert read(tmp_path, published | {"global_attn_every_n_layers": 1}) == small("modernbert")
    with pytest.raises(LongspanError, match="attend to a window only"):
        read(tmp_path, published | {"global_attn_every_n_layers": 3})


def test_published_modernbert_is_refused(tmp_path):
    """It has windows; nothing of it is read as something else."""
    transformers.ModernBertConfig().save_pretrained(tmp_path)
    with pytest.raises(LongspanError, match="attend to a window only"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "lacking"),
    [
        ("nomic_bert", {"bias": True}, "no biases"),
        ("nomic_bert", {"activation": "gelu"}, "a gated activation"),
        ("nomic_bert", {"activation": "relu", "bias": True}, "a gated activation and no biases"),
        ("nomic_bert", {"num_token_types": 0}, "token types"),
        ("bert", {"bias": False}, "biases"),
        ("bert", {"activation": "geglu"}, "an activation without gate"),
        ("bert", {"num_token_types": 0}, "token types"),
        ("modernbert", {"positions": "learned", "max_length": 40}, "rotary positions"),
        ("modernbert", {"activation": "gelu"}, "a gated activation"),
        ("modernbert", {"num_token_types": 2}, "no token types"),
    ],
)
def test_the_setting_that_no_model_type_has_is_named(family, changes, lacking):
    config = small(family, **changes)
    with pytest.raises(LongspanError, match=f"{family} comes nearest, and needs {lacking}\n") as caught:
        model_type(config, "the recipe")
    assert caught.value.where == "the recipe"
    with pytest.raises(LongspanError, match=re.escape(lacking)):
        published_config(config)
