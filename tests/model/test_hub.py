"""Published checkpoints: every layout is read and written, and nothing that does not fit is read."""

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from longspan.errors import LongspanError
from longspan.files import write_json
from longspan.model.encoder import Encoder
from longspan.model.heads import MaskedLanguageModel
from longspan.model.hub import (
    has_masked_head,
    load_encoder,
    load_masked_model,
    read_safetensors,
    save_encoder,
    save_masked_model,
)
from longspan.model.published_config import published_config
from tests.model.published import CLASSES, FAMILIES, encoder_configs, lively, small, theirs_of

transformers = pytest.importorskip("transformers")

WRITTEN = [
    pytest.param("nomic_bert", "nomic", id="nomic_bert in nomic names"),
    pytest.param("nomic_bert", "native", id="nomic_bert in its own names"),
    pytest.param("bert", "native", id="bert"),
    pytest.param("modernbert", "native", id="modernbert"),
]
NATIVE = [case for case in WRITTEN if case.values[1] == "native"]
EITHER = pytest.mark.parametrize("masked", [False, True], ids=["encoder", "with head"])


def new(config, masked) -> Any:
    encoder = Encoder(config)
    return lively(MaskedLanguageModel(encoder) if masked else encoder)


def save(model, folder, layout):
    if isinstance(model, MaskedLanguageModel):
        save_masked_model(model, folder, layout=layout)
    else:
        save_encoder(model, folder, layout=layout)


def load(folder, masked):
    return load_masked_model(folder) if masked else load_encoder(folder)


def config_of(model):
    return model.encoder.config if isinstance(model, MaskedLanguageModel) else model.config


def opened_by_transformers(family, masked, folder):
    """Their model of the folder; nothing may have been missing in it, or left over."""
    theirs_class = getattr(transformers, CLASSES[family] + ("ForMaskedLM" if masked else "Model"))
    theirs, report = theirs_class.from_pretrained(folder, output_loading_info=True)
    # BertModel draws a pooler where there is none: it has no part in the token vectors.
    missing = {name for name in report["missing_keys"] if not name.startswith("pooler.")}
    assert not missing
    assert not any(report[kind] for kind in ("unexpected_keys", "mismatched_keys", "error_msgs"))
    return theirs


def make_theirs(family, masked):
    """A model of transformers with lively weights, and its configuration of ours."""
    config = small(family)
    return lively(theirs_of(config, "ForMaskedLM" if masked else "Model")), config


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
    same = {"vocab_size": encoder.config.padded_vocab_size}  # padding rows are rows like others
    assert loaded.config == encoder.config.model_copy(update=same)
    again = folder / "again"
    again.mkdir()
    save_encoder(loaded, again)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("family", "layout"), WRITTEN)
@EITHER
@settings(max_examples=15)
@given(data=st.data())
def test_any_model_comes_back_from_any_layout(tmp_path_factory, family, layout, masked, data):
    model = new(data.draw(encoder_configs(family)), masked)
    folder = tmp_path_factory.mktemp("any")
    save(model, folder, layout)
    loaded = load(folder, masked)
    assert_same_weights(loaded, model)
    assert config_of(loaded) == config_of(model)
    assert has_masked_head(folder) is masked
    if masked:
        assert_same_weights(load_encoder(folder), model.encoder)


@pytest.mark.parametrize(("family", "layout"), WRITTEN)
@settings(max_examples=10)
@given(data=st.data())
def test_any_division_into_shards_is_read(tmp_path_factory, family, layout, data):
    model = new(small(family), masked=True)
    folder = tmp_path_factory.mktemp("shards")
    save(model, folder, layout)
    names = sorted(load_file(folder / "model.safetensors"))
    shard_of = data.draw(st.lists(st.integers(0, 3), min_size=len(names), max_size=len(names)))
    divide(folder, {name: f"part-{number}.safetensors" for name, number in zip(names, shard_of, strict=True)})
    assert not (folder / "model.safetensors").exists()
    assert has_masked_head(folder)
    assert_same_weights(load_masked_model(folder), model)


@pytest.mark.parametrize(
    ("family", "layout", "masked"),
    # Not the original release's names with a head: transformers does not know the wrapper `bert.`.
    [(*case.values, False) for case in WRITTEN] + [(*case.values, True) for case in NATIVE],
)
def test_transformers_opens_what_is_written(tmp_path, family, layout, masked):
    """With nothing missing and nothing left over; what it holds then is what is written in its own names."""
    model = new(small(family), masked)
    save(model, tmp_path, layout)
    theirs = opened_by_transformers(family, masked, tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    save(model, own, "native")
    expected = load_file(own / "model.safetensors")
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("pooler.")}
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "decoder.weight"}
    assert state.keys() - tied == expected.keys() - tied
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize(("family", "_"), NATIVE)
@EITHER
@pytest.mark.parametrize("options", [{}, {"save_original_format": False}, {"max_shard_size": "8KB"}])
def test_what_transformers_saves_is_read(tmp_path, family, _, masked, options):
    """In its own names, in the original release's, in shards; and back to it: the same model."""
    theirs, config = make_theirs(family, masked)
    theirs.save_pretrained(tmp_path, **options)
    assert (tmp_path / "model.safetensors").exists() is ("max_shard_size" not in options)
    ours = load(tmp_path, masked)
    assert config_of(ours) == config
    again = tmp_path / "again"
    again.mkdir()
    save(ours, again, "native")
    returned = opened_by_transformers(family, masked, again).state_dict()
    for name, tensor in theirs.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.equal(returned[name], tensor), name


def test_the_original_layout_of_a_masked_model(tmp_path):
    """As nomic-bert-2048 has it (peers.md, E3), the output's copy of the table included."""
    model = new(small("nomic_bert"), masked=True)
    save_masked_model(model, tmp_path, layout="nomic")
    weights = load_file(tmp_path / "model.safetensors")
    assert {name for name in weights if not name.startswith("bert.")} == {
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.layer_norm.weight",
        "cls.predictions.transform.layer_norm.bias",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    }
    assert torch.equal(weights["cls.predictions.decoder.weight"], weights["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(weights["cls.predictions.decoder.bias"], model.head.bias)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["NomicBertForMaskedLM"]


def test_a_head_without_biases_is_one_with_zeros(tmp_path):
    """The original code leaves both out where mlp_fc1_bias is false; only one of them is a missing weight."""
    model = new(small("nomic_bert"), masked=True)
    with torch.no_grad():
        model.head.dense.bias.zero_()
        model.head.bias.zero_()
    save_masked_model(model, tmp_path, layout="nomic")
    change_weights(tmp_path, lambda weights: weights.pop("cls.predictions.transform.dense.bias"))
    with pytest.raises(LongspanError, match=r"lacks the weight cls\.predictions\.transform\.dense\.bias"):
        load_masked_model(tmp_path)
    change_weights(tmp_path, lambda weights: weights.pop("cls.predictions.decoder.bias"))
    assert_same_weights(load_masked_model(tmp_path), model)


def test_the_padding_of_a_published_output_bias_is_kept(tmp_path):
    """The original code sets it to -100, so that no padding is ever predicted."""
    model = new(small("nomic_bert", vocab_size=60, vocab_multiple=64), masked=True)
    with torch.no_grad():
        model.head.bias[60:] = -100.0
    save_masked_model(model, tmp_path, layout="nomic")
    assert torch.equal(load_masked_model(tmp_path).head.bias, model.head.bias)


def test_the_names_of_the_first_release_of_bert(tmp_path):
    """bert-base-uncased has gamma and beta, and heads that nobody asks for."""
    theirs = make_theirs("bert", masked=True)[0]
    theirs = lively(transformers.BertForPreTraining(theirs.config))
    theirs.save_pretrained(tmp_path)
    expected = load_masked_model(tmp_path)

    def rename(weights):
        for name in list(weights):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            weights[old] = weights.pop(name)
        weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()

    change_weights(tmp_path, rename)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"cls.seq_relationship.weight", "bert.pooler.dense.bias", "bert.embeddings.LayerNorm.gamma"} <= names
    assert_same_weights(load_masked_model(tmp_path), expected)
    assert torch.equal(expected.head.dense.weight, theirs.cls.predictions.transform.dense.weight)


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


def test_reads_bert_without_wrapper_and_with_its_constants(tmp_path):
    theirs, _ = make_theirs("bert", masked=True)
    theirs.config.save_pretrained(tmp_path)
    state = {name: tensor.contiguous() for name, tensor in theirs.bert.state_dict().items()}
    state["embeddings.position_ids"] = torch.arange(40)[None]
    state["pooler.dense.weight"] = torch.zeros(32, 32)
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
        weights["rotary_emb.inv_freq"] = torch.zeros(8)

    change_weights(folder, wrap)
    assert_same_weights(load_encoder(folder), encoder)


def divide(folder, table):
    """Move each weight to the file that `table` names, under an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for file in set(table.values()):
        save_file({name: weights[name] for name in table if table[name] == file}, folder / file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": table})


@pytest.fixture
def in_shards(saved):
    """A saved encoder in two files, its folder, and which weight is where."""
    encoder, folder = saved
    names = sorted(load_file(folder / "model.safetensors"))
    table = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    divide(folder, table)
    return encoder, folder, table


def test_a_missing_shard_is_named(in_shards):
    encoder, folder, _ = in_shards
    assert_same_weights(load_encoder(folder), encoder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(LongspanError, match=r"model-1\.safetensors is missing"):
        load_encoder(folder)


@pytest.mark.parametrize("table", [[], {}, {"weight_map": {}}, {"weight_map": {"emb_ln.bias": 3}}])
def test_an_index_that_names_no_files_is_refused(in_shards, table):
    _, folder, _ = in_shards
    write_json(folder / "model.safetensors.index.json", table)
    with pytest.raises(LongspanError, match=r"index\.json names no files"):
        load_encoder(folder)


@pytest.mark.parametrize("name", ["emb_ln.bias", "surprise"])
def test_an_index_must_say_where_each_weight_is(in_shards, name):
    """Shards of two models, or one weight in two shards: which of them is meant, nobody can know."""
    _, folder, table = in_shards
    table |= {name: "model-0.safetensors" if table.get(name) == "model-1.safetensors" else "model-1.safetensors"}
    write_json(folder / "model.safetensors.index.json", {"weight_map": table})
    with pytest.raises(LongspanError, match=rf"disagree on where .*{re.escape(name)}"):
        load_encoder(folder)


def test_a_weight_that_lies_in_two_shards_is_refused(in_shards):
    """The index names one of them; that there is another tells that the files do not belong together."""
    _, folder, table = in_shards
    name = next(name for name in table if table[name] == "model-0.safetensors")
    weights = load_file(folder / "model-1.safetensors") | {name: torch.zeros(3)}
    save_file(weights, folder / "model-1.safetensors")
    with pytest.raises(LongspanError, match=rf"disagree on where {re.escape(name)} is"):
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
    encoder, folder = saved
    change_weights(folder, lambda weights: weights.update({"bert.emb_ln.bias": weights["emb_ln.bias"].clone()}))
    assert_same_weights(load_encoder(folder), encoder)  # a copy does no harm
    change_weights(folder, lambda weights: weights.update({"bert.emb_ln.bias": weights["emb_ln.bias"] + 1}))
    with pytest.raises(LongspanError, match=r"emb_ln\.bias twice"):
        load_encoder(folder)


def test_refuses_weights_that_were_quantised(saved):
    _, folder = saved
    name = "encoder.layers.0.attn.Wqkv.weight"
    change_weights(folder, lambda weights: weights.update({name: weights[name].to(torch.int8)}))
    with pytest.raises(LongspanError, match=re.escape(f"{name} holds torch.int8")):
        load_encoder(folder)


def test_refuses_weights_without_a_name_that_it_knows(saved):
    _, folder = saved
    change_weights(folder, lambda weights: [weights.update({f"x.{name}": weights.pop(name)}) for name in list(weights)])
    with pytest.raises(LongspanError, match="no weight has a name by which longspan knows an encoder"):
        load_encoder(folder)


HEADS = {
    "nomic_bert": "cls.predictions.transform.layer_norm.weight",
    "bert": "cls.predictions.transform.LayerNorm.weight",
    "modernbert": "head.norm.weight",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: None, "lacks the weight"),
        (lambda tensor: tensor[:-1], "shape"),
        (lambda tensor: tensor * float("nan"), "not finite"),
    ],
    ids=["missing", "shape", "nan"],
)
def test_a_head_is_read_as_strictly(tmp_path, family, change, message):
    save_masked_model(new(small(family), masked=True), tmp_path)

    def spoil(weights):
        changed = change(weights.pop(HEADS[family]))
        weights |= {} if changed is None else {HEADS[family]: changed}

    change_weights(tmp_path, spoil)
    with pytest.raises(LongspanError, match=rf"{message}.*{HEADS[family]}|{HEADS[family]}.*{message}"):
        load_masked_model(tmp_path)
    load_encoder(tmp_path)  # which has no use for it


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_of_a_classifier_is_read(tmp_path, family):
    theirs = lively(theirs_of(small(family), "ForSequenceClassification"))
    theirs.save_pretrained(tmp_path)
    tokens = next(tensor for name, tensor in theirs.state_dict().items() if "embeddings." in name)
    assert torch.equal(load_encoder(tmp_path).embeddings.tokens.weight, tokens)
    assert not has_masked_head(tmp_path)
    with pytest.raises(LongspanError, match="has no head for masked language modelling"):
        load_masked_model(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_is_missing_or_not_tied_is_refused(tmp_path, family):
    model = new(small(family), masked=True)
    save_encoder(model.encoder, tmp_path)
    with pytest.raises(LongspanError, match="has no head for masked language modelling"):
        load_masked_model(tmp_path)
    save_masked_model(model, tmp_path)
    name = "decoder.weight" if family == "modernbert" else "cls.predictions.decoder.weight"
    tokens = model.encoder.embeddings.tokens.weight.detach()
    change_weights(tmp_path, lambda weights: weights.update({name: tokens.clone()}))
    assert_same_weights(load_masked_model(tmp_path), model)
    change_weights(tmp_path, lambda weights: weights.update({name: tokens + 1}))
    with pytest.raises(LongspanError, match=re.escape(f"{name} is not the token table")):
        load_masked_model(tmp_path)
    change_weights(tmp_path, lambda weights: weights.update({name: tokens.clone(), "lm_head.weight": tokens + 1}))
    with pytest.raises(LongspanError, match=r"no place for: lm_head\.weight"):
        load_masked_model(tmp_path)


def test_refuses_weights_of_another_architecture(saved):
    _, folder = saved
    write_json(folder / "config.json", published_config(small("bert", vocab_size=192, width=64)))
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
    torch.save({}, folder / "pytorch_model.bin")  # it would be read without complaint
    (folder / "model.safetensors").unlink()
    for read in (load_encoder, load_masked_model, has_masked_head):
        with pytest.raises(LongspanError, match=r"model\.safetensors is missing") as caught:
            read(folder)
        assert "convert a pytorch_model.bin" in caught.value.remedy


def test_read_safetensors_of_nothing(tmp_path):
    with pytest.raises(LongspanError, match=r"nothing\.safetensors is missing"):
        read_safetensors(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("masked", [False, True])
def test_what_no_model_type_computes_is_not_written(tmp_path, masked):
    with pytest.raises(LongspanError, match="no published model type computes this encoder"):
        save(new(small("nomic_bert", bias=True), masked), tmp_path, "nomic")
    assert not list(tmp_path.iterdir())
