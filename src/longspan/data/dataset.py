"""A folder of prepared sources, opened together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longspan.data.prepare import TOKENIZER_FILE
from longspan.data.shards import MANIFEST, PreparedSource
from longspan.errors import LongspanError
from longspan.files import sha256_json
from longspan.text.tokenizer import Tokenizer


class Dataset:
    """The prepared sources of one kind under a folder, and their tokenizer.

    Attributes:
        sources: in the order of their names.
        fingerprint: changes when a row, a task, a weight or the tokenizer changes.
    """

    def __init__(self, folder: Path, kind: str, *, only: Sequence[str] = ()) -> None:
        """Open `folder`.

        Args:
            kind: "pairs" or "text"; sources of the other kind are left aside.
            only: names of the sources to use; empty for all.

        Raises:
            LongspanError: nothing is prepared there, or a named source is not.
        """
        found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
        opened = [PreparedSource(path) for path in found if not only or path.name in only]
        self.sources = [source for source in opened if source.manifest.kind == kind]
        missing = [name for name in only if name not in {s.manifest.name for s in self.sources}]
        if missing or not self.sources:
            raise LongspanError(
                f"no prepared source {missing[0]!r}" if missing else f"no prepared sources of {kind}",
                where=folder,
                remedy="prepare it: longspan prepare SOURCE --out DIR"
                + (f" (there are: {', '.join(path.name for path in found)})" if found else ""),
            )
        self.tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
        self.fingerprint = sha256_json([source.manifest.fingerprint for source in self.sources])
