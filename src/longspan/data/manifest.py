"""The manifest of a prepared source: what is in it, what it was made of, and the hashes that vouch for both.

It is written last: a folder without it is unfinished.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

import numpy as np

from longspan.config import Config
from longspan.errors import LongspanError
from longspan.files import read_json, sha256_json
from longspan.text.tasks import Task

MANIFEST = "manifest.json"
FORMAT = 2
LENGTH_EDGES = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768),
    *(1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384),
)
"""Upper edges of the bins of a histogram of lengths, in tokens; beyond the last is one more bin."""


class Shard(Config):
    """One Arrow file."""

    file: str
    num_rows: int
    num_bytes: int
    sha256: str


class InputFile(Config):
    """One raw file that went in."""

    file: str
    sha256: str
    """Of the content; of a remote file, a fingerprint of the version that its filesystem tells."""
    num_rows: int
    """Rows kept."""
    num_skipped: int


class Lengths(Config):
    """How long the texts of a column are, in tokens, without prefixes and special tokens."""

    num_texts: int
    num_tokens: int
    longest: int
    histogram: tuple[int, ...]
    """Texts by length: bin b counts those of at most LENGTH_EDGES[b] tokens that are in no earlier bin."""

    @classmethod
    def of(cls, lengths: np.ndarray) -> Self:
        """Count `lengths` (whole numbers, one for each text)."""
        bins = np.searchsorted(LENGTH_EDGES, lengths)
        return cls(
            num_texts=len(lengths),
            num_tokens=int(lengths.sum()),
            longest=int(lengths.max(initial=0)),
            histogram=tuple(np.bincount(bins, minlength=len(LENGTH_EDGES) + 1).tolist()),
        )

    @classmethod
    def total(cls, parts: Iterable[Lengths]) -> Self:
        """The lengths of several parts of a column together."""
        parts = list(parts)
        return cls(
            num_texts=sum(part.num_texts for part in parts),
            num_tokens=sum(part.num_tokens for part in parts),
            longest=max((part.longest for part in parts), default=0),
            histogram=tuple(
                sum(counts)
                for counts in zip(*(part.histogram for part in parts), [0] * (len(LENGTH_EDGES) + 1), strict=True)
            ),
        )


class Manifest(Config):
    """What a prepared source holds."""

    format: int = FORMAT
    kind: Literal["pairs", "text"]
    name: str
    query_task: Task | None = None
    document_task: Task | None = None
    weight: float = 1.0
    origin: str | None = None
    revision: str | None = None
    licence: str | None = None
    num_rows: int
    scores: bool = False
    """Whether the shards have a column of a teacher's scores."""
    clusters: tuple[int, ...] = ()
    """Rows of each cluster, where the rows are sorted by clusters; empty: they are in random order."""
    seed: int
    """Of the shuffle that put the rows in their order."""
    columns: dict[str, Lengths]
    length_edges: tuple[int, ...] = LENGTH_EDGES
    tokenizer: str
    """Fingerprint of the tokenizer."""
    request: str
    """Fingerprint of what was asked for: source, input files, tokenizer, seed."""
    inputs: tuple[InputFile, ...]
    shards: tuple[Shard, ...]

    @property
    def num_tokens(self) -> dict[str, int]:
        """Column -> tokens, without prefixes and special tokens."""
        return {name: lengths.num_tokens for name, lengths in self.columns.items()}

    @property
    def fingerprint(self) -> str:
        """Changes whenever a row changes; the place of the raw files does not matter."""
        content = [self.kind, self.name, self.query_task, self.document_task, self.weight, self.tokenizer]
        return sha256_json([*content, [[shard.sha256, shard.num_rows] for shard in self.shards]])


def read_manifest(folder: Path) -> Manifest:
    """Read a prepared source's manifest.

    Raises:
        LongspanError: it is missing (the source is not, or not completely, prepared) or of another format.
    """
    path = folder / MANIFEST
    remedy = prepare_again(folder) if path.is_file() else "prepare the source first: longspan prepare SOURCE --out DIR"
    values = read_json(path, remedy=remedy)
    if isinstance(values, dict) and values.get("format") != FORMAT:
        raise LongspanError(
            f"the prepared data has format {values.get('format')}, this version of longspan reads {FORMAT}",
            where=path,
            remedy=prepare_again(folder),
        )
    return Manifest.parse(values, where=path)


def prepare_again(folder: Path) -> str:
    """The remedy for a prepared source that cannot be used."""
    return f"delete {folder} and prepare the source again"
