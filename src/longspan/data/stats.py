"""What prepared sources hold: lengths, what a cut takes away, duplicates, overlap, and their share of the mix.

Lengths are those of the sequences that the model reads: prefix and special tokens are counted. Everything is read
shard by shard. Repeats are found by a 64-bit hash of every text's ids; where there are more texts than `MAX_HASHES`,
only those are kept whose hash falls into a fixed part of all hashes. All copies of a text are then kept or none, so the
parts that are given are unbiased.

Axes: N rows, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import computed_field

from longspan.config import Config
from longspan.data.dataset import Dataset, find_prepared
from longspan.data.plan import Plan, PlannedSource
from longspan.data.ragged import sequence_hashes, starts_of
from longspan.data.shards import PreparedSource
from longspan.errors import LongspanError
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import Tokenizer

MAX_HASHES = 2**23
"""Hashes kept of the queries of all sources together, of the documents, and of the pairs: 64 MiB each."""

_TOKENS_AT_A_TIME, _ROWS_AT_A_TIME = 2**21, 2**20
_FACTOR = np.uint64(0xD6E8FEB86659FD93)

Progress = Callable[[int], None]
"""Called with the number of rows read since the last call."""


class Cut(Config):
    """What is lost when sequences are cut at `length` tokens."""

    length: int
    num_cut: int
    """Sequences that are longer."""
    num_tokens_lost: int


class SequenceLengths(Config):
    """Lengths of sequences, prefix and special tokens counted: `counts[i]` sequences have `values[i]` tokens."""

    values: tuple[int, ...]
    """Ascending."""
    counts: tuple[int, ...]

    @computed_field
    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(value * count for value, count in zip(self.values, self.counts, strict=True))

    @computed_field
    @property
    def mean(self) -> float:
        """Tokens per sequence."""
        return self.num_tokens / sum(self.counts)

    @computed_field
    @property
    def p50(self) -> int:
        """The median, as `quantile` gives it."""
        return self.quantile(0.5)

    @computed_field
    @property
    def p90(self) -> int:
        """The length that nine in ten do not exceed."""
        return self.quantile(0.9)

    @computed_field
    @property
    def p99(self) -> int:
        """The length that 99 in a hundred do not exceed."""
        return self.quantile(0.99)

    @computed_field
    @property
    def longest(self) -> int:
        """The length of the longest sequence."""
        return self.values[-1]

    def quantile(self, part: float) -> int:
        """The smallest length that at least this part of the sequences do not exceed."""
        reached = np.cumsum(self.counts)
        return self.values[int(np.searchsorted(reached, part * reached[-1], side="left"))]

    def cut(self, length: int) -> Cut:
        """What a cut at `length` takes away."""
        longer = [(v - length, c) for v, c in zip(self.values, self.counts, strict=True) if v > length]
        return Cut(length=length, num_cut=sum(c for _, c in longer), num_tokens_lost=sum(v * c for v, c in longer))


class Repeats(Config):
    """How often texts repeat exactly, among the `num_seen` whose hashes were kept."""

    num_seen: int
    num_repeated: int
    """Texts that have occurred before."""
    most: int
    """Occurrences of the most frequent text; 0 if none was kept."""

    @computed_field
    @property
    def part(self) -> float:
        """Part of the texts that have occurred before."""
        return self.num_repeated / max(1, self.num_seen)


class ColumnStats(Config):
    """One column of a source."""

    column: str
    task: str | None
    """None for running text."""
    lengths: SequenceLengths
    cuts: tuple[Cut, ...]
    """None for running text, which is packed and not cut."""
    repeats: Repeats


class SourceStats(Config):
    """One prepared source."""

    name: str
    kind: str
    num_rows: int
    weight: float
    share: float
    """Part of an epoch: of the batches, or for running text of the tokens."""
    num_batches: int | None
    """Batches in an epoch; 0 if its rows do not fill one; None where no batch size is given, and for running text."""
    columns: tuple[ColumnStats, ...]
    pair_repeats: Repeats | None
    """None for running text."""
    num_negatives: tuple[int, int] | None
    """Fewest and most negatives of a row; None for running text."""


class Overlap(Config):
    """Texts that two sources share."""

    column: str
    first: str
    second: str
    num_shared: int
    """Distinct texts in both, among those whose hashes were kept."""
    part_of_first: float
    """Part of the distinct texts of `first`."""
    part_of_second: float


class EpochTokens(Config):
    """What an epoch over all sources of a kind reads, mined negatives not counted."""

    kind: str
    length: int | None
    """All sequences are cut here; None: nowhere."""
    num_tokens: int


class Stats(Config):
    """What a folder of prepared sources holds."""

    folder: str
    batch_size: int | None
    sampled: int
    """One text in so many was looked at for repeats and overlaps; 1: all."""
    sources: tuple[SourceStats, ...]
    overlaps: tuple[Overlap, ...]
    epoch_tokens: tuple[EpochTokens, ...]


def collect_stats(
    folder: Path,
    *,
    lengths: Sequence[int] = (),
    batch_size: int | None = None,
    max_hashes: int = MAX_HASHES,
    progress: Progress | None = None,
) -> Stats:
    """Read all prepared sources under a folder.

    Args:
        lengths: report what cuts at these lengths take away from queries and documents.
        batch_size: rows of a global batch; gives each source's share of the batches as the plan draws them. Without it
            the share is that of the rows times the weight.
        max_hashes: at most about so many texts of a kind are looked at for repeats (see the module).

    Raises:
        LongspanError: nothing is prepared there; a shard is torn; a length leaves no room for text.
    """
    manifests = find_prepared(folder)
    if not manifests:
        raise LongspanError(
            "no prepared sources", where=folder, remedy="prepare some: longspan prepare SOURCE --out DIR"
        )
    num_rows = sum(manifest.num_rows for manifest in manifests.values())
    sampled = 1 << max(0, -(-num_rows // max_hashes) - 1).bit_length()
    read: list[tuple[SourceStats, dict[str, np.ndarray]]] = []
    for kind in ("pairs", "text"):
        if any(manifest.kind == kind for manifest in manifests.values()):
            dataset = Dataset(folder, kind)
            if kind == "pairs":
                _check_lengths(lengths, dataset)
            found = [_read(source, dataset.tokenizer, lengths, sampled, progress) for source in dataset.sources]
            shared = _with_shares([stats for stats, _ in found], batch_size)
            read += [(stats, hashes) for stats, (_, hashes) in zip(shared, found, strict=True)]
    overlaps = [
        overlap
        for column in ("query", "document", "text")
        for overlap in _overlaps(column, {stats.name: kept[column] for stats, kept in read if column in kept})
    ]
    sources = tuple(stats for stats, _ in read)
    return Stats(
        folder=str(folder),
        batch_size=batch_size,
        sampled=sampled,
        sources=sources,
        overlaps=tuple(overlaps),
        epoch_tokens=tuple(
            EpochTokens(kind=kind, length=length, num_tokens=_epoch_tokens(sources, kind, length, batch_size))
            for kind in dict.fromkeys(source.kind for source in sources)
            for length in (None, *(lengths if kind == "pairs" else ()))
        ),
    )


def _check_lengths(lengths: Sequence[int], dataset: Dataset) -> None:
    tasks = {source.manifest.query_task for source in dataset.sources}
    tasks |= {source.manifest.document_task for source in dataset.sources}
    taken = max(_added_tokens(dataset.tokenizer, task) for task in tasks)
    for length in lengths:
        if length <= taken:
            raise LongspanError(
                f"a cut at {length} leaves no room for text: prefix and special tokens take up to {taken}",
                where="length",
                remedy=f"name lengths of more than {taken}",
            )


def _added_tokens(tokenizer: Tokenizer, task: str | None) -> int:
    """Tokens that a sequence has besides its text: [CLS], prefix, [SEP]."""
    prefix = "" if task is None else PREFIXES[task]
    return len(tokenizer.encode([prefix])[0]) + 2


def _read(
    source: PreparedSource, tokenizer: Tokenizer, cuts: Sequence[int], sampled: int, progress: Progress | None
) -> tuple[SourceStats, dict[str, np.ndarray]]:
    """The statistics of a source but for its share, and the distinct hashes that were kept, by column."""
    manifest = source.manifest
    of_pairs = manifest.kind == "pairs"
    tasks = {"query": manifest.query_task, "document": manifest.document_task} if of_pairs else {"text": None}
    kept: dict[str, list[np.ndarray]] = {name: [] for name in (*tasks, "pair")}
    num_tokens: dict[str, list[np.ndarray]] = {name: [] for name in tasks}
    for shards in zip(*(source.ids(name).by_shard() for name in tasks), strict=True):
        hashes = {}
        for name, (values_T, lengths_N) in zip(tasks, shards, strict=True):
            hashes[name] = _text_hashes(values_T, lengths_N)
            num_tokens[name].append(np.stack(np.unique(lengths_N, return_counts=True)))
        if of_pairs:
            hashes["pair"] = hashes["query"] * _FACTOR ^ hashes["document"]
        for name, hashes_N in hashes.items():
            kept[name].append(hashes_N[hashes_N <= np.uint64((2**64 - 1) // sampled)])
        if progress is not None:
            progress(len(shards[0][1]))
    columns, distinct = [], {}
    for name, task in tasks.items():
        lengths = _merged(num_tokens[name], _added_tokens(tokenizer, task))
        repeats, distinct[name] = _repeats(kept[name])
        cut = tuple(lengths.cut(length) for length in cuts if of_pairs)
        columns.append(ColumnStats(column=name, task=task, lengths=lengths, cuts=cut, repeats=repeats))
    stats = SourceStats(
        name=manifest.name,
        kind=manifest.kind,
        num_rows=manifest.num_rows,
        weight=manifest.weight,
        share=0.0,
        num_batches=None,
        columns=tuple(columns),
        pair_repeats=_repeats(kept["pair"])[0] if of_pairs else None,
        num_negatives=_num_negatives(source) if of_pairs else None,
    )
    return stats, distinct


def _text_hashes(values_T: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """A 64-bit hash of every text of a shard, uint64; a few million tokens are looked at together."""
    starts_N = starts_of(lengths_N)
    edges = np.flatnonzero(np.diff(starts_N // _TOKENS_AT_A_TIME)) + 1
    hashes = [
        sequence_hashes(values_T[starts_N[first] : starts_N[end - 1] + lengths_N[end - 1]], lengths_N[first:end])
        for first, end in itertools.pairwise([0, *edges.tolist(), len(lengths_N)])
    ]
    return np.concatenate(hashes)


def _merged(counted: Iterable[np.ndarray], added: int) -> SequenceLengths:
    """One table of lengths from those of the shards (rows: lengths, counts)."""
    together = np.concatenate(list(counted), axis=1)
    values, where = np.unique(together[0], return_inverse=True)
    counts = np.zeros(len(values), dtype=np.int64)
    np.add.at(counts, where, together[1])
    return SequenceLengths(values=tuple((values + added).tolist()), counts=tuple(counts.tolist()))


def _repeats(kept: list[np.ndarray]) -> tuple[Repeats, np.ndarray]:
    """What repeats among the hashes of all shards, and the distinct ones in order."""
    together = np.concatenate(kept)
    distinct, counts = np.unique(together, return_counts=True)
    repeated = len(together) - len(distinct)
    return Repeats(num_seen=len(together), num_repeated=repeated, most=int(counts.max(initial=0))), distinct


def _num_negatives(source: PreparedSource) -> tuple[int, int]:
    fewest, most = [], []
    for first in range(0, len(source), _ROWS_AT_A_TIME):
        count_N = source.negatives().counts(np.arange(first, min(first + _ROWS_AT_A_TIME, len(source))))
        fewest.append(int(count_N.min()))
        most.append(int(count_N.max()))
    return min(fewest), max(most)


def _with_shares(sources: Sequence[SourceStats], batch_size: int | None) -> list[SourceStats]:
    """The statistics of the sources of one kind with their shares."""
    batches = [None if source.kind == "text" else _num_batches(source, batch_size) for source in sources]
    amounts = [_amount(source, count) for source, count in zip(sources, batches, strict=True)]
    whole = sum(amounts) or 1.0
    return [
        source.model_copy(update={"share": amount / whole, "num_batches": count})
        for source, amount, count in zip(sources, amounts, batches, strict=True)
    ]


def _amount(source: SourceStats, num_batches: int | None) -> float:
    """What the share of a source is measured in."""
    if source.kind == "text":
        return source.columns[0].lengths.num_tokens
    return source.num_rows * source.weight if num_batches is None else num_batches


def _num_batches(source: SourceStats, batch_size: int | None) -> int | None:
    if batch_size is None:
        return None
    if source.num_rows < batch_size:
        return 0  # the plan refuses it; here it is shown
    return Plan([PlannedSource(source.name, source.num_rows, source.weight)], batch_size, seed=0).steps_per_epoch


def _overlaps(column: str, distinct: dict[str, np.ndarray]) -> Iterator[Overlap]:
    """Every two sources that share a text. `distinct` has each source's hashes, each once."""
    names = list(distinct)
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *distinct.values()])
    owners = np.repeat(np.arange(len(names)), [len(own) for own in distinct.values()])
    order = np.argsort(hashes, kind="stable")  # the owners of one text stand together, in the order of the sources
    hashes, owners = hashes[order], owners[order]
    shared = np.zeros((len(names), len(names)), dtype=np.int64)
    for apart in range(1, len(names)):
        same = hashes[apart:] == hashes[:-apart]
        if not same.any():
            break
        np.add.at(shared, (owners[:-apart][same], owners[apart:][same]), 1)
    for first, second in zip(*np.nonzero(shared), strict=True):
        count = int(shared[first, second])
        yield Overlap(
            column=column,
            first=names[first],
            second=names[second],
            num_shared=count,
            part_of_first=count / len(distinct[names[first]]),
            part_of_second=count / len(distinct[names[second]]),
        )


def _epoch_tokens(sources: Sequence[SourceStats], kind: str, longest: int | None, batch_size: int | None) -> int:
    total = 0.0
    for source in sources:
        if source.kind == kind:
            readings = source.weight  # how often an epoch reads a row
            if source.num_batches is not None and batch_size is not None:
                readings = source.num_batches * batch_size / source.num_rows
            total += readings * sum(_kept_tokens(column.lengths, longest) for column in source.columns)
    return round(total)


def _kept_tokens(lengths: SequenceLengths, longest: int | None) -> int:
    return lengths.num_tokens - (0 if longest is None else lengths.cut(longest).num_tokens_lost)
