"""Nearest neighbours in a large corpus: FAISS proposes, exact arithmetic scores, and the recall is measured.

The index is an inverted file (k-means lists; Jegou, Douze and Schmid: Product Quantization for Nearest Neighbor Search,
2011) with one byte per dimension. A query looks at the documents of the nearest `num_probes` lists, takes a few
candidates more than it needs, and these are scored by `score_pairs`: a score never depends on the way in which its
document was found.
How many lists are enough is not assumed. It is the first power of two at which a sample of the queries finds the wanted
part of its true neighbours, and what is reported is measured on other queries than those that chose it.

Axes: N queries, M documents, D width, K kept. Inside a block: R queries, L probed lists, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from longspan.curate import screening
from longspan.curate.neighbours import Exclude, best_of, check_exclude, score_pairs, top_k
from longspan.curate.pair_scores import slices
from longspan.errors import LongspanError
from longspan.files import atomic_path

EXACT_DOCUMENTS = 50_000
"""In a corpus up to this size the search is exact, unless the caller says otherwise."""

EXACT_PAIRS = 5_000_000_000
"""Up to so many pairs of a query and a document too: building an index would take as long."""

SCREENED_PAIRS = 2_000_000_000_000
"""And up to so many where the processor screens documents with coarse products (`screening.py`): some forty minutes on
two cores. Beside an index it was not measured."""

TARGET_RECALL = 0.98
"""The part of the true neighbours that an approximate search is to find."""

CHOOSING, MEASURING = 256, 1000
"""Queries on which the number of lists is chosen, and others on which the recall is measured."""

ROUNDS = 10
ROWS_PER_LIST = 32
"""K-means: rounds, and documents that it sees for each list."""

MAX_EXCLUDED = 128
"""A query with more excluded documents is searched exactly, or all would have to fetch so many candidates."""

BLOCK_ROWS = 16_384
"""Queries searched at a time."""


@dataclass(frozen=True)
class Search:
    """How neighbours were found.

    Attributes:
        exact: whether every document was looked at.
        screened: and with coarse products at that, because there are so many. Whoever counts how many documents score
            above one of them then looks at the nearest only, as with an index.
        num_lists, num_probes: the index's lists, and how many of them a query looks at; 0 where the search is exact.
        index_bytes: memory of the index: codes, numbers and centroids.
        recall: the measured part of the true neighbours that is found; 1 where the search is exact.
        num_measured: queries on which it was measured; 0 where the search is exact.
    """

    exact: bool
    num_lists: int = 0
    num_probes: int = 0
    index_bytes: int = 0
    recall: float = 1.0
    num_measured: int = 0
    screened: bool = False

    @property
    def ranks_all(self) -> bool:
        """Whether a document's place is looked for among all documents, or among the nearest only."""
        return self.exact and not self.screened

    def report(self) -> dict[str, Any]:
        """The attributes, for a report."""
        return asdict(self)


class Rows(Protocol):
    """Vectors of which some rows are read at a time: an array, or what reads them from elsewhere."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


class Neighbours(NamedTuple):
    """Neighbours and how they were found.

    Attributes:
        scores_NK: float32, descending; -inf where there are no more documents.
        indices_NK: int64; -1 there.
        search: how.
    """

    scores_NK: np.ndarray
    indices_NK: np.ndarray
    search: Search


def check_recall(target_recall: float) -> None:
    """Raise a LongspanError if a search cannot find such a part of the neighbours."""
    if not 0 < target_recall <= 1:
        raise LongspanError(
            f"a search cannot find {target_recall} of the neighbours",
            where="target_recall",
            remedy=f"ask for a part such as {TARGET_RECALL}",
        )


def nearest(
    queries_ND: np.ndarray,
    documents_MD: np.ndarray,
    k: int,
    *,
    exact: bool | None = None,
    target_recall: float = TARGET_RECALL,
    exclude: Exclude | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Neighbours:
    """Find the K documents of largest inner product for every query, by whichever way suits the size.

    Scores, their order and ties are those of `top_k` either way. Documents should be distinct texts; what a query must
    not be given (its own text, its positives) is named in `exclude`. A row has fewer than k neighbours only where there
    are no more documents.

    Args:
        queries_ND: (N, D) real, read as float32; may be a `np.memmap`.
        documents_MD: (M, D) likewise.
        k: how many to keep, at least 1.
        exact: True: look at every document. False: use an index. None: an index above `EXACT_DOCUMENTS` documents and
            `EXACT_PAIRS` pairs (`SCREENED_PAIRS` where the processor has matrix tiles for bfloat16), if FAISS is
            installed and `device` is a CPU.
        target_recall: the part of the true neighbours that an index is to find, above 0 and at most 1. Where that would
            take more than a quarter of the lists, the search is exact.
        exclude: per query, documents that are never returned.
        device: where exact search multiplies; an index is searched on the CPU.
        seed: of the k-means and of the samples.
        progress: called with the number of queries done since the last call.

    Raises:
        LongspanError: as `top_k`; a target that is no part; `exact` is False and FAISS is missing.
    """
    if exclude is not None:
        check_exclude(exclude, len(queries_ND), len(documents_MD))
    searcher = Searcher.open(
        queries_ND, documents_MD, k, exact=exact, target_recall=target_recall, device=device, seed=seed
    )
    scores_NK = np.empty((len(queries_ND), k), dtype=np.float32)
    indices_NK = np.empty((len(queries_ND), k), dtype=np.int64)
    for rows in slices(len(queries_ND), screening.QUERIES if searcher.search.exact else BLOCK_ROWS):
        part = None if exclude is None else exclude.rows(rows)
        scores_NK[rows], indices_NK[rows] = searcher.find(queries_ND[rows], k, part)
        if progress is not None:
            progress(rows.stop - rows.start)
    return Neighbours(scores_NK, indices_NK, searcher.search)


class Searcher:
    """A corpus that is searched block by block, exactly or through an index."""

    def __init__(self, documents_MD: np.ndarray, search: Search, index: Any, device: str | torch.device) -> None:
        """`open` makes one."""
        self.search = search
        self._documents_MD, self._index, self._device = documents_MD, index, device

    @classmethod
    def open(
        cls,
        queries_ND: Rows,
        documents_MD: np.ndarray,
        k: int,
        *,
        exact: bool | None = None,
        target_recall: float = TARGET_RECALL,
        device: str | torch.device = "cpu",
        seed: int = 0,
        index_file: Path | None = None,
    ) -> Searcher:
        """Choose how to search, and build and tune the index if there is to be one (see `nearest`).

        Args:
            queries_ND: the queries that will come, from which samples are drawn.
            index_file: where the index is kept, so that a process that goes on after a kill searches the same one.
                Whoever names it answers for its being of these documents and this seed.

        Raises:
            LongspanError: as `nearest`; or the index cannot be written.
        """
        check_recall(target_recall)
        if not _wants_index(len(queries_ND), len(documents_MD), exact, device):
            screened = exact is None and _is_large(len(queries_ND), len(documents_MD), device)
            return cls(documents_MD, Search(exact=True, screened=screened and screening.has_tiles()), None, device)
        choosing, measuring = _samples(len(queries_ND), seed)
        # The exact searches come first: they read every document, and refuse what is broken.
        truth = [top_k(queries_ND[rows], documents_MD, k, device=device) for rows in (choosing, measuring)]
        index = _kept_index(documents_MD, seed, index_file)
        searcher = cls(documents_MD, Search(exact=False), index, device)
        num_probes = 1
        while num_probes <= max(1, index.nlist // 4):
            index.nprobe = num_probes
            if _recall(searcher.find(queries_ND[choosing], k), truth[0]) >= target_recall:
                recall = _recall(searcher.find(queries_ND[measuring], k), truth[1])
                size = index_bytes(*documents_MD.shape)
                searcher.search = Search(False, index.nlist, num_probes, size, round(recall, 4), len(measuring))
                return searcher
            num_probes *= 2
        return cls(documents_MD, Search(exact=True), None, device)

    def find(self, queries_RD: np.ndarray, k: int, exclude: Exclude | None = None) -> tuple[np.ndarray, np.ndarray]:
        """scores_RK and indices_RK of some queries, as `top_k` gives them.

        Raises:
            LongspanError: as `top_k`.
        """
        if self._index is None:
            return top_k(queries_RD, self._documents_MD, k, exclude=exclude, device=self._device)
        num_excluded_R = np.zeros(len(queries_RD), np.int64) if exclude is None else np.diff(exclude.offsets)
        few_R = num_excluded_R <= MAX_EXCLUDED
        spare = int(num_excluded_R[few_R].max(initial=0))
        order_R, indices_RC = self._candidates(queries_RD, k + max(8, k // 4) + spare)
        if exclude is not None:
            indices_RC = _without(indices_RC, exclude.rows(order_R))
        scores_RC = score_pairs(queries_RD[order_R], self._documents_MD, indices_RC)
        scores_RK, indices_RK = np.empty((len(few_R), k), np.float32), np.empty((len(few_R), k), np.int64)
        scores_RK[order_R], indices_RK[order_R] = best_of(scores_RC, indices_RC, k)
        # A row that its lists left short, too, gets what every other row gets: the nearest there are.
        again = np.flatnonzero(~few_R | (indices_RK[:, -1] < 0))
        if len(again):
            part = None if exclude is None else exclude.rows(again)
            scores_RK[again], indices_RK[again] = top_k(
                queries_RD[again], self._documents_MD, k, exclude=part, device=self._device
            )
        return scores_RK, indices_RK

    def _candidates(self, queries_RD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """An order of the queries, and in that order the documents that the index proposes, -1 where no more."""
        queries_RD = np.ascontiguousarray(queries_RD, dtype=np.float32)
        closeness_RL, lists_RL = self._index.quantizer.search(queries_RD, self._index.nprobe)
        # Queries of one list, one after the other, find its documents still in the cache: here and in `score_pairs`.
        order_R = np.argsort(lists_RL[:, 0], kind="stable")
        _, indices_RC = self._index.search_preassigned(
            queries_RD[order_R], min(count, len(self._documents_MD)), lists_RL[order_R], closeness_RL[order_R]
        )
        return order_R, indices_RC


def index_bytes(num_documents: int, width: int) -> int:
    """Memory that an index takes: a byte per dimension and a number of 8 bytes per document, and the centroids."""
    return num_documents * (width + 8) + num_lists(num_documents) * width * 4


def num_lists(num_documents: int) -> int:
    """Lists of an index: 4 times the square root of the corpus, so that choosing lists costs little beside reading."""
    return max(1, min(round(4 * math.sqrt(num_documents)), num_documents // ROWS_PER_LIST))


def _wants_index(num_queries: int, num_documents: int, exact: bool | None, device: str | torch.device) -> bool:
    if exact is not None:
        if not exact:
            _faiss()
        return not exact and num_queries > 0 and num_documents > 0
    if not _is_large(num_queries, num_documents, device):
        return False
    if screening.has_tiles() and num_queries * num_documents <= SCREENED_PAIRS:
        return False
    try:
        _faiss()
    except LongspanError:
        return False
    return True


def _is_large(num_queries: int, num_documents: int, device: str | torch.device) -> bool:
    large = num_documents > EXACT_DOCUMENTS and num_queries * num_documents > EXACT_PAIRS
    return large and torch.device(device).type == "cpu"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise LongspanError(
            "approximate search needs FAISS, which is not installed",
            where="exact=False (--approximate)",
            remedy="pip install 'longspan[faiss]', or search exactly",
        ) from None
    return faiss


def _samples(num_queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The queries that choose and those that measure; the same ones only where there are not two."""
    rows = np.random.default_rng(seed).permutation(num_queries)[: CHOOSING + MEASURING]
    cut = max(1, len(rows) * CHOOSING // (CHOOSING + MEASURING))
    return np.sort(rows[:cut]), np.sort(rows[cut:]) if len(rows) > 1 else rows


def _kept_index(documents_MD: np.ndarray, seed: int, file: Path | None) -> Any:
    faiss = _faiss()
    if file is None:
        return _build(documents_MD, seed)
    if not file.exists():
        with atomic_path(file) as unfinished:
            faiss.write_index(_build(documents_MD, seed), str(unfinished))
    return faiss.read_index(str(file))


def _build(documents_MD: np.ndarray, seed: int) -> Any:
    faiss = _faiss()
    num_documents, width = documents_MD.shape
    metric, code = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
    lists = num_lists(num_documents)
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(width), width, lists, code, metric)
    index.cp.niter, index.cp.seed, index.cp.min_points_per_centroid = ROUNDS, seed, 1
    sample = np.random.default_rng(seed).permutation(num_documents)[: lists * ROWS_PER_LIST]
    index.train(np.ascontiguousarray(documents_MD[np.sort(sample)], dtype=np.float32))
    for start in range(0, num_documents, BLOCK_ROWS):
        index.add(np.ascontiguousarray(documents_MD[start : start + BLOCK_ROWS], dtype=np.float32))
    return index


def _without(indices_RC: np.ndarray, exclude: Exclude) -> np.ndarray:
    """Put -1 for the excluded documents."""
    # A pair as one number, so that all pairs are looked up at once.
    base = 1 + max(int(indices_RC.max(initial=0)), int(exclude.indices.max(initial=0)))
    owner_P = np.repeat(np.arange(len(indices_RC)), np.diff(exclude.offsets))
    pairs_RC = np.arange(len(indices_RC))[:, None] * base + indices_RC
    return np.where((indices_RC < 0) | np.isin(pairs_RC, owner_P * base + exclude.indices), -1, indices_RC)


def _recall(found: tuple[np.ndarray, np.ndarray], truth: tuple[np.ndarray, np.ndarray]) -> float:
    """The part of the true neighbours that was found; of documents that tie for the last place any will do."""
    real_RK = truth[1] >= 0
    worst_R1 = np.where(real_RK, truth[0], np.inf).min(axis=1, keepdims=True)
    return float(((found[1] >= 0) & (found[0] >= worst_R1)).sum() / max(1, real_RK.sum()))
