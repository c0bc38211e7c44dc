"""Rows of a plan to the tensors of a batch: prefixes, cuts, negatives, masks.

Everything random here is drawn from (seed, step, row), so a batch does not depend on which process makes it, nor on how
many there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longspan.data.dataset import Dataset
from longspan.data.packing import PackedRows
from longspan.data.plan import Plan, PlannedBatch, PlannedSource, random_generator
from longspan.data.shards import NegativesColumn
from longspan.errors import LongspanError
from longspan.text.packed import Packed
from longspan.text.tasks import PREFIXES

# The first number of the key of each kind of random draw, so that no two kinds share their numbers.
_MASK_DRAW, _NEGATIVES_DRAW = 1, 2

KEEP, RANDOMIZE = 0.1, 0.1
"""Of the tokens to predict, the parts that stay as they are and that become a random token (BERT; the rest: [MASK])."""


@dataclass(frozen=True)
class PairBatch:
    """One process's share of a contrastive batch.

    Attributes:
        queries: n sequences.
        documents: n * (1 + num_negatives) sequences: the n positives in the order of the queries, then the negatives of
            query 0, those of query 1, ...
        source: name of the batch's one source.
        num_cut: how many of the sequences were cut at the recipe's lengths.
    """

    queries: Packed
    documents: Packed
    num_negatives: int
    source: str
    num_cut: int


@dataclass(frozen=True)
class MaskedBatch:
    """One process's share of a masked-language-modelling batch, row by row.

    Attributes:
        rows: for each row its sequences with masked ids (one sequence, or one per document).
        targets: for each row the positions to predict in the row (int64) and the true ids there (int64).
    """

    rows: list[Packed]
    targets: list[tuple[Tensor, Tensor]]


class PairCollator:
    """Makes `PairBatch`es from prepared pairs.

    Args:
        num_negatives: how many of a row's mined negatives to draw, anew in every step (the paper found random ones
            better than the first ones, section 4.2.5).
        max_query_tokens, max_document_tokens: lengths are cut here, prefix and special tokens included.
        max_document_tokens_of: other cuts for the documents of some sources, by name.

    Raises:
        LongspanError: a cut leaves no room for text, or is given for a source that is not there.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        num_negatives: int,
        max_query_tokens: int,
        max_document_tokens: int,
        max_document_tokens_of: Mapping[str, int] | None = None,
        seed: int,
    ) -> None:
        self._sources = dataset.sources
        self._queries = [source.ids("query") for source in dataset.sources]
        self._documents = [source.ids("document") for source in dataset.sources]
        self._negatives = [source.negatives() for source in dataset.sources]
        self._num_negatives = num_negatives
        self._max_query = max_query_tokens
        self._max_document = _cuts(dataset, max_document_tokens, max_document_tokens_of or {})
        self._seed = seed
        tokenizer = dataset.tokenizer
        self._cls, self._sep = tokenizer.cls_id, tokenizer.sep_id
        self._prefix_ids = dict(zip(PREFIXES, tokenizer.encode(list(PREFIXES.values())), strict=True))
        for source, max_document in zip(dataset.sources, self._max_document, strict=True):
            self._check_room(source.manifest.query_task, max_query_tokens, "max_query_tokens")
            self._check_room(source.manifest.document_task, max_document, "max_document_tokens")

    def _check_room(self, task: str | None, longest: int, key: str) -> None:
        assert task is not None
        taken = len(self._prefix_ids[task]) + 2
        if longest <= taken:
            raise LongspanError(
                f"{key} {longest} leaves no room for text: the prefix of {task} and the special tokens take {taken}",
                where=f"objective.{key}",
                remedy=f"set it to more than {taken}",
            )

    def __call__(self, step: int, planned: PlannedBatch, part: slice) -> PairBatch:
        """The share `part` of a planned batch."""
        manifest = self._sources[planned.source].manifest
        rows = planned.rows[part]
        assert manifest.query_task is not None
        assert manifest.document_task is not None
        query_prefix, document_prefix = self._prefix_ids[manifest.query_task], self._prefix_ids[manifest.document_task]
        queries, documents = self._queries[planned.source], self._documents[planned.source]
        negatives = self._negatives[planned.source]
        query_ids = [self._sequence(query_prefix, queries[row], self._max_query) for row in rows]
        texts = [documents[row] for row in rows]
        for row in rows:
            texts += self._draw(negatives, int(row), step, manifest.name)
        max_document = self._max_document[planned.source]
        document_ids = [self._sequence(document_prefix, text, max_document) for text in texts]
        cut = sum(len(queries[row]) + len(query_prefix) + 2 > self._max_query for row in rows)
        cut += sum(len(text) + len(document_prefix) + 2 > max_document for text in texts)
        return PairBatch(Packed.of(query_ids), Packed.of(document_ids), self._num_negatives, manifest.name, int(cut))

    def _sequence(self, prefix: np.ndarray, ids: np.ndarray, longest: int) -> np.ndarray:
        kept = ids[: longest - len(prefix) - 2]
        sequence = np.empty(len(prefix) + len(kept) + 2, dtype=np.int32)
        sequence[0], sequence[-1] = self._cls, self._sep
        sequence[1 : 1 + len(prefix)] = prefix
        sequence[1 + len(prefix) : -1] = kept
        return sequence

    def _draw(self, negatives: NegativesColumn, row: int, step: int, source: str) -> list[np.ndarray]:
        if not self._num_negatives:
            return []
        available = negatives.count(row)
        if available < self._num_negatives:
            raise LongspanError(
                f"row {row} of source {source!r} has {available} negatives, the recipe draws {self._num_negatives}",
                where=f"source {source}, row {row}",
                remedy="mine more negatives (longspan curate mine), or lower num_negatives",
            )
        generator = random_generator(_NEGATIVES_DRAW, self._seed, step, row)
        return negatives.pick(row, generator.permutation(available)[: self._num_negatives].tolist())


def _cuts(dataset: Dataset, usual: int, special: Mapping[str, int]) -> list[int]:
    names = [source.manifest.name for source in dataset.sources]
    for name in special:
        if name not in names:
            raise LongspanError(
                f"there is no source {name!r} whose documents could be cut",
                where="objective.max_document_tokens_of",
                remedy=f"the sources are: {', '.join(names)}",
            )
    return [special.get(name, usual) for name in names]


class MaskedCollator:
    """Makes `MaskedBatch`es from packed rows: masks `mask_rate` of the tokens (30 % in the paper, section 4.1.2).

    Of the chosen tokens 80 % become [MASK], 10 % a random token, 10 % stay (Devlin et al., 2019). [CLS] and [SEP] are
    never chosen.

    Args:
        within_documents: keep attention inside each document; by default it crosses, as in the paper.
    """

    def __init__(
        self, dataset: Dataset, rows: PackedRows, *, mask_rate: float, within_documents: bool, seed: int
    ) -> None:
        self._tokenizer = dataset.tokenizer
        self._rows = rows
        self._mask_rate = mask_rate
        self._within_documents = within_documents
        self._seed = seed

    def __call__(self, step: int, planned: PlannedBatch, part: slice) -> MaskedBatch:
        """The share `part` of a planned batch."""
        rows, targets = [], []
        for number in planned.rows[part]:
            ids, lengths = self._rows.row(int(number))
            masked, positions = self._mask(ids, random_generator(_MASK_DRAW, self._seed, step, int(number)))
            ends = np.cumsum(lengths)[:-1] if self._within_documents else []
            rows.append(Packed.of(np.split(masked, ends)))
            targets.append((torch.from_numpy(positions), torch.from_numpy(ids[positions].astype(np.int64))))
        return MaskedBatch(rows, targets)

    def _mask(self, ids: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        candidates = np.flatnonzero(~self._tokenizer.is_special(ids))
        count = min(len(candidates), max(1, round(self._mask_rate * len(candidates))))
        positions = np.sort(generator.permutation(candidates)[:count])
        fate = generator.random(count)
        masked = ids.copy()
        masked[positions[fate >= KEEP + RANDOMIZE]] = self._tokenizer.mask_id
        random = positions[(fate >= KEEP) & (fate < KEEP + RANDOMIZE)]
        masked[random] = generator.integers(0, self._tokenizer.vocab_size, len(random))
        return masked, positions


def pair_plan(dataset: Dataset, batch_size: int, seed: int) -> Plan:
    """The plan over the sources of pairs: one source per batch."""
    manifests = [source.manifest for source in dataset.sources]
    sources = [PlannedSource(manifest.name, manifest.num_rows, manifest.weight) for manifest in manifests]
    return Plan(sources, batch_size, seed)


def text_plan(rows: PackedRows, batch_size: int, seed: int) -> Plan:
    """The plan over packed rows, which have one common stream."""
    return Plan([PlannedSource("text", rows.num_rows)], batch_size, seed)
