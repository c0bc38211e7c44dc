"""Paths, globs and URLs: what they name, in which order, and how they are refused."""

import json

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.places import find_files, inside, is_folder, is_local, list_files
from longspan.data.readers import read_rows
from longspan.errors import LongspanError


def write_url(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as stream:
        stream.write(content)  # pyright: ignore[reportAttributeAccessIssue]


def test_paths_and_globs_are_found_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.txt", "sub/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "e.jsonl").mkdir()

    def found(*patterns: str) -> list[str]:
        return [path.removeprefix(f"{tmp_path}/") for path in find_files(tuple(f"{tmp_path}/{p}" for p in patterns))]

    assert found("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert found("c.txt", "?.jsonl") == ["c.txt", "a.jsonl", "b.jsonl"]
    assert found("**/*.jsonl") == ["a.jsonl", "b.jsonl", "sub/d.jsonl"]
    assert found("[ac].*") == ["a.jsonl", "c.txt"]


def test_a_name_with_brackets_is_a_name(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert find_files((str(tmp_path / "a[1].txt"),)) == [str(tmp_path / "a[1].txt")]


def test_relative_paths_and_urls_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert find_files(("a.txt",)) == [str(tmp_path / "a.txt")]
    write_url("memory://raw/a.jsonl", json.dumps({"text": "東京"}).encode())
    [url] = find_files(("memory://raw/*.jsonl",))
    assert url.startswith("memory://")
    assert list(read_rows(url)) == [(1, {"text": "東京"})]


@pytest.mark.parametrize(
    ("pattern", "what", "remedy"),
    [
        ("gone.jsonl", "no file ", "check the path"),
        ("*.parquet", "no file ", "globs"),
        ("sub", "is a folder, not a file", "/sub/*.jsonl"),
        ("sub/", "is a folder, not a file", "/sub/*.jsonl"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(tmp_path, pattern, what, remedy):
    (tmp_path / "sub").mkdir()
    with pytest.raises(LongspanError) as caught:
        find_files((f"{tmp_path}/{pattern}",))
    assert what in caught.value.what
    assert caught.value.where == f"{tmp_path}/{pattern}"
    assert remedy in caught.value.remedy


def test_a_file_named_twice_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(LongspanError, match="named twice") as caught:
        find_files((f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"))
    assert caught.value.where == f"{tmp_path}/a.txt"


@pytest.mark.parametrize("url", ["nonsense://x/a.jsonl", "s3://bucket/a.jsonl"])
def test_a_place_that_cannot_be_opened_is_refused(url, monkeypatch):
    # Whether s3fs is installed here does not matter.
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(LongspanError, match="this kind of place cannot be opened") as caught:
        find_files((url,))
    assert caught.value.where == url


def test_a_file_of_an_archive_is_found_by_a_chained_url(tmp_path, monkeypatch):
    import zipfile

    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/b.jsonl", '{"text": "b"}')
        archive.writestr("in/c.jsonl", '{"text": "c"}')
    found = find_files((f"zip://in/*.jsonl::file://{tmp_path}/a.zip",))
    assert found == [f"zip://in/{name}.jsonl::file://{tmp_path}/a.zip" for name in "bc"]
    assert list(read_rows(found[1])) == [(1, {"text": "c"})]


# --- ranges of shards -------------------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.integers(0, 5), st.integers(1, 5))
def test_a_range_stands_for_its_numbers(tmp_path_factory, first, more, digits):
    folder = tmp_path_factory.mktemp("ranges")
    names = [f"shard-{str(number).zfill(digits)}.jsonl.gz" for number in range(first, first + more + 1)]
    for name in names:
        (folder / name).touch()
    pattern = f"{folder}/shard-{{{str(first).zfill(digits)}..{first + more}}}.jsonl.gz"
    assert find_files((pattern,)) == [f"{folder}/{name}" for name in names]


def test_two_ranges_give_all_pairs_and_a_missing_one_is_named(tmp_path):
    for name in ("a0-00", "a0-01", "a1-00"):
        (tmp_path / name).touch()
    with pytest.raises(LongspanError, match=r"no file .*a1-01"):
        find_files((f"{tmp_path}/a{{0..1}}-{{00..01}}",))
    (tmp_path / "a1-01").touch()
    assert [file[-5:] for file in find_files((f"{tmp_path}/a{{0..1}}-{{00..01}}",))] == [
        "a0-00",
        "a0-01",
        "a1-00",
        "a1-01",
    ]


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_folder_is_listed_whole_without_what_is_hidden(tmp_path, kind):
    root = str(tmp_path) if kind == "local" else "memory://listed"
    for name in ("b.txt", "a/c.txt", "a/b/d.txt", ".git/x", "a/.hidden", "__pycache__/y"):
        if kind == "memory":
            write_url(f"{root}/{name}", b"x")
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    assert list_files(root) == list_files(root + "/") == ["a/b/d.txt", "a/c.txt", "b.txt"]
    assert is_folder(root)
    assert not is_folder(inside(root, "b.txt"))
    assert not is_folder(inside(root, "gone"))


def test_a_place_inside_a_folder():
    assert inside("a", "b/c") == inside("a/", "b/c") == "a/b/c"
    assert inside("zip://a::s3://x/y.zip", "b") == "zip://a/b::s3://x/y.zip"
    assert is_local("a/b")
    assert is_local("file:///a")
    assert not is_local("s3://a/b")
