"""Compressed files as streams of plain bytes, told by the ending of their name: .gz, .bz2, .xz and .zst."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from longspan.data.cache import open_file
from longspan.errors import LongspanError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
TORN = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a torn file raises."""

_BUFFER = 2**18
_ZSTANDARD_INPUT = 2**12
"""Compressed bytes taken at a time: what they become is held in memory, and faster where it stays in the cache."""


def bare_name(file: str) -> PurePosixPath:
    """A file's name without the ending of its compression."""
    name = PurePosixPath(file.partition("::")[0])
    return name.with_suffix("") if name.suffix.lower() in COMPRESSIONS else name


@contextlib.contextmanager
def open_bytes(file: str) -> Iterator[BinaryIO]:
    """The decompressed bytes of a local or remote file, as a stream in order.

    Raises:
        LongspanError: a remote file cannot be downloaded, or zstandard is needed and not installed.
    """
    ending = PurePosixPath(file.partition("::")[0]).suffix.lower()
    with open_file(file) as raw:
        if ending not in COMPRESSIONS:
            yield raw
            return
        # Buffered once more: lines are then cut by C rather than by Python.
        with io.BufferedReader(_decompressed(raw, ending, file), _BUFFER) as stream:
            yield stream


def _decompressed(raw: BinaryIO, ending: str, file: str) -> Any:
    if ending == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if ending == ".bz2":
        return bz2.BZ2File(raw)
    if ending == ".xz":
        return lzma.LZMAFile(raw)
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdFile(raw)
    return _ZstandardFile(raw, file)


class _ZstandardFile(io.RawIOBase):
    """Frames of Zstandard, one after another. The package's own reader takes a torn file for a short one."""

    def __init__(self, raw: BinaryIO, file: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise LongspanError(
                "Zstandard files need the package zstandard",
                where=file,
                remedy="install it: pip install 'longspan[data]'",
            ) from None
        self._raw, self._error = raw, zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._raw.read(_ZSTANDARD_INPUT)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the compressed file ends before its last frame does")
                return 0
            if self._frame is None:
                self._frame = self._new_frame()
            try:
                self._output = memoryview(self._frame.decompress(self._input))
            except self._error as error:
                raise OSError(str(error)) from None
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count
