"""Preparing is exact, repeatable, and survives whatever happens in the middle of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from longspan.data import prepare as module
from longspan.data import writing
from longspan.data.manifest import MANIFEST
from longspan.data.pieces import PieceSize
from longspan.data.plan import shuffled
from longspan.data.prepare import PIECES, TOKENIZER_FILE, prepare
from longspan.data.shards import VERIFIED, PreparedSource
from longspan.data.skipped import SKIPPED
from longspan.data.source import PairSource, TextSource
from longspan.errors import LongspanError
from longspan.files import sha256_file
from longspan.text.tokenizer import Tokenizer

SMALL = PieceSize(piece=1000, batch=300)

ODD_TEXTS = [
    "naïve café",
    "東京 tower",
    "[SEP] in a text [MASK]",
    "  spaces  ",
    "search_query: fox",
    "x" * 300,
    "😀 !?",
]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 7)
    monkeypatch.setattr(module, "PIECE_SIZE", SMALL)


@pytest.fixture
def pairs(tmp_path, write_rows, pair_rows) -> PairSource:
    """A source of 30 pairs in two files."""
    rows = pair_rows(30)
    write_rows(tmp_path / "raw" / "a.jsonl", rows[:20])
    write_rows(tmp_path / "raw" / "b.jsonl", rows[20:])
    return PairSource(name="faq", files=(f"{tmp_path}/raw/*.jsonl",), negatives="negatives")


def content(folder: Path) -> dict[str, bytes]:
    # Not the note of what was verified, which holds times of files.
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != VERIFIED]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def reordered(rows: list) -> list:
    """Rows as they stand in a prepared source of seed 0."""
    return [rows[number] for number in shuffled(np.arange(len(rows)), len(rows), (0,))]


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def refused(source, out, tokenizer, **options) -> LongspanError:
    with pytest.raises(LongspanError) as caught:
        prepare([source], out, tokenizer, **options)
    assert not (out / source.name / MANIFEST).exists()
    assert caught.value.remedy
    return caught.value


# --- what is prepared -------------------------------------------------------------------------------------------------


def test_pairs_become_the_ids_of_their_raw_texts(tmp_path, write_rows, small_tokenizer, small_shards):
    rows = [
        {"q": text, "d": f"{text} {n}", "neg": ODD_TEXTS[: n % 4]}
        for n, text in enumerate(ODD_TEXTS * 4)
    ]  # fmt: skip
    source = PairSource(
        name="odd",
        files=(str(write_rows(tmp_path / "odd.jsonl", rows)),),
        query="q",
        document="d",
        negatives="neg",
        document_task="clustering",
        weight=2.0,
    )
    [manifest] = prepare([source], tmp_path / "out", small_tokenizer)
    opened = PreparedSource(tmp_path / "out" / "odd")
    queries, documents, negatives = opened.ids("query"), opened.ids("document"), opened.negatives()
    assert opened.manifest == manifest
    assert len(opened) == len(queries) == len(documents) == 28
    for number, row in enumerate(reordered(rows)):
        [query, document, *mined] = small_tokenizer.encode([row["q"], row["d"], *row["neg"]])
        np.testing.assert_array_equal(queries[number], query)
        np.testing.assert_array_equal(documents[number], document)
        assert negatives.counts(np.array([number])).tolist() == [len(mined)]
    batch = pa.ipc.open_file(tmp_path / "out" / "odd" / "shard-00001.arrow").get_batch(0)
    expected = [[ids.tolist() for ids in small_tokenizer.encode(row["neg"])] for row in reordered(rows)[7:14]]
    assert batch.column("negatives").to_pylist() == expected


def test_the_manifest_says_what_is_there(tmp_path, pairs, pair_rows, small_tokenizer, small_shards):
    [manifest] = prepare([pairs], tmp_path / "out", small_tokenizer)
    folder = tmp_path / "out" / "faq"
    assert manifest.kind == "pairs"
    assert (manifest.query_task, manifest.document_task, manifest.weight) == ("search_query", "search_document", 1.0)
    assert manifest.tokenizer == small_tokenizer.fingerprint
    assert manifest.num_rows == 30
    rows = pair_rows(30)
    columns = {
        "query": [row["query"] for row in rows],
        "document": [row["document"] for row in rows],
        "negatives": [text for row in rows for text in row["negatives"]],
    }
    expected = {name: sum(map(len, small_tokenizer.encode(texts))) for name, texts in columns.items()}
    assert manifest.num_tokens == expected
    assert [shard.num_rows for shard in manifest.shards] == [7, 7, 7, 7, 2]
    for shard in manifest.shards:
        assert shard.sha256 == sha256_file(folder / shard.file)
        assert shard.num_bytes == (folder / shard.file).stat().st_size
    assert [(file.file, file.num_rows, file.num_skipped) for file in manifest.inputs] == [
        (f"{tmp_path}/raw/a.jsonl", 20, 0),
        (f"{tmp_path}/raw/b.jsonl", 10, 0),
    ]
    assert [file.sha256 for file in manifest.inputs] == [sha256_file(file.file) for file in manifest.inputs]
    assert sorted(content(folder)) == [MANIFEST, *(f"shard-0000{n}.arrow" for n in range(5))]
    assert Tokenizer.load(tmp_path / "out" / TOKENIZER_FILE).fingerprint == small_tokenizer.fingerprint


def test_running_text_of_every_kind_of_file(tmp_path, small_tokenizer):
    (tmp_path / "b.txt").write_text("the quick\n\nbrown fox\n")
    (tmp_path / "c.tsv").write_text('text\nlazy "dogs\n')
    parquet.write_table(pa.table({"text": ["jumps", "over"]}), tmp_path / "d.parquet")
    source = TextSource(name="books", files=(f"{tmp_path}/*.*",))
    [manifest] = prepare([source], tmp_path / "out", small_tokenizer)
    ids = PreparedSource(tmp_path / "out" / "books").ids("text")
    expected = small_tokenizer.encode(["the quick\n\nbrown fox\n", 'lazy "dogs', "jumps", "over"])
    assert [ids[row].tolist() for row in range(len(ids))] == [text.tolist() for text in reordered(expected)]
    assert (manifest.kind, manifest.query_task, manifest.num_rows) == ("text", None, 4)
    assert manifest.num_tokens == {"text": sum(map(len, expected))}


def test_rows_are_shuffled_over_the_whole_source_by_the_seed(tmp_path, write_rows, small_tokenizer):
    numbers = [{"text": f"{number // 10} {number % 10}"} for number in range(100)]
    source = TextSource(name="t", files=(str(write_rows(tmp_path / "t.jsonl", numbers)),))

    def texts(seed: int) -> list[str]:
        [manifest] = prepare([source], tmp_path / f"out-{seed}", small_tokenizer, seed=seed)
        assert manifest.seed == seed
        ids = PreparedSource(tmp_path / f"out-{seed}" / "t").ids("text")
        return [small_tokenizer.decode(ids[row]) for row in range(len(ids))]

    raw = [row["text"] for row in numbers]
    first, second = texts(1), texts(2)
    assert sorted(first) == sorted(second) == sorted(raw)
    assert sum(a == b for a, b in zip(first, raw, strict=True)) < 10
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


@pytest.mark.parametrize("piece", [1, 700, 2000, 10**6])
@pytest.mark.parametrize("batch", [1, 10**6])
def test_the_size_of_pieces_and_batches_changes_no_byte(
    tmp_path, pairs, small_tokenizer, small_shards, monkeypatch, piece, batch
):
    prepare([pairs], tmp_path / "whole", small_tokenizer)
    monkeypatch.setattr(module, "PIECE_SIZE", PieceSize(piece, batch))
    prepare([pairs], tmp_path / "pieces", small_tokenizer)
    assert content(tmp_path / "pieces") == content(tmp_path / "whole")


def test_the_size_of_shards_does_not_change_the_order(tmp_path, pairs, small_tokenizer, monkeypatch):
    def flat(out: Path) -> list[list[int]]:
        source = PreparedSource(out / "faq")
        columns = source.ids("query"), source.ids("document")
        return [column[row].tolist() for row in range(len(source)) for column in columns]

    prepare([pairs], tmp_path / "whole", small_tokenizer)
    for size in (1, 7, 30):
        monkeypatch.setattr(module, "ROWS_PER_SHARD", size)
        prepare([pairs], tmp_path / str(size), small_tokenizer)
        assert flat(tmp_path / str(size)) == flat(tmp_path / "whole")


def test_many_processes_write_the_same_bytes(tmp_path, pairs, small_tokenizer, small_shards):
    prepare([pairs], tmp_path / "one", small_tokenizer)
    prepare([pairs], tmp_path / "three", small_tokenizer, workers=3)
    assert content(tmp_path / "three") == content(tmp_path / "one")


def test_long_documents_make_shards_of_fewer_rows(tmp_path, write_rows, small_tokenizer, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_SHARD", 50)
    texts = [{"text": "fox " * length} for length in (20, 20, 20, 23, 1, 1)]
    source = TextSource(name="t", files=(str(write_rows(tmp_path / "t.jsonl", texts)),))
    [manifest] = prepare([source], tmp_path / "out", small_tokenizer)
    assert [shard.num_rows for shard in manifest.shards] == [3, 3]
    monkeypatch.setattr(module, "TOKENS_PER_SHARD", 1)
    [manifest] = prepare([source], tmp_path / "long", small_tokenizer)
    assert [shard.num_rows for shard in manifest.shards] == [1] * 6


def test_max_rows_takes_the_first_rows_that_can_be_kept(tmp_path, write_rows, small_tokenizer, small_shards):
    good = [{"text": f"word {number}"} for number in range(100)]
    broken = [{"text": ""}, {"text": "\x01"}]
    write_rows(tmp_path / "a.jsonl", [*good[:30], *broken, *good[30:50]])
    write_rows(tmp_path / "b.jsonl", [*good[50:60], *broken, *good[60:], *broken])
    for max_rows, kept, skipped in [(30, [30, 0], [0, 0]), (31, [31, 0], [2, 0]), (61, [50, 11], [2, 2])]:
        source = TextSource(name="t", files=(f"{tmp_path}/*.jsonl",), max_rows=max_rows)
        [manifest] = prepare([source], tmp_path / f"out-{max_rows}", small_tokenizer, on_error=lambda error: None)
        assert [file.num_rows for file in manifest.inputs] == kept
        assert [file.num_skipped for file in manifest.inputs] == skipped
        ids = PreparedSource(tmp_path / f"out-{max_rows}" / "t").ids("text")
        expected = reordered(small_tokenizer.encode([row["text"] for row in good[:max_rows]]))
        assert [ids[row].tolist() for row in range(len(ids))] == [text.tolist() for text in expected]


def test_progress_counts_bytes_and_rows(tmp_path, pairs, small_tokenizer, small_shards):
    done: list[tuple[str, int, int]] = []
    prepare([pairs], tmp_path / "out", small_tokenizer, progress=lambda *told: done.append(told))
    num_bytes = sum((tmp_path / "raw" / name).stat().st_size for name in ("a.jsonl", "b.jsonl"))
    for what, total in (("faq: tokenising", num_bytes), ("faq: shuffling", 30)):
        counts = [count for name, count, of in done if name == what and of == total]
        assert counts == sorted(counts)
        assert counts[-1] == total
        assert len(counts) >= 5
    assert {name for name, _, _ in done} == {"faq: tokenising", "faq: shuffling"}


# --- again, and with something changed --------------------------------------------------------------------------------


def test_a_second_call_does_no_work(tmp_path, pairs, small_tokenizer, small_shards, monkeypatch):
    first = prepare([pairs], tmp_path / "out", small_tokenizer)
    before = stamps(tmp_path / "out")

    def encode(texts):
        raise AssertionError("nothing is to be done")

    monkeypatch.setattr(small_tokenizer, "encode", encode)
    assert prepare([pairs], tmp_path / "out", small_tokenizer) == first
    assert stamps(tmp_path / "out") == before


def test_the_place_of_the_raw_files_does_not_matter(tmp_path, pairs, small_tokenizer):
    first = prepare([pairs], tmp_path / "out", small_tokenizer)
    (tmp_path / "raw").rename(tmp_path / "moved")
    moved = pairs.model_copy(update={"files": (f"{tmp_path}/moved/*.jsonl",)})
    assert prepare([moved], tmp_path / "out", small_tokenizer) == first


def test_what_was_cut_into_other_shards_stays_prepared(tmp_path, pairs, small_tokenizer, monkeypatch):
    first = prepare([pairs], tmp_path / "out", small_tokenizer)
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 7)
    assert prepare([pairs], tmp_path / "out", small_tokenizer) == first


@pytest.mark.parametrize(
    "change", ["row", "order", "order of files", "one file less", "weight", "task", "column", "seed"]
)
def test_changed_files_or_settings_are_refused(tmp_path, pairs, small_tokenizer, change):
    prepare([pairs], tmp_path / "out", small_tokenizer)
    before = content(tmp_path / "out")
    path = tmp_path / "raw" / "b.jsonl"
    changes = {
        "row": lambda: path.write_text(path.read_text().replace("query 25", "query x")),
        "order": lambda: path.write_text("".join(reversed(path.read_text().splitlines(keepends=True)))),
        "order of files": lambda: (tmp_path / "raw" / "a.jsonl").rename(tmp_path / "raw" / "c.jsonl"),
        "one file less": path.unlink,
    }
    changes.get(change, lambda: None)()
    update = {"weight": {"weight": 2.0}, "task": {"query_task": "clustering"}, "column": {"query": "document"}}
    changed = pairs.model_copy(update=update.get(change, {}))
    with pytest.raises(LongspanError) as caught:
        prepare([changed], tmp_path / "out", small_tokenizer, seed=int(change == "seed"))
    assert caught.value.what == "source 'faq' was prepared from other files or settings"
    assert caught.value.where == str(tmp_path / "out" / "faq")
    assert caught.value.remedy == "prepare into another folder, or delete this one"
    assert content(tmp_path / "out") == before


def test_another_tokenizer_is_refused(tmp_path, pairs, small_tokenizer):
    prepare([pairs], tmp_path / "out", small_tokenizer)
    before = content(tmp_path / "out")
    other = Tokenizer.train(["other words"] * 3, 50)
    with pytest.raises(LongspanError) as caught:
        prepare([pairs.model_copy(update={"name": "second"})], tmp_path / "out", other)
    assert "another tokenizer" in caught.value.what
    assert caught.value.where == str(tmp_path / "out" / TOKENIZER_FILE)
    assert "another folder" in caught.value.remedy
    assert content(tmp_path / "out") == before


def test_a_missing_file_leaves_no_tokenizer_behind(tmp_path, small_tokenizer):
    source = PairSource(name="faq", files=(f"{tmp_path}/gone.jsonl",))
    assert refused(source, tmp_path / "out", small_tokenizer).what.startswith("no file ")
    assert not (tmp_path / "out").exists()


def test_two_sources_of_one_name_are_refused(tmp_path, pairs, small_tokenizer):
    with pytest.raises(LongspanError, match="two sources are called 'faq'"):
        prepare([pairs, pairs], tmp_path / "out", small_tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stranger", ["thesis.doc", "shard-00000.arrow.bak", "sub/x", f"{PIECES}/my.doc"])
def test_a_folder_of_somebody_else_is_never_deleted(tmp_path, pairs, small_tokenizer, stranger):
    path = tmp_path / "out" / "faq" / stranger
    path.parent.mkdir(parents=True)
    path.write_text("years of work")
    error = refused(pairs, tmp_path / "out", small_tokenizer)
    assert error.what == "faq is there already and is not a prepared source"
    assert error.where == str(path if PIECES in stranger else tmp_path / "out" / "faq" / Path(stranger).parts[0])
    assert "another" in error.remedy
    assert path.read_text() == "years of work"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["faq"], "no tokenizer either"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, pairs, small_tokenizer):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "faq").write_text("mine")
    assert "is there already" in refused(pairs, tmp_path / "out", small_tokenizer).what
    (tmp_path / "file").touch()
    assert refused(pairs, tmp_path / "file", small_tokenizer).where.startswith(str(tmp_path / "file"))


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 6, 8, 10])
def test_an_interrupt_leaves_no_manifest_and_the_next_run_does_the_rest(
    tmp_path, pairs, small_tokenizer, small_shards, monkeypatch, after
):
    prepare([pairs], tmp_path / "undisturbed", small_tokenizer)
    written: list[str] = []

    def write_shard(path, *arguments):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(path.name)
        return writing.write_shard(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("longspan.data.pieces.write_shard", write_shard)
        patch.setattr("longspan.data.shuffle.write_shard", write_shard)
        with pytest.raises(KeyboardInterrupt):
            prepare([pairs], tmp_path / "out", small_tokenizer)
        assert not (tmp_path / "out" / "faq" / MANIFEST).exists()
        with pytest.raises(LongspanError, match=r"manifest\.json is missing"):
            PreparedSource(tmp_path / "out" / "faq")
        after = -1
        prepare([pairs], tmp_path / "out", small_tokenizer)
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
    assert len(written) == len(set(written)) == 11, "each piece and each shard is written once"


def test_nothing_is_left_of_a_killed_run_that_had_more_shards(tmp_path, pairs, small_tokenizer, small_shards):
    prepare([pairs], tmp_path / "out", small_tokenizer)
    (tmp_path / "out" / "faq" / MANIFEST).unlink()
    (tmp_path / "raw" / "a.jsonl").unlink()
    prepare([pairs], tmp_path / "out", small_tokenizer)
    prepare([pairs], tmp_path / "undisturbed", small_tokenizer)
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_pieces_that_outlived_the_end_are_swept_away(tmp_path, pairs, small_tokenizer):
    prepare([pairs], tmp_path / "out", small_tokenizer)
    before = content(tmp_path / "out")
    pieces = tmp_path / "out" / "faq" / PIECES
    pieces.mkdir()
    (pieces / "00000-00000-00000.arrow").touch()
    prepare([pairs], tmp_path / "out", small_tokenizer)
    assert content(tmp_path / "out") == before
    assert not pieces.exists()


LIMITED = """
import resource, signal, sys
from pathlib import Path
from longspan.data.prepare import prepare
from longspan.data.source import PairSource
from longspan.errors import LongspanError
from longspan.text.tokenizer import Tokenizer

raw, out, tokenizer = sys.argv[1:]
source = PairSource(name="faq", files=(raw,), negatives="negatives")
tokenizer = Tokenizer.load(tokenizer)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))
try:
    prepare([source], Path(out), tokenizer)
except LongspanError as error:
    print(error.what, error.where, error.remedy, sep="|")
"""


def test_a_disk_that_is_really_full_is_named_and_the_run_goes_on_afterwards(tmp_path, pairs, small_tokenizer):
    prepare([pairs], tmp_path / "undisturbed", small_tokenizer)
    out = tmp_path / "out"
    out.mkdir()
    tokenizer = out / TOKENIZER_FILE
    tokenizer.write_bytes((tmp_path / "undisturbed" / TOKENIZER_FILE).read_bytes())
    command = [sys.executable, "-c", LIMITED, pairs.files[0], str(out), str(tokenizer)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    what, where, remedy = result.stdout.strip().split("|")
    assert what.startswith("no room to write 00000-00000-00000.arrow")
    assert where == str(out / "faq" / PIECES / "00000-00000-00000.arrow")
    assert "disk space" in remedy
    assert [path.name for path in (out / "faq" / PIECES).iterdir()] == ["request.json"]
    prepare([pairs], out, small_tokenizer)
    assert content(out) == content(tmp_path / "undisturbed")


# --- rows that cannot be prepared -------------------------------------------------------------------------------------

BAD_ROWS = [
    ({"document": "d"}, "the row has no column 'query'", "its columns are: document"),
    ({"query": "q"}, "the row has no column 'document'", "its columns are: query"),
    ({"query": "", "document": "d"}, "'query' is empty", "--on-error skip"),
    ({"query": "q", "document": " \n"}, "'document' is empty", "--on-error skip"),
    ({"query": "q", "document": None}, "'document' is empty", "--on-error skip"),
    ({"query": 3, "document": "d"}, "'query' is not a text", "--on-error skip"),
    ({"query": "q", "document": ["d"]}, "'document' is not a text", "--on-error skip"),
    ({"query": "\u200b", "document": "d"}, "'query' holds no word", "--on-error skip"),
    ({"query": "q", "document": "\x01\x02"}, "'document' holds no word", "--on-error skip"),
    ({"query": "q", "document": "d", "wrong": "n"}, "column 'wrong' does not list texts", '"wrong": ["...", "..."]'),
    ({"query": "q", "document": "d", "wrong": None}, "column 'wrong' does not list texts", '"wrong": ["...", "..."]'),
    ({"query": "q", "document": "d", "wrong": ["n", ""]}, "'wrong' is empty", "--on-error skip"),
    ({"query": "q", "document": "d", "wrong": ["n", 3]}, "'wrong' is not a text", "--on-error skip"),
    ({"query": "q", "document": "d", "wrong": ["n", "\x00"]}, "'wrong' holds no word", "--on-error skip"),
]


@pytest.mark.parametrize(("row", "what", "remedy"), BAD_ROWS)
def test_a_bad_row_is_named_or_left_out_and_counted(
    tmp_path, write_rows, small_tokenizer, small_shards, row, what, remedy
):
    good = [{"query": f"q {n}", "document": f"d {n}", "wrong": []} for n in range(9)]
    path = write_rows(tmp_path / "a.jsonl", [*good[:4], row if "wrong" in row else row | {"wrong": []}, *good[4:]])
    source = PairSource(name="faq", files=(str(path),), negatives="wrong")
    error = refused(source, tmp_path / "out", small_tokenizer)
    assert error.what == what
    assert error.where == f"{path}:5"
    assert remedy in error.remedy
    skipped: list[LongspanError] = []
    [manifest] = prepare([source], tmp_path / "out", small_tokenizer, on_error=skipped.append)
    assert [str(error) for error in skipped] == [str(error)]
    assert manifest.num_rows == 9
    assert [(file.num_rows, file.num_skipped) for file in manifest.inputs] == [(9, 1)]
    assert [shard.num_rows for shard in manifest.shards] == [7, 2]


def test_skipped_rows_are_counted_in_the_file_they_are_in(tmp_path, write_rows, small_tokenizer):
    good = [{"text": f"word {n}"} for n in range(5)]
    write_rows(tmp_path / "a.jsonl", [*good, {"text": ""}, {"text": "\x01"}])
    (tmp_path / "b.jsonl").write_text('{"text": "fox"}\n{"text": \n[]\n{"txt": "x"}\n')
    write_rows(tmp_path / "c.jsonl", good)
    source = TextSource(name="t", files=(f"{tmp_path}/*.jsonl",))
    skipped: list[LongspanError] = []
    [manifest] = prepare([source], tmp_path / "out", small_tokenizer, on_error=skipped.append)
    assert [(file.num_rows, file.num_skipped) for file in manifest.inputs] == [(5, 2), (1, 3), (5, 0)]
    assert sorted(Path(error.where).name for error in skipped) == [
        "a.jsonl:6",
        "a.jsonl:7",
        "b.jsonl:2",
        "b.jsonl:3",
        "b.jsonl:4",
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_skipped_rows_are_listed_in_their_order(tmp_path, write_rows, small_tokenizer, small_shards, workers):
    rows = [{"text": ["fox", "\x01", "", 5, "dog"][number % 5] or ""} for number in range(120)]
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    with open(tmp_path / "a.jsonl", "ab") as stream:
        stream.write(b'{"text": \xff}\n')
    source = TextSource(name="t", files=(f"{tmp_path}/*.jsonl",))
    told: list[LongspanError] = []
    [manifest] = prepare([source], tmp_path / "out", small_tokenizer, on_error=told.append, workers=workers)
    broken = [number for number in range(1, 121) if number % 5 in (2, 3, 4)]
    expected = [("a", number) for number in [*broken, 121]] + [("b", number) for number in broken]
    assert [error.where for error in told] == [f"{tmp_path}/{name}.jsonl:{number}" for name, number in expected]
    listed = [json.loads(line) for line in (tmp_path / "out" / "t" / SKIPPED).read_text().splitlines()]
    assert [(row["file"], row["line"], row["reason"]) for row in listed] == [
        (error.where.rpartition(":")[0], int(error.where.rpartition(":")[2]), error.what) for error in told
    ]
    assert listed[0]["raw"] == '{"text": ["\\u0001"]}'
    assert "\\xff" in listed[len(broken)]["raw"]
    assert [(file.num_rows, file.num_skipped) for file in manifest.inputs] == [(48, 73), (48, 72)]


def test_a_broken_row_stops_every_process(tmp_path, write_rows, small_tokenizer, small_shards):
    rows = [{"text": "fox " * 9}] * 99 + [{"text": None}] + [{"text": "fox"}] * 99
    source = TextSource(name="t", files=(str(write_rows(tmp_path / "a.jsonl", rows)),))
    error = refused(source, tmp_path / "out", small_tokenizer, workers=2)
    assert (error.what, error.where) == ("'text' is empty", f"{tmp_path}/a.jsonl:100")


def test_rows_that_were_skipped_before_stop_a_run_that_is_to_stop(tmp_path, pairs, small_tokenizer, monkeypatch):
    with open(tmp_path / "raw" / "a.jsonl", "a") as stream:
        stream.write("{}\n")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("longspan.data.shuffle.write_shard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare([pairs], tmp_path / "out", small_tokenizer, on_error=lambda error: None)
    assert refused(pairs, tmp_path / "out", small_tokenizer).where == f"{tmp_path}/raw/a.jsonl:21"


def test_licence_and_origin_are_told_and_may_change(tmp_path, pairs, small_tokenizer):
    [first] = prepare([pairs], tmp_path / "out", small_tokenizer)
    told = pairs.model_copy(update={"licence": "CC0", "origin": "https://example.org"})
    [second] = prepare([told], tmp_path / "out", small_tokenizer)
    assert (first.licence, first.origin, second.licence, second.origin) == (None, None, "CC0", "https://example.org")
    assert second.fingerprint == first.fingerprint
    assert PreparedSource(tmp_path / "out" / "faq").manifest == second


@pytest.mark.parametrize("rows", [[], [{"text": ""}, {"text": ""}]])
def test_a_source_without_rows_is_refused(tmp_path, write_rows, small_tokenizer, rows):
    path = write_rows(tmp_path / "a.jsonl", rows)
    source = TextSource(name="empty", files=(str(path),))
    error = refused(source, tmp_path / "out", small_tokenizer, on_error=lambda error: None)
    assert error.what == "source 'empty' has no rows"
    assert error.where == str(path)


def test_a_torn_file_is_refused_even_when_rows_may_be_skipped(tmp_path, pairs, small_tokenizer):
    import gzip

    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress((tmp_path / "raw" / "a.jsonl").read_bytes())
    path.write_bytes(whole[:-20])
    source = pairs.model_copy(update={"files": (str(path),)})
    error = refused(source, tmp_path / "out", small_tokenizer, on_error=lambda error: None)
    assert error.where == str(path)


def test_a_url_is_prepared(tmp_path, small_tokenizer, pair_rows):
    import fsspec

    with fsspec.open("memory://prepare/a.jsonl", "wb") as stream:
        for row in pair_rows(3):
            stream.write(json.dumps(row).encode() + b"\n")  # pyright: ignore[reportAttributeAccessIssue]
    source = PairSource(name="faq", files=("memory://prepare/a.jsonl",))
    [manifest] = prepare([source], tmp_path / "out", small_tokenizer)
    assert manifest.num_rows == 3
    assert prepare([source], tmp_path / "out", small_tokenizer) == [manifest]


def test_the_same_files_give_the_same_bytes_in_any_process(tmp_path, pairs, small_tokenizer):
    # Hash seeds and numbers of threads differ between processes; shards must not.
    program = (
        "import sys; from pathlib import Path; from longspan.data.prepare import prepare;"
        "from longspan.data.source import PairSource; from longspan.text.tokenizer import Tokenizer;"
        "prepare([PairSource(name='faq', files=(sys.argv[1],), negatives='negatives')], Path(sys.argv[2]),"
        " Tokenizer.load(sys.argv[3]))"
    )
    prepare([pairs], tmp_path / "here", small_tokenizer)
    command = [sys.executable, "-c", program, pairs.files[0], str(tmp_path / "there")]
    environment = os.environ | {"PYTHONHASHSEED": "123", "RAYON_NUM_THREADS": "3"}
    subprocess.run([*command, str(tmp_path / "here" / TOKENIZER_FILE)], check=True, env=environment, timeout=60)
    assert content(tmp_path / "there") == content(tmp_path / "here")
