"""The parts of a source: pieces that are read and vouched for one by one, whatever the layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from longspan.data.cache import file_fingerprint
from longspan.data.places import inside, list_files
from longspan.data.readers import Row, is_running_text, read_rows
from longspan.data.skipped import BrokenRow, OnError
from longspan.data.source import Source
from longspan.errors import LongspanError
from longspan.files import sha256_json


class Part(Protocol):
    """A piece of a source. Parts are values: they can be sent to another process."""

    @property
    def name(self) -> str:
        """What messages and manifests call it: a path or URL."""
        ...

    @property
    def files(self) -> tuple[str, ...]:
        """All files that it is read from."""
        ...

    def read(self, source: Source, on_error: OnError) -> Iterator[tuple[int, Row]]:
        """Its rows, each with its number in the part, in an order that is always the same.

        Raises:
            LongspanError: a file is missing or torn, or whatever `on_error` raises for a broken row.
        """
        ...

    def fingerprint(self, source: Source) -> str:
        """What changes when a row changes.

        Raises:
            LongspanError: a file cannot be read or is not the one of which `source` tells the SHA-256.
        """
        ...


@dataclass(frozen=True)
class FilePart:
    """One file of rows."""

    name: str

    @property
    def files(self) -> tuple[str, ...]:
        """The file."""
        return (self.name,)

    def read(self, source: Source, on_error: OnError) -> Iterator[tuple[int, Row]]:
        """See `Part`."""
        return read_rows(self.name, on_error, columns=source.columns)

    def fingerprint(self, source: Source) -> str:
        """See `Part`."""
        return files_fingerprint(self.files, source)


@dataclass(frozen=True)
class TextFolder:
    """A folder of running texts, of which each file is a row with the columns `text` and `file`."""

    name: str
    texts: tuple[str, ...]
    """Names relative to the folder."""

    @property
    def files(self) -> tuple[str, ...]:
        """The text files."""
        return tuple(inside(self.name, text) for text in self.texts)

    def read(self, source: Source, on_error: OnError) -> Iterator[tuple[int, Row]]:
        """See `Part`."""
        for number, (name, file) in enumerate(zip(self.texts, self.files, strict=True), 1):
            for _, row in read_rows(file, on_error):
                if row["text"].strip():
                    yield number, row | {"file": name}
                else:
                    on_error(BrokenRow("the file is empty", file=file, number=1, remedy="take it out of the folder"))

    def fingerprint(self, source: Source) -> str:
        """See `Part`."""
        return files_fingerprint(self.files, source)


def text_folder(folder: str) -> TextFolder:
    """The running texts below a folder, in the order of their names.

    Raises:
        LongspanError: there is none.
    """
    texts = tuple(name for name in list_files(folder) if is_running_text(name))
    if not texts:
        raise LongspanError(
            "the folder holds no running text", where=folder, remedy="put .txt, .md or .rst files there"
        )
    return TextFolder(folder, texts)


def files_fingerprint(files: tuple[str, ...], source: Source) -> str:
    """One fingerprint of several files in order; a single file's is its own.

    Raises:
        LongspanError: as of `Part.fingerprint`.
    """
    expected = {file: digest for name, digest in source.sha256.items() for file in files if is_named(file, name)}
    found = [file_fingerprint(file, expected.get(file)) for file in files]
    return found[0] if len(found) == 1 else sha256_json(found)


def is_named(file: str, name: str) -> bool:
    """Whether `name` is a file's path or the end of it."""
    return file == name or file.endswith(f"/{name}")
