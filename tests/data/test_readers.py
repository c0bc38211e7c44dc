"""Raw files come in as rows, and whatever is broken is named: the file, the line, and what to do."""

import bz2
import gzip
import json
import lzma
import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from longspan.data.readers import find_files, read_rows
from longspan.errors import LongspanError

ROWS = [{"query": "naïve?", "document": "café, “東京”\nline two"}, {"query": "b", "document": '"quoted"'}]


def json_lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def rows_of(path, on_error=None):
    return [row for _, row in (read_rows(str(path)) if on_error is None else read_rows(str(path), on_error))]


def refused(path) -> LongspanError:
    with pytest.raises(LongspanError) as caught:
        rows_of(path)
    assert caught.value.remedy
    return caught.value


# --- every kind of file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".JSONL"])
def test_json_lines(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(json_lines(ROWS[:1]) + b"\n  \n" + json_lines(ROWS[1:]))
    assert list(read_rows(str(path))) == [(1, ROWS[0]), (4, ROWS[1])]


@pytest.mark.parametrize(
    ("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed(tmp_path, ending, compress):
    (tmp_path / f"a.jsonl{ending}").write_bytes(compress(json_lines(ROWS)))
    (tmp_path / f"b.txt{ending}").write_bytes(compress("東京".encode()))
    (tmp_path / f"c.CSV{ending.upper()}").write_bytes(compress(b"x\n1\n"))
    assert rows_of(tmp_path / f"a.jsonl{ending}") == ROWS
    assert rows_of(tmp_path / f"b.txt{ending}") == [{"text": "東京"}]
    assert rows_of(tmp_path / f"c.CSV{ending.upper()}") == [{"x": "1"}]


def test_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr("longspan.data.readers.PARQUET_BATCH", 2)
    rows = [{"query": f"q{n}", "negatives": [f"n{n}", "東京"]} for n in range(5)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_rows(str(tmp_path / "a.parquet"))) == list(enumerate(rows, 1))


def test_comma_separated(tmp_path):
    (tmp_path / "a.csv").write_text('query,document\n"a, b","two\nlines"\n\nc,"say ""d"""\n', "utf-8")
    assert rows_of(tmp_path / "a.csv") == [
        {"query": "a, b", "document": "two\nlines"},
        {"query": "c", "document": 'say "d"'},
    ]


def test_tab_separated_has_no_quoting(tmp_path):
    (tmp_path / "a.tsv").write_text('query\tdocument\n"a, b\tx "y"\n', "utf-8")
    assert list(read_rows(str(tmp_path / "a.tsv"))) == [(2, {"query": '"a, b', "document": 'x "y"'})]


def test_a_folder_called_tsv_does_not_make_its_files_tab_separated(tmp_path):
    (tmp_path / "x.tsv").mkdir()
    (tmp_path / "x.tsv" / "a.csv").write_text("q,d\n1,2\n")
    assert rows_of(tmp_path / "x.tsv" / "a.csv") == [{"q": "1", "d": "2"}]


@pytest.mark.parametrize("ending", [".txt", ".md", ".rst"])
def test_plain_text_is_one_row(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes("# naïve\r\n\r\ntext\n".encode())
    assert list(read_rows(str(tmp_path / f"a{ending}"))) == [(1, {"text": "# naïve\r\n\r\ntext\n"})]


def test_the_mark_that_excel_writes_is_no_part_of_the_first_column(tmp_path):
    for name, content in [("a.csv", "q,d\n1,2\n"), ("a.jsonl", '{"q": "1", "d": "2"}\n'), ("a.txt", "q")]:
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert rows_of(tmp_path / "a.csv") == rows_of(tmp_path / "a.jsonl") == [{"q": "1", "d": "2"}]
    assert rows_of(tmp_path / "a.txt") == [{"text": "q"}]


def test_a_document_of_a_million_characters_is_read(tmp_path):
    (tmp_path / "a.csv").write_text(f"d\n{'x' * 1_000_000}\n")
    assert len(rows_of(tmp_path / "a.csv")[0]["d"]) == 1_000_000


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\t\x00"), min_size=1, max_size=20)


@given(st.lists(st.fixed_dictionaries({"query": TEXT, "document": TEXT}), min_size=1, max_size=5))
def test_whatever_is_written_is_read(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("readers")
    (folder / "a.jsonl").write_bytes(json_lines(rows))
    (folder / "a.tsv").write_text("query\tdocument\n" + "".join(f"{r['query']}\t{r['document']}\n" for r in rows))
    parquet.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    assert rows_of(folder / "a.jsonl") == rows_of(folder / "a.tsv") == rows_of(folder / "a.parquet") == rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    (tmp_path / name).touch()
    assert rows_of(tmp_path / name) == []


# --- what is broken is named ------------------------------------------------------------------------------------------

BROKEN_LINES = [
    (b'{"query": ', "broken JSON"),
    (b"nonsense", "broken JSON"),
    (b'{"query": "\xff"}', "broken JSON"),
    (b'{"query": "\\ud800"}', "broken JSON"),
    (b"[" * 100_000, "broken JSON"),
    (b'{"query": ' + b"1" * 5000 + b"}", "broken JSON"),
    (b'["a", "b"]', "the line is not a JSON object"),
    (b'"a"', "the line is not a JSON object"),
]


@pytest.mark.parametrize(("line", "what"), BROKEN_LINES)
def test_a_broken_json_line_is_named(tmp_path, line, what):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(ROWS) + line + b"\n" + json_lines(ROWS))
    error = refused(path)
    assert error.what.startswith(what)
    assert len(error.what) < 300
    assert error.where == f"{path}:3"
    skipped: list[LongspanError] = []
    assert rows_of(path, skipped.append) == ROWS * 2
    assert [error.where for error in skipped] == [f"{path}:3"]


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude00"}\n')
    assert rows_of(tmp_path / "a.jsonl") == [{"text": "😀"}]


@pytest.mark.parametrize(
    ("name", "content", "line", "what"),
    [
        ("a.tsv", b"q\td\n1\t2\n1\n3\t4\n", 3, "the line has 1 fields, the first line names 2"),
        ("a.tsv", b"q\td\n1\t2\n1\t2\t3\n3\t4\n", 3, "the line has 3 fields, the first line names 2"),
        ("a.csv", b"q,d\n1,2\n1,2,3\n3,4\n", 3, "the line has 3 fields, the first line names 2"),
        ("a.csv", b"q,d\n1,2\n\xff,2\n3,4\n", 3, "not UTF-8 text"),
        ("a.tsv", b"q\td\n1\t2\n\xff\t2\n3\t4\n", 3, "not UTF-8 text"),
        ("a.csv", b'q,d\n1,2\n"a"b,2\n3,4\n', 3, "broken CSV: "),
    ],
)
def test_a_broken_line_of_a_table_is_named(tmp_path, name, content, line, what):
    path = tmp_path / name
    path.write_bytes(content)
    error = refused(path)
    assert error.what.startswith(what)
    assert error.where == f"{path}:{line}"
    skipped: list[LongspanError] = []
    assert rows_of(path, skipped.append) == [{"q": "1", "d": "2"}, {"q": "3", "d": "4"}]
    assert len(skipped) == 1


def test_a_quotation_mark_that_is_never_closed_is_named(tmp_path):
    (tmp_path / "a.csv").write_text('q,d\n1,2\n"a,2\n3,4\n')
    assert refused(tmp_path / "a.csv").what.startswith("broken CSV: ")


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"q,d,q\n1,2,3\n", "two columns have one name"), (b"\xff,d\n1,2\n", "not UTF-8"), (b'"q\n1\n', "broken CSV")],
)
def test_a_broken_header_is_named_even_when_rows_may_be_skipped(tmp_path, content, what):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    skipped: list[LongspanError] = []
    with pytest.raises(LongspanError, match=what) as caught:
        rows_of(path, skipped.append)
    assert caught.value.where.startswith(f"{path}:")


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    error = refused(tmp_path / "a.txt")
    assert error.what.startswith("not UTF-8 text")
    assert error.where == f"{tmp_path / 'a.txt'}:1"
    assert rows_of(tmp_path / "a.txt", lambda error: None) == []


# --- torn files -------------------------------------------------------------------------------------------------------

COMPRESSORS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_a_torn_compressed_file_is_named_wherever_it_is_torn(tmp_path, ending):
    generator = random.Random(0)
    lines = json_lines({"text": f"{generator.random()}"} for _ in range(300))
    whole = COMPRESSORS[ending](lines)
    path = tmp_path / f"a.jsonl.{ending}"
    torn = [whole[: len(whole) * part // 10] for part in range(1, 10)]
    torn += [whole[:-1], whole[: len(whole) // 2] + lines]
    for place in range(30, len(whole) - 20, len(whole) // 12):
        torn.append(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
    for content in torn:
        path.write_bytes(content)
        with pytest.raises(LongspanError) as caught:
            rows_of(path, lambda error: None)
        assert caught.value.what.startswith("the file cannot be read to its end: ")
        assert caught.value.where == str(path)
        assert "copy it again" in caught.value.remedy


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.txt.gz", "a.jsonl.bz2", "a.jsonl.xz"])
def test_a_file_that_is_not_compressed_at_all_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(json_lines(ROWS))
    assert refused(tmp_path / name).where == str(tmp_path / name)


def test_torn_parquet_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": [f"text number {n}" for n in range(5000)]}), path)
    whole = path.read_bytes()
    page = len(whole) // 3
    damaged = whole[:page] + bytes(byte ^ 0xFF for byte in whole[page : page + 400]) + whole[page + 400 :]
    for content in (whole[: len(whole) // 2], whole[:-3], whole[10:], b"", b"PAR1", json_lines(ROWS), damaged):
        path.write_bytes(content)
        error = refused(path)
        assert error.where == str(path)
        assert "again" in error.remedy


def test_a_file_that_went_away_or_is_a_folder_is_named(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    for name in ("gone.jsonl", "gone.parquet", "gone.txt.gz", "d.jsonl"):
        assert refused(tmp_path / name).where == str(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.json", "files of kind .json are not read"),
        ("a.docx", "files of kind .docx are not read"),
        ("a.jsonl.zst", "files of kind .zst are not read"),
        ("a.tar.gz", "files of kind .tar are not read"),
        ("notes", "the file's name has no ending that tells its kind"),
    ],
)
def test_an_unknown_kind_is_refused(tmp_path, name, what):
    (tmp_path / name).touch()
    error = refused(tmp_path / name)
    assert error.what == what
    assert ".jsonl, .parquet" in error.remedy


# --- finding files ----------------------------------------------------------------------------------------------------


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
    import fsspec

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert find_files(("a.txt",)) == [str(tmp_path / "a.txt")]
    with fsspec.open("memory://raw/a.jsonl", "wb") as stream:
        stream.write(json_lines(ROWS))  # pyright: ignore[reportAttributeAccessIssue]
    [url] = find_files(("memory://raw/*.jsonl",))
    assert url.startswith("memory://")
    assert rows_of(url) == ROWS


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
