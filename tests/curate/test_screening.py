"""Coarse products screen, and nothing is lost by them. Axes: N queries, M documents, D width, K kept."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longspan.curate import neighbours, screening
from longspan.curate.neighbours import Exclude, top_k
from longspan.errors import LongspanError


def crowded(num_rows: int, seed: int, spread: float, width: int = 48) -> np.ndarray:
    """Unit vectors around a few directions, at a distance that decides how many scores lie within bfloat16's error."""
    directions = np.random.default_rng(0).standard_normal((20, width))
    generator = np.random.default_rng(seed)
    rows = directions[generator.integers(20, size=num_rows)] + spread * generator.standard_normal((num_rows, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def assert_same_bits(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    assert found[0].tobytes() == expected[0].tobytes()
    assert found[1].tobytes() == expected[1].tobytes()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(screening, "QUERIES", 100)
    monkeypatch.setattr(screening, "_ROWS", 30)
    monkeypatch.setattr(screening, "_DOCUMENTS", 200)


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("k", [1, 20, 300])
def test_the_same_bits_as_without(small_blocks, spread, k):
    queries_ND, documents_MD = crowded(230, 1, spread), crowded(3001, 2, spread)
    documents_MD[500:540] = documents_MD[7]  # copies
    exclude = Exclude.of([[n, 3000 - n, n] for n in range(230)])
    expected = top_k(queries_ND, documents_MD, k, exclude=exclude, coarse=False)
    assert_same_bits(top_k(queries_ND, documents_MD, k, exclude=exclude, coarse=True), expected)


@settings(max_examples=25, deadline=None)
@given(
    vectors=hnp.arrays(np.float32, (60, 7), elements=st.floats(-(2.0**59), 2.0**59, width=32)),
    k=st.integers(1, 12),
    power=st.sampled_from([0, -30, -120]),
)
def test_the_same_bits_for_numbers_of_any_size(vectors, k, power):
    vectors = np.ldexp(vectors, power)
    queries_ND, documents_MD = vectors[:20], np.concatenate([vectors[20:], vectors[20:40]])
    expected = top_k(queries_ND, documents_MD, k, coarse=False)
    assert_same_bits(top_k(queries_ND, documents_MD, k, coarse=True), expected)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 0.3, 0.03]), length=st.sampled_from([1.0, 1e-3, 70.0]))
def test_the_bound_holds(seed, spread, length):
    """No product is farther from its score than the bound and the rounding of the product itself."""
    queries_ND, documents_MD = crowded(8, seed, spread), crowded(40, seed + 1, spread) * np.float32(length)
    queries = screening.Rows.read(queries_ND, slice(0, 8), "", "cpu")
    part = screening._Part(queries, slice(0, 8), 3, None)
    documents = screening._Coarse.of(screening.Rows.read(documents_MD, slice(0, 40), "", "cpu"))
    product_RC = torch.mm(part._coarse.values_XD[:8], documents.values_XD.T)[:, :40].double().numpy()
    error_RC = np.abs(product_RC - queries_ND.astype(np.float64) @ documents_MD.T.astype(np.float64))
    bound_RC = part._slack(documents).numpy()[:, None] + np.abs(product_RC) * screening._HALF_STEP
    assert (error_RC <= bound_RC).all()
    assert np.median(part._slack(documents)) < 0.01 * length, "and it is small"


def test_documents_too_alike_for_it_are_searched_without_it(small_blocks, monkeypatch):
    used = []
    monkeypatch.setattr(neighbours, "_top_k_of_rows", _told(neighbours._top_k_of_rows, used))
    queries_ND, documents_MD = crowded(120, 1, 1e-5), np.repeat(crowded(4, 2, 1e-5), 1000, axis=0)
    expected = top_k(queries_ND, documents_MD, 5, coarse=False)
    used.clear()
    assert_same_bits(top_k(queries_ND, documents_MD, 5, coarse=True), expected)
    assert used


def test_used_where_it_pays_and_nowhere_else(monkeypatch):
    used = []
    monkeypatch.setattr(neighbours, "screened_top_k", _told(neighbours.screened_top_k, used))
    monkeypatch.setattr(screening, "LEAST_QUERIES", 50)
    monkeypatch.setattr(screening, "LEAST_DOCUMENTS", 200)
    for tiles in (False, True):
        monkeypatch.setattr(screening, "has_tiles", lambda tiles=tiles: tiles)
        for num_queries, num_documents in ((50, 199), (49, 200), (50, 200)):
            used.clear()
            top_k(crowded(num_queries, 1, 1), crowded(num_documents, 2, 1), 3)
            assert bool(used) == (tiles and (num_queries, num_documents) == (50, 200))


def test_broken_vectors_are_refused(small_blocks):
    queries_ND, documents_MD = crowded(50, 1, 1.0), crowded(300, 2, 1.0)
    with pytest.raises(LongspanError, match="overflow float32"):
        top_k(queries_ND * np.float32(1e20), documents_MD * np.float32(1e20), 3, coarse=True)
    documents_MD[250, 3] = np.nan
    with pytest.raises(LongspanError, match="row 250 of documents_MD"):
        top_k(queries_ND, documents_MD, 3, coarse=True)


def _told(function, used):
    def told(*arguments):
        used.append(arguments)
        return function(*arguments)

    return told
