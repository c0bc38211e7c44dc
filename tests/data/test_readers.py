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

from longspan.data.readers import read_rows
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


def test_the_columns_of_a_json_array_are_its_places(tmp_path):
    (tmp_path / "a.jsonl").write_text('["q", "d"]\n\n["q", "d", ["n", "m"]]\n{"q": "d"}\n[]\n')
    assert list(read_rows(str(tmp_path / "a.jsonl"))) == [
        (1, {"0": "q", "1": "d"}),
        (3, {"0": "q", "1": "d", "2": ["n", "m"]}),
        (4, {"q": "d"}),
        (5, {}),
    ]


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
    (b'"a"', "the line is neither a JSON object nor an array"),
    (b"5", "the line is neither a JSON object nor an array"),
    (b'["a", "b"', "broken JSON"),
    (b'["a", "\\ud800"]', "broken JSON"),
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
        ("a.jsonl.lz4", "files of kind .lz4 are not read"),
        ("a.tar.gz", "files of kind .tar are not read"),
        ("notes", "the file's name has no ending that tells its kind"),
    ],
)
def test_an_unknown_kind_is_refused(tmp_path, name, what):
    (tmp_path / name).touch()
    error = refused(tmp_path / name)
    assert error.what == what
    assert ".jsonl, .parquet" in error.remedy


# --- Zstandard --------------------------------------------------------------------------------------------------------


def zstandard_of(*frames: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    return b"".join(zstandard.ZstdCompressor().compress(frame) for frame in frames)


@given(st.lists(st.fixed_dictionaries({"text": TEXT}), min_size=1, max_size=8), st.integers(0, 8))
def test_frames_of_zstandard_are_read_one_after_another(tmp_path_factory, rows, cut):
    path = tmp_path_factory.mktemp("zstandard") / "a.jsonl.zst"
    path.write_bytes(zstandard_of(json_lines(rows[:cut]), json_lines(rows[cut:])))
    assert rows_of(path) == rows


def test_a_long_zstandard_file_comes_whole(tmp_path):
    generator = random.Random(0)
    rows = [{"text": f"{generator.random()} " + "x" * 10_000} for _ in range(300)]
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard_of(json_lines(rows)))
    assert rows_of(tmp_path / "a.jsonl.zst") == rows


def test_a_torn_zstandard_file_is_named_wherever_it_is_torn(tmp_path):
    generator = random.Random(0)
    whole = zstandard_of(json_lines({"text": f"{generator.random()}"} for _ in range(300)))
    path = tmp_path / "a.jsonl.zst"
    for length in range(1, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        assert refused(path).what.startswith("the file cannot be read to its end: ")
    path.write_bytes(whole + b"more")
    assert refused(path).where == str(path)


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    import sys

    if sys.version_info >= (3, 14):
        pytest.skip("Python has Zstandard itself")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").touch()
    error = refused(tmp_path / "a.jsonl.zst")
    assert "need the package zstandard" in error.what
    assert "longspan[data]" in error.remedy


# --- Parquet, only what is needed -------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 7))
def test_parquet_comes_in_order_whatever_its_row_groups(tmp_path_factory, count, group, batch):
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    rows = [{"query": f"q{n}", "number": n, "document": f"d{n}"} for n in range(count)]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("longspan.data.readers.PARQUET_BATCH", batch)
        assert list(read_rows(str(path))) == list(enumerate(rows, 1))
        needed = list(read_rows(str(path), columns=["document", "query"]))
    assert needed == [(n, {"document": f"d{n - 1}", "query": f"q{n - 1}"}) for n in range(1, count + 1)]


def test_where_a_needed_column_is_missing_all_are_shown(tmp_path):
    parquet.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "a.parquet")
    assert list(read_rows(str(tmp_path / "a.parquet"), columns=["query"])) == [(1, {"a": "x", "b": "y"})]


# --- what a broken row brings with it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "raw"),
    [
        ("a.jsonl", b'{"a": 1}\n{"b": \xff\n', b'{"b": \xff\n'),
        ("a.csv", b"q,d\n1,2,3\n", "1,2,3"),
        ("a.tsv", b"q\td\n1\n", "1"),
        ("a.csv", b"q,d\n\xff,2\n", b"\xff 2"),
    ],
)
def test_a_broken_row_brings_its_place_and_what_is_there(tmp_path, name, content, raw):
    (tmp_path / name).write_bytes(content)
    broken: list = []
    rows_of(tmp_path / name, broken.append)
    assert [(error.file, error.number, error.raw) for error in broken] == [(str(tmp_path / name), 2, raw)]
