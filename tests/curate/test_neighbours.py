"""Blocked search against brute force. Axes: N queries, M documents, D width, K kept."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils._python_dispatch import TorchDispatchMode

from longspan.curate.neighbours import Exclude, rank_of, score_pairs, top_k
from longspan.errors import LongspanError

BLOCKS: list[dict[str, Any]] = [
    {"block_rows": 1, "block_documents": 9},
    {"block_rows": 3, "block_documents": 7},
    {"block_documents": 64},
    {},
]


def brute_scores(queries_ND: np.ndarray, documents_MD: np.ndarray) -> np.ndarray:
    """Scores by definition: exact products, exact sum, one rounding to float32."""
    return np.array(
        [
            [
                math.fsum(float(a) * float(b) for a, b in zip(query_D, document_D, strict=True))
                for document_D in documents_MD
            ]
            for query_D in queries_ND
        ],
        dtype=np.float32,
    ).reshape(len(queries_ND), len(documents_MD))


def brute_top_k(scores_NM: np.ndarray, k: int, forbidden: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    scores_NK = np.full((len(scores_NM), k), -np.inf, dtype=np.float32)
    indices_NK = np.full((len(scores_NM), k), -1, dtype=np.int64)
    for row, scores_M in enumerate(scores_NM):
        ranked = sorted(set(range(len(scores_M))) - forbidden[row], key=lambda index: (-scores_M[index], index))[:k]
        scores_NK[row, : len(ranked)] = scores_M[ranked]
        indices_NK[row, : len(ranked)] = ranked
    return scores_NK, indices_NK


def brute_rank(scores_NM: np.ndarray, positives_N: np.ndarray, groups_M: np.ndarray) -> list[int]:
    return [
        len(set(groups_M[scores_M > scores_M[positive]].tolist()) - {int(groups_M[positive])})
        for scores_M, positive in zip(scores_NM, positives_N, strict=True)
    ]


def small_integers(num_rows: int, width: int) -> st.SearchStrategy[np.ndarray]:
    # Few values make many ties; sums of their products are exact in float32.
    return hnp.arrays(np.float32, (num_rows, width), elements=st.integers(-2, 2).map(float))


@st.composite
def searches(draw: st.DrawFn) -> dict[str, Any]:
    num_queries, num_documents = draw(st.integers(0, 6)), draw(st.integers(0, 24))
    width = draw(st.integers(1, 5))
    documents = st.integers(0, num_documents - 1) if num_documents else st.nothing()
    return {
        "queries_ND": draw(small_integers(num_queries, width)),
        "documents_MD": draw(small_integers(num_documents, width)),
        "k": draw(st.integers(1, 30)),
        "block_rows": draw(st.integers(1, 7)),
        "block_documents": draw(st.integers(1, 25)),
        "forbidden": [draw(st.sets(documents)) for _ in range(num_queries)],
    }


def near_ties(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors whose scores lie closer together than a float32 matrix product can tell, some of them equal."""
    generator = np.random.default_rng(seed)
    queries_ND = generator.standard_normal((5, 96)).astype(np.float32)
    centre_D = generator.standard_normal(96)
    documents_MD = (centre_D + 1e-7 * generator.standard_normal((200, 96))).astype(np.float32)
    documents_MD[generator.integers(200, size=40)] = documents_MD[generator.integers(200, size=40)]
    return queries_ND, documents_MD


@given(searches(), st.booleans())
def test_top_k_equals_brute_force(search: dict[str, Any], coarse: bool) -> None:
    forbidden = search.pop("forbidden")
    expected = brute_top_k(brute_scores(search["queries_ND"], search["documents_MD"]), search["k"], forbidden)
    scores_NK, indices_NK = top_k(**search, exclude=Exclude.of([list(row) for row in forbidden]), coarse=coarse)
    np.testing.assert_array_equal(indices_NK, expected[1])
    np.testing.assert_array_equal(scores_NK, expected[0])
    assert (scores_NK.dtype, indices_NK.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_top_k_tells_scores_apart_that_a_float32_product_cannot(blocks: dict[str, Any]) -> None:
    queries_ND, documents_MD = near_ties()
    expected = brute_top_k(brute_scores(queries_ND, documents_MD), 20, [set()] * len(queries_ND))
    scores_NK, indices_NK = top_k(queries_ND, documents_MD, 20, **blocks)
    np.testing.assert_array_equal(scores_NK, expected[0])
    np.testing.assert_array_equal(indices_NK, expected[1])


@settings(max_examples=10)  # hundreds of blocks each
@given(
    vectors=hnp.arrays(np.float32, (30, 7), elements=st.floats(-1e6, 1e6, width=32)),
    k=st.integers(1, 12),
    block_rows=st.integers(1, 11),
    block_documents=st.integers(1, 21),
)
def test_results_are_the_same_bits_for_any_blocks(
    vectors: np.ndarray, k: int, block_rows: int, block_documents: int
) -> None:
    queries_ND, documents_MD = vectors[:10], np.concatenate([vectors[10:], vectors[10:]])  # every document twice
    positives_N = np.arange(10)
    blocks: dict[str, Any] = {"block_rows": block_rows, "block_documents": block_documents}
    whole, blocked = top_k(queries_ND, documents_MD, k), top_k(queries_ND, documents_MD, k, **blocks)
    assert whole[0].tobytes() == blocked[0].tobytes()
    assert whole[1].tobytes() == blocked[1].tobytes()
    everything_NM, _ = top_k(queries_ND, documents_MD, 40)
    own_N = top_k(queries_ND, documents_MD, 1, exclude=Exclude.of([set(range(40)) - {n} for n in range(10)]))[0][:, 0]
    rank_N = rank_of(queries_ND, documents_MD, positives_N, **blocks)
    np.testing.assert_array_equal(rank_N, (everything_NM > own_N[:, None]).sum(axis=1))


@pytest.mark.parametrize("order", ["better and better", "worse and worse", "all equal"])
def test_top_k_whatever_the_order_of_documents(order: str) -> None:
    steps_M = np.arange(1, 501, dtype=np.float32)
    lengths_M = {"better and better": steps_M, "worse and worse": steps_M[::-1], "all equal": np.ones(500)}[order]
    queries_ND = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]], dtype=np.float32)
    documents_MD = np.stack([lengths_M, np.ones(500)], axis=1).astype(np.float32)
    expected = brute_top_k(queries_ND.astype(np.float64) @ documents_MD.T, 5, [set()] * 3)
    scores_NK, indices_NK = top_k(queries_ND, documents_MD, 5, block_documents=37)
    np.testing.assert_array_equal(indices_NK, expected[1])
    np.testing.assert_array_equal(scores_NK, expected[0])


def test_top_k_reads_read_only_memory_maps_of_float16(tmp_path: Path) -> None:
    documents_MD = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float16)
    documents_MD.tofile(tmp_path / "documents")
    mapped_MD = np.memmap(tmp_path / "documents", dtype=np.float16, mode="r", shape=(50, 8))
    queries_ND = documents_MD[::7].astype(np.float32)
    expected = brute_top_k(brute_scores(queries_ND, documents_MD), 4, [set()] * len(queries_ND))
    scores_NK, indices_NK = top_k(queries_ND, mapped_MD, 4, block_documents=16)
    np.testing.assert_array_equal(indices_NK, expected[1])
    np.testing.assert_array_equal(scores_NK, expected[0])
    assert rank_of(queries_ND, mapped_MD, np.arange(0, 50, 7), block_documents=16).shape == (8,)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_autocast_and_matmul_precision_of_the_caller_do_not_matter(precision: str) -> None:
    generator = np.random.default_rng(0)
    queries_ND, documents_MD = generator.standard_normal((200, 96)), generator.standard_normal((3000, 96))
    expected = top_k(queries_ND, documents_MD, 20)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = top_k(queries_ND, documents_MD, 20)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


def test_a_coarse_product_is_screened_with_a_wider_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bfloat16 or TF32 products do on other hardware, imitated here by rounding the factors."""
    queries_ND, documents_MD = near_ties()
    expected, rank_N = top_k(queries_ND, documents_MD, 20), rank_of(queries_ND, documents_MD, np.arange(5))
    monkeypatch.setattr("longspan.curate.neighbours._input_rounding", lambda device: 2.0**-7)
    exact = torch.Tensor.__matmul__

    def coarse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return exact(a.bfloat16().float(), b.bfloat16().float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", coarse)
    actual = top_k(queries_ND, documents_MD, 20)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])
    np.testing.assert_array_equal(rank_of(queries_ND, documents_MD, np.arange(5)), rank_N)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_cuda_gives_the_same_bits_as_the_cpu(precision: str) -> None:
    queries_ND, documents_MD = near_ties()
    groups_M, positives_N = np.arange(200) // 2, np.arange(5)
    expected = (*top_k(queries_ND, documents_MD, 20), rank_of(queries_ND, documents_MD, positives_N, groups_M))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = top_k(queries_ND, documents_MD, 20, device="cuda", block_documents=128)
        rank_N = rank_of(queries_ND, documents_MD, positives_N, groups_M, device="cuda", block_documents=128)
    finally:
        torch.set_float32_matmul_precision(before)
    for actual, wanted in zip((*found, rank_N), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any torch operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_memory_is_bounded_by_the_blocks() -> None:
    generator = np.random.default_rng(0)
    queries_ND, documents_MD = generator.standard_normal((60, 4)), generator.standard_normal((1500, 4))
    with LargestTensor() as largest:
        top_k(queries_ND, documents_MD, 5, block_rows=20, block_documents=100)
        groups_M = generator.integers(1000, size=1500)
        rank_of(queries_ND, documents_MD, np.arange(60), groups_M, block_rows=20, block_documents=100)
    # A block of scores is 2,000 values; all pairs of a block, scored again, are 4 times that.
    assert 2_000 <= largest.numel <= 8_000


@st.composite
def rankings(draw: st.DrawFn) -> dict[str, Any]:
    num_queries, num_documents, width = draw(st.integers(1, 6)), draw(st.integers(1, 24)), draw(st.integers(1, 4))
    return {
        "queries_ND": draw(small_integers(num_queries, width)),
        "documents_MD": draw(small_integers(num_documents, width)),
        "positives_N": draw(hnp.arrays(np.int64, num_queries, elements=st.integers(0, num_documents - 1))),
        "groups_M": draw(st.none() | hnp.arrays(np.int64, num_documents, elements=st.integers(-3, 6))),
        "block_rows": draw(st.integers(1, 7)),
        "block_documents": draw(st.integers(1, 25)),
    }


@given(rankings())
def test_rank_of_equals_brute_force(ranking: dict[str, Any]) -> None:
    groups_M = ranking["groups_M"] if ranking["groups_M"] is not None else np.arange(len(ranking["documents_MD"]))
    scores_NM = brute_scores(ranking["queries_ND"], ranking["documents_MD"])
    assert rank_of(**ranking).tolist() == brute_rank(scores_NM, ranking["positives_N"], groups_M)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_rank_of_tells_scores_apart_that_a_float32_product_cannot(blocks: dict[str, Any]) -> None:
    queries_ND, documents_MD = near_ties()
    positives_N = np.array([0, 40, 80, 120, 160])
    _, groups_M = np.unique(documents_MD, axis=0, return_inverse=True)
    expected = brute_rank(brute_scores(queries_ND, documents_MD), positives_N, groups_M)
    assert rank_of(queries_ND, documents_MD, positives_N, groups_M, **blocks).tolist() == expected
    assert max(expected) > 0


def test_copies_of_a_better_document_count_once_and_copies_of_the_positive_not_at_all() -> None:
    query_ND = np.array([[1.0, 0.0]], dtype=np.float32)
    documents_MD = np.array([[2, 0], [1, 0], [3, 0], [2, 0], [1, 0], [2, 0]], dtype=np.float32)
    positive_N = np.array([1])
    assert rank_of(query_ND, documents_MD, positive_N).tolist() == [4]
    assert rank_of(query_ND, documents_MD, positive_N, np.array([7, 8, 9, 7, 8, 7])).tolist() == [2]
    documents_MD[4] *= 1.001  # a copy that its batch mates disturbed is a copy still
    assert rank_of(query_ND, documents_MD, positive_N, np.array([7, 8, 9, 7, 8, 7])).tolist() == [2]


def test_nothing_to_search_and_nobody_who_asks() -> None:
    none, some = np.empty((0, 3), dtype=np.float32), np.ones((2, 3), dtype=np.float32)
    scores_NK, indices_NK = top_k(some, none, 2)
    assert scores_NK.tolist() == [[-math.inf] * 2] * 2
    assert indices_NK.tolist() == [[-1, -1]] * 2
    assert top_k(none, some, 2)[1].shape == (0, 2)
    assert rank_of(none, some, np.empty(0, dtype=np.int64)).shape == (0,)


EYE = np.eye(3, dtype=np.float32)
BROKEN = np.array([[1, 0, 0], [0, np.nan, 0], [0, 0, 1]], dtype=np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "cannot keep 0"),
        ({"queries_ND": EYE[0]}, r"queries_ND must be a matrix of real numbers, not float32 of shape \(3,\)"),
        ({"documents_MD": EYE.astype(complex)}, "documents_MD must be a matrix of real numbers, not complex128"),
        ({"documents_MD": EYE[:, :2]}, "queries have 3 dimensions and documents have 2"),
        ({"queries_ND": EYE[:, :0], "documents_MD": EYE[:, :0]}, "queries have 0 dimensions"),
        ({"block_rows": 0}, "block_rows is 0"),
        ({"block_documents": -1}, "block_documents is -1"),
        ({"queries_ND": BROKEN}, r"row 1 of queries_ND holds a value that is not a finite"),
        ({"documents_MD": BROKEN, "block_documents": 1}, r"where:  documents_MD\[1\]"),
        ({"queries_ND": EYE * 1e30, "documents_MD": EYE * 1e30}, "overflow float32"),
        ({"exclude": Exclude(np.array([0, 1, 1, 1]), np.array([3]))}, r"3 at position 0 is not in 0\.\.2"),
        ({"exclude": Exclude(np.array([0, 1]), np.array([0]))}, r"expected 4 integers, not int64 of shape \(2,\)"),
        ({"exclude": Exclude(np.array([0, 1, 0, 1]), np.array([0]))}, "offsets do not divide"),
        ({"exclude": Exclude(np.array([0, 0, 0, 0]), np.array([0]))}, "offsets do not divide"),
    ],
)
def test_top_k_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LongspanError, match=message):
        top_k(**({"queries_ND": EYE, "documents_MD": EYE, "k": 1} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positives_N": np.array([0, 1, 3])}, r"3 at position 2 is not in 0\.\.2"),
        ({"positives_N": np.array([0, -1, 1])}, r"-1 at position 1 is not in 0\.\.2"),
        ({"positives_N": np.array([0, 1])}, "expected 3 integers"),
        ({"positives_N": np.array([0.0, 1.0, 2.0])}, "expected 3 integers, not float64"),
        ({"groups_M": np.array([0, 1])}, "expected 3 integers"),
        ({"groups_M": np.array([2, 1, 0]), "documents_MD": BROKEN}, "row 1 of documents_MD"),
        ({"block_rows": 0}, "block_rows is 0"),
    ],
)
def test_rank_of_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LongspanError, match=message):
        rank_of(**({"queries_ND": EYE, "documents_MD": EYE, "positives_N": np.arange(3)} | arguments))


# --- named pairs ------------------------------------------------------------------------------------------------------


def test_named_pairs_have_the_scores_of_top_k():
    queries_ND, documents_MD = near_ties()
    scores_NK, indices_NK = top_k(queries_ND, documents_MD, len(documents_MD))
    order = np.random.default_rng(0).permutation(len(documents_MD))
    np.testing.assert_array_equal(score_pairs(queries_ND, documents_MD, indices_NK[:, order]), scores_NK[:, order])
    indices_NK[1:, 3], indices_NK[2] = -1, -1
    partial_NK = score_pairs(queries_ND, documents_MD, indices_NK)
    assert (partial_NK[indices_NK < 0] == -np.inf).all()
    np.testing.assert_array_equal(partial_NK[indices_NK >= 0], scores_NK[indices_NK >= 0])


def test_named_pairs_that_are_not_finite_are_refused():
    documents_MD = np.ones((3, 2), dtype=np.float32)
    documents_MD[1, 1] = np.inf
    assert score_pairs(documents_MD[:1], documents_MD, np.array([[0, 2]])).tolist() == [[2.0, 2.0]], "not looked at"
    with pytest.raises(LongspanError, match="row 1 of documents_MD"):
        score_pairs(documents_MD[:1], documents_MD, np.array([[0, 1]]))


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6), st.data())
def test_exclusions_of_some_queries(lists, data):
    whole = Exclude.of(lists)
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8)) if lists else []
    part = whole.rows(np.array(rows, dtype=np.int64))
    assert [part.indices[a:b].tolist() for a, b in itertools.pairwise(part.offsets)] == [lists[row] for row in rows]
    cut = data.draw(st.integers(0, len(lists)))
    part = whole.rows(slice(cut, None))
    assert [part.indices[a:b].tolist() for a, b in itertools.pairwise(part.offsets)] == lists[cut:]
