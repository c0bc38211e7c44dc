"""A source's place becomes its parts: the layout is told or given, and what does not fit is refused."""

import json
import pickle
from pathlib import Path

import pytest

from longspan.data.layouts import layout_of, source_parts
from longspan.data.parts import FilePart
from longspan.data.release import write_release
from longspan.data.skipped import stop_on_error
from longspan.data.source import PairSource, TextSource
from longspan.errors import LongspanError

ROW = {"query": "naïve?", "document": "東京"}


def write(folder: Path, *names: str, content: bytes | None = None) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((json.dumps(ROW) + "\n").encode() if content is None else content)
    return str(folder)


def pairs(**fields) -> PairSource:
    return PairSource.parse({"name": "faq", **fields}, where="-")


def texts(**fields) -> TextSource:
    return TextSource.parse({"name": "books", **fields}, where="-")


def rows_of(source, on_error=stop_on_error) -> list[tuple[int, dict]]:
    return [numbered for part in source_parts(source) for numbered in part.read(source, on_error)]


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_are_parts_in_order(tmp_path):
    write(tmp_path, "b.jsonl", "a.jsonl")
    source = pairs(files=[f"{tmp_path}/*.jsonl"])
    assert source_parts(source) == [FilePart(f"{tmp_path}/a.jsonl"), FilePart(f"{tmp_path}/b.jsonl")]
    assert rows_of(source) == [(1, ROW), (1, ROW)]


def test_the_place_of_a_file_does_not_matter_for_its_fingerprint(tmp_path):
    write(tmp_path, "a.jsonl", "sub/b.jsonl")
    source = pairs(files=[f"{tmp_path}/a.jsonl", f"{tmp_path}/sub/b.jsonl"])
    assert len({part.fingerprint(source) for part in source_parts(source)}) == 1


# --- text folders -----------------------------------------------------------------------------------------------------


def test_a_folder_of_texts_is_one_part_in_which_each_file_is_a_row(tmp_path):
    for name in ("b.txt", "a/c.md", ".hidden.txt", "a/cover.png"):
        write(tmp_path, name, content=f"text of {name}".encode())
    source = texts(files=[str(tmp_path)])
    assert layout_of(str(tmp_path)) == "text"
    assert rows_of(source) == [
        (1, {"text": "text of a/c.md", "file": "a/c.md"}),
        (2, {"text": "text of b.txt", "file": "b.txt"}),
    ]
    [part] = source_parts(source)
    assert part.name == str(tmp_path)
    before = part.fingerprint(source)
    (tmp_path / "b.txt").write_text("other")
    assert part.fingerprint(source) != before


def test_an_empty_text_and_one_that_is_no_text_are_named_by_their_files(tmp_path):
    write(tmp_path, "a.txt", content=b" \n")
    write(tmp_path, "b.txt", content=b"\xff")
    write(tmp_path, "c.txt", content=b"good")
    skipped: list[LongspanError] = []
    assert [number for number, _ in rows_of(texts(files=[str(tmp_path)]), skipped.append)] == [3]
    assert [error.where for error in skipped] == [f"{tmp_path}/a.txt:1", f"{tmp_path}/b.txt:1"]


def test_a_folder_of_texts_gives_no_pairs(tmp_path):
    write(tmp_path, "a.txt")
    with pytest.raises(LongspanError, match="running text has no pairs"):
        source_parts(pairs(files=[str(tmp_path)]))
    with pytest.raises(LongspanError, match="the folder holds no running text"):
        source_parts(texts(files=[write(tmp_path / "rows", "a.jsonl")], layout="text"))


# --- which layout -----------------------------------------------------------------------------------------------------


def test_a_release_is_told_by_its_index(tmp_path):
    write_release([ROW], tmp_path / "release")
    assert layout_of(str(tmp_path / "release")) == "release"
    [(number, row)] = rows_of(pairs(files=[str(tmp_path / "release")]))
    assert (number, row["query"], row["document"]) == (1, ROW["query"], ROW["document"])


@pytest.mark.parametrize("names", [[], ["a.jsonl"], ["a.jsonl", "b.txt"], ["cover.png"]])
def test_a_folder_that_tells_nothing_is_refused(tmp_path, names):
    folder = write(tmp_path / "raw", *names) if names else str(tmp_path)
    with pytest.raises(LongspanError, match="is a folder, not a file, and has none of the layouts") as caught:
        source_parts(pairs(files=[folder]))
    assert caught.value.where == folder
    assert f"{folder}/*.jsonl" in caught.value.remedy


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"files": ["{}/a.jsonl"], "layout": "beir"}, "the layout 'beir' is that of one folder"),
        ({"files": ["{}", "{}/a.jsonl"], "layout": "hub"}, "the layout 'hub' is that of one folder"),
        ({"files": ["{}", "{}/a.jsonl"]}, "is a folder, not a file"),
        ({"files": ["{}"], "layout": "files"}, "is a folder, not a file"),
        (
            {"files": ["{}/a.jsonl"], "split": "train"},
            "split has no meaning for the layout 'files', only for hub and beir",
        ),
        ({"files": ["{}/a.jsonl"], "min_score": 2}, "min_score has no meaning for the layout 'files'"),
        ({"files": ["{}/gone"]}, "no file "),
        ({"files": ["{}"], "layout": "release"}, "counts.json cannot be read"),
        ({"files": ["{}"], "layout": "beir"}, "there is no corpus.jsonl or corpus.jsonl.gz"),
        ({"files": ["{}"], "layout": "mteb"}, "there is no table qrels or default or data"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, fields, what):
    write(tmp_path, "a.jsonl")
    named = [file.format(tmp_path) for file in fields["files"]]
    with pytest.raises(LongspanError) as caught:
        source_parts(pairs(**fields | {"files": named}))
    assert what in caught.value.what
    assert caught.value.remedy


def test_folders_at_a_url_have_layouts_too(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    readme = "---\nconfigs:\n- data_files: rows/*.jsonl\n---\n"
    for name, content in {"README.md": readme, "rows/a.jsonl": json.dumps(ROW)}.items():
        with fsspec.open(f"memory://layouts/{name}", "wt") as stream:
            stream.write(content)  # pyright: ignore[reportAttributeAccessIssue]
    assert rows_of(pairs(files=["memory://layouts"])) == [(1, ROW)]


# --- checksums --------------------------------------------------------------------------------------------------------


def test_a_sha256_is_checked_for_the_file_it_names(tmp_path):
    write(tmp_path, "a.jsonl", "sub/a.jsonl", "b.jsonl")
    files = [f"{tmp_path}/a.jsonl", f"{tmp_path}/sub/a.jsonl", f"{tmp_path}/b.jsonl"]
    source = pairs(files=files, sha256={"sub/a.jsonl": "0" * 64})
    a, sub, b = source_parts(source)
    assert a.fingerprint(source) == b.fingerprint(source)
    with pytest.raises(LongspanError, match="and not 000") as caught:
        sub.fingerprint(source)
    assert caught.value.where == f"{tmp_path}/sub/a.jsonl"
    right = pairs(files=files, sha256={"sub/a.jsonl": a.fingerprint(source)})
    assert sub.fingerprint(right) == a.fingerprint(source)


@pytest.mark.parametrize(("name", "what"), [("c.jsonl", "no file"), ("a.jsonl", "2 files"), (".jsonl", "no file")])
def test_a_sha256_that_names_no_file_or_several_is_refused(tmp_path, name, what):
    write(tmp_path, "a.jsonl", "sub/a.jsonl")
    with pytest.raises(LongspanError, match=f"sha256 names '{name}', which is {what} of the source"):
        source_parts(pairs(files=[f"{tmp_path}/**/*.jsonl"], sha256={name: "0" * 64}))


# --- other processes --------------------------------------------------------------------------------------------------


def test_parts_are_values_that_can_be_sent(tmp_path):
    write_release([ROW], tmp_path / "release")
    write(tmp_path / "text", "a.txt")
    write(tmp_path / "files", "a.jsonl")
    sources = [pairs(files=[f"{tmp_path}/release"]), texts(files=[f"{tmp_path}/text"])]
    for source in [*sources, pairs(files=[f"{tmp_path}/files/a.jsonl"])]:
        parts = source_parts(source)
        assert pickle.loads(pickle.dumps(parts)) == parts
