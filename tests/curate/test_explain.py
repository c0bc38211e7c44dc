"""An explanation says what the filter saw: the same score, rank and rivals, and refuses what has changed since."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from longspan.curate.consistency import Rule, Searching, Teacher
from longspan.curate.explain import explain, rows_with_query
from longspan.curate.filtering import filter_source
from longspan.data.source import PairSource
from longspan.errors import LongspanError

ROWS = [{"query": f"what is {n}?", "document": f"{n // 2} is this"} for n in range(40)]
"""Of two queries that share a document, one is about something else; and the first has copies of its document."""


@pytest.fixture
def filtered(tmp_path, make_embedder) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    source = PairSource.parse({"name": "pairs", "files": [str(file)]}, where="test")
    filter_source(source, Teacher(make_embedder()), tmp_path / "out", sample_size=20)
    return tmp_path / "out"


def test_every_row_is_explained_as_it_was_judged(filtered):
    dropped = {}
    for line in (filtered / "dropped.jsonl").read_text().splitlines():
        row = json.loads(line)["consistency"]
        dropped[row["row"]] = row
    assert dropped
    assert len(dropped) < 40
    for number, row in enumerate(ROWS, 1):
        one = explain(filtered, number, num_shown=40)
        assert (one.query, one.document, one.source, one.row) == (row["query"], row["document"], "pairs", number)
        assert one.kept == (number not in dropped) == (one.rank < 2)
        scores = [other.score for other in one.nearest]
        assert scores == sorted(scores, reverse=True)
        assert sum(score > one.score for score in scores) == one.rank
        assert len({other.document for other in one.nearest} | {one.document}) == one.num_documents
        for other in one.nearest:
            assert other.row is not None
            assert ROWS[other.row - 1]["document"] == other.document
        if number in dropped:
            assert one.rank == dropped[number]["rank"]
            assert one.score == pytest.approx(dropped[number]["score"], abs=1e-6)


def test_the_verdict_is_a_sentence(tmp_path, filtered, make_embedder):
    dropped = json.loads((filtered / "dropped.jsonl").read_text().splitlines()[0])["consistency"]
    one = explain(filtered, dropped["row"])
    place = f"number {dropped['rank'] + 1} of {one.num_documents} for this query"
    assert one.verdict == f"dropped: its document is {place}, and the first 2 are kept"
    source = PairSource.parse({"name": "pairs", "files": [str(tmp_path / "pairs.jsonl")]}, where="test")
    filter_source(source, Teacher(make_embedder()), filtered, rule=Rule(threshold=-1), sample_size=20)
    assert explain(filtered, dropped["row"]).verdict.startswith("kept: its score ")


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="needs faiss-cpu")
def test_of_a_rank_that_an_index_gave_it_says_how_far_it_looked(tmp_path, filtered, make_embedder):
    source = PairSource.parse({"name": "pairs", "files": [str(tmp_path / "pairs.jsonl")]}, where="test")
    searching = Searching("approximate", target_recall=0.01, depth=2)
    report = filter_source(source, Teacher(make_embedder()), filtered, searching=searching)
    assert report.facts["search"]["exact"] is False
    assert report.facts["search"]["ranks_known_to"] == 2
    last = [one.verdict for one in (explain(filtered, row) for row in (1, 2, 3, 4)) if one.rank == 2]
    assert last
    assert set(last) == {"dropped: its document is number 3 or later of 20 for this query, and the first 2 are kept"}
    filter_source(source, Teacher(make_embedder()), filtered, searching=Searching("exact"))
    assert "or later" not in explain(filtered, 2).verdict


def test_rows_are_found_by_their_query(filtered):
    assert rows_with_query(filtered, " what is 7? ") == [8]
    assert rows_with_query(filtered, "IS 7") == [8]
    assert rows_with_query(filtered, "what is 3") == [4, *range(31, 41)]
    with pytest.raises(LongspanError, match="no query holds 'elephant'"):
        rows_with_query(filtered, "elephant")


def test_the_result_can_be_moved(tmp_path, filtered):
    before = explain(filtered, 7)
    shutil.move(filtered, tmp_path / "elsewhere" / "deeper")
    assert explain(tmp_path / "elsewhere" / "deeper", 7) == before


@pytest.mark.parametrize("row", [0, -1, 41])
def test_rows_that_are_not_there_are_refused(filtered, row):
    with pytest.raises(LongspanError, match=f"there is no row {row}"):
        explain(filtered, row)


def test_texts_that_have_changed_are_refused(tmp_path, filtered):
    file = tmp_path / "pairs.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0].replace("0 is this", "0 is that"), *lines[1:]]) + "\n")
    with pytest.raises(LongspanError, match="has changed since"):
        explain(filtered, 1)
    file.write_text("\n".join(lines[:10]) + "\n")
    with pytest.raises(LongspanError, match="has changed since"):
        explain(filtered, 30)


GONE = ["report.json", "judged/state.json", "judged/ranks.npy", "judged/numbers.npy", "vectors"]


@pytest.mark.parametrize("gone", GONE)
def test_an_unfinished_filter_is_named(filtered, gone):
    path = filtered / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(LongspanError) as caught:
        explain(filtered, 1)
    assert "run" in caught.value.remedy or "finished" in caught.value.remedy
