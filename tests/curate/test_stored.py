"""Search among stored vectors equals a naive search among the vectors that are read back; rescoring, the finer's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.curate import stored as module
from longspan.curate.neighbours import top_k
from longspan.curate.stored import nearest_stored
from longspan.errors import LongspanError
from longspan.storage import Form, Storage, Stored


def unit(generator: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors_ND = generator.normal(size=(count, dim))
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)


def stored_as(form: Form, vectors_MD: np.ndarray) -> Stored:
    storage = Storage.of(form, vectors_MD)
    return Stored(storage, storage.encode(vectors_MD))


def naive(queries_ND: np.ndarray, documents_MD: np.ndarray, k: int) -> np.ndarray:
    """Indices by the inner product in float64, equal ones by the lower index."""
    scores_NM = queries_ND.astype(np.float64) @ documents_MD.astype(np.float64).T
    return np.argsort(-scores_NM, axis=1, kind="stable")[:, :k]


sizes = st.tuples(st.integers(0, 2**16), st.integers(1, 40), st.sampled_from([3, 8, 16, 20, 32, 64, 100]))


@given(sizes, st.integers(1, 50))
def test_every_form_is_ranked_as_a_naive_search_ranks_it(size, k):
    seed, count, dim = size
    generator = np.random.default_rng(seed)
    documents_MD, queries_ND = unit(generator, count, dim), unit(generator, 5, dim)
    for form in ("float32", "float16", "int8"):
        documents = stored_as(form, documents_MD)
        scores_NK, indices_NK = nearest_stored(queries_ND, documents, k)
        np.testing.assert_array_equal(indices_NK[:, : min(k, count)], naive(queries_ND, documents[:], k))
        assert (indices_NK[:, count:] == -1).all()
        assert (scores_NK[:, count:] == -np.inf).all()
    bits = stored_as("binary", documents_MD)
    scores_NK, indices_NK = nearest_stored(queries_ND, bits, k)
    signs_ND, signs_MD = np.where(queries_ND > 0, 1, -1), np.where(documents_MD > 0, 1, -1)
    np.testing.assert_array_equal(indices_NK[:, : min(k, count)], naive(signs_ND, signs_MD, k))
    exact_NK = np.take_along_axis(signs_ND @ signs_MD.T / dim, indices_NK[:, : min(k, count)], axis=1)
    np.testing.assert_allclose(scores_NK[:, : min(k, count)], exact_NK, atol=1e-7)


@given(sizes)
def test_bits_in_blocks_are_bits_at_once(size):
    seed, count, dim = size
    generator = np.random.default_rng(seed)
    documents, queries_ND = stored_as("binary", unit(generator, count, dim)), unit(generator, 3, dim)
    whole = nearest_stored(queries_ND, documents, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_DOCUMENTS", 4)
        parts = nearest_stored(queries_ND, documents, 7)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


@given(sizes, st.sampled_from(["int8", "binary"]))
def test_rescoring_of_all_is_the_finer_search(size, form):
    seed, count, dim = size
    generator = np.random.default_rng(seed)
    documents_MD, queries_ND = unit(generator, count, dim), unit(generator, 5, dim)
    documents, finer = stored_as(form, documents_MD), stored_as("float16", documents_MD)
    for exact, second in ((documents_MD, documents_MD), (finer[:], finer), (documents[:], documents)):
        got = nearest_stored(queries_ND, documents, 3, finer=second, oversample=count)
        for one, other in zip(got, top_k(queries_ND, exact, 3), strict=True):
            np.testing.assert_array_equal(one, other)


def test_rescoring_of_some_is_nearer_than_none():
    generator = np.random.default_rng(0)
    documents_MD, queries_ND = unit(generator, 2000, 64), unit(generator, 50, 64)
    truth = naive(queries_ND, documents_MD, 10)

    def recall(**options: object) -> float:
        _, found_NK = nearest_stored(queries_ND, stored_as("binary", documents_MD), 10, **options)  # pyright: ignore[reportArgumentType]
        return float(np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found_NK, truth, strict=True)]))

    own = stored_as("binary", documents_MD)
    assert recall() < recall(finer=own) < recall(finer=documents_MD) < recall(finer=documents_MD, oversample=16)


def test_what_does_not_fit_is_refused():
    vectors_MD = unit(np.random.default_rng(0), 4, 8)
    for form in ("int8", "binary"):
        documents = stored_as(form, vectors_MD)
        with pytest.raises(LongspanError, match="cannot keep 0"):
            nearest_stored(vectors_MD, documents, 0)
        with pytest.raises(LongspanError, match="oversample is 0"):
            nearest_stored(vectors_MD, documents, 1, finer=documents, oversample=0)
        with pytest.raises(LongspanError, match="the finer form has shape"):
            nearest_stored(vectors_MD, documents, 1, finer=vectors_MD[:3])
        with pytest.raises(LongspanError, match="dimensions"):
            nearest_stored(vectors_MD[:, :4], documents, 1)
