"""Rows of prepared sources as the model reads them: with prefixes, special tokens, cuts, drawn negatives and masks.

The rows go through the collators of training and are decoded from their batches, so what is shown cannot differ from
what is trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longspan.data.collate import MaskedCollator, PairCollator
from longspan.data.dataset import Dataset
from longspan.data.packing import PackedRows
from longspan.data.plan import PlannedBatch, random_generator
from longspan.text.packed import Packed
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import Tokenizer

_WHOLE = 2**40  # a cut that no text reaches
_ALL = slice(None)


@dataclass(frozen=True)
class SeenText:
    """One sequence as the model reads it.

    Attributes:
        role: "query", "document", "negative 1", ... or "text".
        pieces: the sequence's tokens, decoded: all but the closing [SEP], then the rest. A cut stands between the two.
        num_tokens: its length, prefix and special tokens counted.
        num_lost: tokens of the text that the cut took away.
    """

    role: str
    pieces: tuple[str, str]
    num_tokens: int
    num_lost: int


@dataclass(frozen=True)
class SeenRow:
    """One row of a batch.

    Attributes:
        source: name of the source; None for packed text, where a row crosses documents and sources.
        row: its number in the prepared source, or among the packed rows.
        tasks: those of query and document; empty for packed text.
        texts: what the model reads of it.
        num_targets: tokens to predict; None for pairs.
    """

    source: str | None
    row: int
    tasks: tuple[str, ...]
    texts: tuple[SeenText, ...]
    num_targets: int | None = None


def sample_pairs(
    folder: Path,
    *,
    source: str | None = None,
    num_rows: int = 3,
    seed: int = 0,
    max_query_tokens: int = 2048,
    max_document_tokens: int = 2048,
    num_negatives: int = 7,
    prefixes: Mapping[str, str] = PREFIXES,
) -> Iterator[SeenRow]:
    """Rows of every source of pairs, drawn at random.

    Args:
        source: only this one.
        num_rows: rows of each source.
        seed: of the draw of rows and of negatives.
        max_query_tokens, max_document_tokens: where the sequences are cut (the paper trains at 2048, section 4.2.2).
        num_negatives: negatives to draw where the rows have so many, else as many as they all have.
        prefixes: task -> text put before each of its texts; empty for a model that reads plain text.

    Raises:
        LongspanError: nothing of the kind is prepared there, a shard is torn, or a cut leaves no room for text.
    """
    dataset = Dataset(folder, "pairs", only=() if source is None else (source,))
    for number, prepared in enumerate(dataset.sources):
        rows = _draw(len(prepared), num_rows, seed)
        available = int(prepared.negatives().counts(rows).min())
        cut, whole = (
            PairCollator(
                dataset,
                num_negatives=min(num_negatives, available),
                max_query_tokens=query,
                max_document_tokens=document,
                prefixes=prefixes,
                seed=seed,
            )(0, PlannedBatch(number, rows), _ALL)
            for query, document in ((max_query_tokens, max_document_tokens), (_WHOLE, _WHOLE))
        )
        queries = _seen(cut.queries, whole.queries, dataset.tokenizer)
        documents = _seen(cut.documents, whole.documents, dataset.tokenizer)
        positives, negatives = documents[: len(rows)], documents[len(rows) :]
        manifest = prepared.manifest
        tasks = (str(manifest.query_task), str(manifest.document_task))
        for place, row in enumerate(rows.tolist()):
            own = negatives[place * cut.num_negatives : (place + 1) * cut.num_negatives]
            roles = ["query", "document", *(f"negative {n + 1}" for n in range(len(own)))]
            texts = zip(roles, [queries[place], positives[place], *own], strict=True)
            yield SeenRow(manifest.name, row, tasks, tuple(SeenText(role, *rest) for role, rest in texts))


def sample_text(
    folder: Path,
    *,
    source: str | None = None,
    num_rows: int = 3,
    seed: int = 0,
    row_length: int = 2048,
    mask_rate: float = 0.3,
) -> Iterator[SeenRow]:
    """Packed and masked rows of running text, drawn at random.

    Args:
        source: only the documents of this one.
        seed: of the draw of rows and of the masks.
        row_length: tokens of a row (paper, section 4.1.1).
        mask_rate: part of the tokens to predict (paper, section 4.1.2).

    Raises:
        LongspanError: nothing of the kind is prepared there, a shard is torn, or the text does not fill a row.
    """
    dataset = Dataset(folder, "text", only=() if source is None else (source,))
    tokenizer = dataset.tokenizer
    columns = [prepared.ids("text") for prepared in dataset.sources]
    packed = PackedRows(columns, row_length, tokenizer.cls_id, tokenizer.sep_id)
    rows = _draw(packed.num_rows, num_rows, seed)
    collator = MaskedCollator(dataset, packed, mask_rate=mask_rate, within_documents=False, seed=seed)
    batch = collator(0, PlannedBatch(0, rows), _ALL)
    for row, sequence, (positions, _) in zip(rows.tolist(), batch.rows, batch.targets, strict=True):
        text = SeenText("text", (tokenizer.decode(sequence.ids_T.numpy()), ""), sequence.num_tokens, 0)
        yield SeenRow(None, row, (), (text,), len(positions))


def _draw(num_rows: int, wanted: int, seed: int) -> np.ndarray:
    """Different row numbers, ascending, int64."""
    drawn = random_generator(seed, num_rows).choice(num_rows, min(wanted, num_rows), replace=False, shuffle=False)
    return np.sort(drawn)


def _seen(cut: Packed, whole: Packed, tokenizer: Tokenizer) -> list[tuple[tuple[str, str], int, int]]:
    """For each sequence: its pieces, its length, and how many tokens the cut took away."""
    ids_T = cut.ids_T.numpy()
    bounds = cut.cu_seqlens.tolist()
    return [
        (
            (tokenizer.decode(ids_T[start : end - 1]), tokenizer.decode(ids_T[end - 1 : end])),
            end - start,
            uncut - end + start,
        )
        for (start, end), uncut in zip(itertools.pairwise(bounds), whole.lengths, strict=True)
    ]
