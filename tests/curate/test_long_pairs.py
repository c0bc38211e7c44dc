"""Long pairs: every pair that a document could give is written or counted, with the tokens that the model reads."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.curate.long_pairs import (
    Document,
    LongPairsConfig,
    Section,
    candidates,
    make_long_pairs,
    read_document,
    split_sections,
)
from longspan.errors import LongspanError

ANY_LENGTH = {"min_tokens": 1}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(rows: list[dict], folder: Path, tokenizer, **settings) -> tuple[list[dict], dict]:
    file = write(folder / "documents.jsonl", rows)
    report = make_long_pairs([file], tokenizer, folder / "out", LongPairsConfig.parse(ANY_LENGTH | settings, where="-"))
    return read(folder / "out/pairs.jsonl"), report


def pairs_of(document: Document, kind) -> list[tuple[str, str, str | None]]:
    return [candidate[1:] for candidate in candidates(document, kind)]


# --- documents --------------------------------------------------------------------------------------------------------


def test_columns():
    config = LongPairsConfig()
    row = {"title": " T ", "abstract": "A", "text": "B", "year": 1}
    assert read_document(row, config, "-") == Document("T", "A", "B", [])
    assert read_document(row | {"body": "C"}, config, "-").body == "C"
    assert read_document({"title": None}, config, "-") == Document("", "", "", [])
    assert read_document({"name": "N", "content": "C"}, LongPairsConfig(title="name", body="content"), "-")[::2] == (
        "N",
        "C",
    )


def test_listed_sections_make_the_body_where_there_is_none():
    # The forms of S2ORC (body_text) and of our own.
    row = {"body_text": [{"section": "Intro", "text": "one"}, {"section": "", "text": "two"}]}
    sections = [Section("Intro", "one"), Section("", "two")]
    assert read_document(row, LongPairsConfig(), "-") == Document("", "", "Intro\none\n\ntwo", sections)
    row = {"body": "all of it", "parts": [{"heading": "Intro", "text": "one"}]}
    document = read_document(row, LongPairsConfig(sections="parts"), "-")
    assert (document.body, document.sections) == ("all of it", sections[:1])


def test_headings_of_running_text():
    markdown = "# Stars\n\nbefore\n## Birth ##\nof stars\n### Clouds\nof gas\n\n## Death\n"
    document = read_document({"text": markdown}, LongPairsConfig(), "-")
    sections = [Section("Birth", "of stars"), Section("Clouds", "of gas"), Section("Death", "")]
    assert (document.title, document.body[:6], document.sections) == ("Stars", "before", sections)
    assert read_document({"title": "Own", "text": markdown}, LongPairsConfig(), "-").body == markdown.strip()
    wiki = "first\n== History ==\nlong ago\n=== War ===\nand peace\n"
    assert split_sections(wiki) == [Section("History", "long ago"), Section("War", "and peace")]
    tokenised = " first \n = = History = = \n long ago \n = = = War = = = \n x = 1 = = y \n"
    assert split_sections(tokenised) == [Section("History", "long ago"), Section("War", "x = 1 = = y")]
    assert split_sections("no #heading\n#hash\nat all = = here\n") == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"title": 7}, "'title' is not a text"),
        ({"text": ["a"]}, "'text' is not a text"),
        ({"sections": ["a"]}, "'sections' does not list sections"),
        ({"sections": [{"heading": "no text"}]}, "'sections' does not list sections"),
    ],
)
def test_other_things_are_refused(row, message, tmp_path, small_tokenizer):
    with pytest.raises(LongspanError, match=message) as caught:
        make([{"title": "fine", "text": "fine"}, row], tmp_path, small_tokenizer)
    assert caught.value.where == f"{tmp_path}/documents.jsonl:2"


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_of_a_document():
    document = Document("T", "A", "B", [Section("H", "S"), Section("", "U"), Section("E", "")])
    assert pairs_of(document, "title-body") == [("T", "B", None)]
    assert pairs_of(document, "abstract-body") == [("A", "B", None)]
    assert pairs_of(document, "heading-section") == [
        ("T: H", "S", None),
        ("", "U", "no heading"),
        ("T: E", "", "empty section"),
    ]
    assert pairs_of(document, "heading-body") == [("T: H", "B", None), ("", "B", "no heading"), ("T: E", "B", None)]
    assert pairs_of(document._replace(title=""), "heading-section")[0][0] == "H"


def test_what_is_missing_is_the_reason():
    nothing = Document("", "", "", [])
    assert pairs_of(nothing, "title-body") == [("", "", "no title")]
    assert pairs_of(nothing._replace(body="B"), "abstract-body") == [("", "B", "no abstract")]
    assert pairs_of(nothing._replace(title="T"), "title-body") == [("T", "", "no body")]
    assert pairs_of(nothing, "heading-section") == [("", "", "no sections")]


def test_a_document_does_not_repeat_its_query_as_a_headline():
    def body(text: str) -> tuple[str, str | None]:
        [(_, document, reason)] = pairs_of(Document("Great lobsters", "", text, []), "title-body")
        return document, reason

    assert body("Great lobsters.\n\nThey live long.") == ("They live long.", None)
    assert body("Great lobsters , known as big ones, live long.")[0].startswith("Great lobsters , known")
    assert body("Great lobsters") == ("", "query only")


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_tokens_are_those_that_the_model_reads(tmp_path, small_embedder):
    rows = [{"title": f"t{n}", "text": "the quick brown fox " * n} for n in range(1, 40)]
    made, _ = make(rows, tmp_path, small_embedder.tokenizer)
    texts = [pair["document"] for pair in made]
    assert [pair["tokens"] for pair in made] == small_embedder.num_tokens(texts, task="search_document")
    assert made[0] == {
        "query": "t1",
        "document": "the quick brown fox",
        "tokens": made[0]["tokens"],
        "kind": "title-body",
    }


def test_lengths_are_bounds_included(tmp_path, small_tokenizer):
    rows = [{"title": f"t{n}", "text": "fox " * n} for n in range(1, 30)]
    own = make(rows[:1], tmp_path, small_tokenizer)[0][0]["tokens"] - 1
    made, report = make(rows, tmp_path, small_tokenizer, min_tokens=own + 5, max_tokens=own + 20)
    assert [pair["tokens"] for pair in made] == list(range(own + 5, own + 21))
    assert report["kinds"]["title-body"] == {
        "pairs": 16,
        "left_out": {f"fewer than {own + 5} tokens": 4, f"more than {own + 20} tokens": 9},
    }


@pytest.mark.parametrize(("share", "num_short"), [(0.3, 16), (0.5, 7), (0.75, 2), (1.0, 0), (0.1, 22)])
def test_share_of_long_documents(tmp_path, small_tokenizer, share, num_short):
    rows = [{"title": f"t{n}", "text": "fox " * (100 if n % 4 == 0 else 10) + str(n)} for n in range(1, 30)]
    made, report = make(rows, tmp_path, small_tokenizer, long_tokens=50, long_share=share)
    long = [pair for pair in made if pair["tokens"] > 50]
    assert (len(long), len(made) - len(long)) == (7, num_short)
    assert report["lengths"]["share_over_50"] == pytest.approx(7 / (7 + num_short), abs=1e-4)
    left_out = report["kinds"]["title-body"]["left_out"]
    assert left_out.get("beyond the share of short ones", 0) == 22 - num_short
    # The choice belongs to the content: another order chooses the same.
    again, _ = make(rows[::-1], tmp_path, small_tokenizer, long_tokens=50, long_share=share)
    assert again == made[::-1]


def test_a_share_that_cannot_be_had_is_refused(tmp_path, small_tokenizer):
    with pytest.raises(LongspanError, match="no document has more than 2048 tokens, of 1"):
        make([{"title": "t", "text": "fox"}], tmp_path, small_tokenizer, long_share=0.5)


def test_no_pair_at_all_is_refused_with_the_reasons(tmp_path, small_tokenizer):
    with pytest.raises(LongspanError, match="title-body: 2 x no title"):
        make([{"text": "a"}, {"text": "b"}], tmp_path, small_tokenizer)
    assert not (tmp_path / "out").exists()
    with pytest.raises(LongspanError, match="no document has at least 9 and at most 8"):
        LongPairsConfig.parse({"min_tokens": 9, "max_tokens": 8}, where="-")


parts = st.sampled_from(["", "fox", "the quick brown fox", "fox " * 30])
documents = st.fixed_dictionaries(
    {"title": parts, "abstract": parts, "body": parts},
    optional={"sections": st.lists(st.fixed_dictionaries({"heading": parts, "text": parts}), max_size=3)},
)


@settings(max_examples=25)
@given(rows=st.lists(documents, min_size=1, max_size=6), share=st.sampled_from([None, 0.5]))
def test_nothing_is_lost(tmp_path_factory, small_tokenizer, rows, share):
    folder = tmp_path_factory.mktemp("law")
    kinds = ("title-body", "abstract-body", "heading-section", "heading-body")
    rows = [*rows, {"title": "a long one", "body": "fox " * 50}]
    lengths = {"min_tokens": 5, "max_tokens": 60, "long_tokens": 20, "long_share": share}
    made, report = make(rows, folder, small_tokenizer, kinds=kinds, **lengths)
    assert len(made) == report["pairs"] == sum(report["lengths"]["histogram"].values())
    for kind, counts in report["kinds"].items():
        assert counts["pairs"] == sum(pair["kind"] == kind for pair in made)
        per_row = [1 if kind in kinds[:2] else max(1, len(row.get("sections", []))) for row in rows]
        assert counts["pairs"] + sum(counts["left_out"].values()) == sum(per_row)
    assert all(pair["query"].strip() and pair["document"].strip() and 5 <= pair["tokens"] <= 60 for pair in made)


# --- real data --------------------------------------------------------------------------------------------------------


def test_articles_of_wikipedia(shared_data, tmp_path):
    from longspan.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(shared_data / "vocab/bert-base-uncased-vocab.txt")
    file = str(shared_data / "text/wikitext2.jsonl.gz")
    report = make_long_pairs([file], tokenizer, tmp_path, LongPairsConfig(long_share=0.5))
    assert report["kinds"]["title-body"]["pairs"] >= 60
    assert report["kinds"]["heading-section"]["pairs"] > 50
    assert report["lengths"]["share_over_2048"] >= 0.5
    queries = [pair["query"] for pair in read(tmp_path / "pairs.jsonl")]
    assert "Meridian , Mississippi" in queries
    assert not any("=" in query for query in queries)


# --- the command ------------------------------------------------------------------------------------------------------


def test_command(tmp_path, monkeypatch, capsys, small_tokenizer):
    from longspan.cli import main

    monkeypatch.chdir(tmp_path)
    small_tokenizer.save(tmp_path / "tokenizer.json")
    write(tmp_path / "a.jsonl", [{"name": "t", "text": "fox " * 30}, {"name": "u", "text": "fox"}])
    command = "curate long a.jsonl --title name --tokenizer tokenizer.json --min-tokens 20 --long-tokens 24 --out out"
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    assert "title-body: 1 pairs; left out: 1 x fewer than 20 tokens\n" in out
    assert "1 pairs, 100.0% over 24 tokens: out/pairs.jsonl" in out
    assert main([*command.split(), "--kinds", "title"]) == 2
    assert "title-body" in capsys.readouterr().err
