"""Texts in blocks: every vector at its text's place, whatever the blocks and whoever computes them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.curate.engine import LocalEngine
from longspan.evaluate import embedding
from longspan.evaluate.embedding import embed_texts, finished_vectors, without_lengths

WORDS = "quick brown fox jumps over lazy dogs naïve café area".split()


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join), min_size=1, max_size=12))
@settings(max_examples=15)
def test_vectors_are_in_the_order_of_the_texts(small_embedder, texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "CHARACTERS_PER_BLOCK", 100)  # so that there are several blocks
        done, cut = [], []
        vectors = embed_texts(
            LocalEngine(small_embedder), texts, task="clustering", max_length=16, progress=done.append,
            on_cut=cut.append,
        )  # fmt: skip
    expected = small_embedder.embed(texts, task="clustering", max_length=16, truncate=True)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)  # another batch rounds otherwise
    assert sum(done) == len(texts)
    assert sum(cut) == sum(n > 16 for n in small_embedder.num_tokens(texts, task="clustering"))


def test_a_block_holds_texts_of_similar_length_and_no_more_than_its_size(monkeypatch):
    monkeypatch.setattr(embedding, "CHARACTERS_PER_BLOCK", 100)
    texts = ["x" * n for n in (5, 300, 40, 60, 5, 99)]
    assert [[len(texts[i]) for i in group] for group in embedding._groups(texts, None)] == [
        [300],
        [99],
        [60],
        [40, 5, 5],
    ]
    # What is cut takes no more than what is read of it.
    assert [[len(texts[i]) for i in group] for group in embedding._groups(texts, 3)] == [[300, 40, 60, 99], [5, 5]]


@pytest.mark.parametrize("layer_norm", [False, True])
def test_one_pass_serves_all_dims(small_embedder, layer_norm):
    embedder = small_embedder.with_settings(layer_norm=layer_norm)
    raw = without_lengths(embedder).embed(WORDS, task="clustering")
    for dim in (None, 64, 16):
        for normalize in (True, False):
            expected = embedder.with_settings(normalize=normalize).embed(WORDS, task="clustering", dim=dim)
            np.testing.assert_array_equal(finished_vectors(raw, dim=dim, normalize=normalize), expected)
