"""Where files are: local paths, globs and any fsspec URL, and what lies at a place."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar

import fsspec

from longspan.data.retry import with_retries
from longspan.errors import LongspanError

T = TypeVar("T")

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def find_files(patterns: tuple[str, ...]) -> list[str]:
    """The files that paths, globs and URLs name, sorted within each pattern.

    `{00000..00012}` stands for the numbers from one to the other, with as many digits.

    Raises:
        LongspanError: a pattern names nothing or a folder, a file is named twice, or the place cannot be reached.
    """
    found = [file for pattern in patterns for one in _expanded(pattern) for file in _matches(one)]
    twice = [file for file, count in Counter(found).items() if count > 1]
    if twice:
        raise LongspanError("the file is named twice", where=twice[0], remedy="name each file once, or by one glob")
    return found


def list_files(folder: str) -> list[str]:
    """All files below a folder, as sorted names relative to it; hidden ones are left out.

    Raises:
        LongspanError: the place cannot be reached.
    """
    filesystem, path = filesystem_of(folder)
    found = _asked(lambda: filesystem.find(path), folder)
    root = path.rstrip("/") + "/"
    names = (str(file).removeprefix(root).lstrip("/") for file in found)
    return sorted(name for name in names if not any(part.startswith((".", "__")) for part in PurePosixPath(name).parts))


def is_folder(place: str) -> bool:
    """Whether there is a folder at a path or URL.

    Raises:
        LongspanError: the place cannot be reached.
    """
    filesystem, path = filesystem_of(place)
    return _kind(filesystem, path, place) == "directory"


def inside(folder: str, name: str) -> str:
    """The path or URL of a file in a folder, by its relative name."""
    first, chain, rest = folder.partition("::")
    return f"{first.rstrip('/')}/{name}{chain}{rest}"


def is_local(file: str) -> bool:
    """Whether a file is on this machine, rather than at a URL."""
    return "://" not in file or file.startswith(("file://", "local://"))


def filesystem_of(place: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path or URL, and the path in it.

    Raises:
        LongspanError: no such kind of place, or the package that opens it is not installed.
    """
    try:
        return fsspec.core.url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise LongspanError(
            f"this kind of place cannot be opened: {error}",
            where=place,
            remedy="install what it needs, or copy the files to this machine",
        ) from None


def _expanded(pattern: str) -> list[str]:
    parts = _RANGE.split(pattern)
    if len(parts) == 1:
        return [pattern]
    ranges = [
        [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        for first, last in zip(parts[1::3], parts[2::3], strict=True)
    ]
    texts = parts[0::3]
    return [
        texts[0] + "".join(number + text for number, text in zip(numbers, texts[1:], strict=True))
        for numbers in itertools.product(*ranges)
    ]


def _matches(pattern: str) -> list[str]:
    filesystem, path = filesystem_of(pattern)
    kind = _kind(filesystem, path, pattern)
    matches = [path] if kind == "file" else []  # a plain file's name may hold brackets too
    if not matches and any(mark in path for mark in "*?["):
        found = _asked(lambda: filesystem.glob(path, detail=True), pattern)
        matches = sorted(match for match, info in found.items() if info["type"] == "file")
    if not matches:
        raise _no_file(pattern, kind == "directory")
    if "://" not in pattern:
        return [str(match) for match in matches]
    chain = "".join(pattern.partition("::")[1:])
    return [f"{filesystem.unstrip_protocol(match)}{chain}" for match in matches]


def _kind(filesystem: Any, path: str, place: str) -> str | None:
    """ "file", "directory", or None where there is nothing."""
    try:
        return _asked(lambda: filesystem.info(path), place)["type"]
    except PermissionError as error:
        raise LongspanError(
            f"the place may not be read: {error}", where=place, remedy="check the name and your credentials"
        ) from None
    except OSError:
        return None


def _asked(question: Callable[[], T], place: str) -> T:
    return question() if is_local(place) else with_retries(question, where=place)


def _no_file(pattern: str, is_a_folder: bool) -> LongspanError:
    if is_a_folder:
        remedy = f"name its files, for example {pattern.rstrip('/')}/*.jsonl"
        return LongspanError(f"{pattern} is a folder, not a file", where=pattern, remedy=remedy)
    remedy = "check the path; globs like data/*.jsonl.gz are allowed"
    return LongspanError(f"no file {pattern}", where=pattern, remedy=remedy)
