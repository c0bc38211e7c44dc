"""An index finds what exact search finds, as far as it says. Axes: N queries, M documents, K kept."""

import importlib.util
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.curate import approximate
from longspan.curate.approximate import Searcher, index_bytes, nearest, num_lists
from longspan.curate.neighbours import Exclude, top_k
from longspan.errors import LongspanError

WIDTH = 16


def clustered(count: int, seed: int, spread: float = 0.35, num_directions: int = 60) -> np.ndarray:
    directions = np.random.default_rng(0).standard_normal((num_directions, WIDTH))
    generator = np.random.default_rng(seed)
    rows = directions[generator.integers(num_directions, size=count)]
    rows = rows + spread * generator.standard_normal((count, WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


QUERIES_ND, DOCUMENTS_MD = clustered(1500, 1), clustered(4000, 2)


needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="needs faiss-cpu")


def part_found(found_NK: np.ndarray, true_NK: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found_NK, true_NK, strict=True)]))


@needs_faiss
@pytest.mark.parametrize("target", [0.6, 0.9, 0.99])
def test_the_reported_recall_is_that_of_all_queries(target):
    true_scores_NK, true_NK = top_k(QUERIES_ND, DOCUMENTS_MD, 10)
    found = nearest(QUERIES_ND, DOCUMENTS_MD, 10, exact=False, target_recall=target)
    real = part_found(found.indices_NK, true_NK)
    assert not found.search.exact
    assert found.search.recall >= target - 0.05, "chosen on 256 queries, measured on others"
    assert real == pytest.approx(found.search.recall, abs=0.02)
    assert found.search.num_measured == 1000
    whole = (found.indices_NK == true_NK).all(axis=1)
    np.testing.assert_array_equal(found.scores_NK[whole], true_scores_NK[whole], "the bits of exact search")
    assert (found.scores_NK <= true_scores_NK).all()


@needs_faiss
def test_a_higher_target_looks_at_more_lists():
    probes = [
        nearest(QUERIES_ND, DOCUMENTS_MD, 10, exact=False, target_recall=target).search.num_probes
        for target in (0.3, 0.999)
    ]
    assert 1 <= probes[0] < probes[1] <= num_lists(len(DOCUMENTS_MD)) // 4


@needs_faiss
def test_where_lists_do_not_help_the_search_is_exact_and_says_so():
    # Pure noise in many dimensions has no lists worth the name.
    noise = np.random.default_rng(0).standard_normal((3000, 256)).astype(np.float32)
    found = nearest(noise[:50], noise[50:], 5, exact=False, target_recall=0.999)
    assert found.search == approximate.Search(exact=True)
    np.testing.assert_array_equal(found.indices_NK, top_k(noise[:50], noise[50:], 5)[1])


@needs_faiss
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.booleans())
def test_rows_are_what_top_k_gives_of_what_was_found(k, seed, excluding):
    generator = np.random.default_rng(seed)
    queries_ND = QUERIES_ND[generator.integers(1500, size=40)]
    documents_MD = DOCUMENTS_MD[generator.integers(4000, size=1000)]  # with copies
    exclude = None
    if excluding:
        # A query's nearest few, and of one query so many that it cannot be given candidates enough.
        _, near_NK = top_k(queries_ND, documents_MD, 4)
        exclude = Exclude.of([*near_NK[:-1].tolist(), range(0, 1000, 2)])
    found = nearest(queries_ND, documents_MD, k, exact=False, target_recall=0.9, exclude=exclude)
    true_scores_NK, _ = top_k(queries_ND, documents_MD, k, exclude=exclude)
    assert (found.indices_NK >= 0).all()
    for row, (scores_K, indices_K) in enumerate(zip(found.scores_NK, found.indices_NK, strict=True)):
        forbidden = [] if exclude is None else exclude.indices[exclude.offsets[row] : exclude.offsets[row + 1]]
        others = np.setdiff1d(np.arange(1000), indices_K)
        again = top_k(queries_ND[row : row + 1], documents_MD, k, exclude=Exclude.of([others]))
        np.testing.assert_array_equal(scores_K, again[0][0], "scores and order are top_k's")
        np.testing.assert_array_equal(indices_K, again[1][0])
        assert not set(indices_K.tolist()) & set(np.asarray(forbidden).tolist())
    if excluding:
        np.testing.assert_array_equal(found.scores_NK[-1], true_scores_NK[-1], "which is searched exactly")
    assert (found.scores_NK >= true_scores_NK - 1e-7).mean() > 0.7


@needs_faiss
def test_fewer_documents_than_asked_for_are_all_there_is():
    exclude = Exclude.of([[0], [1, 1, 2], []])
    found = nearest(QUERIES_ND[:3], DOCUMENTS_MD[:40], 50, exact=False, exclude=exclude)
    true_scores_NK, true_NK = top_k(QUERIES_ND[:3], DOCUMENTS_MD[:40], 50, exclude=exclude)
    np.testing.assert_array_equal(found.indices_NK, true_NK)
    np.testing.assert_array_equal(found.scores_NK, true_scores_NK)


@needs_faiss
def test_an_index_is_kept_and_searched_again(tmp_path):
    file = tmp_path / "index.faiss"
    first = Searcher.open(QUERIES_ND, DOCUMENTS_MD, 10, exact=False, index_file=file)
    content = file.read_bytes()
    again = Searcher.open(QUERIES_ND, DOCUMENTS_MD, 10, exact=False, index_file=file)
    assert file.read_bytes() == content
    assert again.search == first.search
    for mine, theirs in zip(first.find(QUERIES_ND, 10), again.find(QUERIES_ND, 10), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert first.search.index_bytes == index_bytes(*DOCUMENTS_MD.shape) == pytest.approx(len(content), rel=0.05)


@needs_faiss
def test_vectors_of_half_precision_on_disk(tmp_path):
    np.save(tmp_path / "documents.npy", DOCUMENTS_MD.astype(np.float16))
    mapped_MD = np.load(tmp_path / "documents.npy", mmap_mode="r")
    found = nearest(QUERIES_ND, mapped_MD, 10, exact=False)
    assert part_found(found.indices_NK, top_k(QUERIES_ND, mapped_MD, 10)[1]) > 0.95


def test_progress_counts_queries(monkeypatch):
    monkeypatch.setattr(approximate.screening, "QUERIES", 700)
    done: list[int] = []
    in_blocks = nearest(QUERIES_ND, DOCUMENTS_MD, 3, exact=True, progress=done.append)
    assert done == [700, 700, 100]
    np.testing.assert_array_equal(in_blocks.indices_NK, top_k(QUERIES_ND, DOCUMENTS_MD, 3)[1])


# --- how the search is chosen -----------------------------------------------------------------------------------------


@needs_faiss
@pytest.mark.parametrize(
    ("documents", "pairs", "device", "exact"),
    [(3999, 10**6, "cpu", False), (4000, 10**6, "cpu", True), (3999, 10**7, "cpu", True), (3999, 10**6, "meta", True)],
)
def test_an_index_is_for_a_large_corpus_on_a_cpu(monkeypatch, documents, pairs, device, exact):
    monkeypatch.setattr(approximate.screening, "has_tiles", lambda: False)
    monkeypatch.setattr(approximate, "EXACT_DOCUMENTS", documents)
    monkeypatch.setattr(approximate, "EXACT_PAIRS", pairs)
    # An index that is chosen is built: that is all that is looked at here.
    built: list[int] = []
    build = approximate._build
    monkeypatch.setattr(approximate, "_build", lambda *given: built.append(1) or build(*given))
    opened = Searcher.open(QUERIES_ND[:600], DOCUMENTS_MD, 3, target_recall=0.5, device=device)
    assert opened.search.exact == exact == (not built)


@needs_faiss
@pytest.mark.parametrize(("most", "screened"), [(600 * 4000, True), (600 * 4000 - 1, False)])
def test_a_processor_with_tiles_searches_exactly_for_longer(monkeypatch, most, screened):
    monkeypatch.setattr(approximate.screening, "has_tiles", lambda: True)
    monkeypatch.setattr(approximate, "EXACT_DOCUMENTS", 10)
    monkeypatch.setattr(approximate, "EXACT_PAIRS", 10)
    monkeypatch.setattr(approximate, "SCREENED_PAIRS", most)
    search = Searcher.open(QUERIES_ND[:600], DOCUMENTS_MD, 3, target_recall=0.5).search
    assert (search.exact, search.screened, search.ranks_all) == (screened, screened, False)
    assert Searcher.open(QUERIES_ND[:600], DOCUMENTS_MD, 3, exact=True).search.ranks_all, "as it was asked for"


def test_without_faiss_large_corpora_are_searched_exactly_and_an_index_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(approximate, "EXACT_DOCUMENTS", 10)
    monkeypatch.setattr(approximate, "EXACT_PAIRS", 10)
    assert nearest(QUERIES_ND[:5], DOCUMENTS_MD, 3).search.exact
    with pytest.raises(LongspanError) as caught:
        nearest(QUERIES_ND[:5], DOCUMENTS_MD, 3, exact=False)
    assert "longspan[faiss]" in caught.value.remedy


@pytest.mark.parametrize("exact", [True, pytest.param(False, marks=needs_faiss)])
@pytest.mark.parametrize("wrong", ["nan", "k", "target", "exclude", "width"])
def test_what_cannot_be_searched_is_refused(exact, wrong):
    documents_MD, options = DOCUMENTS_MD.copy(), {"k": 3, "exact": exact}
    queries_ND = QUERIES_ND[:5, :7] if wrong == "width" else QUERIES_ND[:5]
    if wrong == "nan":
        documents_MD[3999, 0] = np.nan
    options |= {"k": {"k": 0}, "target": {"target_recall": 0.0}, "exclude": {"exclude": Exclude.of([[4000]] * 5)}}.get(
        wrong, {}
    )
    with pytest.raises(LongspanError):
        nearest(queries_ND, documents_MD, **options)
