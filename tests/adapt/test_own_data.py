"""One's own data becomes pairs, whatever form it has."""

import json
from pathlib import Path

import pytest

from longspan.adapt.own_data import OwnPair, fingerprint, read_own_data
from longspan.errors import LongspanError

GUIDE = """# Backups

Intro that belongs to no section of its own.

## Restore a file

Open the vault, choose the day, and press the green button.

## Empty

## Who may do it

Only members of the operations group, and only during the day.
"""
RST = """Printing
========

Where printers are
------------------

On every floor there is one beside the kitchen, and two in the basement.

How to print
~~~~~~~~~~~~

Choose the queue of your floor and swipe your badge at the device.
"""


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def test_documents_give_headings_and_their_sections(tmp_path):
    write(tmp_path, sub__guide_DOT_md=GUIDE, printing_DOT_rst=RST, picture_DOT_png="no text")
    data = read_own_data(str(tmp_path))
    assert {(pair.query, pair.document.split()[0]) for pair in data.pairs} == {
        ("Backups: Restore a file", "Open"),
        ("Backups: Who may do it", "Only"),
        ("Printing: Where printers are", "On"),
        ("Printing: How to print", "Choose"),
    }
    assert len({pair.group for pair in data.pairs}) == 2, "the sections of a file belong together"
    assert set(data.documents) == {pair.document for pair in data.pairs}


@pytest.mark.parametrize(
    ("name", "text", "query"),
    [
        ("travel.txt", "Travel costs\n\nHand in receipts within a month of the trip.", "Travel costs"),
        ("trip.md", "---\ntags: [a]\n---\n![logo](x)\n# Trips #\nHand in receipts within a month of it.", "Trips"),
        ("on-call.md", "![logo](x)\nHand in the telephone within a day of your week.", "on call"),
        ("sick_leave.txt", "Tell your team before nine in the morning that you are ill.", "sick leave"),
    ],
)
def test_text_without_headings_gives_its_title(tmp_path, name, text, query):
    (tmp_path / name).write_text(text)
    [pair] = read_own_data(str(tmp_path)).pairs
    assert pair.query == query


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_pairs_come_as_they_are(tmp_path, kind):
    rows = [("how?", "so"), ("why?", "because"), ("how?", "so")]
    text = (
        "".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in rows)
        if kind == "jsonl"
        else "q,a\n" + "".join(f"{q},{a}\n" for q, a in rows)
    )
    file = tmp_path / f"faq.{kind}"
    file.write_text(text)
    data = read_own_data(str(file), query="q", document="a")
    assert data.pairs == (OwnPair("how?", "so", "so"), OwnPair("why?", "because", "because"))


def test_judged_folder_gives_judgements_and_the_whole_corpus(tmp_path):
    write(
        tmp_path,
        corpus_DOT_jsonl='{"_id": "a", "title": "A", "text": "one"}\n{"_id": "b", "text": "two"}\n',
        queries_DOT_jsonl='{"_id": "q", "text": "first?"}\n',
        qrels__train_DOT_tsv="query-id\tcorpus-id\tscore\nq\ta\t1\nq\tb\t0\n",
    )
    data = read_own_data(str(tmp_path), split="train")
    assert data.pairs == (OwnPair("first?", "A one", "A one"),)
    assert data.documents == ("A one", "two")


def test_refusals_name_place_and_remedy(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"subject": "x", "body": "y"}\n')
    with pytest.raises(LongspanError, match="subject, body") as caught:
        read_own_data(str(tmp_path))
    assert "rows.jsonl:1" in str(caught.value)
    assert "--query" in str(caught.value)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "code.py").write_text("pass")
    with pytest.raises(LongspanError, match="nothing here that is read"):
        read_own_data(str(tmp_path / "empty"))
    (tmp_path / "empty" / "short.md").write_text("# Title\n\ntoo short\n")
    with pytest.raises(LongspanError, match="no pair"):
        read_own_data(str(tmp_path / "empty"))


def test_fingerprint_is_of_the_content(tmp_path):
    write(tmp_path / "one", guide_DOT_md=GUIDE)
    write(tmp_path / "other", guide_DOT_md=GUIDE)
    before = fingerprint(str(tmp_path / "one"))
    assert fingerprint(str(tmp_path / "other")) == before
    write(tmp_path / "one", guide_DOT_md=GUIDE + "\n## New\n\nOne more section that stands at the end.\n")
    assert fingerprint(str(tmp_path / "one")) != before
