"""Rows of a plan to the tensors of a batch: prefixes, cuts, negatives, masks.

Everything random here is drawn from (seed, step, row), so a batch does not depend on which process makes it, nor on how
many there are.

Axes: N rows of a batch, H negatives of each, S sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from longspan.data.batch import MaskedBatch, PairBatch
from longspan.data.dataset import Dataset
from longspan.data.packing import PackedRows
from longspan.data.plan import Plan, PlannedBatch, PlannedSource, keyed_hashes, random_generator
from longspan.data.ragged import starts_of
from longspan.data.shards import Found, IdColumn, NegativesColumn
from longspan.errors import LongspanError
from longspan.text.packed import Packed
from longspan.text.tasks import PREFIXES

TEXT_WINDOW = 2**16
"""Packed rows that are shuffled together (see `Plan`): at 2,048 tokens a row these are a shard or two."""

# The first number of the key of each kind of random draw, so that no two kinds share their numbers.
_MASK_DRAW, _NEGATIVES_DRAW = 1, 2

KEEP, RANDOMIZE = 0.1, 0.1
"""Of the tokens to predict, the parts that stay as they are and that become a random token (BERT; the rest: [MASK])."""


class PairCollator:
    """Makes `PairBatch`es from prepared pairs.

    Args:
        num_negatives: how many of a row's mined negatives to draw, anew in every step (the paper found random ones
            better than the first ones, section 4.2.5).
        max_query_tokens, max_document_tokens: lengths are cut here, prefix and special tokens included.
        max_document_tokens_of: other cuts for the documents of some sources, by name.
        prefixes: task -> text put before each of its texts; empty for a model that reads plain text.
        scores: whether batches have the scores of a teacher.

    Raises:
        LongspanError: a cut leaves no room for text, or is given for a source that is not there; a source's task has no
            prefix, and others have; a source has no scores, and they are asked for.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        num_negatives: int,
        max_query_tokens: int,
        max_document_tokens: int,
        max_document_tokens_of: Mapping[str, int] | None = None,
        prefixes: Mapping[str, str] = PREFIXES,
        scores: bool = False,
        seed: int,
    ) -> None:
        self._sources = dataset.sources
        self._queries = [source.ids("query") for source in dataset.sources]
        self._documents = [source.ids("document") for source in dataset.sources]
        self._negatives = [source.negatives() for source in dataset.sources]
        self._scores = [source.scores() for source in dataset.sources] if scores else None
        self._num_negatives = num_negatives
        self._max_query = max_query_tokens
        self._max_document = _cuts(dataset, max_document_tokens, max_document_tokens_of or {})
        self._seed = seed
        tokenizer = dataset.tokenizer
        self._cls, self._sep = tokenizer.cls_id, tokenizer.sep_id
        prefixes = prefixes or dict.fromkeys(PREFIXES, "")
        self._prefix_ids = dict(zip(prefixes, tokenizer.encode(list(prefixes.values())), strict=True))
        for source, max_document in zip(dataset.sources, self._max_document, strict=True):
            self._check_room(source.manifest.query_task, max_query_tokens, "max_query_tokens")
            self._check_room(source.manifest.document_task, max_document, "max_document_tokens")

    def _check_room(self, task: str | None, longest: int, key: str) -> None:
        assert task is not None
        if task not in self._prefix_ids:
            raise LongspanError(
                f"the task {task} has no prefix, and others have",
                where="prefixes",
                remedy=f"add it, or give the source one of the tasks {', '.join(self._prefix_ids)}",
            )
        taken = len(self._prefix_ids[task]) + 2
        if longest <= taken:
            raise LongspanError(
                f"{key} {longest} leaves no room for text: the prefix of {task} and the special tokens take {taken}",
                where=f"objective.{key}",
                remedy=f"set it to more than {taken}",
            )

    def __call__(self, step: int, planned: PlannedBatch, part: slice) -> PairBatch:
        """The share `part` of a planned batch."""
        number, rows_N = planned.source, planned.rows[part]
        manifest = self._sources[number].manifest
        assert manifest.query_task is not None
        assert manifest.document_task is not None
        column = self._queries[number]
        queries, queries_cut = self._pack(manifest.query_task, [(column, column.find(rows_N))], self._max_query)
        column = self._documents[number]
        texts: list[tuple[IdColumn | NegativesColumn, Found]] = [(column, column.find(rows_N))]
        drawn_NH = np.empty((len(rows_N), 0), dtype=np.int64)
        if self._num_negatives:
            drawn_NH = self._drawn_negatives(number, rows_N, step)
            texts.append((self._negatives[number], self._negatives[number].find(rows_N, drawn_NH)))
        documents, documents_cut = self._pack(manifest.document_task, texts, self._max_document[number])
        scores = None if self._scores is None else torch.from_numpy(self._scores[number].take(rows_N, drawn_NH))
        num_cut = queries_cut + documents_cut
        batch = PairBatch(queries, documents, self._num_negatives, manifest.name, num_cut, scores)
        _ = batch.query_hashes, batch.document_hashes  # made here, in the loader's thread
        return batch

    def _pack(
        self, task: str, texts: Sequence[tuple[IdColumn | NegativesColumn, Found]], longest: int
    ) -> tuple[Packed, int]:
        """[CLS] prefix text [SEP] of all texts, each cut so that it has at most `longest` tokens; how many were cut."""
        prefix = self._prefix_ids[task]
        added = len(prefix) + 2
        whole_S = np.concatenate([found.length_N for _, found in texts])
        kept_S = np.minimum(whole_S, longest - added)
        starts_S = starts_of(kept_S + added)
        ids_T = np.empty(int(kept_S.sum()) + added * len(kept_S), dtype=np.int64)
        ids_T[starts_S] = self._cls
        ids_T[starts_S[:, None] + np.arange(1, 1 + len(prefix))] = prefix
        ids_T[starts_S + kept_S + (added - 1)] = self._sep
        first = 0
        for column, found in texts:
            these = slice(first, first + len(found.length_N))
            column.copy(found, kept_S[these], ids_T, starts_S[these] + (1 + len(prefix)))
            first = these.stop
        return Packed.of_flat(ids_T, kept_S + added), int((whole_S > kept_S).sum())

    def _drawn_negatives(self, source: int, rows_N: np.ndarray, step: int) -> np.ndarray:
        """The numbers of H different negatives of every row (N, H), drawn anew in every step."""
        negatives = self._negatives[source]
        count_N = negatives.counts(rows_N)
        if (count_N < self._num_negatives).any():
            row = int(np.argmax(count_N < self._num_negatives))
            name = self._sources[source].manifest.name
            raise LongspanError(
                f"row {rows_N[row]} of source {name!r} has {count_N[row]} negatives, the recipe draws "
                f"{self._num_negatives}",
                where=f"source {name}, row {rows_N[row]}",
                remedy="mine more negatives (longspan curate mine), or lower num_negatives",
            )
        # A random key for each negative: the H smallest of a row are a random choice, in random order.
        number_M = np.arange(count_N.max())
        key_NM = keyed_hashes(rows_N[:, None], (_NEGATIVES_DRAW, self._seed, step), number_M[None, :])
        key_NM[number_M[None, :] >= count_N[:, None]] = np.iinfo(np.uint64).max
        return np.argsort(key_NM, axis=1)[:, : self._num_negatives]


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


def pair_plan(dataset: Dataset, batch_size: int, seed: int, *, by_cluster: bool = False) -> Plan:
    """The plan over the sources of pairs: one source per batch.

    Args:
        by_cluster: of a source with clusters, one of them per batch.

    Raises:
        LongspanError: a source or a cluster cannot fill a batch; no source has clusters, and they are asked for.
    """
    manifests = [source.manifest for source in dataset.sources]
    if by_cluster and not any(manifest.clusters for manifest in manifests):
        raise LongspanError(
            "no source has clusters that batches could come from",
            where="objective.batches_of",
            remedy="cluster the pairs (longspan curate cluster) and prepare the result with --cluster cluster",
        )
    sources = [
        PlannedSource(
            manifest.name,
            manifest.num_rows,
            manifest.weight,
            clusters=manifest.clusters if by_cluster else (),
            is_sorted=bool(manifest.clusters),
        )
        for manifest in manifests
    ]
    return Plan(sources, batch_size, seed)


def text_plan(rows: PackedRows, batch_size: int, seed: int) -> Plan:
    """The plan over packed rows, which have one common stream."""
    return Plan([PlannedSource("text", rows.num_rows)], batch_size, seed, window=TEXT_WINDOW)
