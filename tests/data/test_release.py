"""The original release's form: what is written is read, byte offsets are byte offsets, and counts are believed."""

import gzip
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.layouts import layout_of, source_parts
from longspan.data.release import COUNTS, OFFSETS, release_shards, write_release
from longspan.data.skipped import stop_on_error
from longspan.data.source import PairSource, TextSource
from longspan.errors import LongspanError

TEXT = st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: f"{text}東")
PAIRS = st.fixed_dictionaries({"query": TEXT, "document": TEXT})
TRIPLETS = st.fixed_dictionaries({"query": TEXT, "document": TEXT, "negatives": st.lists(TEXT, max_size=3)})


def rows_of(folder, on_error=stop_on_error, **fields) -> list[dict]:
    source = PairSource(name="released", files=(str(folder),), **fields)
    return [row for part in source_parts(source) for _, row in part.read(source, on_error)]


def without_metadata(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "metadata"} for row in rows]


@pytest.fixture
def release(tmp_path):
    rows = [{"query": f"naïve {n}", "document": f"東京 {n}", "id": n} for n in range(7)]
    write_release(rows, tmp_path / "release", rows_per_shard=3)
    return tmp_path / "release"


def rewrite(path, lines: list[bytes]) -> None:
    path.write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines)))


# --- both ways --------------------------------------------------------------------------------------------------------


ROWS = st.one_of(st.lists(PAIRS, min_size=1, max_size=9), st.lists(TRIPLETS, min_size=1, max_size=9))


@given(ROWS, st.integers(1, 4))
def test_what_is_written_is_read(tmp_path_factory, rows, rows_per_shard):
    folder = tmp_path_factory.mktemp("release") / "new"
    assert write_release(rows, folder, rows_per_shard=rows_per_shard) == len(rows)
    assert layout_of(str(folder)) == "release"
    negatives = "negatives" if "negatives" in rows[0] else None
    assert without_metadata(rows_of(folder, negatives=negatives)) == rows
    assert rows_of(folder, negatives=negatives) == rows_of(folder), "a triplet is a pair, too"
    counts = json.loads((folder / COUNTS).read_text())
    offsets = json.loads(gzip.decompress((folder / OFFSETS).read_bytes()))
    assert offsets.keys() == counts.keys()
    by_offset = []
    for name in sorted(counts):
        content = gzip.decompress((folder / name).read_bytes())
        spans = [offsets[name][str(index)] for index in range(counts[name])]
        assert [start for start, _ in spans] == [0, *(end for _, end in spans)][:-1]
        assert spans[-1][1] == len(content)
        by_offset += [json.loads(content[start:end]) for start, end in spans]
    assert without_metadata(by_offset) == rows


def test_the_same_rows_give_the_same_bytes(tmp_path, release):
    rows = [{"query": f"naïve {n}", "document": f"東京 {n}", "id": n} for n in range(7)]
    write_release(iter(rows), tmp_path / "again", rows_per_shard=3)
    for name in os.listdir(release):
        assert (tmp_path / "again" / name).read_bytes() == (release / name).read_bytes()


def test_a_record_tells_its_objective(tmp_path):
    rows = [{"query": "q", "document": "d", "negatives": ["n"], "metadata": {"licence": "mine"}}]
    write_release(rows, tmp_path / "new", place="bucket/faq")
    assert json.loads((tmp_path / "new" / COUNTS).read_text()) == {"bucket/faq/shard-00000.jsonl.gz": 1}
    [row] = rows_of(tmp_path / "new", negatives="negatives")
    assert row["metadata"] == {
        "licence": "mine",
        "objective": {
            "self": [],
            "paired": [["query", "document"]],
            "triplet": [["query", "document", "negatives"]],
        },
    }


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"query": "q"}, "the row has an empty text or none"),
        ({"query": " ", "document": "d"}, "the row has an empty text or none"),
        ({"query": "q", "document": "d", "negatives": [3]}, "the row has an empty text or none"),
        ({"query": "q\ud800", "document": "d"}, "the row cannot be written"),
        ({"query": "q", "document": "d", "other": {1}}, "the row cannot be written"),
    ],
)
def test_a_row_that_cannot_be_released_leaves_nothing(tmp_path, row, what):
    with pytest.raises(LongspanError, match=what) as caught:
        write_release([{"query": "q", "document": "d"}, row], tmp_path / "new")
    assert caught.value.where == "row 2"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(release):
    with pytest.raises(LongspanError, match="something of that name already"):
        write_release([], release)


# --- other people's ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("earlier", [False, True])
def test_counts_may_name_bucket_and_folder_and_be_of_the_earlier_form(release, earlier):
    counts = {f"bucket/faq/{name}": count for name, count in json.loads((release / COUNTS).read_text()).items()}
    (release / COUNTS).write_text(json.dumps({"count_per_file": counts, "total_count": 7} if earlier else counts))
    assert len(rows_of(release)) == 7


def test_text_needs_no_objective(release):
    source = TextSource(name="t", files=(str(release),), text="document")
    assert sum(1 for part in source_parts(source) for _ in part.read(source, stop_on_error)) == 7


@pytest.mark.parametrize(
    "metadata",
    [{"objective": {"self": [], "paired": [["title", "body"]], "triplet": []}}, {"objective": 3}, {}, None, "x"],
)
def test_a_record_that_does_not_pair_the_columns_is_broken(release, metadata):
    shard = release / "shard-00001.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(shard.read_bytes()).splitlines()]
    rows[1]["metadata"] = metadata
    rewrite(shard, [json.dumps(row).encode() for row in rows])
    skipped: list[LongspanError] = []
    assert [row["id"] for row in rows_of(release, skipped.append)] == [0, 1, 2, 3, 5, 6]
    assert [error.where for error in skipped] == [f"{shard}:2"]
    assert "does not pair the columns query, document" in skipped[0].what


def test_negatives_must_be_declared(release):
    with pytest.raises(LongspanError, match="does not pair the columns query, document, negatives"):
        rows_of(release, negatives="negatives")


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_count_is_refused_by_name_even_when_rows_may_be_skipped(release, change):
    counts = json.loads((release / COUNTS).read_text())
    counts["shard-00001.jsonl.gz"] += change
    (release / COUNTS).write_text(json.dumps(counts))
    with pytest.raises(LongspanError, match=f"the shard has 3 rows and {COUNTS} says {3 + change}") as caught:
        rows_of(release, lambda error: None)
    assert caught.value.where == str(release / "shard-00001.jsonl.gz")


def test_broken_rows_that_are_skipped_still_count(release):
    shard = release / "shard-00000.jsonl.gz"
    lines = gzip.decompress(shard.read_bytes()).splitlines()
    rewrite(shard, [lines[0], b"{", lines[2]])
    skipped: list[LongspanError] = []
    assert len(rows_of(release, skipped.append)) == 6
    assert [error.where for error in skipped] == [f"{shard}:2"]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("shard-00001.jsonl.gz", None, "shard-00001.jsonl.gz is not there"),
        ("shard-00009.jsonl.gz", b"", "shard-00009.jsonl.gz is not in counts.json"),
        (COUNTS, b"{", "counts.json cannot be read"),
        (COUNTS, b"[]", "counts.json is not a table of files and counts"),
        (COUNTS, b'{"shard-00000.jsonl.gz": "3"}', "counts.json is not a table of files and counts"),
    ],
)
def test_a_release_that_is_not_whole_is_named(release, name, content, what):
    if content is None:
        (release / name).unlink()
    else:
        (release / name).write_bytes(content)
    with pytest.raises(LongspanError, match=what) as caught:
        release_shards(str(release))
    assert str(release) in caught.value.where
    assert caught.value.remedy
