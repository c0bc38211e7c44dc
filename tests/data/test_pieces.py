"""However a file is cut and in whatever steps it is read, its rows and their numbers are the same."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from longspan.data.manifest import Lengths
from longspan.data.parts import FilePart
from longspan.data.pieces import FileLines, PieceSize, Stretch, Tools, cut, tokenise
from longspan.data.source import TextSource
from longspan.data.writing import map_shard, row_schema
from longspan.errors import LongspanError

LINES = st.lists(st.sampled_from(["fox", "the quick brown fox " * 20, "", "\x01", None, "{"]), max_size=30)


def nothing(count: int) -> None:
    """An `advance` that does not count."""


@pytest.fixture
def tools_of(tmp_path, small_tokenizer):
    """Tools with pieces of given sizes, in a folder of their own."""
    schema = row_schema("text", small_tokenizer.vocab_size)

    def make(piece: int, batch: int, *, stop: bool = False) -> Tools:
        folder = tmp_path / f"pieces-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        source = TextSource(name="t", files=("a.jsonl",))
        return Tools(folder, source, small_tokenizer, schema, stop, PieceSize(piece, batch))

    return make


def whole(path) -> Stretch:
    return Stretch(FilePart(str(path)), 0, 0, path.stat().st_size)


def done(tools: Tools, stretch: Stretch) -> tuple[list[list[int]], list[str], list[Lengths]]:
    """Rows, skipped rows and lengths of what a stretch becomes when it is cut and its parts tokenised."""
    stretches = cut(tools, stretch, nothing)
    pieces = [piece for one in stretches for piece in tokenise(tools, one, nothing).pieces]
    rows = [ids for piece in pieces for ids in map_shard(tools.folder / piece.rows.file).column("text").to_pylist()]
    return rows, [row.line for piece in pieces for row in piece.skipped], [p.lengths["text"] for p in pieces]


@settings(max_examples=25)
@given(LINES, st.integers(1, 600), st.integers(1, 600), st.booleans())
def test_sizes_change_neither_rows_nor_numbers(tmp_path_factory, small_tokenizer, lines, piece, batch, ends):
    folder = tmp_path_factory.mktemp("cut")
    path = folder / "a.jsonl"
    text = "\n".join("{" if line == "{" else "" if line is None else json.dumps({"text": line}) for line in lines)
    path.write_text(text + "\n" * ends)
    schema = row_schema("text", small_tokenizer.vocab_size)
    source = TextSource(name="t", files=("a.jsonl",))
    results = []
    for name, size in (("one", PieceSize()), ("many", PieceSize(piece, batch))):
        (folder / name).mkdir()
        tools = Tools(folder / name, source, small_tokenizer, schema, False, size)
        rows, skipped, lengths = done(tools, whole(path))
        results.append((rows, skipped, Lengths.total(lengths)))
    assert results[0] == results[1]
    rows, skipped, lengths = results[0]
    kept = [number for number, line in enumerate(lines, 1) if line not in ("", "\x01", None, "{")]
    broken = [number for number, line in enumerate(lines, 1) if line in ("", "\x01", "{")]
    assert rows == [ids.tolist() for ids in small_tokenizer.encode([lines[number - 1] for number in kept])]
    assert [json.loads(line)["line"] for line in skipped] == broken
    assert lengths == Lengths.of(np.array([len(row) for row in rows], dtype=np.int64))


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(1, 90), st.booleans())
def test_stretches_lie_side_by_side_and_end_with_lines(tmp_path_factory, lengths, size, ends_with_newline):
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    content = b"\n".join(b"x" * length for length in lengths) + b"\n" * ends_with_newline
    path.write_bytes(content)
    tools = Tools(path.parent, None, None, None, False, PieceSize(size, 1))  # pyright: ignore[reportArgumentType]
    stretches = cut(tools, whole(path), nothing)
    assert sum(stretch.num_bytes for stretch in stretches) == len(content)
    if len(stretches) == 1:
        return
    place, number = 0, 1
    for count, stretch in enumerate(stretches):
        assert isinstance(stretch.part, FileLines)
        lines = stretch.part.lines
        assert (lines.start, lines.first, stretch.number) == (place, number, count)
        part = content[lines.start : lines.end]
        assert part.endswith(b"\n") or lines.end == len(content)
        assert len(part) >= size or lines.end == len(content)
        assert b"\n" not in part[size - 1 : -1], "no longer than it must be"
        place, number = lines.end, number + part.count(b"\n")
    assert place == len(content)


def test_only_plain_lines_are_cut(tmp_path, tools_of):
    import gzip

    import pyarrow as pa

    texts = [f"row {number}" for number in range(50)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "b.tsv").write_text("text\n" + "\n".join(texts))
    parquet.write_table(pa.table({"text": texts}), tmp_path / "c.parquet")
    (tmp_path / "d.ndjson").write_text(lines)
    found = []
    for name in ("a.jsonl.gz", "b.tsv", "c.parquet", "d.ndjson"):
        tools = tools_of(60, 20)
        assert (len(cut(tools, whole(tmp_path / name), nothing)) > 1) == (name == "d.ndjson")
        rows, _, lengths = done(tools, whole(tmp_path / name))
        assert len(lengths) > 3, "many pieces of one stretch"
        found.append(rows)
    assert found[0] == found[1] == found[2] == found[3]


def test_the_first_broken_row_is_named_wherever_the_file_was_cut(tmp_path, tools_of):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "fox"}) + "\n" for _ in range(99)) + '{"text": 5}\n{"text": "fox"}\n')
    tools = tools_of(300, 100, stop=True)
    with pytest.raises(LongspanError, match="'text' is not a text") as caught:
        done(tools, whole(path))
    assert caught.value.where == f"{path}:100"


def test_a_stretch_that_was_left_off_is_gone_on_with(tmp_path, tools_of, monkeypatch):
    path = tmp_path / "a.tsv"
    path.write_text("text\n" + "".join(f"row {number}\n\x01\n" for number in range(50)))
    whole_result = done(tools_of(60, 20), whole(path))
    tools = tools_of(60, 20)
    last = tokenise(tools, whole(path), nothing).pieces[-1].rows.file
    for name in (last, sorted(file.name for file in tools.folder.glob("*.arrow"))[3]):
        (tools.folder / name).unlink()
        before = {file.name: file.stat().st_mtime_ns for file in tools.folder.glob("*.arrow")}
        assert done(tools, whole(path)) == whole_result
        kept = [file for file, stamp in before.items() if (tools.folder / file).stat().st_mtime_ns == stamp]
        assert sorted(kept) == sorted(file for file in before if file < name)
