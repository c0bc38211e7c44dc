"""Hard negatives are the nearest documents that are no answer. Axes: N queries, M documents, D width."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longspan.curate import negatives as module
from longspan.curate.consistency import Teacher
from longspan.curate.negatives import mine_negatives, mine_pairs
from longspan.errors import LongspanError


def brute(queries_ND, corpus_MD, positives, k, guard) -> list[list[int]]:
    """By definition: all documents by falling score, without the positives and those above the guard."""
    scores_NM = queries_ND.astype(np.float64) @ corpus_MD.astype(np.float64).T
    chosen = []
    for scores_M, own in zip(scores_NM, positives, strict=True):
        best = max(scores_M[own])
        limit = np.inf if guard is None else best * guard if best > 0 else best / guard
        fine = [m for m in range(len(scores_M)) if m not in own and scores_M[m] <= np.float32(limit)]
        chosen.append(sorted(fine, key=lambda m: (-scores_M[m], m))[:k])
    return chosen


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    num_queries, num_documents, width = draw(st.integers(1, 5)), draw(st.integers(1, 14)), draw(st.integers(1, 3))
    integers = st.integers(-2, 2).map(float)
    numbers = st.lists(st.integers(0, num_documents - 1), min_size=1, max_size=4)
    return (
        draw(hnp.arrays(np.float32, (num_queries, width), elements=integers)),
        draw(hnp.arrays(np.float32, (num_documents, width), elements=integers)),
        draw(st.lists(numbers, min_size=num_queries, max_size=num_queries)),
    )


@given(corpora(), st.integers(1, 16), st.sampled_from([None, 0.25, 0.5, 1.0, 1.5]))
def test_negatives_equal_brute_force(corpus, k, guard):
    queries_ND, corpus_MD, positives = corpus
    numbers, scores = mine_negatives(queries_ND, corpus_MD, positives, k=k, guard=guard)
    assert [chosen.tolist() for chosen in numbers] == brute(queries_ND, corpus_MD, positives, k, guard)
    for query_D, chosen, values, own in zip(queries_ND, numbers, scores, positives, strict=True):
        assert not set(chosen.tolist()) & set(own), "never a positive"
        assert len(set(chosen.tolist())) == len(chosen)
        np.testing.assert_array_equal(values, corpus_MD[chosen] @ query_D)
        assert (np.diff(values) <= 0).all(), "nearest first"


def test_a_guard_looks_on_where_it_rejects_much():
    # 50 near copies of the positive: with the guard, the negatives come after all of them.
    angles = np.concatenate([np.linspace(0, 0.05, 51), np.linspace(0.7, 1.5, 30)])
    corpus_MD = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query_1D = np.array([[1.0, 0.0]], dtype=np.float32)
    [numbers], _ = mine_negatives(query_1D, corpus_MD, [[0]], k=5, guard=0.95)
    assert numbers.tolist() == [51, 52, 53, 54, 55]
    [numbers], _ = mine_negatives(query_1D, corpus_MD, [[0]], k=5)
    assert numbers.tolist() == [1, 2, 3, 4, 5]


def test_a_guard_of_one_leaves_out_what_is_better_than_the_positive_and_keeps_its_equals():
    corpus_MD = np.array([[0.6, 0.8], [0.6, -0.8], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], dtype=np.float32)
    [numbers], _ = mine_negatives(np.array([[1.0, 0.0]], dtype=np.float32), corpus_MD, [[0]], k=4, guard=1.0)
    assert numbers.tolist() == [1, 3, 4]


def test_a_guard_below_a_score_that_is_negative_is_still_below_it():
    corpus_MD = np.array([[-0.5], [-0.51], [-0.6], [-0.4]], dtype=np.float32)
    [numbers], _ = mine_negatives(np.array([[1.0]], dtype=np.float32), corpus_MD, [[0]], k=4, guard=0.95)
    assert numbers.tolist() == [2]


def test_the_best_of_several_positives_sets_the_guard():
    corpus_MD = np.array([[1.0], [0.2], [0.9], [0.5], [0.1]], dtype=np.float32)
    [numbers], _ = mine_negatives(np.array([[1.0]], dtype=np.float32), corpus_MD, [[1, 0]], k=4, guard=0.8)
    assert numbers.tolist() == [3, 4]


def test_fewer_documents_than_asked_for_are_all_there_is():
    corpus_MD = np.eye(3, dtype=np.float32)
    numbers, scores = mine_negatives(np.eye(3, dtype=np.float32), corpus_MD, [[0], [1, 2], [0, 1, 2]], k=20)
    assert [chosen.tolist() for chosen in numbers] == [[1, 2], [0], []]
    assert [len(values) for values in scores] == [2, 1, 0]


# --- files of pairs ---------------------------------------------------------------------------------------------------


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def pair_rows(num_pairs: int) -> list[dict]:
    """Each query has two answers, in two rows; some documents answer two queries."""
    rows = [{"query": f"what is {n}?", "document": f"{n} is this", "id": n} for n in range(num_pairs)]
    rows += [{"query": f"what is {n}?", "document": f"{n + 1} is this", "id": n} for n in range(0, num_pairs - 1, 2)]
    return rows


@pytest.mark.parametrize("guard", [None, 0.9])
def test_rows_get_their_negatives_and_no_answer_among_them(tmp_path, make_embedder, guard):
    rows, embedder = pair_rows(30), make_embedder()
    done: list[int] = []
    report = mine_pairs(rows, Teacher(embedder), tmp_path, k=6, at_least=4, guard=guard, progress=done.append)
    mined, dropped = read(tmp_path / "mined.jsonl"), read(tmp_path / "dropped.jsonl")
    assert len(mined) + len(dropped) == len(rows)
    assert sum(done) == 2 * len(rows)
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row["query"], set()).add(row["document"])
    corpus = list(dict.fromkeys(row["document"] for row in rows))
    corpus_MD = np.stack([embedder.vector(text, "search_document") for text in corpus])
    for row in mined:
        assert 4 <= len(row["negatives"]) <= 6
        assert len(set(row["negatives"])) == len(row["negatives"])
        assert not answers[row["query"]] & set(row["negatives"])
        query_1D = embedder.vector(row["query"], "search_query")[None]
        own = [corpus.index(text) for text in answers[row["query"]]]
        [expected] = brute(query_1D, corpus_MD, [own], 6, guard)
        assert row["negatives"] == [corpus[m] for m in expected]
        np.testing.assert_allclose(row["negative_scores"], corpus_MD[expected] @ query_1D[0], atol=6e-5)  # 4 digits
    assert {key: mined[0][key] for key in ("query", "document", "id")} == rows[0], "what a row had, it keeps"
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert (report["pairs"], report["mined"], report["dropped"]) == (len(rows), len(mined), len(dropped))
    assert (report["documents"], report["k"], report["guard"]) == (len(corpus), 6, guard)
    found = [len(row["negatives"]) for row in [*mined, *dropped]]
    assert report["negatives_per_pair"] == pytest.approx(np.mean(found))
    assert (report["teacher"], report["teacher_fingerprint"]) == ("words", "words-1")


def test_rows_with_too_few_negatives_are_written_elsewhere(tmp_path, make_embedder):
    # One query is answered by all documents but two.
    rows = [{"query": "what is 0?", "document": f"{n} is this"} for n in range(8)]
    rows += [{"query": f"what is {n}?", "document": f"{n} is this"} for n in range(8, 10)]
    report = mine_pairs(rows, Teacher(make_embedder()), tmp_path, k=5, at_least=3)
    assert (report["mined"], report["dropped"]) == (2, 8)
    assert [row["query"] for row in read(tmp_path / "mined.jsonl")] == ["what is 8?", "what is 9?"]
    assert all(len(row["negatives"]) == 2 for row in read(tmp_path / "dropped.jsonl"))


def test_too_small_a_corpus_is_refused_before_the_work(tmp_path, make_embedder):
    embedder = make_embedder()
    rows = [{"query": f"q {n}", "document": f"d {n % 7}"} for n in range(50)]
    with pytest.raises(LongspanError) as caught:
        mine_pairs(rows, Teacher(embedder), tmp_path / "out", at_least=7)
    assert caught.value.what == "7 distinct documents cannot give 7 negatives to each query"
    assert caught.value.where == str(tmp_path / "out")
    assert "larger corpus" in caught.value.remedy
    with pytest.raises(LongspanError, match="0 distinct documents"):
        mine_pairs([], Teacher(embedder), tmp_path / "out")
    assert embedder.embedded == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"k": 0, "at_least": 0}, {"k": 3}, {"at_least": -1}, {"guard": 0.0}, {"guard": -0.5}]
)
def test_numbers_with_which_no_row_is_left_are_refused(tmp_path, make_embedder, options):
    rows = [{"query": f"q {n}", "document": f"d {n}"} for n in range(30)]
    with pytest.raises(LongspanError):
        mine_pairs(rows, Teacher(make_embedder()), tmp_path, **options)


def test_mined_rows_are_prepared_and_drawn(tmp_path, make_embedder, small_tokenizer):
    """The way from mining to a batch: the columns have the names that `prepare` reads."""
    from longspan.data.prepare import prepare
    from longspan.data.shards import PreparedSource
    from longspan.data.source import PairSource

    mine_pairs(pair_rows(20), Teacher(make_embedder()), tmp_path, k=8)
    source = PairSource(name="mined", files=(str(tmp_path / "mined.jsonl"),), negatives="negatives")
    prepare([source], tmp_path / "data", small_tokenizer)
    opened = PreparedSource(tmp_path / "data" / "mined")
    assert [opened.negatives().count(row) for row in range(len(opened))] == [8] * 30


def test_the_papers_number_of_negatives():
    assert module.NUM_NEGATIVES == 20  # section 4.2.4
