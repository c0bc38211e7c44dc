"""Exact nearest neighbours by inner product, in blocks of bounded memory.

Axes: N queries, M documents, D width, K kept. Inside a block: R queries, C documents, S groups, W pooled candidates,
P (query, document) pairs; X is R or C.

A float32 matrix product rounds differently for every block shape, library and device, so it alone can neither name
the best documents nor break ties the same way twice. Here it only *screens*: a bound on its error tells which pairs
could matter, and those are scored again by `fixed_order_dot`, a float64 sum in one fixed order. Scores, ties and ranks
are therefore a function of the vectors alone: bit for bit the same for any block size, number of threads or device, and
identical documents always get identical scores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from longspan.curate.pair_scores import (
    LARGEST,
    Rows,
    check_range,
    fixed_order_dot,
    pair_scores,
    score_named,
    slices,
    to_device,
)
from longspan.curate.screening import QUERIES, TooAlike, pays, screened_top_k
from longspan.errors import LongspanError

BLOCK_ROWS = 1024
"""Queries per block unless told otherwise."""

BLOCK_DOCUMENTS = 16384
"""Documents per block unless told otherwise; with `BLOCK_ROWS` a block of scores is 64 MiB."""

_INPUT_ROUNDING = {"tf32": 2.0**-10, "bf16": 2.0**-7}
"""Relative error of each factor where torch may shorten float32 before a matrix product; none otherwise."""


class Exclude(NamedTuple):
    """Documents that a query must never be given, as compressed rows.

    Attributes:
        offsets: (N + 1,) integer; query n owns `indices[offsets[n]:offsets[n + 1]]`.
        indices: (any,) integer document indices, in any order, repeats allowed.
    """

    offsets: np.ndarray
    indices: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Iterable[int]]) -> Exclude:
        """Build it from one collection of document indices per query."""
        rows = [np.fromiter(row, dtype=np.int64) for row in lists]
        offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        return cls(offsets, np.concatenate([np.empty(0, np.int64), *rows]))

    def rows(self, rows: slice | np.ndarray) -> Exclude:
        """That of some of the queries, in the order given."""
        starts = self.offsets[:-1][rows].astype(np.int64)
        counts = self.offsets[1:][rows] - starts
        offsets = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return Exclude(offsets, np.asarray(self.indices)[np.repeat(starts, counts) + within])


def top_k(
    queries_ND: np.ndarray,
    documents_MD: np.ndarray,
    k: int,
    *,
    block_rows: int = BLOCK_ROWS,
    block_documents: int = BLOCK_DOCUMENTS,
    exclude: Exclude | None = None,
    device: str | torch.device = "cpu",
    coarse: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the K documents of largest inner product for every query, exactly.

    The score of a pair is its inner product summed in float64 and rounded to float32; equal scores are ordered by the
    lower document index. Neither depends on the block sizes, the exclusions or the device. Documents are read once per
    block of queries: when they lie on a slow disk, make `block_rows` large. Memory is one block of each input, a few
    blocks of scores, and the result. Many documents that tie for the K-th place cost time, not correctness.

    Args:
        queries_ND: (N, D) real, read as float32; may be a `np.memmap`.
        documents_MD: (M, D) likewise.
        k: how many to keep, at least 1.
        block_rows: queries per block.
        block_documents: documents per block.
        exclude: per query, documents that are never returned.
        device: where blocks are multiplied: "cpu", or a CUDA device (float64 is needed).
        coarse: on a CPU, screen with bfloat16 products, in blocks of their own size (`screening.py`); None: where that
            is faster.

    Returns:
        scores_NK float32 in descending order and indices_NK int64. Where fewer than k documents are available, the
        rest of the row is -inf and -1.

    Raises:
        LongspanError: shapes or widths that do not fit, a value that is not finite, products beyond float32, k or a
            block size below 1, an exclusion that names no document.
    """
    _check_inputs(queries_ND, documents_MD, block_rows, block_documents)
    if k < 1:
        raise LongspanError(f"cannot keep {k} neighbours", where="k", remedy="ask for at least 1")
    num_queries, num_documents = len(queries_ND), len(documents_MD)
    if exclude is not None:
        check_exclude(exclude, num_queries, num_documents)
    scores_NK = np.full((num_queries, k), -np.inf, dtype=np.float32)
    indices_NK = np.full((num_queries, k), -1, dtype=np.int64)
    width = min(k, num_documents)
    if width == 0:
        return scores_NK, indices_NK
    with _plain_arithmetic(device):
        first = 0
        if pays(num_queries, num_documents, device) if coarse is None else coarse:
            for rows in slices(num_queries, QUERIES):
                queries = Rows.read(queries_ND, rows, "queries_ND", device)
                excluded = None if exclude is None else _excluded_pairs(exclude, rows, device)
                try:
                    best_RK, best_indices_RK = screened_top_k(queries, documents_MD, width, excluded)
                except TooAlike:
                    break
                scores_NK[rows, :width], indices_NK[rows, :width] = best_RK.numpy(), best_indices_RK.numpy()
                first = rows.stop
        for rows in slices(num_queries, block_rows, first):
            queries = Rows.read(queries_ND, rows, "queries_ND", device)
            excluded = None if exclude is None else _excluded_pairs(exclude, rows, device)
            best_RK, best_indices_RK = _top_k_of_rows(queries, documents_MD, width, block_documents, excluded)
            scores_NK[rows, :width] = best_RK.cpu().numpy()
            indices_NK[rows, :width] = best_indices_RK.cpu().numpy()
    return scores_NK, indices_NK


def rank_of(
    queries_ND: np.ndarray,
    documents_MD: np.ndarray,
    positives_N: np.ndarray,
    groups_M: np.ndarray | None = None,
    *,
    block_rows: int = BLOCK_ROWS,
    block_documents: int = BLOCK_DOCUMENTS,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Find the 0-based rank of each query's own document among all documents.

    The rank is the number of distinct groups, other than the positive's own, with a document that scores strictly
    higher than the positive does (scores as in `top_k`). So copies of one text count once, and copies of the positive
    never push it down. Memory is as in `top_k`, and a few int64 per document when there are groups.

    Args:
        queries_ND: (N, D) real, read as float32; may be a `np.memmap`.
        documents_MD: (M, D) likewise.
        positives_N: (N,) integer, the index of each query's own document.
        groups_M: (M,) integer, equal for identical documents; None counts every document by itself.
        block_rows: queries per block.
        block_documents: documents per block.
        device: where blocks are multiplied: "cpu", or a CUDA device.

    Returns:
        rank_N int64.

    Raises:
        LongspanError: as `top_k`; also a positive that names no document, or groups of the wrong shape.
    """
    _check_inputs(queries_ND, documents_MD, block_rows, block_documents)
    num_queries, num_documents = len(queries_ND), len(documents_MD)
    _check_indices(positives_N, num_queries, num_documents, "rank_of: positives_N")
    order_M = None if groups_M is None else _group_order(groups_M, num_documents)
    rank_N = np.empty(num_queries, dtype=np.int64)
    with _plain_arithmetic(device):
        for rows in slices(num_queries, block_rows):
            queries = Rows.read(queries_ND, rows, "queries_ND", device)
            positives = Rows.read(documents_MD, positives_N[rows], "documents_MD", device)
            positive_R = fixed_order_dot(queries.values_XD, positives.values_XD)
            own_group_R = None if groups_M is None else to_device(groups_M[positives_N[rows]], device)
            counter = _GroupCounter(len(positive_R), own_group_R, device)
            for block in slices(num_documents, block_documents):
                where = block if order_M is None else order_M[block]
                documents = Rows.read(documents_MD, where, "documents_MD", device)
                above_RC = _above(queries, documents, positive_R[:, None])
                counter.add(above_RC, None if groups_M is None else to_device(groups_M[where], device))
            rank_N[rows] = counter.count_R.cpu().numpy()
    return rank_N


def score_pairs(
    queries_ND: np.ndarray, documents_MD: np.ndarray, indices_NK: np.ndarray, *, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Score named documents for every query, bit for bit as `top_k` scores them.

    Args:
        queries_ND: (N, D) real, read as float32; may be a `np.memmap`.
        documents_MD: (M, D) likewise.
        indices_NK: (N, K) integer; -1 names no document.
        device: where it is computed.

    Returns:
        scores_NK float32, -inf where no document is named.

    Raises:
        LongspanError: as `top_k`.
    """
    _check_inputs(queries_ND, documents_MD, 1, 1)
    scores_NK = np.empty(indices_NK.shape, dtype=np.float32)
    with _plain_arithmetic(device):
        for rows in slices(len(queries_ND), BLOCK_ROWS):
            queries = Rows.read(queries_ND, rows, "queries_ND", device)
            scores_NK[rows] = score_named(queries, documents_MD, indices_NK[rows]).cpu().numpy()
    return scores_NK


def best_of(scores_RC: np.ndarray, indices_RC: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The K best of R rows of C scored candidates, equal scores by the lower index; filled up with -inf and -1."""
    order_RC = np.lexsort((indices_RC, -scores_RC), axis=1)[:, :k]
    missing = max(0, k - indices_RC.shape[1])
    scores_RK = np.take_along_axis(scores_RC, order_RC, axis=1)
    indices_RK = np.take_along_axis(indices_RC, order_RC, axis=1)
    return (
        np.pad(scores_RK, ((0, 0), (0, missing)), constant_values=-np.inf),
        np.pad(indices_RK, ((0, 0), (0, missing)), constant_values=-1),
    )


def _top_k_of_rows(
    queries: Rows,
    documents_MD: np.ndarray,
    k: int,
    block_documents: int,
    excluded: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    device = queries.values_XD.device
    best_RK = torch.full((len(queries.values_XD), k), -torch.inf, device=device)
    best_indices_RK = torch.full_like(best_RK, -1, dtype=torch.int64)
    for block in slices(len(documents_MD), block_documents):
        documents = Rows.read(documents_MD, block, "documents_MD", device)
        slack_R1 = _slack(queries, documents)
        screen_RC = queries.values_XD @ documents.values_XD.T
        if excluded is not None:
            rows_P, indices_P = excluded
            here_P = (indices_P >= block.start) & (indices_P < block.stop)
            screen_RC[rows_P[here_P], indices_P[here_P] - block.start] = -torch.inf
        rows_P, columns_P = _candidates(screen_RC, best_RK[:, -1:], slack_R1, k)
        scores_P = pair_scores(queries.values_XD, documents.values_XD, rows_P, columns_P)
        best_RK, best_indices_RK = _merge(best_RK, best_indices_RK, rows_P, columns_P + block.start, scores_P)
    return best_RK, best_indices_RK


def _candidates(
    screen_RC: torch.Tensor, worst_best_R1: torch.Tensor, slack_R1: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Name every pair (rows_P, columns_P, row by row) that could enter the K best of its row."""
    # The clamp keeps excluded pairs (-inf) out while the K best are not yet full.
    floor_R1 = (worst_best_R1 - slack_R1).clamp(min=-LARGEST)
    mask_RC = screen_RC >= floor_R1
    num_rows, num_columns = screen_RC.shape
    if k < num_columns and int(mask_RC.count_nonzero()) > 4 * k * num_rows:
        # The K-th best of this block alone is a floor too: K documents score at least that, less the error. It is
        # dearer than the product itself, so it is asked only when the floor so far lets too many through.
        kth_R1 = torch.topk(screen_RC, k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        mask_RC &= screen_RC >= kth_R1 - 2 * slack_R1
    rows_P, columns_P = mask_RC.nonzero(as_tuple=True)
    return rows_P, columns_P


def _merge(
    best_RK: torch.Tensor,
    best_indices_RK: torch.Tensor,
    rows_P: torch.Tensor,
    indices_P: torch.Tensor,
    scores_P: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep the K best of what was kept and what is new; `indices_P` ascends within a row, above all kept ones."""
    if len(rows_P) == 0:
        return best_RK, best_indices_RK
    num_rows, k = best_RK.shape
    count_R = torch.bincount(rows_P, minlength=num_rows)
    first_R = count_R.cumsum(0) - count_R
    slot_P = k + torch.arange(len(rows_P), device=rows_P.device) - first_R[rows_P]
    width = k + int(count_R.max())
    pool_RW = best_RK.new_full((num_rows, width), -torch.inf)
    pool_indices_RW = best_indices_RK.new_full((num_rows, width), -1)
    pool_RW[:, :k], pool_indices_RW[:, :k] = best_RK, best_indices_RK
    pool_RW[rows_P, slot_P], pool_indices_RW[rows_P, slot_P] = scores_P, indices_P
    # Among equal scores the pool ascends in document index, so a stable sort breaks ties by the lower index.
    sorted_RW, order_RW = torch.sort(pool_RW, dim=1, descending=True, stable=True)
    return sorted_RW[:, :k].contiguous(), pool_indices_RW.gather(1, order_RW[:, :k])


def _above(queries: Rows, documents: Rows, positive_R1: torch.Tensor) -> torch.Tensor:
    """Tell which documents score strictly higher than the positive, (R, C) bool."""
    slack_R1 = _slack(queries, documents)
    margin_RC = (queries.values_XD @ documents.values_XD.T).sub_(positive_R1)
    above_RC = margin_RC > slack_R1
    rows_P, columns_P = (margin_RC.abs_() <= slack_R1).nonzero(as_tuple=True)
    scores_P = pair_scores(queries.values_XD, documents.values_XD, rows_P, columns_P)
    above_RC[rows_P, columns_P] = scores_P > positive_R1[rows_P, 0]
    return above_RC


class _GroupCounter:
    """Counts, per query, the distinct groups with a document above the positive.

    Blocks come in an order in which each group's documents are neighbours, so only the last group of a block can go
    on in the next, and one flag per query is all that has to be remembered.
    """

    def __init__(self, num_rows: int, own_group_R: torch.Tensor | None, device: str | torch.device) -> None:
        self.count_R = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._own_group_R = own_group_R
        self._open_group: int | None = None
        self._open_hit_R = torch.zeros(num_rows, dtype=torch.bool, device=device)

    def add(self, above_RC: torch.Tensor, groups_C: torch.Tensor | None) -> None:
        """Count one block; `groups_C` is None when every document is a group of its own."""
        if groups_C is None or self._own_group_R is None:
            self.count_R += above_RC.sum(dim=1, dtype=torch.int32)
            return
        # Copies of the positive have its score, unless whoever made the vectors let a batch mate disturb them.
        above_RC &= groups_C[None, :] != self._own_group_R[:, None]
        group_S, segment_C = torch.unique_consecutive(groups_C, return_inverse=True)
        hits_RS = above_RC.new_zeros((len(above_RC), len(group_S)), dtype=torch.int32)
        hit_RS = hits_RS.index_add_(1, segment_C, above_RC.int()) > 0
        if int(group_S[0]) == self._open_group:
            self.count_R -= self._open_hit_R.long()
            hit_RS[:, 0] |= self._open_hit_R
        self.count_R += hit_RS.sum(dim=1)
        self._open_group, self._open_hit_R = int(group_S[-1]), hit_RS[:, -1].clone()


def _slack(queries: Rows, documents: Rows) -> torch.Tensor:
    """Bound, per query, how far a screened score can be from the score of the pair: (R, 1) float32.

    A sum of D products in any order errs by at most D u |q| |d| (u = 2**-24; Higham, Accuracy and Stability of
    Numerical Algorithms, section 3.1, with Cauchy-Schwarz). The 8 covers the few roundings to float32 around it, the
    tenth the second-order terms, and the last term what is lost below the smallest normal number.
    """
    largest = check_range(queries, documents)
    width = queries.values_XD.shape[1]
    relative = 1.1 * ((width + 8) * 2.0**-24 + 2 * _input_rounding(queries.values_XD.device))
    return (queries.norms_X * (largest * relative) + width * 2.0**-125).float()[:, None]


def _input_rounding(device: torch.device) -> float:
    if device.type == "cuda":
        precision = torch.backends.cuda.matmul.fp32_precision
    else:
        precision = torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
    return _INPUT_ROUNDING.get(str(precision), 0.0)


def _group_order(groups_M: np.ndarray, num_documents: int) -> np.ndarray:
    """Order documents so that groups stay together, by first appearance: nearly the order on disk."""
    _check_indices(groups_M, num_documents, None, "rank_of: groups_M")
    _, first, group_M = np.unique(groups_M, return_index=True, return_inverse=True)
    return np.argsort(first[group_M], kind="stable")


def _excluded_pairs(exclude: Exclude, rows: slice, device: str | torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Name the excluded pairs of a block of queries: (row within the block, document index)."""
    offsets = np.asarray(exclude.offsets[rows.start : rows.stop + 1], dtype=np.int64)
    rows_P = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    indices_P = exclude.indices[offsets[0] : offsets[-1]]
    return to_device(rows_P, device), to_device(indices_P, device, np.int64)


@contextlib.contextmanager
def _plain_arithmetic(device: str | torch.device) -> Iterator[None]:
    # A caller inside autocast would otherwise have the screen computed in bfloat16, beyond the bound of `_slack`.
    with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
        yield


def _check_inputs(queries_ND: np.ndarray, documents_MD: np.ndarray, block_rows: int, block_documents: int) -> None:
    for name, matrix in (("queries_ND", queries_ND), ("documents_MD", documents_MD)):
        if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
            raise LongspanError(
                f"{name} must be a matrix of real numbers, not {matrix.dtype} of shape {matrix.shape}",
                where=name,
                remedy="give one row per text and one column per dimension",
            )
    if queries_ND.shape[1] != documents_MD.shape[1] or queries_ND.shape[1] == 0:
        raise LongspanError(
            f"queries have {queries_ND.shape[1]} dimensions and documents have {documents_MD.shape[1]}",
            where="queries_ND, documents_MD",
            remedy="embed both with the same model and the same dim, at least 1",
        )
    for name, size in (("block_rows", block_rows), ("block_documents", block_documents)):
        if size < 1:
            raise LongspanError(f"{name} is {size}", where=name, remedy="use a block of at least 1")


def check_exclude(exclude: Exclude, num_queries: int, num_documents: int) -> None:
    """Raise a LongspanError unless `exclude` is of so many queries and documents."""
    where = "top_k: exclude"
    _check_indices(exclude.indices, len(exclude.indices), num_documents, f"{where}.indices")
    _check_indices(exclude.offsets, num_queries + 1, len(exclude.indices) + 1, f"{where}.offsets")
    offsets = exclude.offsets
    if offsets[0] != 0 or offsets[-1] != len(exclude.indices) or bool((offsets[1:] < offsets[:-1]).any()):
        raise LongspanError(
            "the offsets do not divide the excluded indices among the queries",
            where=f"{where}.offsets",
            remedy="let them ascend from 0 to the number of indices, or build them with Exclude.of",
        )


def _check_indices(values: np.ndarray, length: int, end: int | None, where: str) -> None:
    """Refuse anything but `length` integers, in [0, end) unless end is None."""
    if values.shape != (length,) or values.dtype.kind not in "iu":
        raise LongspanError(
            f"expected {length} integers, not {values.dtype} of shape {values.shape}",
            where=where,
            remedy="give one integer per item",
        )
    if end is not None and length and (values.min() < 0 or values.max() >= end):
        bad = int(np.flatnonzero((values < 0) | (values >= end))[0])
        raise LongspanError(
            f"{values[bad]} at position {bad} is not in 0..{end - 1}", where=where, remedy="name rows that exist"
        )
