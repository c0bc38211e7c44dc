"""Search: passages of files with their places, and the nearest to a query."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.files import write_bytes, write_text
from longspan.search import Index, Passage, read_passages

RUNNING = """
The quick brown fox
jumps over the lazy dogs.

  Indented, and
still the same paragraph.


Naïve café.
"""


def found(path, **arguments):
    """Line and text of every passage of a file."""
    return [(p.where.removeprefix(f"{path}:"), p.text) for p in read_passages([str(path)], **arguments)]


# --- passages --------------------------------------------------------------------------------------------------------


def test_running_text_is_cut_at_blank_lines_and_joined_up_to_the_limit(tmp_path):
    path = tmp_path / "a.md"
    write_text(path, RUNNING)
    first = "The quick brown fox\njumps over the lazy dogs."
    second = "  Indented, and\nstill the same paragraph."
    assert found(path) == [("2", f"{first}\n\n{second}\n\nNaïve café.")]
    assert found(path, max_words=1) == [("2", first), ("5", second), ("9", "Naïve café.")]
    assert found(path, max_words=15) == [("2", f"{first}\n\n{second}"), ("9", "Naïve café.")]


@pytest.mark.parametrize("name", ["a.txt", "a.RST", "a.txt.gz"])
def test_line_ends_do_not_matter(tmp_path, name):
    path = tmp_path / name
    content = RUNNING.replace("\n", "\r\n").encode()
    write_bytes(path, gzip.compress(content) if name.endswith("gz") else content)
    assert [line for line, _ in found(path, max_words=1)] == ["2", "5", "9"]
    assert found(path, max_words=1)[2] == ("9", "Naïve café.")


@given(st.lists(st.text("ab \n", max_size=30), max_size=8), st.integers(1, 8))
def test_no_word_is_lost_and_lines_are_right(tmp_path_factory, parts, max_words):
    text = "\n\n".join(parts)
    path = tmp_path_factory.mktemp("running") / "a.txt"
    write_text(path, text)
    passages = found(path, max_words=max_words)
    assert " ".join(passage for _, passage in passages).split() == text.split()
    lines = text.split("\n")
    for line, passage in passages:
        assert lines[int(line) - 1].strip() == passage.split("\n")[0].strip() != ""


def test_rows_are_passages(tmp_path):
    path = tmp_path / "a.jsonl"
    write_text(
        path,
        '{"title": "Foxes", "text": "are quick"}\n'
        '{"document": "dogs are lazy", "title": null}\n'
        '\n{"body": "  "}\n{"content": " café\\n"}\n',
    )
    assert found(path) == [("1", "Foxes are quick"), ("2", "dogs are lazy"), ("5", "café")]


def test_the_source_of_a_passage_is_its_column_or_its_file(tmp_path):
    rows, notes = tmp_path / "a.jsonl", tmp_path / "a.md"
    write_text(rows, '{"text": "one", "source": "numpy"}\n{"text": "two", "source": 3}\n')
    write_text(notes, "three")
    assert [passage.source for passage in read_passages([str(rows), str(notes)])] == ["numpy", str(rows), str(notes)]


def test_nearest_among_some_is_nearest_of_those(small_embedder):
    index = Index.build(small_embedder, PASSAGES)
    query_1D = small_embedder.embed(["the fox"], task="search_query")
    among = range(1, 3)
    assert index.nearest(query_1D, 9, among) == [hit for hit in index.nearest(query_1D, 9) if hit[0] in among]


def test_a_table_named_like_text_is_a_table(tmp_path):
    path = tmp_path / "notes.txt.jsonl"
    write_text(path, '{"text": "one"}\n')
    assert found(path) == [("1", "one")]


def test_rows_without_text_are_refused(tmp_path):
    write_text(tmp_path / "a.csv", "name,age\nfox,3\n")
    with pytest.raises(LongspanError, match="no text: its columns are name, age") as caught:
        read_passages([str(tmp_path / "a.csv")])
    assert caught.value.where.endswith("a.csv:2")


def test_missing_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(LongspanError, match="no file"):
        read_passages([str(tmp_path / "nothing.md")])
    write_text(tmp_path / "a.docx", "")
    with pytest.raises(LongspanError, match=r"docx"):
        read_passages([str(tmp_path / "a.docx")])


# --- search ----------------------------------------------------------------------------------------------------------

PASSAGES = [Passage(f"file:{i}", text) for i, text in enumerate(["quick fox", "lazy dogs", "café 東京", "fox " * 300])]


def test_search_finds_the_nearest_by_cosine(small_embedder):
    index = Index.build(small_embedder, PASSAGES)
    hits = index.search("the fox", k=3)
    documents_MD = small_embedder.embed([p.text for p in PASSAGES], task="search_document", truncate=True)
    scores_M = documents_MD @ small_embedder.embed(["the fox"], task="search_query")[0]
    best = np.argsort(-scores_M, kind="stable")[:3]
    assert [hit.passage for hit in hits] == [PASSAGES[i] for i in best]
    np.testing.assert_allclose([hit.score for hit in hits], scores_M[best], rtol=0, atol=1e-6)
    assert len(index.search("the fox", k=99)) == len(PASSAGES)


def test_vectors_are_kept_and_used_again(small_embedder, tmp_path, monkeypatch):
    counts = []
    first = Index.build(small_embedder, PASSAGES, cache=tmp_path, progress=counts.append)
    assert sum(counts) == len(PASSAGES)
    plain = Index.build(small_embedder, PASSAGES)
    query = small_embedder.embed(["dogs"], task="search_query")
    monkeypatch.setattr(type(small_embedder), "embed", lambda *args, **kwargs: pytest.fail("computed again"))
    again = Index.build(small_embedder, PASSAGES, cache=tmp_path)
    monkeypatch.setattr(type(small_embedder), "embed", lambda *args, **kwargs: query)
    results = [[(hit.passage, hit.score) for hit in index.search("dogs")] for index in (first, again, plain)]
    assert results[0] == results[1]
    assert [passage for passage, _ in results[0]] == [passage for passage, _ in results[2]]


def test_passages_that_are_cut_are_counted_when_they_are_embedded(small_embedder, tmp_path):
    passages = [*PASSAGES, Passage("another long one", "dogs " * 600)]
    plain, first, again = [], [], []
    Index.build(small_embedder, passages, on_cut=plain.append)
    Index.build(small_embedder, passages, cache=tmp_path, on_cut=first.append)
    Index.build(small_embedder, passages, cache=tmp_path, on_cut=again.append)
    assert (sum(plain), sum(first), sum(again)) == (2, 2, 0)


def test_nothing_to_search_in(small_embedder):
    with pytest.raises(LongspanError, match="nothing to search in"):
        Index.build(small_embedder, [])


def test_an_empty_query(small_embedder):
    with pytest.raises(LongspanError, match="is empty"):
        Index.build(small_embedder, PASSAGES).search(" ")
