"""From a source to its parts: which layout its place has, and what is to be read there."""

from __future__ import annotations

from longspan.data.hub import has_hub_form, hub_dataset, hub_files
from longspan.data.judged import beir_files, has_beir_form, has_mteb_form, mteb_files
from longspan.data.parts import FilePart, Part, is_named, text_folder
from longspan.data.places import find_files, is_folder, list_files
from longspan.data.readers import is_readable, is_running_text
from longspan.data.release import COUNTS, OFFSETS, release_shards
from longspan.data.source import Layout, Source
from longspan.errors import LongspanError


def source_parts(source: Source) -> list[Part]:
    """The parts of a source, in the order in which they are read.

    Raises:
        LongspanError: a place is missing, has no layout that is known or another than the source says, or a SHA-256 is
            given for a file that is not there.
    """
    parts: list[Part] = [hub_dataset(source)] if source.hub is not None else _parts(source)
    files = [file for part in parts for file in part.files]
    for name in source.sha256:
        count = sum(is_named(file, name) for file in files)
        if count != 1:
            raise LongspanError(
                f"sha256 names {name!r}, which is {'no file' if count == 0 else f'{count} files'} of the source",
                where=f"source {source.name!r}",
                remedy="name one file, by the end of its path",
            )
    return parts


def layout_of(folder: str) -> Layout:
    """The layout of a folder, told from what it holds.

    Raises:
        LongspanError: it is none that is known.
    """
    names = list_files(folder)
    if COUNTS in names and OFFSETS in names:
        return "release"
    if has_beir_form(names):
        return "beir"
    if has_mteb_form(folder):
        return "mteb"
    if has_hub_form(folder, names):
        return "hub"
    rows = [name for name in names if is_readable(name) and not is_running_text(name)]
    if not rows and any(is_running_text(name) for name in names):
        return "text"
    raise LongspanError(
        f"{folder} is a folder, not a file, and has none of the layouts that are known",
        where=folder,
        remedy=f"name its files, for example {folder.rstrip('/')}/*.jsonl, or see the layouts in docs/data.md",
    )


def _parts(source: Source) -> list[Part]:
    folder = source.files[0] if len(source.files) == 1 and is_folder(source.files[0]) else None
    layout = source.layout or ("files" if folder is None else layout_of(folder))
    if wrong := source.misplaced(layout):
        remedy = "leave that out, or name another layout" if folder is None else f"the folder has the layout {layout}"
        raise LongspanError(wrong, where=f"source {source.name!r}", remedy=remedy)
    if layout == "files":
        return [FilePart(file) for file in find_files(source.files)]
    if folder is None:
        raise LongspanError(
            f"the layout {layout!r} is that of one folder, which this is not",
            where=", ".join(source.files),
            remedy="name the folder alone as the source's files",
        )
    if layout == "text":
        return [text_folder(folder)]
    if layout == "release":
        return [*release_shards(folder)]
    if layout == "hub":
        return [FilePart(file) for file in hub_files(folder, source.config, source.split)]
    if layout == "beir":
        return [beir_files(folder, source.split)]
    return [mteb_files(folder, source.config, source.split)]
