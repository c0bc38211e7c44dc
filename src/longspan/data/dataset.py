"""A folder of prepared sources, opened together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from longspan.data.manifest import MANIFEST, Manifest, read_manifest
from longspan.data.prepare import TOKENIZER_FILE
from longspan.data.shards import PreparedSource
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
            LongspanError: nothing is prepared there, or a named source is not; a shard is torn; the tokenizer is not
                the one the sources were prepared with.
        """
        found = find_prepared(folder)
        wanted = {path: manifest for path, manifest in found.items() if manifest.kind == kind}
        if only:
            wanted = {path: manifest for path, manifest in wanted.items() if manifest.name in only}
        missing = sorted(set(only) - {manifest.name for manifest in wanted.values()})
        if missing or not wanted:
            raise LongspanError(
                f"no prepared source {missing[0]!r} of {kind}" if missing else f"no prepared sources of {kind}",
                where=folder,
                remedy="prepare it: longspan prepare SOURCE --out DIR" + _there_are(found.values()),
            )
        self.tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
        for path, manifest in wanted.items():
            if manifest.tokenizer != self.tokenizer.fingerprint:
                raise LongspanError(
                    f"source {manifest.name!r} was prepared with another tokenizer than {TOKENIZER_FILE}",
                    where=path,
                    remedy=f"put the right {TOKENIZER_FILE} back, or delete {folder} and prepare its sources again",
                )
        self.sources = [PreparedSource(path) for path in wanted]
        self.fingerprint = sha256_json([source.manifest.fingerprint for source in self.sources])


def find_prepared(folder: Path) -> dict[Path, Manifest]:
    """The manifests of all prepared sources under a folder, by the folder of the source, in the order of their names.

    Raises:
        LongspanError: a manifest cannot be read.
    """
    return {path.parent: read_manifest(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}"))}


def _there_are(manifests: Iterable[Manifest]) -> str:
    names = ", ".join(f"{manifest.name} ({manifest.kind})" for manifest in manifests)
    return f" (there are: {names})" if names else ""
