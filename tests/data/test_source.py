"""Sources files: what they may say, and how they are refused."""

import pytest

from longspan.data.source import PairSource, TextSource, check_names, read_sources
from longspan.errors import LongspanError

GOOD = """
[[source]]
name = "faq"
files = ["faq/*.jsonl", "/absolute/b.jsonl", "s3://bucket/c.jsonl"]
query = "question"
document = "answer"
negatives = "wrong"
document_task = "classification"
weight = 2.5

[[source]]
name = "books-1.0_a"
files = "books.txt"
text = "body"

[[source]]
kind = "text"
name = "wiki"
files = ["wiki.parquet"]
"""


def refused(tmp_path, content: str | bytes) -> LongspanError:
    path = tmp_path / "sources.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LongspanError) as caught:
        read_sources(path)
    assert caught.value.where == str(path)
    assert caught.value.remedy
    return caught.value


def source(lines: str) -> str:
    return f'[[source]]\nname = "faq"\nfiles = ["a.jsonl"]\n{lines}\n'


def test_a_sources_file_is_read_and_its_files_lie_beside_it(tmp_path):
    (tmp_path / "sources.toml").write_text(GOOD)
    faq, books, wiki = read_sources(tmp_path / "sources.toml")
    assert faq == PairSource(
        name="faq",
        files=(f"{tmp_path}/faq/*.jsonl", "/absolute/b.jsonl", "s3://bucket/c.jsonl"),
        query="question",
        document="answer",
        negatives="wrong",
        query_task="search_query",
        document_task="classification",
        weight=2.5,
    )
    assert books == TextSource(name="books-1.0_a", files=(f"{tmp_path}/books.txt",), text="body")
    assert wiki == TextSource(name="wiki", files=(f"{tmp_path}/wiki.parquet",), text="text")


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ('qurey = "q"', "unknown key 'source.0.qurey'"),
        ('kind = "text"\nquery = "q"', "unknown key 'source.0.query'"),
        ('kind = "audio"', "source.0: "),
        ("weight = 0", "source.0.weight: Input should be greater than 0"),
        ("weight = true", "source.0: weight cannot be true"),
        ('weight = "much"', "source.0.weight: "),
        ('query_task = "asking"', "source.0.query_task: "),
        ("query = 3", "source.0.query: "),
        ("max_rows = 0", "source.0.max_rows: Input should be greater than or equal to 1"),
        ('layout = "zip"', "source.0.layout: Input should be 'files', 'text', 'hub'"),
        ('sha256 = {"a.jsonl" = "abc"}', "source.0.sha256.a.jsonl: "),
        ("streaming = true", "source.0: streaming is for hub = ..."),
        ('hub = "owner/name"', "source.0: name either its files or a data set of the hub"),
        ('layout = "release"\nsplit = "train"', "source.0: split has no meaning for the layout 'release'"),
        ('layout = "beir"\nconfig = "de"', "source.0: config has no meaning for the layout 'beir'"),
        ('layout = "hub"\nmin_score = 2', "source.0: min_score has no meaning for the layout 'hub'"),
        ('layout = "text"', "source.0: running text has no pairs"),
        ('kind = "text"\nlayout = "beir"', "source.0: a retrieval set is a source of pairs"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path, lines, what):
    assert refused(tmp_path, source(lines)).what.startswith(what)


def test_a_source_says_where_it_comes_from_and_how_it_lies(tmp_path):
    (tmp_path / "sources.toml").write_text(
        """
[[source]]
name = "scifact"
files = "beir/scifact"
layout = "beir"
split = "train"
min_score = 2
sha256 = { "corpus.jsonl.gz" = "%s" }
max_rows = 100
revision = "2021"
licence = "CC BY-NC 2.0"
origin = "https://example.org/scifact"

[[source]]
name = "reddit"
hub = "owner/pairs"
config = "default"
split = "reddit"
revision = "main"
streaming = true
"""
        % ("0" * 64)
    )
    scifact, reddit = read_sources(tmp_path / "sources.toml")
    assert scifact == PairSource(
        name="scifact",
        files=(f"{tmp_path}/beir/scifact",),
        layout="beir",
        split="train",
        min_score=2,
        sha256={"corpus.jsonl.gz": "0" * 64},
        max_rows=100,
        revision="2021",
        licence="CC BY-NC 2.0",
        origin="https://example.org/scifact",
    )
    assert (reddit.hub, reddit.files, reddit.streaming) == ("owner/pairs", (), True)


@pytest.mark.parametrize("hub", ["squad", "a/b/c", "/home/me/data", "./data", "owner/na me", ""])
def test_a_data_set_of_the_hub_has_an_owner_and_a_name(hub):
    with pytest.raises(LongspanError, match="and not owner/name"):
        PairSource.parse({"name": "a", "hub": hub}, where="-")
    with pytest.raises(LongspanError, match="cannot have the layout 'beir'"):
        PairSource.parse({"name": "a", "hub": "owner/name", "layout": "beir"}, where="-")


def test_the_columns_of_a_source_are_those_that_are_read():
    assert PairSource(name="a", files=("x",), query="q").columns == ("q", "document")
    assert PairSource(name="a", files=("x",), negatives="n").columns == ("query", "document", "n")
    assert TextSource(name="a", files=("x",), text="body").columns == ("body",)


def test_an_unknown_key_brings_near_ones(tmp_path):
    assert refused(tmp_path, source('qurey = "q"')).remedy.startswith("did you mean 'query'")
    assert "'document_task'" in refused(tmp_path, source('document_tsk = "q"')).remedy


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "missing key 'source'"),
        ("source = []", "source: "),
        ("source = 5", "'source' is not a list of tables"),
        ('[source]\nname = "x"', "'source' is not a list of tables"),
        ("source = [1]", "source.0: "),
        ("[[source]]\nname = 3\nfiles = ['a']", "source.0.name: Input should be a valid string (got 3)"),
        ('[[source]]\nfiles = ["a"]', "missing key 'source.0.name'"),
        ('[[source]]\nname = "x"', "source.0: name either its files or a data set of the hub"),
        ('[[source]]\nname = "x"\nfiles = []', "source.0.files: "),
        ('[[sources]]\nname = "x"', "missing key 'source'; unknown key 'sources'"),
        ('[[source]]\nname = "x', "not valid TOML"),
        (b"name = '\xff'", "not valid TOML"),
        (source("") + source(""), "two sources are called 'faq'"),
    ],
)
def test_a_broken_sources_file_is_named(tmp_path, content, what):
    assert refused(tmp_path, content).what.startswith(what)


def test_a_list_whose_items_are_wrong_is_not_called_too_short_as_well(tmp_path):
    assert refused(tmp_path, "[[source]]\nname = 3\nfiles = ['a']").what == (
        "source.0.name: Input should be a valid string (got 3)"
    )


def test_a_sources_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LongspanError, match="there is no such sources file"):
        read_sources(tmp_path / "gone.toml")
    with pytest.raises(LongspanError, match="cannot be read: Is a directory"):
        read_sources(tmp_path)


@pytest.mark.parametrize("name", ["a", "A1", "faq.v2", "stack-exchange_2023", "0"])
def test_a_name_that_makes_a_folder_is_taken(name):
    assert PairSource(name=name, files=("x",)).name == TextSource(name=name, files=("x",)).name == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a b", "naïve", "a\n", "-a", "a:b", "*"])
def test_a_name_that_makes_no_good_folder_is_refused(name):
    for kind in (PairSource, TextSource):
        with pytest.raises(LongspanError, match="name: a source's name becomes a folder's: letters, digits"):
            kind.parse({"name": name, "files": ["x"]}, where="-")


def test_names_must_differ():
    sources = (PairSource(name="a", files=("x",)), TextSource(name="a", files=("y",)))
    with pytest.raises(LongspanError, match="two sources are called 'a'") as caught:
        check_names(sources, where="here")
    assert caught.value.where == "here"
    check_names(sources[:1], where="here")
