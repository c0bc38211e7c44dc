"""Raw text to shards: read, tokenise, write, and vouch for it in a manifest.

Running it again on the same input does nothing; a killed run leaves no manifest, and the next one starts that source
over.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

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
from longspan.files import sha256_file, sha256_json, sweep_unfinished, write_json
from longspan.text.tokenizer import Tokenizer

ROWS_PER_SHARD = 65_536
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
    _place_tokenizer(out, tokenizer)
    return [_prepare_source(source, out / source.name, tokenizer, on_error, progress) for source in sources]


def _place_tokenizer(out: Path, tokenizer: Tokenizer) -> None:
    path = out / TOKENIZER_FILE
    if not path.is_file():
        tokenizer.save(path)
    elif Tokenizer.load(path).fingerprint != tokenizer.fingerprint:
        raise LongspanError(
            "this folder holds data prepared with another tokenizer",
            where=path,
            remedy="prepare into another folder, or delete this one",
        )


def _prepare_source(
    source: Source, folder: Path, tokenizer: Tokenizer, on_error: OnError, progress: Progress | None
) -> Manifest:
    files = find_files(source.files)
    hashes = [_hash(file) for file in files]
    settings = source.model_dump(mode="json", exclude={"files"})
    request = sha256_json([FORMAT, settings, hashes, tokenizer.fingerprint, ROWS_PER_SHARD])
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        if manifest.request == request:
            if progress is not None:
                progress(manifest.num_rows)
            return manifest
        raise LongspanError(
            f"source {source.name!r} was prepared from other files or settings",
            where=folder,
            remedy="prepare into another folder, or delete this one",
        )
    shutil.rmtree(folder, ignore_errors=True)
    counter = _Counter(on_error)
    shards: list[Shard] = []
    num_tokens: dict[str, int] = {}
    inputs = []
    for rows in _batched(_read(files, hashes, inputs, counter, progress), ROWS_PER_SHARD):
        path = folder / f"shard-{len(shards):05d}.arrow"
        write = _write_pairs if isinstance(source, PairSource) else _write_texts
        shard, tokens = write(path, rows, source, tokenizer, counter)  # pyright: ignore[reportArgumentType]
        shards.append(shard)
        for column, count in tokens.items():
            num_tokens[column] = num_tokens.get(column, 0) + count
    if not sum(shard.num_rows for shard in shards):
        raise LongspanError(
            f"source {source.name!r} has no rows", where=", ".join(files), remedy="check its files and columns"
        )
    tasks = (source.query_task, source.document_task) if isinstance(source, PairSource) else (None, None)
    manifest = Manifest(
        kind=source.kind,
        name=source.name,
        query_task=tasks[0],
        document_task=tasks[1],
        weight=source.weight if isinstance(source, PairSource) else 1.0,
        num_rows=sum(shard.num_rows for shard in shards),
        num_tokens=num_tokens,
        tokenizer=tokenizer.fingerprint,
        request=request,
        inputs=tuple(inputs),
        shards=tuple(shards),
    )
    sweep_unfinished(folder)
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


class _Counter:
    """Passes broken rows on and counts those that were skipped."""

    def __init__(self, on_error: OnError) -> None:
        self._on_error = on_error
        self.skipped = 0

    def __call__(self, error: LongspanError) -> None:
        self._on_error(error)
        self.skipped += 1


_Located = tuple[str, int, Row]


def _read(
    files: list[str], hashes: list[str], inputs: list[InputFile], counter: _Counter, progress: Progress | None
) -> Iterator[_Located]:
    for file, sha256 in zip(files, hashes, strict=True):
        before, count = counter.skipped, 0
        for number, row in read_rows(file, counter):
            count += 1
            if progress is not None:
                progress(1)
            yield file, number, row
        inputs.append(InputFile(file=file, sha256=sha256, num_rows=count, num_skipped=counter.skipped - before))


def _batched(rows: Iterator[_Located], size: int) -> Iterator[list[_Located]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _write_pairs(
    path: Path, rows: list[_Located], source: PairSource, tokenizer: Tokenizer, on_error: OnError
) -> tuple[Shard, dict[str, int]]:
    queries: list[str] = []
    documents: list[str] = []
    negatives: list[list[str]] = []
    for file, number, row in rows:
        try:
            pair = _text(row, source.query, file, number), _text(row, source.document, file, number)
            mined = [] if source.negatives is None else _texts(row, source.negatives, file, number)
        except LongspanError as error:
            on_error(error)
            continue
        queries.append(pair[0])
        documents.append(pair[1])
        negatives.append(mined)
    query_ids, document_ids = _encode(tokenizer, queries), _encode(tokenizer, documents)
    flat = iter(_encode(tokenizer, [text for mined in negatives for text in mined]))
    negative_ids = [list(itertools.islice(flat, len(mined))) for mined in negatives]
    columns = [id_lists(query_ids), id_lists(document_ids), nested_id_lists(negative_ids)]
    tokens = {
        "query": sum(map(len, query_ids)),
        "document": sum(map(len, document_ids)),
        "negatives": sum(len(ids) for mined in negative_ids for ids in mined),
    }
    return write_shard(path, columns, PAIR_SCHEMA), tokens


def _write_texts(
    path: Path, rows: list[_Located], source: TextSource, tokenizer: Tokenizer, on_error: OnError
) -> tuple[Shard, dict[str, int]]:
    texts = []
    for file, number, row in rows:
        try:
            texts.append(_text(row, source.text, file, number))
        except LongspanError as error:
            on_error(error)
    ids = _encode(tokenizer, texts)
    return write_shard(path, [id_lists(ids)], TEXT_SCHEMA), {"text": sum(map(len, ids))}


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    parts = (texts[i : i + ROWS_PER_BATCH] for i in range(0, len(texts), ROWS_PER_BATCH))
    return [ids for part in parts for ids in tokenizer.encode(part)]


def _text(row: Row, column: str, file: str, number: int) -> str:
    if column not in row:
        raise LongspanError(
            f"the row has no column {column!r}",
            where=f"{file}:{number}",
            remedy=f"its columns are: {', '.join(map(str, row))}; name the right one in the source",
        )
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise LongspanError(
            f"{column!r} is empty" if isinstance(text, str) or text is None else f"{column!r} is not a text",
            where=f"{file}:{number}",
            remedy="correct the row, or pass --on-error skip to leave such rows out",
        )
    return text


def _texts(row: Row, column: str, file: str, number: int) -> list[str]:
    texts = row.get(column)
    if not isinstance(texts, list):
        raise LongspanError(
            f"column {column!r} does not list texts",
            where=f"{file}:{number}",
            remedy='write it as a list: "negatives": ["...", "..."]',
        )
    return [_text({column: text}, column, file, number) for text in texts]


def _hash(file: str) -> str:
    if "://" in file:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(file)
        return str(filesystem.checksum(path))
    return sha256_file(file)
