"""One process's share of a batch, as objectives read it: pairs, or rows of masked text.

By itself, because objectives need the form of a batch and nothing of how it is read from disk.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longspan.data.ragged import sequence_hashes
from longspan.text.packed import Packed


@dataclass(frozen=True)
class PairBatch:
    """One process's share of a contrastive batch.

    Attributes:
        queries: n sequences.
        documents: n * (1 + num_negatives) sequences: the n positives in the order of the queries, then the negatives of
            query 0, those of query 1, ...
        source: name of the batch's one source.
        num_cut: how many of the sequences were cut at the recipe's lengths.
        teacher_scores: float32 (n, 1 + num_negatives): a teacher's scores of each query with its document and with its
            negatives; None where nothing is distilled.
    """

    queries: Packed
    documents: Packed
    num_negatives: int
    source: str
    num_cut: int
    teacher_scores: Tensor | None = None

    @functools.cached_property
    def query_hashes(self) -> Tensor:
        """int64, one for each query: equal for queries that are the same tokens to the model."""
        return _hashes(self.queries)

    @functools.cached_property
    def document_hashes(self) -> Tensor:
        """int64, one for each document: equal for documents that are the same tokens to the model."""
        return _hashes(self.documents)


def _hashes(packed: Packed) -> Tensor:
    hashes_S = sequence_hashes(packed.ids_T.numpy(), np.array(packed.lengths, dtype=np.int64))
    return torch.from_numpy(hashes_S.view(np.int64))


@dataclass(frozen=True)
class MaskedBatch:
    """One process's share of a masked-language-modelling batch, row by row.

    Attributes:
        rows: for each row its sequences with masked ids (one sequence, or one per document).
        targets: for each row the positions to predict in the row (int64) and the true ids there (int64).
    """

    rows: list[Packed]
    targets: list[tuple[Tensor, Tensor]]
