"""Measures against hand-worked values and against trec_eval itself (pytrec_eval)."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.evaluate.metrics import average_precision, mean, mrr_at_k, ndcg_at_k, recall_at_k, trec_order

# Ids whose order differs as numbers, as text and as bytes; scores that are equal only as float32.
DOCUMENTS = ["9", "10", "a", "B", "é", "z", "\U0001f600", "\uffee", "00", "ab"]
SCORES = st.sampled_from([-1.5, -0.0, 0.0, 0.5, 0.1, 0.1 + 1e-10, 1.0, 1.0 + 1e-9, 7.0])
QUERIES = st.sampled_from(["1", "2", "q"])

RUN = {"q": ["bad", "good", "fair", "none"]}
QRELS = {"q": {"good": 2, "fair": 1, "bad": 0, "missed": 1}}


@given(
    qrels=st.dictionaries(
        QUERIES,
        st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 3), min_size=1),
        min_size=1,
    ),
    scores=st.dictionaries(QUERIES, st.dictionaries(st.sampled_from(DOCUMENTS), SCORES, min_size=1)),
)
def test_measures_equal_those_of_trec_eval(
    qrels: dict[str, dict[str, int]], scores: dict[str, dict[str, float]]
) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    cuts = (1, 2, 3, 5, 100)
    names = {f"{name}.{','.join(map(str, cuts))}" for name in ("ndcg_cut", "recall", "map_cut")}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, names | {"map", "recip_rank"}).evaluate(scores)
    run = {query: trec_order(found) for query, found in scores.items()}
    ours = {"map": average_precision(run, qrels), "recip_rank": mrr_at_k(run, qrels, 1000)}
    for k in cuts:
        ours[f"ndcg_cut_{k}"] = ndcg_at_k(run, qrels, k)
        ours[f"recall_{k}"] = recall_at_k(run, qrels, k)
        ours[f"map_cut_{k}"] = average_precision(run, qrels, k)
    for name, values in ours.items():
        assert values.keys() == qrels.keys()
        for query, value in values.items():
            # trec_eval leaves out a query that the run lacks; with its option -c it counts 0, as we do.
            assert value == pytest.approx(theirs.get(query, {name: 0.0})[name], abs=1e-12), (name, query)


def test_ndcg_by_hand() -> None:
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg_at_k(RUN, QRELS, 10)["q"] == pytest.approx((2 / math.log2(3) + 1 / math.log2(4)) / ideal)
    assert ndcg_at_k(RUN, QRELS, 2)["q"] == pytest.approx((2 / math.log2(3)) / (2 + 1 / math.log2(3)))
    assert ndcg_at_k(RUN, QRELS, 1) == {"q": 0.0}


def test_recall_reciprocal_rank_and_average_precision_by_hand() -> None:
    assert [recall_at_k(RUN, QRELS, k)["q"] for k in (1, 2, 3, 10)] == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])
    assert [mrr_at_k(RUN, QRELS, k)["q"] for k in (1, 2, 10)] == [0, 1 / 2, 1 / 2]
    assert average_precision(RUN, QRELS)["q"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert average_precision(RUN, QRELS, 2)["q"] == pytest.approx((1 / 2) / 3)


def test_gains_may_be_fractions() -> None:
    assert recall_at_k({"q": ["a"]}, {"q": {"a": 0.5, "b": 0.25}}, 1) == {"q": 0.5}
    assert ndcg_at_k({"q": ["b"]}, {"q": {"a": 0.5, "b": 0.25}}, 1) == {"q": 0.5}


def test_a_query_without_a_ranking_gets_zero_and_one_without_judgements_is_not_measured() -> None:
    for measure in (ndcg_at_k, recall_at_k, mrr_at_k, average_precision):
        assert measure({"other": ["a"]}, {"q": {"a": 1}, "empty": {}}, 3) == {"q": 0.0, "empty": 0.0}


def test_trec_order_breaks_ties_by_the_larger_id() -> None:
    assert trec_order({"10": 1.0, "9": 1.0 + 1e-9, "b": 2.0, "é": 1.0}) == ["b", "é", "9", "10"]


def test_mean() -> None:
    assert mean({"a": 1.0, "b": 0.0, "c": 0.5}) == 0.5
    assert math.isnan(mean({}))


@pytest.mark.parametrize("measure", [ndcg_at_k, recall_at_k, mrr_at_k, average_precision])
@pytest.mark.parametrize(
    ("run", "k", "message"), [(RUN, 0, "cannot measure the first 0"), ({"q": ["a", "b", "a"]}, 3, "more than once")]
)
def test_measures_refuse(measure: Callable[..., Any], run: dict[str, list[str]], k: int, message: str) -> None:
    with pytest.raises(LongspanError, match=message):
        measure(run, QRELS, k)
