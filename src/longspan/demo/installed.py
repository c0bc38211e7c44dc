"""What text the installed Python packages hold: which files, of which package, and how many of them to read.

The choice is a pure function of the files' names and sizes and of the seed. It knows nothing of their content, so it
costs no reading, and it is spread over the packages: a large one does not crowd out the small ones.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import os
import re
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST_BYTES_OF_FILE = 400_000
"""Larger files are tables and generated code, nearly always."""

PYTHON = "python"
"""The name under which the standard library counts as one package."""

# Tests document what they test, copies of other packages would be read twice, and our own text would change the data
# with every commit.
_TESTS = {"test", "tests", "testing", "_testing", "testdata"}
_COPIES = {"_vendor", "vendor", "vendored", "_vendored", "extern", "externals", "third_party", "licenses"}
_OTHERS = {"idlelib", "lib2to3", "site-packages", "dist-packages", "node_modules", "__pycache__", "longspan"}
SKIPPED_FOLDERS = frozenset(_TESTS | _COPIES | _OTHERS)
_SKIPPED_FILE = re.compile(r"^(test_.*|.*_test|conftest|.*_pb2(_grpc)?|.*licen[sc]e.*|copying.*|.*template.*)$", re.I)
_KINDS = {".py": "python", ".md": "text", ".rst": "text"}


@dataclass(frozen=True)
class InstalledFile:
    """A file to read: its place, its dotted name, the package it belongs to, its size in bytes, "python" or "text"."""

    path: Path
    name: str
    package: str
    size: int
    kind: str


@dataclass(frozen=True)
class Distribution:
    """What a `*.dist-info/METADATA` file says; `description` is the README."""

    name: str
    version: str
    summary: str
    description: str


@dataclass
class Found:
    """All files that may be read, and how many were left out, by reason."""

    files: list[InstalledFile] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def default_roots() -> list[Path]:
    """The standard library and the site-packages folders of the running interpreter."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[key]).resolve() for key in ("stdlib", "purelib", "platlib")))


def find_files(roots: Sequence[Path]) -> Found:
    """List the Python files and documents under `roots`, sorted by name. The first root that has a name wins."""
    found = Found()
    names: dict[str, InstalledFile] = {}
    stdlib = Path(sysconfig.get_paths()["stdlib"]).resolve()
    for root in roots:
        is_stdlib = root.resolve() == stdlib
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not _is_skipped(name))
            for file in sorted(files):
                stem, suffix = os.path.splitext(file)
                kind = _KINDS.get(suffix)
                if kind is None or _SKIPPED_FILE.match(stem):
                    continue
                path = Path(folder, file)
                name = _dotted_name(path.relative_to(root), kind)
                size = path.stat().st_size
                if size > MOST_BYTES_OF_FILE:
                    found.skipped["too large"] += 1
                elif size and name:
                    package = PYTHON if is_stdlib else name.split(".")[0]
                    names.setdefault(name, InstalledFile(path, name, package, size, kind))
    found.files = [names[name] for name in sorted(names)]
    return found


def choose(files: Iterable[InstalledFile], *, num_bytes: int, seed: int) -> list[InstalledFile]:
    """Take about `num_bytes` of files, at most an equal share from every package, in an order that depends on the seed.

    A package smaller than its share is taken whole, and what it leaves goes to the larger ones. Documents are few and
    are all taken. The result is sorted by name.
    """
    packages: dict[str, list[InstalledFile]] = defaultdict(list)
    chosen: list[InstalledFile] = []
    for file in files:
        if file.kind == "python":
            packages[file.package].append(file)
        else:
            chosen.append(file)
    share = _equal_share([sum(file.size for file in members) for members in packages.values()], num_bytes)
    for members in packages.values():
        taken = 0
        for file in sorted(members, key=lambda file: order(seed, "read", file.name)):
            if taken >= share:
                break
            taken += file.size
            chosen.append(file)
    return sorted(chosen, key=lambda file: file.name)


def read_distributions(roots: Sequence[Path]) -> list[Distribution]:
    """Read the metadata of the installed distributions, sorted by name; those that cannot be read are left out."""
    found: dict[str, Distribution] = {}
    for root in roots:
        for path in sorted(root.glob("*.dist-info/METADATA")):
            try:
                message = email.message_from_string(path.read_text("utf-8"), policy=email.policy.compat32)
            except (OSError, UnicodeDecodeError):
                continue
            name, payload = str(message["Name"] or ""), message.get_payload()
            description = payload if isinstance(payload, str) and payload.strip() else str(message["Description"] or "")
            summary = " ".join(str(message["Summary"] or "").split())
            if name and name.lower() != "longspan":
                found.setdefault(name.lower(), Distribution(name, str(message["Version"]), summary, description))
    return [found[name] for name in sorted(found)]


def python_version() -> str:
    """Version of the interpreter, which is that of its standard library."""
    return ".".join(str(part) for part in sys.version_info[:3])


def order(seed: int, *parts: str) -> str:
    """A key to sort by that looks random, and is the same on every machine and in every process."""
    return hashlib.sha256("\x1f".join([str(seed), *parts]).encode("utf-8", "surrogatepass")).hexdigest()


def _is_skipped(folder: str) -> bool:
    return folder in SKIPPED_FOLDERS or folder.startswith(".") or folder.endswith((".dist-info", ".egg-info"))


def _equal_share(sizes: list[int], total: int) -> int:
    # The level of water that fills `total` into vessels of these sizes.
    left = total
    for position, size in enumerate(sorted(sizes)):
        vessels = len(sizes) - position
        if size * vessels >= left:
            return left // vessels
        left -= size
    return max(sizes, default=0)


def _dotted_name(path: Path, kind: str) -> str:
    parts = list(path.with_suffix("").parts if kind == "python" else path.parts)
    if kind == "python" and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts).encode("utf-8", "replace").decode()  # a file name may be no text
