"""Raw text to shards: read, tokenise, write, and vouch for it in a manifest.

Running it again on the same input does nothing; a killed run leaves no manifest, and the next one starts that source
over.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from longspan.data.readers import OnError, Row, find_files, read_rows, stop_on_error
from longspan.data.shards import (
    FORMAT,
    MANIFEST,
    PAIR_SCHEMA,
    TEXT_SCHEMA,
    InputFile,
    Manifest,
    Shard,
    id_lists,
    nested_id_lists,
    read_manifest,
    write_shard,
)
from longspan.data.source import PairSource, Source, TextSource, check_names
from longspan.errors import LongspanError
from longspan.files import UNFINISHED, sha256_file, sha256_json, write_json
from longspan.text.tokenizer import Tokenizer

ROWS_PER_SHARD = 65_536
TOKENS_PER_SHARD = 2**27
"""A shard of long documents ends earlier: what bounds memory (512 MiB of ids)."""
ROWS_PER_BATCH = 2_048
"""Rows tokenised at a time, on all cores."""

TOKENIZER_FILE = "tokenizer.json"
Progress = Callable[[int], None]
"""Called with the number of rows prepared since the last call."""


def prepare(
    sources: Sequence[Source],
    out: Path,
    tokenizer: Tokenizer,
    *,
    on_error: OnError = stop_on_error,
    progress: Progress | None = None,
) -> list[Manifest]:
    """Prepare sources into `out/<name>/`, with the tokenizer beside them.

    Args:
        on_error: what to do with a broken row, an empty text or a missing column (default: stop).

    Raises:
        LongspanError: a file is missing or broken; `out` holds sources of another tokenizer; the disk is full.
    """
    check_names(tuple(sources), where=out)
    files = [find_files(source.files) for source in sources]
    for source in sources:
        _refuse_strangers(out / source.name)
    _place_tokenizer(out, tokenizer)
    return [
        _prepare_source(source, named, out / source.name, tokenizer, on_error, progress)
        for source, named in zip(sources, files, strict=True)
    ]


class Texts(NamedTuple):
    """One row's texts by column (`query`, `document` and `negatives`, or `text`), and where the row stands."""

    file: str
    number: int
    columns: dict[str, list[str]]


def read_texts(source: Source, file: str, on_error: OnError = stop_on_error) -> Iterator[Texts]:
    """The rows of one of a source's files, each with all the texts that the source asks for.

    Raises:
        LongspanError: the file is missing or torn, or whatever `on_error` raises for a broken row, a missing column or
            an empty text.
    """
    for number, row in read_rows(file, on_error):
        try:
            columns = _columns(row, source, f"{file}:{number}")
        except LongspanError as error:
            on_error(error)
            continue
        yield Texts(file, number, columns)


def _place_tokenizer(out: Path, tokenizer: Tokenizer) -> None:
    path = out / TOKENIZER_FILE
    if not path.is_file():
        tokenizer.save(path)
    elif Tokenizer.load(path).fingerprint != tokenizer.fingerprint:
        raise LongspanError(
            "this folder has another tokenizer already, and everything in it shares one",
            where=path,
            remedy="prepare into another folder, or with the tokenizer of this one, or delete this one",
        )


def _prepare_source(
    source: Source,
    files: list[str],
    folder: Path,
    tokenizer: Tokenizer,
    on_error: OnError,
    progress: Progress | None,
) -> Manifest:
    hashes = [_hash(file) for file in files]
    settings = source.model_dump(mode="json", exclude={"files"})
    # Not how rows are cut into shards: what an earlier version has prepared stays as good as it is.
    request = sha256_json([FORMAT, settings, hashes, tokenizer.fingerprint])
    if (folder / MANIFEST).is_file():
        manifest = _vouched(folder, request, source.name)
        if progress is not None:
            progress(manifest.num_rows)
        return manifest
    if folder.exists():
        shutil.rmtree(folder)  # what a killed run left
    tally = _Tally(on_error)
    texts = (row for file in files for row in read_texts(source, file, tally.of(file)))
    encoded = _encoded(texts, source, tokenizer, tally, progress)
    shards, num_tokens = _write(encoded, folder, PAIR_SCHEMA if isinstance(source, PairSource) else TEXT_SCHEMA)
    if not shards:
        raise LongspanError(
            f"source {source.name!r} has no rows", where=", ".join(files), remedy="check its files and columns"
        )
    manifest = Manifest(
        kind=source.kind,
        name=source.name,
        query_task=source.query_task if isinstance(source, PairSource) else None,
        document_task=source.document_task if isinstance(source, PairSource) else None,
        weight=source.weight if isinstance(source, PairSource) else 1.0,
        num_rows=sum(shard.num_rows for shard in shards),
        num_tokens=num_tokens,
        tokenizer=tokenizer.fingerprint,
        request=request,
        inputs=tuple(
            InputFile(file=file, sha256=sha256, num_rows=tally.kept[file], num_skipped=tally.skipped[file])
            for file, sha256 in zip(files, hashes, strict=True)
        ),
        shards=tuple(shards),
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def _vouched(folder: Path, request: str, name: str) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.request != request:
        raise LongspanError(
            f"source {name!r} was prepared from other files or settings",
            where=folder,
            remedy="prepare into another folder, or delete this one",
        )
    return manifest


def _refuse_strangers(folder: Path) -> None:
    """Refuse a folder that holds anything but a source of ours: an unfinished one is deleted."""
    ours = re.compile(rf"{re.escape(MANIFEST)}|shard-\d{{5}}\.arrow|{re.escape(UNFINISHED)}.*")
    if folder.is_dir():
        strangers = sorted(path for path in folder.iterdir() if not ours.fullmatch(path.name))
    else:
        strangers = [folder] if folder.exists() else []
    if strangers:
        raise LongspanError(
            f"{folder.name} is there already and is not a prepared source",
            where=strangers[0],
            remedy="choose another --out or another name for the source",
        )


class _Tally:
    """Passes broken rows on, and counts by file the rows that were skipped and kept."""

    def __init__(self, on_error: OnError) -> None:
        self._on_error = on_error
        self.skipped: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()

    def of(self, file: str) -> OnError:
        def skip(error: LongspanError) -> None:
            self._on_error(error)
            self.skipped[file] += 1

        return skip


_Encoded = dict[str, list[np.ndarray]]
"""A row's token ids by column."""


def _encoded(
    texts: Iterator[Texts], source: Source, tokenizer: Tokenizer, tally: _Tally, progress: Progress | None
) -> Iterator[_Encoded]:
    while batch := list(itertools.islice(texts, ROWS_PER_BATCH)):
        flat = iter(tokenizer.encode([text for row in batch for column in row.columns.values() for text in column]))
        for row in batch:
            ids = {name: list(itertools.islice(flat, len(column))) for name, column in row.columns.items()}
            empty = [name for name, lists in ids.items() if not all(map(len, lists))]
            if empty:
                tally.of(row.file)(_no_text(getattr(source, empty[0]), "holds no word", f"{row.file}:{row.number}"))
                continue
            tally.kept[row.file] += 1
            yield ids
        if progress is not None:
            progress(len(batch))


def _write(rows: Iterator[_Encoded], folder: Path, schema: pa.Schema) -> tuple[list[Shard], dict[str, int]]:
    """Write the shards; also counts the tokens of every column."""
    shards: list[Shard] = []
    num_tokens = dict.fromkeys(schema.names, 0)
    for part in _shards(rows):
        columns = {name: [row[name] for row in part] for name in schema.names}
        arrays = [_array(name, lists) for name, lists in columns.items()]
        shards.append(write_shard(folder / f"shard-{len(shards):05d}.arrow", arrays, schema))
        for name, lists in columns.items():
            num_tokens[name] += sum(len(ids) for row in lists for ids in row)
    return shards, num_tokens


def _shards(rows: Iterator[_Encoded]) -> Iterator[list[_Encoded]]:
    shard: list[_Encoded] = []
    num_tokens = 0
    for row in rows:
        shard.append(row)
        num_tokens += sum(len(ids) for lists in row.values() for ids in lists)
        if len(shard) >= ROWS_PER_SHARD or num_tokens >= TOKENS_PER_SHARD:
            yield shard
            shard, num_tokens = [], 0
    if shard:
        yield shard


def _array(column: str, rows: list[list[np.ndarray]]) -> pa.Array:
    return nested_id_lists(rows) if column == "negatives" else id_lists([ids for [ids] in rows])


def _columns(row: Row, source: Source, where: str) -> dict[str, list[str]]:
    if isinstance(source, TextSource):
        return {"text": [_text(row, source.text, where)]}
    return {
        "query": [_text(row, source.query, where)],
        "document": [_text(row, source.document, where)],
        "negatives": [] if source.negatives is None else _texts(row, source.negatives, where),
    }


def _text(row: Row, column: str, where: str) -> str:
    if column not in row:
        raise LongspanError(
            f"the row has no column {column!r}",
            where=where,
            remedy=f"its columns are: {', '.join(map(str, row))}; name the right one in the source",
        )
    return _checked(row[column], column, where)


def _texts(row: Row, column: str, where: str) -> list[str]:
    texts = row.get(column)
    if not isinstance(texts, list):
        raise LongspanError(
            f"column {column!r} does not list texts",
            where=where,
            remedy=f'write it as a list: "{column}": ["...", "..."]',
        )
    return [_checked(text, column, where) for text in texts]


def _checked(text: Any, column: str, where: str) -> str:
    if text is not None and not isinstance(text, str):
        raise _no_text(column, "is not a text", where)
    if text is None or not text.strip():
        raise _no_text(column, "is empty", where)
    return text


def _no_text(column: str, what: str, where: str) -> LongspanError:
    remedy = "correct the row, or pass --on-error skip to leave such rows out"
    return LongspanError(f"{column!r} {what}", where=where, remedy=remedy)


def _hash(file: str) -> str:
    if "://" in file:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(file)
        return str(filesystem.checksum(path))
    return sha256_file(file)
