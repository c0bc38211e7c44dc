"""Data sets in the form of the Hugging Face hub: from a folder of files, or from the hub itself through `datasets`.

Documentation of the form: "Structure your repository" and "Manual configuration" in the hub's documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from longspan.data.cache import open_file
from longspan.data.compressed import bare_name
from longspan.data.places import find_files, inside, list_files
from longspan.data.readers import Row, is_readable, is_running_text
from longspan.data.retry import with_retries
from longspan.data.skipped import OnError
from longspan.data.source import Source
from longspan.errors import LongspanError
from longspan.files import sha256_json

README = "README.md"
DEFAULT_CONFIG = "default"
TRAIN = "train"

Tables = dict[str, dict[str, list[str]]]
"""Configuration -> split -> files."""

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD_OF = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})")
_FRONT_MATTER = re.compile(r"\A\s*---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.S)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS_AT_A_TIME = 1000


@dataclass(frozen=True)
class HubDataset:
    """One split of a data set of the hub, at one commit, read through `datasets`."""

    hub: str
    config: str | None
    split: str
    commit: str
    streaming: bool

    @property
    def name(self) -> str:
        """See `Part`."""
        return f"hub:{self.hub}@{self.commit[:12]}/{self.config or DEFAULT_CONFIG}/{self.split}"

    @property
    def files(self) -> tuple[str, ...]:
        """None that we know of: `datasets` finds and keeps them."""
        return ()

    def read(self, source: Source, on_error: OnError) -> Iterator[tuple[int, Row]]:
        """See `Part`."""
        import datasets

        del on_error  # `datasets` gives rows or fails
        try:
            rows: Any = datasets.load_dataset(
                self.hub, self.config, split=self.split, revision=self.commit, streaming=self.streaming
            )
            if set(source.columns) <= set(rows.column_names or ()):
                rows = rows.select_columns(list(source.columns))
            number = 0
            for batch in rows.iter(_ROWS_AT_A_TIME):
                for values in zip(*batch.values(), strict=True):
                    number += 1
                    yield number, dict(zip(batch, values, strict=True))
        except Exception as error:
            raise _hub_error(self.hub, error) from error

    def fingerprint(self, source: Source) -> str:
        """See `Part`: a commit of the hub never changes."""
        return sha256_json([self.hub, self.config, self.split, self.commit])


def hub_dataset(source: Source) -> HubDataset:
    """The split of the hub's data set that a source names, at its present commit.

    Raises:
        LongspanError: `datasets` is not installed, the hub cannot be reached, or it has no such data set or split.
    """
    try:
        import datasets
    except ImportError:
        raise LongspanError(
            "data sets of the hub are read through the package datasets",
            where=f"hub = {source.hub!r}",
            remedy="install it: pip install 'longspan[data]'; or name the files: hf://datasets/OWNER/NAME",
        ) from None
    assert source.hub is not None
    hub, config = source.hub, source.config
    try:
        commit = _commit(hub, source.revision)
        splits = with_retries(
            lambda: datasets.get_dataset_split_names(hub, config, revision=commit), where=f"hub = {hub!r}"
        )
    except LongspanError:
        raise
    except Exception as error:
        raise _hub_error(hub, error) from error
    split = choose("split", source.split, splits, preferred=TRAIN, where=f"hub = {hub!r}")
    return HubDataset(hub, config, split, commit, source.streaming)


def hub_files(folder: str, config: str | None, split: str | None) -> list[str]:
    """The files of one split of a folder in the hub's form.

    Raises:
        LongspanError: it has no such configuration or split, several and none was named, or a shard is missing.
    """
    tables = hub_tables(folder)
    chosen = choose("config", config, list(tables), preferred=DEFAULT_CONFIG, where=folder)
    splits = tables[chosen]
    return splits[choose("split", split, list(splits), preferred=TRAIN, where=folder)]


def hub_tables(folder: str) -> Tables:
    """What a folder holds: by the `configs` of its README.md, or else by the names of its files.

    Raises:
        LongspanError: there is no file of rows, the README.md is broken or names files that are not there, or a shard
            is missing.
    """
    names = list_files(folder)
    configs = _configs(inside(folder, README)) if README in names else []
    if configs:
        tables = {name: _declared(entry, names, folder) for name, entry in configs}
    else:
        rows = [name for name in names if _holds_rows(name)]
        if not rows:
            raise LongspanError("the folder holds no files of rows", where=folder, remedy="check that it is whole")
        tables = {DEFAULT_CONFIG: split_by_name(rows) or {TRAIN: rows}}
    for splits in tables.values():
        for files in splits.values():
            _check_shards(files, folder)
    return {
        name: {
            split: [file if "://" in file else inside(folder, file) for file in files]
            for split, files in splits.items()
        }
        for name, splits in tables.items()
    }


def has_hub_form(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder of these files says by itself which split each of its files of rows belongs to."""
    if README in names and _configs(inside(folder, README)):
        return True
    rows = [name for name in names if _holds_rows(name)]
    return bool(rows) and sum(map(len, split_by_name(rows).values())) == len(rows)


def split_by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """Split -> files, from names such as `data/train-00000-of-00002.parquet`, `test/a.csv` or `dev.jsonl`.

    The first of the three that finds anything decides, as with `datasets`. Empty where no name tells a split.
    """
    shards = [(match["stem"].removeprefix("data/"), name) for name in names if (match := _SHARD_OF.match(name))]
    in_data = [(split, name) for split, name in shards if name == f"data/{PurePosixPath(name).name}"]
    by_folder = [(_split_word(PurePosixPath(name).parts[:-1]), name) for name in names]
    by_file = [(_split_word([bare_name(name).stem]), name) for name in names]
    for found in (in_data, by_folder, by_file):
        splits: dict[str, list[str]] = {}
        for split, name in found:
            if split is not None:
                splits.setdefault(split, []).append(name)
        if splits:
            return splits
    return {}


def choose(what: str, wanted: str | None, there: Sequence[str], *, preferred: str, where: str) -> str:
    """The one that is wanted; if none is named the only one, or the preferred one.

    Raises:
        LongspanError: it is not there, or there are several and none is to be preferred.
    """
    if wanted is None and len(there) == 1:
        return there[0]
    chosen = preferred if wanted is None else wanted
    if chosen in there:
        return chosen
    known = ", ".join(sorted(there)[:20])
    message = f"several {what}s and none is named" if wanted is None else f"no {what} {wanted!r}"
    raise LongspanError(f"there is {message}", where=where, remedy=f"name one of them as {what}: {known}")


def _commit(hub: str, revision: str | None) -> str:
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    found = with_retries(lambda: HfApi().dataset_info(hub, revision=revision), where=f"hub = {hub!r}")
    return str(found.sha)


def _hub_error(hub: str, error: Exception) -> LongspanError:
    if isinstance(error, LongspanError):
        return error
    return LongspanError(
        f"the data set cannot be loaded: {type(error).__name__}: {error}",
        where=f"hub = {hub!r}",
        remedy="check its name, config, split and revision, and that the hub can be reached",
    )


def _holds_rows(name: str) -> bool:
    return is_readable(name) and not is_running_text(name)


def _split_word(parts: Sequence[str]) -> str | None:
    words = (word for part in parts for word in re.split(r"[-._ 0-9]+", part))
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def _configs(readme: str) -> list[tuple[str, dict[str, Any]]]:
    """The configurations that the README.md declares with their files, the default one first."""
    import yaml

    with open_file(readme) as stream:
        found = _FRONT_MATTER.search(stream.read().decode("utf-8-sig", "replace").replace("\r\n", "\n"))
    if found is None:
        return []
    try:
        content = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise LongspanError(f"broken YAML: {error}", where=readme, remedy="correct its first lines") from None
    entries = content.get("configs") if isinstance(content, dict) else None
    entries = [
        entry for entry in entries or [] if isinstance(entry, dict) and ("data_files" in entry or "data_dir" in entry)
    ]
    named = [(str(entry.get("config_name", DEFAULT_CONFIG)), entry) for entry in entries]
    for name, entry in named:
        if entry.get("default") is True and not any(name == DEFAULT_CONFIG for name, _ in named):
            named.append((DEFAULT_CONFIG, entry))
            break
    return named


def _declared(entry: dict[str, Any], names: Sequence[str], folder: str) -> dict[str, list[str]]:
    """Split -> files of one configuration, with its patterns resolved."""
    root = str(entry.get("data_dir") or "").strip("/")
    prefix = f"{root}/" if root else ""
    declared = entry.get("data_files")
    if declared is None:
        inside_root = [name.removeprefix(prefix) for name in names if name.startswith(prefix) and _holds_rows(name)]
        if not inside_root:
            raise _not_there(root, folder)
        splits = split_by_name(inside_root) or {TRAIN: inside_root}
        return {split: [prefix + name for name in files] for split, files in splits.items()}
    patterns: dict[str, list[str]] = {}
    for item in declared if isinstance(declared, list) else [declared]:
        split, paths = (str(item.get("split", TRAIN)), item.get("path")) if isinstance(item, dict) else (TRAIN, item)
        patterns.setdefault(split, []).extend(paths if isinstance(paths, list) else [str(paths)])
    return {
        split: [file for pattern in listed for file in _resolved(pattern, prefix, names, folder)]
        for split, listed in patterns.items()
    }


def _resolved(pattern: str, prefix: str, names: Sequence[str], folder: str) -> list[str]:
    from fsspec.utils import glob_translate

    if "://" in pattern:
        return find_files((pattern,))
    whole = prefix + pattern.removeprefix("./")
    if whole in names:
        return [whole]
    matches = re.compile(glob_translate(whole))
    found = [name for name in names if matches.match(name)]
    if not found:
        raise _not_there(pattern, folder)
    return found


def _not_there(pattern: str, folder: str) -> LongspanError:
    what = f"{README} names {pattern}, and there is no such file"
    return LongspanError(what, where=folder, remedy="get the whole data set again")


def _check_shards(files: Sequence[str], folder: str) -> None:
    """Refuse a set of -00000-of-00003 that lacks one."""
    there: dict[tuple[str, str], set[int]] = {}
    for file in files:
        if match := _SHARD_OF.match(file):
            there.setdefault((match["stem"], match["total"]), set()).add(int(match["number"]))
    for (stem, total), numbers in there.items():
        if missing := set(range(int(total))) - numbers:
            raise LongspanError(
                f"{stem}-{min(missing):05d}-of-{total} is not there ({len(missing)} of {int(total)} are missing)",
                where=folder,
                remedy="get the whole data set again",
            )
