"""Files of other machines, kept on this one: a cache of bounded size, from which whole files are read.

`LONGSPAN_CACHE` names its folder (~/.cache/longspan) and `LONGSPAN_CACHE_GB` its size in units of 10^9 bytes (100).
What was used longest ago goes first.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from longspan.data.places import filesystem_of, is_local
from longspan.data.retry import with_retries
from longspan.errors import LongspanError
from longspan.files import UNFINISHED, atomic_path, cache_folder, sha256_file, sha256_json

DEFAULT_GIGABYTES = 100.0
_BLOCK = 2**20
_COPY = re.compile(r"[0-9a-f]{64}")
_ABANDONED = 24 * 3600.0
"""Seconds after which an unfinished download is taken for that of a killed process."""
_VERSION_KEYS = (
    *(
        "ETag",
        "etag",
        "Content-MD5",
        "Digest",
        "Last-Modified",
        "LastModified",
        "last_modified",
        "md5Hash",
        "crc32c",
        "CRC",
    ),
    *("generation", "VersionId", "version_id", "blob_id", "lfs", "mtime", "created", "sha256"),
)
"""What filesystems say of a file that changes when its content does."""


def open_file(file: str) -> io.BufferedReader:
    """Open a local file, or this machine's copy of a remote one, for reading bytes.

    Raises:
        LongspanError: the file cannot be downloaded.
        OSError: a local file cannot be opened.
    """
    if is_local(file):
        return open(filesystem_of(file)[1], "rb")
    while True:
        copy = fetch(file)
        try:
            return open(copy, "rb")
        except FileNotFoundError:  # another process has just made room
            continue


def fetch(url: str) -> Path:
    """This machine's copy of a remote file, downloaded if it is not there or has changed.

    The copy may be deleted by the next download; a file that is open stays readable.

    Raises:
        LongspanError: the file is missing, changes while it is read, does not fit in the cache, does not have the size
            or checksum that its filesystem names, or the network failed too often.
    """
    info = _info(url)
    copy = cache_folder() / sha256_json(_version(url, info))
    if copy.is_file():
        os.utime(copy)  # access times are often switched off, so the time of change tells when it was used
        return copy
    size = info.get("size")
    _make_room(copy.parent, size or 0, url)
    with atomic_path(copy) as unfinished:
        _download(url, unfinished, size)
        _check_digest(url, unfinished, info)
        if _version(url, _info(url)) != _version(url, info):
            raise LongspanError("the file changed while it was read", where=url, remedy="run the same command again")
        if size is None:
            _make_room(copy.parent, unfinished.stat().st_size, url)
    return copy


def file_fingerprint(file: str, sha256: str | None = None) -> str:
    """What changes when a file's content changes: its SHA-256, or the version that its remote filesystem tells.

    Args:
        sha256: what the SHA-256 has to be; a remote file is downloaded for it.

    Raises:
        LongspanError: the file is missing, cannot be read, or is not the expected one.
    """
    try:
        if is_local(file):
            found = sha256_file(filesystem_of(file)[1])
        elif sha256 is not None:
            with open_file(file) as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        else:
            return sha256_json(_version(file, _info(file)))
    except OSError as error:
        raise LongspanError(
            f"the file cannot be read: {error.strerror or error}", where=file, remedy="check that it is there"
        ) from None
    if sha256 not in (None, found):
        raise _wrong_digest(file, "sha256", found, str(sha256), "correct the source's sha256, or get the file again")
    return found


def cache_limit() -> int:
    """The most bytes that the cache holds.

    Raises:
        LongspanError: LONGSPAN_CACHE_GB is not a number of at least 0.
    """
    text = os.environ.get("LONGSPAN_CACHE_GB", str(DEFAULT_GIGABYTES))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        remedy = "give it a number, for example 50"
        raise LongspanError(f"{text!r} is no size of a cache", where="LONGSPAN_CACHE_GB", remedy=remedy)
    return round(gigabytes * 1e9)


def _info(url: str) -> dict[str, Any]:
    filesystem, path = filesystem_of(url)

    def ask() -> dict[str, Any]:
        filesystem.invalidate_cache()  # a listing that is remembered would hide a change
        return filesystem.info(path)

    try:
        return with_retries(ask, where=url)
    except OSError as error:
        raise LongspanError(
            f"the file cannot be read: {error or type(error).__name__}",
            where=url,
            remedy="check the name and your credentials",
        ) from None


def _version(url: str, info: dict[str, Any]) -> list[Any]:
    return [url, info.get("size"), {key: str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None}]


def _download(url: str, target: Path, size: int | None) -> None:
    filesystem, path = filesystem_of(url)

    def attempt() -> None:
        with filesystem.open(path, "rb") as remote, open(target, "ab") as copy:
            if copy.tell() and not _sought(remote, copy.tell()):
                copy.truncate(0)
            shutil.copyfileobj(remote, copy, _BLOCK)
        # Not copy.tell(), which truncate() leaves where it was.
        num_bytes = target.stat().st_size
        if size is not None and num_bytes != size:
            if num_bytes > size:
                os.truncate(target, 0)
            raise ConnectionError(f"{num_bytes:,} of {size:,} bytes came")

    target.touch()
    with_retries(attempt, where=url, progress=lambda: target.stat().st_size)


def _sought(remote: Any, place: int) -> bool:
    """Whether reading goes on behind what an earlier attempt has brought."""
    try:
        return remote.seek(place) == place
    except (OSError, ValueError, NotImplementedError):
        return False


def _check_digest(url: str, copy: Path, info: dict[str, Any]) -> None:
    lfs = info.get("lfs")
    sha256 = info.get("sha256") or (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None))
    expected = {"sha256": sha256}
    if info.get("md5Hash"):  # Google's, in base 64
        expected["md5"] = base64.b64decode(info["md5Hash"]).hex()
    for algorithm, digest in expected.items():
        if digest is None:
            continue
        with open(copy, "rb") as stream:
            found = hashlib.file_digest(stream, algorithm).hexdigest()
        if found != digest:
            raise _wrong_digest(url, algorithm, found, digest, "run the same command again; it is downloaded anew")


def _wrong_digest(file: str, algorithm: str, found: str, expected: str, remedy: str) -> LongspanError:
    return LongspanError(f"the file's {algorithm} is {found} and not {expected}", where=file, remedy=remedy)


def _make_room(folder: Path, num_bytes: int, url: str) -> None:
    """Delete what was used longest ago until `num_bytes` fit."""
    limit = cache_limit()
    if num_bytes > limit:
        raise LongspanError(
            f"the file has {num_bytes:,} bytes and the cache holds {limit:,}",
            where=url,
            remedy="raise LONGSPAN_CACHE_GB, or copy the file to this machine and name it there",
        )
    entries = []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.name.startswith(UNFINISHED):
            if status.st_mtime < time.time() - _ABANDONED:
                path.unlink(missing_ok=True)
            continue
        if _COPY.fullmatch(path.name):  # whatever else lies there is not ours
            entries.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in entries) + num_bytes
    for _, size, path in sorted(entries):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size
