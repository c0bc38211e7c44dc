"""Preparing is exact, repeatable, and survives whatever happens in the middle of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from longspan.data import prepare as module
from longspan.data.prepare import TOKENIZER_FILE, prepare
from longspan.data.shards import MANIFEST, PreparedSource
from longspan.data.source import PairSource, TextSource
from longspan.errors import LongspanError
from longspan.files import UNFINISHED, sha256_file
from longspan.text.tokenizer import Tokenizer

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
    monkeypatch.setattr(module, "ROWS_PER_BATCH", 4)


@pytest.fixture
def pairs(tmp_path, write_rows, pair_rows) -> PairSource:
    """A source of 30 pairs in two files."""
    rows = pair_rows(30)
    write_rows(tmp_path / "raw" / "a.jsonl", rows[:20])
    write_rows(tmp_path / "raw" / "b.jsonl", rows[20:])
    return PairSource(name="faq", files=(f"{tmp_path}/raw/*.jsonl",), negatives="negatives")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    for number, row in enumerate(rows):
        [query, document, *mined] = small_tokenizer.encode([row["q"], row["d"], *row["neg"]])
        np.testing.assert_array_equal(queries[number], query)
        np.testing.assert_array_equal(documents[number], document)
        assert negatives.count(number) == len(mined)
        for got, expected in zip(negatives.pick(number, range(len(mined))), mined, strict=True):
            np.testing.assert_array_equal(got, expected)


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
    assert [ids[row].tolist() for row in range(len(ids))] == [text.tolist() for text in expected]
    assert (manifest.kind, manifest.query_task, manifest.num_rows) == ("text", None, 4)
    assert manifest.num_tokens == {"text": sum(map(len, expected))}


def test_how_rows_are_cut_into_batches_and_shards_does_not_change_them(tmp_path, pairs, small_tokenizer, monkeypatch):
    def flat(out: Path) -> list[list[int]]:
        source = PreparedSource(out / "faq")
        columns = source.ids("query"), source.ids("document")
        return [column[row].tolist() for row in range(len(source)) for column in columns]

    prepare([pairs], tmp_path / "whole", small_tokenizer)
    for rows_per_shard, rows_per_batch in [(1, 1), (3, 5), (5, 3), (30, 30)]:
        monkeypatch.setattr(module, "ROWS_PER_SHARD", rows_per_shard)
        monkeypatch.setattr(module, "ROWS_PER_BATCH", rows_per_batch)
        out = tmp_path / f"{rows_per_shard}-{rows_per_batch}"
        prepare([pairs], out, small_tokenizer)
        assert flat(out) == flat(tmp_path / "whole")


def test_long_documents_end_a_shard_earlier(tmp_path, write_rows, small_tokenizer, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_SHARD", 50)
    texts = [{"text": "fox " * length} for length in (20, 20, 20, 200, 1, 1)]
    source = TextSource(name="t", files=(str(write_rows(tmp_path / "t.jsonl", texts)),))
    [manifest] = prepare([source], tmp_path / "out", small_tokenizer)
    assert [shard.num_rows for shard in manifest.shards] == [3, 1, 2]


def test_progress_counts_every_row(tmp_path, pairs, small_tokenizer, small_shards):
    done: list[int] = []
    prepare([pairs], tmp_path / "out", small_tokenizer, progress=done.append)
    assert sum(done) == 30
    prepare([pairs], tmp_path / "out", small_tokenizer, progress=done.append)
    assert sum(done) == 60


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


@pytest.mark.parametrize("change", ["row", "order", "order of files", "one file less", "weight", "task", "column"])
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
        prepare([changed], tmp_path / "out", small_tokenizer)
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


@pytest.mark.parametrize("stranger", ["thesis.doc", "shard-00000.arrow.bak", "sub/x"])
def test_a_folder_of_somebody_else_is_never_deleted(tmp_path, pairs, small_tokenizer, stranger):
    path = tmp_path / "out" / "faq" / stranger
    path.parent.mkdir(parents=True)
    path.write_text("years of work")
    error = refused(pairs, tmp_path / "out", small_tokenizer)
    assert error.what == "faq is there already and is not a prepared source"
    assert error.where == str(tmp_path / "out" / "faq" / Path(stranger).parts[0])
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


@pytest.mark.parametrize("num_shards", [0, 1, 3])
def test_an_exception_in_the_middle_leaves_no_manifest_and_the_next_run_the_same_bytes(
    tmp_path, pairs, small_tokenizer, small_shards, monkeypatch, num_shards
):
    prepare([pairs], tmp_path / "undisturbed", small_tokenizer)
    written = 0

    def write_shard(*arguments):
        nonlocal written
        if written == num_shards:
            raise KeyboardInterrupt
        written += 1
        return original(*arguments)

    original = module.write_shard
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", write_shard)
        with pytest.raises(KeyboardInterrupt):
            prepare([pairs], tmp_path / "out", small_tokenizer)
    assert not (tmp_path / "out" / "faq" / MANIFEST).exists()
    with pytest.raises(LongspanError, match=r"manifest\.json is missing"):
        PreparedSource(tmp_path / "out" / "faq")
    prepare([pairs], tmp_path / "out", small_tokenizer)
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_nothing_is_left_of_a_killed_run_that_had_more_shards(tmp_path, pairs, small_tokenizer, small_shards):
    prepare([pairs], tmp_path / "out", small_tokenizer)
    (tmp_path / "out" / "faq" / MANIFEST).unlink()
    (tmp_path / "raw" / "a.jsonl").unlink()
    prepare([pairs], tmp_path / "out", small_tokenizer)
    prepare([pairs], tmp_path / "undisturbed", small_tokenizer)
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


KILLED = """
import os, signal, sys
from pathlib import Path
from longspan.data import prepare as module
from longspan.data.source import PairSource
from longspan.text.tokenizer import Tokenizer

raw, out, tokenizer, when = sys.argv[1:]
module.ROWS_PER_SHARD, module.ROWS_PER_BATCH = 7, 4
source = PairSource(name="faq", files=(raw,), negatives="negatives")
rows = 0

def progress(count):
    global rows
    rows += count
    if rows >= 17 and when == "between":
        os.kill(os.getpid(), signal.SIGKILL)

if when == "writing":
    import pyarrow as pa
    write = module.write_shard
    def write_shard(path, *arguments):
        if path.name == "shard-00002.arrow":
            from longspan.files import atomic_path
            with atomic_path(path) as unfinished:
                unfinished.write_bytes(b"half a shard")
                os.kill(os.getpid(), signal.SIGKILL)
        return write(path, *arguments)
    module.write_shard = write_shard

module.prepare([source], Path(out), Tokenizer.load(tokenizer), progress=progress)
"""


@pytest.mark.parametrize("when", ["between", "writing"])
def test_a_kill_in_the_middle_leaves_no_manifest_and_the_next_run_the_same_bytes(
    tmp_path, pairs, small_tokenizer, small_shards, when
):
    prepare([pairs], tmp_path / "undisturbed", small_tokenizer)
    out = tmp_path / "out"
    tokenizer = tmp_path / "undisturbed" / TOKENIZER_FILE
    command = [sys.executable, "-c", KILLED, pairs.files[0], str(out), str(tokenizer), when]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGKILL, result.stderr
    left = sorted(path.name for path in (out / "faq").iterdir())
    assert "shard-00001.arrow" in left
    assert MANIFEST not in left
    assert any(name.startswith(UNFINISHED) for name in left) == (when == "writing")
    prepare([pairs], out, small_tokenizer)
    assert content(out) == content(tmp_path / "undisturbed")


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
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
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
    assert what.startswith("no room to write shard-00000.arrow")
    assert where == str(out / "faq" / "shard-00000.arrow")
    assert "disk space" in remedy
    assert list((out / "faq").iterdir()) == []
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
