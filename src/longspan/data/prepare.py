"""Raw text to shards: read, tokenise, shuffle, and vouch for the result in a manifest.

First all raw files become *pieces* (`pieces.py`), then every shard is gathered from them in random order
(`shuffle.py`), both on all cores. The manifest is written last. Running it again does nothing; after a kill it goes on
with what is left. Neither the number of processes nor kills nor the size of pieces change a byte of what is prepared.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from longspan.data.layouts import source_parts
from longspan.data.manifest import FORMAT, MANIFEST, InputFile, Lengths, Manifest, read_manifest
from longspan.data.parts import Part
from longspan.data.pieces import Piece, PieceSize, Stretch, Tokenised, Tools, cut, tokenise
from longspan.data.places import filesystem_of, is_local
from longspan.data.shards import VERIFIED, remember_verified
from longspan.data.shuffle import ORDER, Order, ShardTask, gather_shard, sorted_by_cluster
from longspan.data.skipped import SKIPPED, OnError, stop_on_error
from longspan.data.source import PairSource, Source, check_names
from longspan.data.workers import Advance, Workers, num_cores
from longspan.data.writing import row_schema, text_columns
from longspan.errors import LongspanError
from longspan.files import UNFINISHED, read_json, sha256_json, sweep_unfinished, write_json, write_text
from longspan.progress import Tell, counted
from longspan.text.tokenizer import Tokenizer

ROWS_PER_SHARD = 2**16
TOKENS_PER_SHARD = 2**24
"""Where texts are long, shards have fewer rows: about so many tokens. Gathering takes some ten bytes for each."""
PIECE_SIZE = PieceSize()
BYTES_PER_WORKER = 2**23
"""With less than this a process takes longer to start than it saves."""

TOKENIZER_FILE = "tokenizer.json"
PIECES = "pieces"
"""Folder of an unfinished source: its pieces, and the receipts of pieces and shards."""

_REQUEST = "request.json"
_LATER = ("positive_score", "negative_scores", "cluster")


def prepare(
    sources: Sequence[Source],
    out: Path,
    tokenizer: Tokenizer,
    *,
    on_error: OnError = stop_on_error,
    progress: Tell | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> list[Manifest]:
    """Prepare sources into `out/<name>/`, with the tokenizer beside them.

    Until it is finished, a source takes about twice the place of its shards.

    Args:
        on_error: what to do with a broken row, an empty text or a missing column (default: stop). If it does not raise,
            it is called for every such row in turn, and the rows are kept in a side file (`skipped.py`).
        progress: told of "faq: tokenising" in bytes of the raw files, of "faq: shuffling" in rows.
        workers: processes; None: as many as there are cores, or fewer where there is little to do.
        seed: of the order of the rows.

    Raises:
        LongspanError: a file is missing or broken; `out` holds sources of another tokenizer; the disk is full; a
            process died.
    """
    check_names(tuple(sources), where=out)
    parts = [source_parts(source) for source in sources]
    for source in sources:
        _refuse_strangers(out / source.name)
    _place_tokenizer(out, tokenizer)
    settings = _Settings(tokenizer, on_error, progress, workers, seed)
    return [
        _prepare_source(source, found, out / source.name, settings)
        for source, found in zip(sources, parts, strict=True)
    ]


class _Settings(NamedTuple):
    tokenizer: Tokenizer
    on_error: OnError
    progress: Tell | None
    workers: int | None
    seed: int


def _prepare_source(source: Source, parts: list[Part], folder: Path, settings: _Settings) -> Manifest:
    with ThreadPoolExecutor(num_cores()) as threads:
        hashes = list(threads.map(lambda part: part.fingerprint(source), parts))
    request = _request(source, hashes, settings)
    if (folder / MANIFEST).is_file():
        manifest = _vouched(folder, request, source)
        shutil.rmtree(folder / PIECES, ignore_errors=True)  # a kill may have come just before the end
        sweep_unfinished(folder)
        return manifest
    _begin(folder, request)
    tools = Tools(
        folder=folder / PIECES,
        source=source,
        tokenizer=settings.tokenizer,
        schema=row_schema(
            source.kind, settings.tokenizer.vocab_size, scores=_has_scores(source), cluster=_has_clusters(source)
        ),
        stop=settings.on_error is stop_on_error,
        size=PIECE_SIZE,
    )
    stretches = [Stretch(part, number, 0, _num_bytes(part)) for number, part in enumerate(parts)]
    num_bytes = sum(stretch.num_bytes for stretch in stretches)
    with Workers(_num_workers(settings, num_bytes), tools, where=folder) as workers:
        advance = counted(settings.progress, f"{source.name}: tokenising", num_bytes)
        done = sorted(_tokenised(workers, stretches, source.max_rows, advance), key=lambda one: one[:2])
        of_part: list[list[Piece]] = [[] for _ in parts]
        for one in done:
            of_part[one.part_number] += one.pieces
        pieces = list(itertools.chain.from_iterable(of_part))
        for row in (row for piece in pieces for row in piece.skipped):
            settings.on_error(row.as_error())
        order = _order(tools.folder, pieces, settings.seed)
        if not order.num_rows:
            where = ", ".join(part.name for part in parts)
            raise LongspanError(
                f"source {source.name!r} has no rows", where=where, remedy="check its files and columns"
            )
        if _has_clusters(source):
            order = sorted_by_cluster(order)
        advance = counted(settings.progress, f"{source.name}: shuffling", order.num_rows)
        tasks = [ShardTask(order, folder / f"shard-{number:05d}.arrow", number) for number in range(order.num_shards)]
        shards = dict(workers.run(gather_shard, tasks, advance))
    inputs = list(map(_input_file, parts, hashes, of_part))
    if any(file.num_skipped for file in inputs):
        write_text(folder / SKIPPED, "".join(row.line for piece in pieces for row in piece.skipped))
    manifest = Manifest(
        kind=source.kind,
        name=source.name,
        query_task=source.query_task if isinstance(source, PairSource) else None,
        document_task=source.document_task if isinstance(source, PairSource) else None,
        weight=source.weight if isinstance(source, PairSource) else 1.0,
        origin=source.origin,
        revision=source.revision,
        licence=source.licence,
        num_rows=order.num_rows,
        seed=settings.seed,
        scores=_has_scores(source),
        clusters=order.sizes,
        columns={name: Lengths.total(piece.lengths[name] for piece in pieces) for name in text_columns(tools.schema)},
        tokenizer=settings.tokenizer.fingerprint,
        request=request,
        inputs=tuple(inputs),
        shards=tuple(shards[number] for number in range(order.num_shards)),
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    remember_verified(folder, manifest.shards)  # they were hashed as they were written
    shutil.rmtree(tools.folder)
    return manifest


def _request(source: Source, hashes: list[str], settings: _Settings) -> str:
    # Neither where the files are nor what is told of them changes a row. And not how rows are cut into shards: what was
    # prepared with other sizes stays as good as it is.
    about = {"files", "hub", "layout", "streaming", "sha256", "licence", "origin"}
    wanted = source.model_dump(mode="json", exclude=about)
    # Columns that are not asked for say nothing, so that what was prepared before there were such stays as good.
    wanted = {key: value for key, value in wanted.items() if key not in _LATER or value is not None}
    return sha256_json([FORMAT, wanted, hashes, settings.tokenizer.fingerprint, settings.seed])


def _has_scores(source: Source) -> bool:
    return isinstance(source, PairSource) and source.positive_score is not None


def _has_clusters(source: Source) -> bool:
    return isinstance(source, PairSource) and source.cluster is not None


def _vouched(folder: Path, request: str, source: Source) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.request != request:
        raise LongspanError(
            f"source {source.name!r} was prepared from other files or settings",
            where=folder,
            remedy="prepare into another folder, or delete this one",
        )
    if (manifest.origin, manifest.licence) != (source.origin, source.licence):
        manifest = manifest.model_copy(update={"origin": source.origin, "licence": source.licence})
        write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def _begin(folder: Path, request: str) -> None:
    """Keep what an earlier run of the same request has left, and nothing else."""
    wanted = {"request": request, "sizes": [*PIECE_SIZE, ROWS_PER_SHARD, TOKENS_PER_SHARD]}
    path = folder / PIECES / _REQUEST
    if path.is_file() and read_json(path, remedy=f"delete {folder}") == wanted:
        sweep_unfinished(folder)
        sweep_unfinished(folder / PIECES)
        return
    if folder.exists():
        shutil.rmtree(folder)
    write_json(path, wanted)


def _num_bytes(part: Part) -> int:
    return sum(Path(filesystem_of(file)[1]).stat().st_size for file in part.files if is_local(file))


def _num_workers(settings: _Settings, num_bytes: int) -> int:
    if settings.workers is not None:
        return settings.workers
    return max(1, min(num_cores(), num_bytes // BYTES_PER_WORKER))


def _tokenised(
    workers: Workers, stretches: list[Stretch], max_rows: int | None, advance: Advance
) -> Iterator[Tokenised]:
    if max_rows is None:
        cuts = itertools.chain.from_iterable(list(workers.run(cut, stretches, advance)))
        yield from workers.run(tokenise, cuts, advance)
        return
    for stretch in stretches:
        [done] = workers.run(tokenise, [stretch._replace(max_rows=max_rows)], advance)
        max_rows -= sum(piece.rows.num_rows for piece in done.pieces)
        yield done


def _order(folder: Path, pieces: list[Piece], seed: int) -> Order:
    counts = [piece.rows.num_rows for piece in pieces]
    num_rows = sum(counts)
    num_tokens = sum(lengths.num_tokens for piece in pieces for lengths in piece.lengths.values())
    # A number that the totals give, rather than places where sums of lengths would end a shard: each is found alone.
    rows_per_shard = max(1, min(ROWS_PER_SHARD, TOKENS_PER_SHARD * num_rows // max(num_tokens, 1)))
    starts = tuple(itertools.accumulate(counts, initial=0))
    return Order(folder, tuple(piece.rows.file for piece in pieces), starts, rows_per_shard, seed)


def _input_file(part: Part, sha256: str, pieces: list[Piece]) -> InputFile:
    return InputFile(
        file=part.name,
        sha256=sha256,
        num_rows=sum(piece.rows.num_rows for piece in pieces),
        num_skipped=sum(len(piece.skipped) for piece in pieces),
    )


def _refuse_strangers(folder: Path) -> None:
    """Refuse a folder that holds anything but a source of ours: an unfinished one may be deleted."""
    if not folder.exists():
        return
    unfinished = re.escape(UNFINISHED)
    named = "|".join(map(re.escape, (MANIFEST, VERIFIED, SKIPPED, PIECES)))
    ours = re.compile(rf"{named}|shard-\d{{5,}}\.arrow|{unfinished}.*")
    our_pieces = re.compile(
        rf"{re.escape(_REQUEST)}|{re.escape(ORDER)}|[\d-]+\.(arrow|json)|shard-\d{{5,}}\.json|{unfinished}.*"
    )
    strangers = _others(folder, ours) or (_others(folder / PIECES, our_pieces) if (folder / PIECES).exists() else [])
    if strangers:
        raise LongspanError(
            f"{folder.name} is there already and is not a prepared source",
            where=strangers[0],
            remedy="choose another --out or another name for the source",
        )


def _others(folder: Path, ours: re.Pattern[str]) -> list[Path]:
    if not folder.is_dir():
        return [folder]
    return sorted(path for path in folder.iterdir() if not ours.fullmatch(path.name))


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
