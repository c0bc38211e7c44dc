"""Exact nearest neighbours where the processor multiplies bfloat16 fast: coarse products screen, exact scores decide.

Both sides are rounded to bfloat16 and multiplied by the processor's matrix tiles, several times as fast as float32. By
how much such a product can miss the score is known, because what the rounding took away is there to be measured: with
q = q~ + r and d = d~ + s, |q d - q~ d~| <= |r| |d~| + |q| |s| (Cauchy-Schwarz). So a document whose product lies
farther below the K-th best than twice that bound is none of the K best, and all others are candidates. They are few,
and are scored exactly when all documents have been looked at: scores, ties and order are those of `neighbours.top_k`,
bit for bit.

Documents are looked at in groups whose largest product is taken first; only groups in which something could matter are
looked at one by one.

Axes: R queries of a part, C documents of a block, G groups of documents, S documents of a group, D width, W pooled
candidates, K kept, P pairs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longspan.curate.pair_scores import LARGEST, Rows, check_range, score_named, slices
from longspan.machine import read_machine

QUERIES = 65_536
"""Queries for which all documents are read once."""

LEAST_QUERIES, LEAST_DOCUMENTS = 512, 16_384
"""With fewer there is nothing to gain."""

_ROWS, _DOCUMENTS, _GROUP = 2048, 4096, 32
"""Queries and documents of one product: 16 MiB of bfloat16, near the cache; and documents of a group."""

_PENDING = 8
"""So many new candidates for a query, on average, are merged into its pool at a time."""

_SETTLES = 4
"""So often the pools of a part may fill up before its documents are called too alike."""

_HALF_STEP = 2.0**-8
"""Rounding to bfloat16 changes a number by at most this part of it."""

_SMALLEST = 2.0**-125
"""Numbers below this may count as zero."""


class TooAlike(Exception):
    """Coarse products do not tell the documents apart: too many score within the error of the K-th best."""


def pays(num_queries: int, num_documents: int, device: str | torch.device) -> bool:
    """Whether this search is faster so, here."""
    large = num_queries >= LEAST_QUERIES and num_documents >= LEAST_DOCUMENTS
    return large and torch.device(device).type == "cpu" and has_tiles()


@functools.cache
def has_tiles() -> bool:
    """Whether this processor has matrix tiles for bfloat16, and rounds their sums to the nearest."""
    return "amx_bf16" in read_machine().processor.simd and _rounds_to_nearest()


def screened_top_k(
    queries: Rows, documents_MD: np.ndarray, k: int, excluded: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """best_NK float32 and best_indices_NK int64 of some queries, as `neighbours.top_k` orders them.

    Memory is a block of products and a pool of some 4 K candidates for each query.

    Args:
        k: at most the number of documents.
        excluded: (row, document) of the pairs that are left out.

    Raises:
        TooAlike: nothing was found out; another way is faster.
        LongspanError: as `neighbours.top_k`.
    """
    parts = [_Part(queries, rows, k, excluded) for rows in slices(len(queries.values_XD), _ROWS)]
    for block in slices(len(documents_MD), _DOCUMENTS):
        documents = Rows.read(documents_MD, block, "documents_MD", "cpu")
        check_range(queries, documents)
        coarse = _Coarse.of(documents)
        for part in parts:
            part.look(coarse, block.start, documents_MD)
    best = [part.settled(documents_MD) for part in parts]
    return torch.cat([scores for scores, _ in best]), torch.cat([indices for _, indices in best])


@dataclass(frozen=True)
class _Coarse:
    """Vectors in bfloat16.

    Attributes:
        values_XD: filled up with zeros to whole groups.
        num_rows: without these.
        lost_X: the length of what the rounding took away, float32.
        longest: of the rounded vectors.
    """

    values_XD: Tensor
    num_rows: int
    lost_X: Tensor
    longest: float

    @classmethod
    def of(cls, rows: Rows) -> _Coarse:
        num_rows, width = rows.values_XD.shape
        values_XD = rows.values_XD.new_zeros((-(-num_rows // _GROUP) * _GROUP, width), dtype=torch.bfloat16)
        values_XD[:num_rows] = rows.values_XD
        lost_XD = rows.values_XD - values_XD[:num_rows]
        lost_X = _upper(torch.linalg.vector_norm(lost_XD, dim=1), width)
        longest = float(rows.norms_X.max()) + float(lost_X.max())
        if not longest <= LARGEST:  # a number beyond bfloat16
            raise TooAlike
        return cls(values_XD, num_rows, lost_X, longest)


class _Part:
    """Some queries on their way through the documents."""

    def __init__(self, queries: Rows, rows: slice, k: int, excluded: tuple[Tensor, Tensor] | None) -> None:
        self._queries = Rows(queries.values_XD[rows], queries.norms_X[rows])
        self._coarse = _Coarse.of(self._queries)
        self._k, self._num_settled = k, 0
        num_rows = len(self._queries.values_XD)
        self._excluded = None if excluded is None else _of_rows(excluded, rows)
        self._slack_R = torch.zeros(num_rows)
        self._floor_R = torch.full((num_rows,), -LARGEST)
        self._values_RW = torch.empty((num_rows, 0))
        self._indices_RW = torch.empty((num_rows, 0), dtype=torch.int64)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._num_pending = 0

    def look(self, documents: _Coarse, first: int, documents_MD: np.ndarray) -> None:
        """Take up the candidates of a block of documents, of which `first` is the number of the first."""
        self._slack_R = torch.maximum(self._slack_R, self._slack(documents))
        num_rows = len(self._slack_R)
        screen_RC = torch.mm(self._coarse.values_XD[:num_rows], documents.values_XD.T)
        screen_RC[:, documents.num_rows :] = -torch.inf
        if self._excluded is not None:
            rows_P, indices_P = self._excluded
            here_P = (indices_P >= first) & (indices_P < first + documents.num_rows)
            screen_RC[rows_P[here_P], indices_P[here_P] - first] = -torch.inf
        screen_RSG = screen_RC.view(num_rows, _GROUP, -1)
        largest_RG = screen_RSG.amax(dim=1)
        floor_R1 = _floor_of_products(self._floor_R)[:, None]
        hit_RG = largest_RG >= floor_R1
        if int(hit_RG.count_nonzero()) > self._k * num_rows:
            # The K-th of the groups' largest is a floor too: K documents score at least that, less the error.
            of_K_RX = largest_RG if self._k <= largest_RG.shape[1] else screen_RC
            if self._k <= of_K_RX.shape[1]:
                kth_R = torch.topk(of_K_RX, self._k, dim=1, sorted=False).values.amin(dim=1).float()
                self._floor_R = torch.maximum(self._floor_R, self._floor_below(kth_R))
                floor_R1 = _floor_of_products(self._floor_R)[:, None]
                hit_RG = largest_RG >= floor_R1
        rows_P, groups_P = hit_RG.nonzero(as_tuple=True)
        values_PS = screen_RSG[rows_P, :, groups_P]
        place_P, within_P = (values_PS >= floor_R1[rows_P]).nonzero(as_tuple=True)
        rows_P, groups_P = rows_P[place_P], groups_P[place_P]
        indices_P = within_P * largest_RG.shape[1] + groups_P + first
        self._pending.append((rows_P, indices_P, values_PS[place_P, within_P].float()))
        self._num_pending += len(rows_P)
        if self._num_pending > _PENDING * num_rows:
            self._merge()
            if self._values_RW.shape[1] > 4 * self._k + 64:
                self._settle(documents_MD)

    def settled(self, documents_MD: np.ndarray) -> tuple[Tensor, Tensor]:
        """The K best by their scores, equal ones by the lower index."""
        self._merge()
        return self._best(documents_MD)

    def _slack(self, documents: _Coarse) -> Tensor:
        """By how much a product can miss the score, (R,) float32; the rounding of the product itself comes on top.

        The sum of D products in float32 is off by at most D u |q~| |d~| (as in `neighbours`).
        """
        width = documents.values_XD.shape[1]
        lost = float(documents.lost_X.max())
        norm_R = self._queries.norms_X.float()
        sums_R = (norm_R + self._coarse.lost_X) * (documents.longest * 1.1 * (width + 8) * 2.0**-24)
        tiny_R = width * _SMALLEST * (1 + norm_R + documents.longest)
        return (self._coarse.lost_X * documents.longest + norm_R * lost + sums_R + tiny_R) * 1.001

    def _floor_below(self, kth_R: Tensor) -> Tensor:
        """The least product before its rounding that a document must have, where K have at least `kth_R`."""
        floor_R = kth_R - kth_R.abs() * _HALF_STEP - 2 * self._slack_R
        return floor_R.clamp(min=-LARGEST).nan_to_num(nan=-LARGEST)

    def _merge(self) -> None:
        """Put what is pending into the pools, and leave out what has fallen below their K-th best."""
        if not self._pending:
            return
        rows_P, indices_P, values_P = (torch.cat(each) for each in zip(*self._pending, strict=True))
        self._pending, self._num_pending = [], 0
        num_rows, width = self._values_RW.shape
        order_P = torch.argsort(rows_P, stable=True)
        rows_P, indices_P, values_P = rows_P[order_P], indices_P[order_P], values_P[order_P]
        count_R = torch.bincount(rows_P, minlength=num_rows)
        slot_P = width + torch.arange(len(rows_P)) - (count_R.cumsum(0) - count_R)[rows_P]
        values_RW = torch.full((num_rows, width + int(count_R.max())), -torch.inf)
        indices_RW = torch.full_like(values_RW, -1, dtype=torch.int64)
        values_RW[:, :width], indices_RW[:, :width] = self._values_RW, self._indices_RW
        values_RW[rows_P, slot_P], indices_RW[rows_P, slot_P] = values_P, indices_P
        values_RW, order_RW = torch.sort(values_RW, dim=1, descending=True)
        if values_RW.shape[1] >= self._k:
            self._floor_R = torch.maximum(self._floor_R, self._floor_below(values_RW[:, self._k - 1]))
        # A pool holds rounded products and, once settled, scores: the lower of the two floors serves both.
        floor_R = torch.minimum(self._floor_R, _floor_of_products(self._floor_R).float())
        fallen_RW = values_RW < floor_R[:, None]
        width = max(self._k, int((~fallen_RW).sum(dim=1).max()))
        fallen_RW = fallen_RW[:, :width]
        self._values_RW = values_RW[:, :width].masked_fill(fallen_RW, -torch.inf)
        self._indices_RW = indices_RW.gather(1, order_RW[:, :width]).masked_fill_(fallen_RW, -1)

    def _settle(self, documents_MD: np.ndarray) -> None:
        """Leave the K best so far in each pool, for good: what comes later has a higher index."""
        self._num_settled += 1
        if self._num_settled > _SETTLES:
            raise TooAlike
        self._values_RW, self._indices_RW = self._best(documents_MD)
        self._floor_R = torch.maximum(self._floor_R, self._floor_below(self._values_RW[:, self._k - 1]))

    def _best(self, documents_MD: np.ndarray) -> tuple[Tensor, Tensor]:
        # In ascending order of their numbers, so that a stable sort leaves equal scores so. (-1, nothing, scores -inf.)
        indices_RW, _ = torch.sort(self._indices_RW, dim=1)
        scores_RW = score_named(self._queries, documents_MD, indices_RW.numpy())
        scores_RW, order_RW = torch.sort(scores_RW, dim=1, descending=True, stable=True)
        indices_RW = indices_RW.gather(1, order_RW)
        missing = max(0, self._k - indices_RW.shape[1])
        return (
            torch.nn.functional.pad(scores_RW[:, : self._k], (0, missing), value=-torch.inf),
            torch.nn.functional.pad(indices_RW[:, : self._k], (0, missing), value=-1),
        )


def _floor_of_products(floor_R: Tensor) -> Tensor:
    """The floor as products are compared with it: rounding is monotone, so nothing that reaches it falls below."""
    return floor_R.bfloat16().clamp(min=torch.finfo(torch.bfloat16).min)


def _upper(norm_X: Tensor, width: int) -> Tensor:
    """A bound of lengths that were summed in float32."""
    return norm_X * (1 + 2 * width * 2.0**-24) + width * _SMALLEST


def _of_rows(excluded: tuple[Tensor, Tensor], rows: slice) -> tuple[Tensor, Tensor]:
    rows_P, indices_P = excluded
    here_P = (rows_P >= rows.start) & (rows_P < rows.stop)
    return rows_P[here_P] - rows.start, indices_P[here_P]


def _rounds_to_nearest() -> bool:
    """Whether sums, and not only factors, are rounded to the nearest bfloat16 once: found out on sums that tell."""
    width = 64
    a_RD, b_DC = torch.zeros((_ROWS, width), dtype=torch.bfloat16), torch.zeros((width, _GROUP), dtype=torch.bfloat16)
    a_RD[:, 0], a_RD[:, 1:] = 1.0, 2.0**-9
    # 1 + n / 512 for n = 0, 1, ...: next to 1 come 1 + 4/512, 1 + 8/512.
    for column in range(_GROUP):
        b_DC[: column + 1, column] = 1.0
    expected_C = (1 + torch.arange(_GROUP) / 512).bfloat16()
    return bool((torch.mm(a_RD, b_DC) == expected_C).all())
