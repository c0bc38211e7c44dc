"""A published folder opens in sentence-transformers and transformers as it is, and gives our vectors there."""

import logging
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export.publish import publish
from longspan.export.sentence_transformers import PROBES, TOLERANCE, compare_with_sentence_transformers
from longspan.files import read_json, write_json
from longspan.model.config import EmbeddingConfig
from longspan.text.tasks import PREFIXES

transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = [
    "How do I read a CSV file?",
    "Straße, naïve café, 東京 — ½ 😀 e\u0301 \u200d and a number: 3.14159",
    "[MASK] is a token, and so is [SEP].",
    "fox",
    "the quick brown fox " * 20,  # past the 32 tokens of training
    "the lazy dogs " * 100,  # cut at 128
]


@pytest.fixture(scope="module")
def folder(small_embedder, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "model"
    publish(small_embedder, path)
    return path


@pytest.fixture
def told(caplog):
    """Everything that the libraries log or warn while a test runs; warnings are errors in any case."""
    for name in ("transformers", "sentence_transformers"):
        logging.getLogger(name).addHandler(caplog.handler)
    transformers.logging.set_verbosity_warning()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [record.getMessage() for record in caplog.records] + [str(w.message) for w in caught]
    for name in ("transformers", "sentence_transformers"):
        logging.getLogger(name).removeHandler(caplog.handler)


@pytest.mark.parametrize("task", PREFIXES)
def test_sentence_transformers_gives_our_vectors(folder, small_embedder, told, task):
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert [type(module).__name__ for module in theirs] == ["Transformer", "Pooling", "Normalize"]
    assert type(theirs[0].auto_model).__name__ == "NomicBertModel"
    assert theirs.max_seq_length == 128
    assert {name: text for name, text in theirs.prompts.items() if text} == PREFIXES
    for text in TEXTS:
        theirs.encode(["a"])  # at a short text transformers forgets the longest text that it has seen
        expected_1D = theirs.encode([text], prompt_name=task)
        ours_1D = small_embedder.embed([text], task=task, truncate=True)
        # Measured: 6e-7.
        np.testing.assert_allclose(ours_1D, expected_1D, rtol=0, atol=TOLERANCE)
    assert told() == []


def test_short_texts_may_be_batched_there(folder, small_embedder, told):
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    texts = [text for text in TEXTS if len(text) < 40]
    assert len(texts) == 3
    assert max(small_embedder.num_tokens(texts, task="clustering")) <= 32
    expected_ND = theirs.encode(texts, prompt_name="clustering")
    np.testing.assert_allclose(small_embedder.embed(texts, task="clustering"), expected_ND, rtol=0, atol=TOLERANCE)


def test_transformers_alone_opens_it_whole(folder, small_embedder, told):
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is transformers.NomicBertModel
    assert {key: value for key, value in info.items() if value} == {}  # nothing missing, left over or mismatched
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 128
    for text in TEXTS[:4]:
        inputs = tokenizer(f"clustering: {text}", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            mean_D = model.eval()(**inputs).last_hidden_state[0].mean(dim=0)
        expected_D = (mean_D / mean_D.norm()).numpy()
        ours_1D = small_embedder.embed([text], task="clustering")
        np.testing.assert_allclose(ours_1D[0], expected_D, rtol=0, atol=TOLERANCE)
    assert told() == []


def test_a_warning_would_be_heard(small_embedder, told, tmp_path):
    """The tests above prove something only if `told` hears of newly initialised weights."""
    publish(small_embedder, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["encoder.layers.1.mlp.fc2.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors")
    sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert any("newly initialized" in line or "MISSING" in line for line in told())


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_other_poolings_are_said_so_that_they_are_read(small_encoder, small_tokenizer, tmp_path, pooling):
    config = EmbeddingConfig(pooling=pooling, normalize=False, max_length=128)
    embedder = Embedder(small_encoder(), small_tokenizer, config, device="cpu")
    publish(embedder, tmp_path / "model")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    for text in TEXTS[:4]:
        # Not normalised: coordinates are of order 1.
        np.testing.assert_allclose(embedder.embed([text]), theirs.encode([text]), rtol=0, atol=1e-5)


def test_what_sentence_transformers_saves_again_is_still_ours(folder, small_embedder, tmp_path):
    sentence_transformers.SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "saved"))
    loaded = Embedder.load(tmp_path / "saved", device="cpu")
    assert loaded.config == small_embedder.config
    for task in PREFIXES:
        assert np.array_equal(loaded.embed(["fox"], task=task), small_embedder.embed(["fox"], task=task))


# --- the check -------------------------------------------------------------------------------------------------------


def test_compare_finds_no_difference(folder, small_embedder):
    assert compare_with_sentence_transformers(small_embedder, folder) <= TOLERANCE


def test_compare_works_without_tasks_and_with_short_limits(small_encoder, small_tokenizer, tmp_path):
    embedder = Embedder(small_encoder(), small_tokenizer, EmbeddingConfig(max_length=20), device="cpu")
    publish(embedder, tmp_path / "model")
    assert compare_with_sentence_transformers(embedder, tmp_path / "model") <= TOLERANCE


def tamper_with_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layers.1.mlp.fc2.weight"][3, 5] += 0.1
    save_file(weights, folder / "model.safetensors")


def tamper_with_pooling(folder):
    path = folder / "1_Pooling" / "config.json"
    modes = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    write_json(path, read_json(path, remedy="") | modes)


def tamper_with_prompts(folder):
    path = folder / "config_sentence_transformers.json"
    write_json(path, read_json(path, remedy="") | {"prompts": PREFIXES | {"clustering": "clusters: "}})


def tamper_with_the_rotary_base(folder):
    path = folder / "config.json"
    rope = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.5}  # only long texts see the difference
    write_json(path, read_json(path, remedy="") | {"rope_parameters": rope})


@pytest.mark.parametrize(
    "tamper", [tamper_with_weights, tamper_with_pooling, tamper_with_prompts, tamper_with_the_rotary_base]
)
def test_compare_finds_what_was_tampered_with(small_embedder, tmp_path, tamper):
    publish(small_embedder, tmp_path / "model")
    tamper(tmp_path / "model")
    with pytest.raises(LongspanError, match="gives other vectors: they differ by up to") as caught:
        compare_with_sentence_transformers(small_embedder, tmp_path / "model")
    assert caught.value.where == str(tmp_path / "model")


def test_the_long_probe_reaches_past_a_longer_training(small_encoder, small_tokenizer, tmp_path):
    """The fixed probes end somewhere; a model trained to more must be probed beyond all the same."""
    encoder = small_encoder(trained_length=2000, max_length=2100)
    embedder = Embedder(encoder, small_tokenizer, EmbeddingConfig(max_length=2100), device="cpu")
    assert max(embedder.num_tokens(PROBES)) < 2000
    publish(embedder, tmp_path / "model")
    assert compare_with_sentence_transformers(embedder, tmp_path / "model") <= TOLERANCE
    tamper_with_the_rotary_base(tmp_path / "model")
    with pytest.raises(LongspanError, match="gives other vectors"):
        compare_with_sentence_transformers(embedder, tmp_path / "model")


@pytest.mark.parametrize(
    "settings",
    [
        {"positions": "learned", "activation": "gelu", "bias": True, "trained_length": 128},
        {"prenorm": True, "activation": "geglu", "num_token_types": 0},
    ],
    ids=["bert", "modernbert"],
)
def test_other_families_are_compared_too(small_encoder, small_tokenizer, tmp_path, settings):
    embedder = Embedder(small_encoder(**settings), small_tokenizer, EmbeddingConfig(max_length=128), device="cpu")
    publish(embedder, tmp_path / "model")
    assert compare_with_sentence_transformers(embedder, tmp_path / "model") <= TOLERANCE
