"""Hard negatives are the nearest documents that are no answer. Axes: N queries, M documents, D width."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longspan.curate import negatives as module
from longspan.curate.negatives import Mining, Reranker, Texts, cross_encoder, mine_negatives, random_negatives
from longspan.curate.neighbours import Exclude
from longspan.errors import LongspanError


def brute(queries_ND, corpus_MD, positives, k, guard=None, margin=None) -> list[list[int]]:
    """By definition: all documents by falling score, without the positives and those above the limits."""
    scores_NM = queries_ND.astype(np.float64) @ corpus_MD.astype(np.float64).T
    chosen = []
    for scores_M, own in zip(scores_NM, positives, strict=True):
        best = max(scores_M[own])
        limit = np.inf if guard is None else best * guard if best > 0 else best / guard
        limit = limit if margin is None else min(limit, best - margin)
        fine = [m for m in range(len(scores_M)) if m not in own and scores_M[m] <= np.float32(limit)]
        chosen.append(sorted(fine, key=lambda m: (-scores_M[m], m))[:k])
    return chosen


def mine(queries_ND, corpus_MD, positives, k=20, own=None, reranker=None, texts=None, **guards) -> list[list[int]]:
    """The numbers of each query's negatives, after checks of all that is true of any."""
    config = Mining(k=k, at_least=0, **guards)
    exclude = None if own is None else Exclude.of(own)
    found = mine_negatives(
        queries_ND, corpus_MD, Exclude.of(positives), config, own=exclude, reranker=reranker, texts=texts
    )
    assert found.scores_NK.shape == found.indices_NK.shape == (len(queries_ND), k)
    chosen = [row[row >= 0].tolist() for row in found.indices_NK]
    for query_D, numbers, values, answers, best in zip(
        queries_ND, chosen, found.scores_NK, positives, found.positive_N, strict=True
    ):
        assert not set(numbers) & set(answers), "never a positive"
        assert len(set(numbers)) == len(numbers)
        np.testing.assert_array_equal(values[: len(numbers)], corpus_MD[numbers] @ query_D)
        assert (values[len(numbers) :] == -np.inf).all()
        assert (np.diff(values[: len(numbers)]) <= 0).all(), "nearest first"
        assert best == max(corpus_MD[answers] @ query_D)
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


@given(
    corpora(), st.integers(1, 16), st.sampled_from([None, 0.25, 0.5, 1.0, 1.5]), st.sampled_from([None, 0.0, 1.0, 2.5])
)
def test_negatives_equal_brute_force(corpus, k, guard, margin):
    queries_ND, corpus_MD, positives = corpus
    expected = brute(queries_ND, corpus_MD, positives, k, guard, margin)
    assert mine(queries_ND, corpus_MD, positives, k, guard=guard, margin=margin) == expected


def test_a_guard_looks_on_where_it_rejects_much():
    # 50 near copies of the positive: with the guard, the negatives come after all of them.
    angles = np.concatenate([np.linspace(0, 0.05, 51), np.linspace(0.7, 1.5, 30)])
    corpus_MD = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query_1D = np.array([[1.0, 0.0]], dtype=np.float32)
    [numbers] = mine(query_1D, corpus_MD, [[0]], k=5, guard=0.95)
    assert numbers == [51, 52, 53, 54, 55]
    [numbers] = mine(query_1D, corpus_MD, [[0]], k=5)
    assert numbers == [1, 2, 3, 4, 5]


def test_a_guard_of_one_leaves_out_what_is_better_than_the_positive_and_keeps_its_equals():
    corpus_MD = np.array([[0.6, 0.8], [0.6, -0.8], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], dtype=np.float32)
    [numbers] = mine(np.array([[1.0, 0.0]], dtype=np.float32), corpus_MD, [[0]], k=4, guard=1.0)
    assert numbers == [1, 3, 4]


def test_a_guard_below_a_score_that_is_negative_is_still_below_it():
    corpus_MD = np.array([[-0.5], [-0.51], [-0.6], [-0.4]], dtype=np.float32)
    [numbers] = mine(np.array([[1.0]], dtype=np.float32), corpus_MD, [[0]], k=4, guard=0.95)
    assert numbers == [2]


def test_the_best_of_several_positives_sets_the_guard():
    corpus_MD = np.array([[1.0], [0.2], [0.9], [0.5], [0.1]], dtype=np.float32)
    [numbers] = mine(np.array([[1.0]], dtype=np.float32), corpus_MD, [[1, 0]], k=4, guard=0.8)
    assert numbers == [3, 4]


def test_fewer_documents_than_asked_for_are_all_there_is():
    corpus_MD = np.eye(3, dtype=np.float32)
    assert mine(np.eye(3, dtype=np.float32), corpus_MD, [[0], [1, 2], [0, 1, 2]]) == [[1, 2], [0], []]


def test_a_margin_is_a_distance_from_the_positive():
    corpus_MD = np.array([[0.9], [0.85], [0.8], [0.5]], dtype=np.float32)
    assert mine(np.array([[1.0]], dtype=np.float32), corpus_MD, [[0]], margin=0.08) == [[2, 3]]


def test_a_query_is_not_given_its_own_text():
    corpus_MD = np.array([[0.5], [1.0], [0.4]], dtype=np.float32)
    query_1D = np.array([[1.0]], dtype=np.float32)
    assert mine(query_1D, corpus_MD, [[0]], own=[[1]]) == [[2]]
    assert mine(query_1D, corpus_MD, [[0]], own=[[1]], guard=1.0) == [[2]], "nor does it count as an answer"


# --- a second judge ---------------------------------------------------------------------------------------------------

TEXTS = Texts(["q0", "q1"], ["a", "b", "c", "d", "e"])
GOOD = {"a": 0.0, "b": 1.0, "c": -1.0, "d": -2.0, "e": 0.5}


def judged(margin: float) -> Reranker:
    return Reranker("dictionary", lambda pairs: [GOOD[document] for _, document in pairs], margin)


@pytest.mark.parametrize(
    ("margin", "expected"), [(0.0, [[2, 3], [2, 3]]), (1.5, [[3], [2, 3]]), (2.5, [[], [3]]), (9.0, [[], []])]
)
def test_a_reranker_drops_what_it_puts_too_near_the_best_positive(margin, expected):
    # Query 0 is answered by a; query 1 by a and e, of which e is the better by this judge.
    corpus_MD = np.array([[1.0], [0.9], [0.8], [0.7], [0.6]], dtype=np.float32)
    queries_ND = np.ones((2, 1), dtype=np.float32)
    assert mine(queries_ND, corpus_MD, [[0], [0, 4]], k=2, reranker=judged(margin), texts=TEXTS) == expected


@pytest.mark.parametrize("scores", [[1.0], [float("nan")] * 8])
def test_a_reranker_without_a_score_for_each_is_refused(scores):
    corpus_MD = np.array([[1.0], [0.9], [0.8], [0.7], [0.6]], dtype=np.float32)
    with pytest.raises(LongspanError, match="finite scores"):
        mine(
            corpus_MD[:2],
            corpus_MD,
            [[0], [1]],
            k=2,
            reranker=Reranker("broken", lambda pairs: scores),
            texts=TEXTS,
        )


def test_a_folder_that_is_no_reranker_is_refused(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(LongspanError, match="does not load this reranker"):
        cross_encoder(str(tmp_path))


# --- random negatives -------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 14), st.data())
def test_random_negatives_are_documents_that_are_no_positive(num_documents, count, data):
    numbers = st.lists(st.integers(0, num_documents - 1), min_size=1, max_size=5)
    positives = data.draw(st.lists(numbers, min_size=1, max_size=4))
    indices_NK = random_negatives(num_documents, Exclude.of(positives), count)
    for row, own in zip(indices_NK, positives, strict=True):
        drawn = row[row >= 0].tolist()
        free = set(range(num_documents)) - set(own)
        assert set(drawn) <= free
        assert len(drawn) == len(set(drawn)) == min(count, len(free))


def test_random_negatives_depend_on_the_querys_number_and_reach_every_document_alike():
    positives = Exclude.of([[2, 5]] * 3000)
    whole = random_negatives(9, positives, 2, seed=1)
    parts = [random_negatives(9, positives.rows(slice(a, b)), 2, first_query=a, seed=1) for a, b in ((0, 7), (7, 3000))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    counts = np.bincount(whole.ravel(), minlength=9)
    assert counts[[2, 5]].tolist() == [0, 0]
    np.testing.assert_allclose(np.delete(counts, [2, 5]), 6000 / 7, rtol=0.12)  # four standard deviations
    assert (random_negatives(9, positives, 2, seed=2) != whole).any()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [{"k": 0, "at_least": 0}, {"k": 3}, {"at_least": -1}, {"guard": 0.0}, {"guard": -0.5}, {"margin": -0.1}],
)
def test_numbers_with_which_no_row_is_left_are_refused(values):
    with pytest.raises(LongspanError):
        Mining.parse(values, where="here")


def test_the_papers_number_of_negatives():
    assert module.NUM_NEGATIVES == 20  # section 4.2.4


def test_a_cross_encoder_judges_as_sentence_transformers_says(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocab = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "q"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=8, num_labels=1, **shape)  # pyright: ignore[reportCallIssue]
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    reranker = cross_encoder(str(tmp_path), 0.25)
    pairs = [("q", "a b"), ("q", "c")]
    expected = sentence_transformers.CrossEncoder(str(tmp_path)).predict(pairs)
    np.testing.assert_allclose(reranker.score(pairs), expected, rtol=1e-6)
    assert (reranker.name, reranker.margin) == (str(tmp_path), 0.25)
