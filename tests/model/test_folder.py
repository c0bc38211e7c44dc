"""The published folder: what it holds, what is read of others' folders, and what is refused."""

import json
import socket
import time
from fnmatch import fnmatch

import numpy as np
import pytest
import torch

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import write_json, write_text
from longspan.model.config import EmbeddingConfig
from longspan.model.encoder import Encoder
from longspan.model.folder import check_replaceable, find_model, read_model, write_model
from longspan.model.heads import MaskedLanguageModel
from longspan.model.hub import write_safetensors
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import SPECIAL_TOKENS, Tokenizer
from tests.model.published import FAMILIES, lively, small


@pytest.fixture
def folder(tmp_path, small_encoder, small_tokenizer):
    """A published folder with the four tasks."""
    path = tmp_path / "published"
    path.mkdir()
    write_model(path, small_encoder(), small_tokenizer, EmbeddingConfig(max_length=100, prefixes=PREFIXES))
    return path


def content(path):
    return json.loads(path.read_text("utf-8"))


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_others_look_for(folder):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    }
    check_replaceable(folder)


def test_config_has_both_families_of_keys(folder):
    """The original ones for servers (TEI, llama.cpp), the native ones for transformers."""
    config = content(folder / "config.json")
    assert {"n_embd", "n_head", "n_layer", "n_inner", "n_positions", "rotary_emb_base"} <= config.keys()
    assert {"hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"} <= config.keys()
    assert config["architectures"] == ["NomicBertModel"]
    assert "auto_map" not in config  # nobody needs trust_remote_code


def test_modules_are_stock_classes_under_their_oldest_names(folder):
    """These load in every release of sentence-transformers; the new names only from 5.4 on."""
    assert content(folder / "modules.json") == [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]


def test_pooling_is_written_in_the_verbose_form(folder):
    """Some servers read the compact one as CLS pooling."""
    assert content(folder / "1_Pooling" / "config.json") == {
        "word_embedding_dimension": 64,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
        "include_prompt": True,
    }


def test_prompts_and_limits(folder):
    settings = content(folder / "config_sentence_transformers.json")
    assert settings["prompts"] == PREFIXES
    assert settings["default_prompt_name"] is None
    assert content(folder / "sentence_bert_config.json") == {"max_seq_length": 100, "do_lower_case": False}
    assert content(folder / "tokenizer_config.json")["model_max_length"] == 100


def test_the_written_limit_is_never_more_than_the_encoder_reads(tmp_path, small_encoder, small_tokenizer):
    write_model(tmp_path, small_encoder(), small_tokenizer, EmbeddingConfig(max_length=8192))
    assert content(tmp_path / "sentence_bert_config.json")["max_seq_length"] == 128


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_round_trip(tmp_path, small_encoder, small_tokenizer, pooling, normalize, layer_norm):
    config = EmbeddingConfig(
        pooling=pooling, normalize=normalize, layer_norm=layer_norm, max_length=77, prefixes={"find": "find: "}
    )
    write_model(tmp_path, small_encoder(), small_tokenizer, config)
    _, tokenizer, read = read_model(tmp_path)
    assert read == config
    assert tokenizer.fingerprint == small_tokenizer.fingerprint


def test_layer_norm_is_sentence_transformers_own_module(tmp_path, small_encoder, small_tokenizer):
    """Stock classes compute what nomic-embed v1.5 does after pooling; the layer norm's weights are ones and zeros."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    config = EmbeddingConfig(layer_norm=True, max_length=32)
    write_model(tmp_path, small_encoder(), small_tokenizer, config)
    check_replaceable(tmp_path)
    names = [module["type"].rpartition(".")[2] for module in content(tmp_path / "modules.json")]
    assert names == ["Transformer", "Pooling", "LayerNorm", "Normalize"]
    texts = ["the quick brown fox", "fox", "naïve café 東京"]
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    ours = Embedder.load(tmp_path, device="cpu")
    assert ours.config == config
    vectors_ND = ours.embed(texts)
    # Measured: 1e-7.
    np.testing.assert_allclose(vectors_ND, np.asarray(theirs.encode(texts)), rtol=0, atol=2e-6)
    plain = Embedder(small_encoder(), small_tokenizer, EmbeddingConfig(max_length=32), device="cpu")
    assert np.abs(vectors_ND - plain.embed(texts)).max() > 0.01, "without it the vectors are others"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_head", [False, True])
def test_every_family_gives_sentence_transformers_vectors(tmp_path, small_tokenizer, family, with_head):
    """From the folder as it is, also where the head of masked language modelling lies in it."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = lively(Encoder(small(family, vocab_size=small_tokenizer.vocab_size, vocab_multiple=64)))
    model = MaskedLanguageModel(encoder) if with_head else encoder
    write_model(tmp_path, model, small_tokenizer, EmbeddingConfig(max_length=40))
    check_replaceable(tmp_path)
    texts = ["the quick brown fox", "fox", "naïve café 東京"]
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    # Measured: 2e-7.
    np.testing.assert_allclose(
        Embedder.load(tmp_path, device="cpu").embed(texts), np.asarray(theirs.encode(texts)), rtol=0, atol=2e-6
    )


# --- what is read of others' folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "pooling"),
    [
        ({"embedding_dimension": 64, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"embedding_dimension": 64, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 64, "pooling_mode": "lasttoken"}, "last"),
        ({"embedding_dimension": 64, "pooling_mode": ["lasttoken"]}, "last"),
        ({"word_embedding_dimension": 64, "pooling_mode_cls_token": True}, "cls"),
        ({"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}, "mean"),
    ],
)
def test_both_forms_of_pooling_are_read(folder, published, pooling):
    write_json(folder / "1_Pooling" / "config.json", published)
    assert read_model(folder)[2].pooling == pooling


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"pooling_mode": "max"}, r"pooling \['max'\] is not supported"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["cls", "mean"]}, r"\['cls', 'mean'\]"),
        ({"pooling_mode_max_tokens": True}, r"pooling \['max'\]"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, r"\['cls', 'mean'\]"),
        ({"pooling_mode_mean_tokens": False}, r"pooling \[\]"),
        ({"pooling_mode": "mean", "include_prompt": False}, "leaves out the prompt"),
    ],
)
def test_other_pooling_is_refused(folder, published, message):
    write_json(folder / "1_Pooling" / "config.json", published)
    with pytest.raises(LongspanError, match=message) as caught:
        read_model(folder)
    assert "1_Pooling" in caught.value.where


def modules(*kinds):
    return [
        {"idx": i, "name": str(i), "path": "1_Pooling" if kind.endswith("Pooling") else "", "type": kind}
        for i, kind in enumerate(kinds)
    ]


def test_new_module_names_are_read(folder):
    new = "sentence_transformers.base.modules.transformer.Transformer"
    pooling = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    write_json(folder / "modules.json", modules(new, pooling))
    assert read_model(folder)[2].normalize is False


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("Transformer", "Pooling", "Dense"), "module 'Dense' is not supported"),
        (("Transformer", "CNN", "Pooling"), "module 'CNN'"),
        (("Transformer",), "no Pooling module"),
        (("Transformer", "Normalize", "Pooling"), "Transformer, Normalize, Pooling are not supported in this order"),
        (("Pooling", "Transformer"), "Pooling, Transformer are not supported in this order"),
    ],
)
def test_other_modules_are_refused(folder, kinds, message):
    write_json(folder / "modules.json", modules(*(f"sentence_transformers.models.{kind}" for kind in kinds)))
    with pytest.raises(LongspanError, match=message):
        read_model(folder)


@pytest.mark.parametrize(
    "weights",
    [
        {"norm.weight": torch.full((64,), 2.0), "norm.bias": torch.zeros(64)},
        {"norm.weight": torch.ones(64), "norm.bias": torch.full((64,), 0.1)},
        {"norm.weight": torch.ones(64)},
    ],
)
def test_a_layer_norm_with_weights_is_refused(tmp_path, small_encoder, small_tokenizer, weights):
    write_model(tmp_path, small_encoder(), small_tokenizer, EmbeddingConfig(layer_norm=True))
    write_safetensors(tmp_path / "2_LayerNorm" / "model.safetensors", weights)
    with pytest.raises(LongspanError, match="weights of its own") as caught:
        read_model(tmp_path)
    assert caught.value.where.endswith("2_LayerNorm")


@pytest.mark.parametrize(
    ("prompts", "prefixes"),
    [
        ({}, {}),
        # sentence-transformers adds these two, empty, to whatever it saves.
        ({"query": "", "document": ""}, {}),
        (PREFIXES | {"query": "", "document": ""}, PREFIXES),
        # A model whose documents need no prefix: they are a task of it all the same.
        ({"query": "Represent this: ", "document": ""}, {"query": "Represent this: ", "document": ""}),
    ],
)
def test_prompts_become_tasks(folder, prompts, prefixes):
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    assert read_model(folder)[2].prefixes == prefixes


@pytest.mark.parametrize(
    ("limits", "tokenizer_config", "expected"),
    [
        ({"max_seq_length": 50}, {"model_max_length": 60}, 50),
        ({}, {"model_max_length": 60}, 60),  # what sentence-transformers 6 saves
        ({"max_seq_length": None}, {"model_max_length": 10**30}, 128),  # the tokenizer does not know
        ({"max_seq_length": 9999}, {}, 128),
        ({}, {}, 128),
    ],
)
def test_the_limit_is_read_where_it_is_written(folder, limits, tokenizer_config, expected):
    write_json(folder / "sentence_bert_config.json", limits)
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    assert read_model(folder)[2].max_length == expected


def test_lower_casing_outside_the_tokenizer_is_refused(folder):
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 50, "do_lower_case": True})
    with pytest.raises(LongspanError, match="do_lower_case"):
        read_model(folder)


def test_a_tokenizer_bigger_than_the_table_is_refused(folder):
    vocabulary = [*SPECIAL_TOKENS, *(f"word{i}" for i in range(400))]
    write_text(folder.parent / "vocab.txt", "\n".join(vocabulary))
    Tokenizer.load(folder.parent / "vocab.txt").save(folder / "tokenizer.json")
    with pytest.raises(LongspanError, match="tokenizer has 405 ids, the encoder only") as caught:
        read_model(folder)
    assert caught.value.where == str(folder)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("modules.json", r"modules\.json is missing"),
        ("tokenizer.json", r"neither tokenizer\.json nor vocab\.txt"),
        ("1_Pooling/config.json", r"config\.json is missing"),
        ("model.safetensors", r"model\.safetensors is missing"),
    ],
)
def test_an_incomplete_folder_is_refused(folder, missing, message):
    (folder / missing).unlink()
    with pytest.raises(LongspanError, match=message):
        read_model(folder)


# --- where models are ------------------------------------------------------------------------------------------------


def test_a_folder_and_a_finished_run_are_found(folder, tmp_path):
    assert find_model(folder) == folder
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "run.json", {})
    folder.rename(run / "model")
    assert find_model(str(run)) == run / "model"


def test_an_unfinished_run_is_named_with_its_remedy(tmp_path):
    write_json(tmp_path / "run.json", {})
    with pytest.raises(LongspanError, match="this run is not finished") as caught:
        find_model(tmp_path)
    assert caught.value.remedy == f"finish it first: longspan train --resume {tmp_path}"


def test_a_folder_without_model_is_refused(tmp_path):
    with pytest.raises(LongspanError, match=r"has no config\.json"):
        find_model(tmp_path)


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder", "nothing-of-this-name", "not a name"])
def test_a_name_that_is_nowhere_fails_soon(monkeypatch, name):
    def no_network(*args, **kwargs):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    start = time.monotonic()
    with pytest.raises(LongspanError, match="no such folder, and the hub did not give it") as caught:
        read_model(name)
    assert caught.value.where == name
    assert time.monotonic() - start < 5


def test_nothing_that_can_run_is_fetched_from_the_hub(monkeypatch, folder):
    """No pickle, no code: only JSON, safetensors and the vocabulary."""
    asked = {}

    def snapshot_download(name, *, allow_patterns):
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    encoder, _, _ = read_model("somebody/model")
    assert encoder.config == read_model(folder)[0].config
    fetched = [
        name
        for name in ("model.safetensors", "1_Pooling/config.json", "pytorch_model.bin", "modeling.py", "a.pt", "a.pkl")
        if any(fnmatch(name, pattern) for pattern in asked["somebody/model"])
    ]
    assert fetched == ["model.safetensors", "1_Pooling/config.json"]


# --- what may be replaced --------------------------------------------------------------------------------------------


def test_only_models_are_replaced(folder, tmp_path):
    check_replaceable(tmp_path / "nothing there yet")
    write_text(folder / "README.md", "a card")
    write_text(folder / ".unfinished-1-x", "left by a killed process")
    check_replaceable(folder)
    write_text(folder / "thesis.tex", "years of work")
    with pytest.raises(LongspanError, match=r"something else than a published model: thesis\.tex"):
        check_replaceable(folder)
    with pytest.raises(LongspanError, match="this is a file"):
        check_replaceable(folder / "thesis.tex")
