"""Files that are either whole or absent.

Everything that longspan keeps is first written beside its place under a name that no reader looks at, flushed to the
disk, and then renamed. A process killed at any moment leaves the old file, the new file, or a leftover that is ignored
and swept away; never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from longspan.errors import LongspanError

UNFINISHED = ".unfinished-"
"""Prefix of names that are still being written. Readers ignore them, writers may delete them."""


def cache_folder() -> Path:
    """The folder of what can be made or fetched again: LONGSPAN_CACHE, or longspan's in the user's cache."""
    named = os.environ.get("LONGSPAN_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longspan"


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically; its folder is made if needed.

    Raises:
        LongspanError: the disk is full or the place cannot be written.
    """
    path = Path(path)
    with atomic_path(path) as unfinished, open(unfinished, "wb") as stream:
        stream.write(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a UTF-8 file atomically (see `write_bytes`)."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically (see `write_bytes`)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically (see `write_bytes`)."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: str | Path, *, remedy: str) -> Any:
    """Read a JSON file.

    Raises:
        LongspanError: the file is missing, unreadable or not JSON; `remedy` says what the user should do then.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise LongspanError(f"{path.name} is missing", where=path, remedy=remedy) from None
    except OSError as error:
        raise LongspanError(f"{path.name} cannot be read: {error.strerror}", where=path, remedy=remedy) from None
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise LongspanError(f"{path.name} is not valid JSON: {error}", where=path, remedy=remedy) from None


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give the body an unfinished name beside `path`; flush and rename it to `path` when the body succeeds.

    The body may create a file or a folder under that name. If `path` is an existing folder it is replaced. An OSError
    of the body that is about something else, such as a file it reads, goes through as it is.

    Raises:
        LongspanError: the disk is full or the place cannot be written.
    """
    path = Path(os.path.abspath(path))  # also gives "." and "x/.." a name
    unfinished = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(unfinished)
        try:
            yield unfinished
        except OSError as error:
            if _is_about(error, unfinished):
                raise _writing_error(error, path) from error
            raise
        with _naming(path):
            _flush_tree(unfinished)
            if path.is_dir() and unfinished.is_dir():
                _replace_folder(unfinished, path)
            else:
                os.replace(unfinished, path)
            _flush_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what went wrong first is what matters
            _remove(unfinished)
        if isinstance(error, LongspanError) and error.where.startswith(str(unfinished)):
            # A file inside an unfinished folder: the user knows it by the name it was to have.
            where = str(path) + error.where.removeprefix(str(unfinished))
            raise LongspanError(error.what, where=where, remedy=error.remedy) from error
        raise


def sweep_unfinished(folder: Path) -> None:
    """Delete what killed writers left in `folder` (only the owner of the folder may call this)."""
    if folder.is_dir():
        for leftover in folder.glob(f"{UNFINISHED}*"):
            _remove(leftover)


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _writing_error(error, path) from error


def _is_about(error: OSError, unfinished: Path) -> bool:
    """Whether writing `unfinished` failed, rather than something else that the body does."""
    if error.filename is not None:
        named = os.path.abspath(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else ""
        return Path(named).is_relative_to(unfinished)
    if isinstance(error, ConnectionError | TimeoutError):
        return False
    # An open stream names no file. Without a number no system call has failed, but say gzip that reads a torn file.
    return error.errno is not None or _is_short_write(error)


def _is_short_write(error: OSError) -> bool:
    # numpy hides a full disk: "4096 requested and 12 written", without a number.
    return error.errno is None and str(error).endswith(" written")


def _writing_error(error: OSError, path: Path) -> LongspanError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _is_short_write(error):
        free = shutil.disk_usage(_nearest_folder(path)).free
        return LongspanError(
            f"no room to write {path.name}: {error.strerror or error} ({free / 2**20:,.0f} MiB free)",
            where=path,
            remedy="free some disk space or choose another folder, then run the same command again: it goes on from "
            "the last whole file",
        )
    in_the_way = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if in_the_way is not None:
        what = f"cannot write {path.name}: {in_the_way.name} is a file, not a folder"
        return LongspanError(what, where=path, remedy="choose another place")
    return LongspanError(
        f"cannot write {path.name}: {error.strerror or error}",
        where=path,
        remedy="check that the folder exists and that you may write to it",
    )


def _nearest_folder(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _replace_folder(new: Path, old: Path) -> None:
    # rename(2) does not replace a folder that has content, so the old one steps aside first. A kill between the two
    # renames leaves only unfinished names: the folder is absent, never half of one.
    aside = old.with_name(f"{UNFINISHED}{os.getpid()}-old-{old.name}")
    _remove(aside)
    os.replace(old, aside)
    os.replace(new, old)
    _remove(aside)


def _flush_tree(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _flush_tree(child)
        _flush_folder(path)
    else:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
