"""The filter keeps a pair if its own document is found, and judges every pair once. Axes: N pairs, D width."""

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longspan.curate import approximate, consistency
from longspan.curate.consistency import (
    JUDGED,
    PairVectors,
    Rule,
    Sample,
    Searching,
    agreement,
    check_sizes,
    equal_threshold,
    judge,
    nearest_wrong,
    num_samples,
    sample_pairs,
)
from longspan.errors import LongspanError


def brute_rank(queries_ND, documents_ND, texts, own) -> int:
    """By definition: the distinct other texts that score above the pair's own document."""
    scores = documents_ND.astype(np.float64) @ queries_ND[own].astype(np.float64)
    return len({text for text, score in zip(texts, scores, strict=True) if score > scores[own]} - {texts[own]})


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[str]]:
    num_pairs, width = draw(st.integers(2, 12)), draw(st.integers(1, 3))
    # Few values make many ties, and their products are exact in float32.
    integers = hnp.arrays(np.float32, (num_pairs, width), elements=st.integers(-2, 2).map(float))
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=num_pairs, max_size=num_pairs))
    documents_ND = draw(integers)
    for n, name in enumerate(names):  # equal texts have equal vectors
        documents_ND[n] = documents_ND[names.index(name)]
    return draw(integers), documents_ND, names


def judged_of(ranks, scores) -> np.ndarray:
    judged_N = np.empty(len(ranks), dtype=JUDGED)
    judged_N["rank"], judged_N["score"] = ranks, scores
    return judged_N


@given(pairs())
def test_ranks_equal_brute_force_with_copies_of_a_document_counting_once(data):
    queries_ND, documents_ND, texts = data
    judged_N = judge(PairVectors.of(queries_ND, documents_ND, texts))
    assert judged_N["rank"].tolist() == [brute_rank(queries_ND, documents_ND, texts, n) for n in range(len(texts))]
    np.testing.assert_array_equal(judged_N["score"], (queries_ND * documents_ND).sum(axis=1))


def test_a_paragraph_that_answers_many_questions_is_one_document():
    # Query 5's own document comes right after a document that is there five times.
    documents_ND = np.array([[1.0, 0.0]] * 5 + [[0.9, 0.1]], dtype=np.float32)
    queries_ND = np.array([[1.0, 0.0]] * 6, dtype=np.float32)
    judged_N = judge(PairVectors.of(queries_ND, documents_ND, ["copy"] * 5 + ["own"]))
    assert judged_N["rank"].tolist() == [0] * 5 + [1]
    assert Rule(2).keeps(judged_N).all()


@given(pairs(), st.integers(2, 6), st.integers(0, 3))
def test_each_pair_is_judged_among_the_documents_of_its_own_sample(data, sample_size, seed):
    queries_ND, documents_ND, texts = data
    vectors = PairVectors.of(queries_ND, documents_ND, texts)
    judged_N = judge(vectors, sample_size=sample_size, seed=seed)
    for number in range(num_samples(len(texts), sample_size)):
        sample = Sample.draw(number, vectors, sample_size, seed)
        part = sample.pairs_R
        names = [texts[n] for n in part]
        for own, n in enumerate(part):
            assert judged_N["rank"][n] == brute_rank(queries_ND[part], documents_ND[part], names, own)
            assert texts[sample.documents_M[sample.own_R[own]]] == texts[n]
        assert [texts[n] for n in sample.of_M] == [texts[n] for n in sample.documents_M]


@given(st.integers(1, 300), st.integers(2, 100), st.integers(0, 3))
def test_samples_hold_each_pair_once_and_are_of_nearly_equal_size(num_pairs, sample_size, seed):
    samples = [sample_pairs(n, num_pairs, sample_size, seed) for n in range(num_samples(num_pairs, sample_size))]
    assert sorted(np.concatenate(samples).tolist()) == list(range(num_pairs))
    sizes = [len(sample) for sample in samples]
    assert len(sizes) == -(-num_pairs // sample_size)
    assert max(sizes) <= sample_size
    assert max(sizes) - min(sizes) <= 1, "no sample in which a pair is judged against next to nothing"


def test_samples_are_shuffled_by_the_seed():
    def first(seed):
        return sample_pairs(0, 1000, 100, seed).tolist()

    assert first(0) == first(0)
    assert first(0) != first(1)
    assert len(set(first(0)) & set(range(100))) < 50, "not a stretch of the source"


@given(pairs(), st.integers(1, 4), st.integers(1, 5))
def test_blocks_change_nothing(data, queries_per_block, sample_size):
    vectors = PairVectors.of(*data)
    done: list[int] = []
    expected = judge(vectors, sample_size=sample_size + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consistency, "QUERIES_PER_BLOCK", queries_per_block)
        got = judge(vectors, sample_size=sample_size + 1, progress=done.append)
    np.testing.assert_array_equal(got, expected)
    assert sum(done) == len(vectors)


def test_finished_blocks_are_not_judged_again(tmp_path, monkeypatch):
    monkeypatch.setattr(consistency, "QUERIES_PER_BLOCK", 4)
    generator = np.random.default_rng(0)
    queries_ND, documents_ND = (generator.normal(size=(23, 4)).astype(np.float32) for _ in range(2))
    vectors = PairVectors.of(queries_ND, documents_ND, [str(n) for n in range(23)])
    original, judged = consistency.rank_of, []

    def rank_of(queries_RD, *others, **options):
        if len(judged) == 3:
            raise KeyboardInterrupt
        judged.append(len(queries_RD))
        return original(queries_RD, *others, **options)

    monkeypatch.setattr(consistency, "rank_of", rank_of)
    with pytest.raises(KeyboardInterrupt):
        judge(vectors, sample_size=12, blocks=tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 3
    monkeypatch.setattr(consistency, "rank_of", lambda *a, **b: judged.append(len(a[0])) or original(*a, **b))
    got = judge(vectors, sample_size=12, blocks=tmp_path)
    assert sum(judged) == 23, "no pair twice"
    np.testing.assert_array_equal(got, judge(vectors, sample_size=12))


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="needs faiss-cpu")
def test_an_index_keeps_every_pair_that_exact_search_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(consistency, "QUERIES_PER_BLOCK", 1000)
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(60, 16))[generator.integers(60, size=3000)]
    both = [directions + generator.normal(size=directions.shape) * spread for spread in (0.3, 0.4)]
    queries_ND, documents_ND = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in both)
    vectors, searches = PairVectors.of(queries_ND, documents_ND, [str(n) for n in range(3000)]), []
    searching = Searching("approximate", target_recall=0.9, depth=10)
    found_N = judge(vectors, searching=searching, blocks=tmp_path, on_search=searches.append)
    exact_N = judge(vectors, searching=Searching("exact"), on_search=searches.append)
    assert [search.exact for search in searches] == [False, True]
    np.testing.assert_array_equal(found_N["score"], exact_N["score"])
    known_N = exact_N["rank"].clip(max=10)
    assert (found_N["rank"] <= known_N).all()
    missed = int((known_N - found_N["rank"]).sum())
    assert 0 < missed <= 3 * (1 - searches[0].recall) * known_N.sum(), "as many as the recall says, or so"
    assert (found_N["rank"] == 10).any(), "known up to there"
    monkeypatch.setattr(consistency.Searcher, "open", None)
    np.testing.assert_array_equal(judge(vectors, blocks=tmp_path, on_search=searches.append), found_N)
    assert searches[2] == searches[0], "told when nothing is left to do, too"


def test_a_large_sample_that_is_screened_has_ranks_up_to_the_depth(monkeypatch):
    generator = np.random.default_rng(0)
    queries_ND, documents_ND = generator.normal(size=(2, 700, 16)).astype(np.float32)
    vectors, searches = PairVectors.of(queries_ND, documents_ND, [str(n) for n in range(700)]), []
    exact_N = judge(vectors, searching=Searching("exact"))
    for name, value in (("EXACT_DOCUMENTS", 10), ("EXACT_PAIRS", 10)):
        monkeypatch.setattr(approximate, name, value)
    monkeypatch.setattr(approximate.screening, "has_tiles", lambda: True)
    found_N = judge(vectors, searching=Searching(depth=10), on_search=searches.append)
    assert searches[0].exact
    assert searches[0].screened
    np.testing.assert_array_equal(found_N["rank"], exact_N["rank"].clip(max=10))


@given(pairs(), st.integers(1, 5))
def test_nearest_wrong_documents_are_those_of_brute_force(data, k):
    queries_ND, documents_ND, texts = data
    vectors = PairVectors.of(queries_ND, documents_ND, texts)
    sample = Sample.draw(0, vectors, 100, 0)
    scores_NK, pairs_NK = nearest_wrong(vectors, sample, np.arange(len(texts)), k)
    for n, own in enumerate(texts):
        others = {text: float(queries_ND[n] @ documents_ND[m]) for m, text in enumerate(texts) if text != own}
        best = sorted(others.values(), reverse=True)[:k]
        assert scores_NK[n, : len(best)].tolist() == best
        assert [others[texts[pair]] for pair in pairs_NK[n, : len(best)]] == best
        assert (pairs_NK[n, len(best) :] == -1).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 1)), min_size=1), st.integers(1, 5), st.integers(-1, 1))
def test_the_agreement_of_the_rules_counts_every_pair_once(judged, k, threshold):
    judged_N = judged_of([rank for rank, _ in judged], [score for _, score in judged])
    counts = agreement(judged_N, k, threshold)
    found, above = Rule(k).keeps(judged_N), Rule(k, threshold).keeps(judged_N)
    assert counts["both_keep"] == (found & above).sum()
    assert counts["only_top_k_keeps"] == (found & ~above).sum()
    assert counts["only_threshold_keeps"] == (~found & above).sum()
    assert counts["both_drop"] == (~found & ~above).sum()
    assert counts["dropped_of_top_k"] == ((found & ~above).sum() / found.sum() if found.any() else 0)


@given(st.lists(st.integers(0, 4), min_size=1), st.integers(1, 5), st.randoms())
def test_the_equal_threshold_keeps_as_many_pairs(ranks, k, random):
    scores = np.array(random.sample(range(1000), len(ranks))) / 1000
    judged_N = judged_of(ranks, scores)
    threshold = equal_threshold(judged_N, k)
    if (np.array(ranks) >= k).all():
        assert threshold == math.inf
        return
    assert Rule(k, threshold).keeps(judged_N).sum() == Rule(k).keeps(judged_N).sum()


def test_a_threshold_keeps_a_score_that_equals_it():
    assert Rule(threshold=0.5).keeps(judged_of([9, 0, 9], [0.5, 0.49, 0.7])).tolist() == [True, False, True]
    assert equal_threshold(judged_of([3, 4], [0.1, 0.2]), 2) == math.inf


@pytest.mark.parametrize(
    ("num_pairs", "k", "sample_size", "where"),
    [
        (0, 2, 10, "the pairs"),
        (5, 0, 10, "k"),
        (5, -1, 10, "k"),
        (5, 2, 0, "sample_size"),
        (5, 2, 2, "sample_size"),
    ],
)
def test_settings_with_which_nothing_is_filtered_are_refused(num_pairs, k, sample_size, where):
    with pytest.raises(LongspanError) as caught:
        check_sizes(num_pairs, k, sample_size)
    assert caught.value.where == where


@pytest.mark.parametrize("threshold", [1.01, -1.01, math.nan, math.inf])
def test_a_threshold_that_is_no_cosine_is_refused(threshold):
    with pytest.raises(LongspanError, match="is no cosine"):
        Rule(threshold=threshold)
