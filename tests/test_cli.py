"""The command line from end to end at a tiny size, and what it says to a stranger's mistakes.

Every mistake ends in exit status 2 and a message on stderr that names the thing, the place and the remedy.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from longspan import __version__
from longspan.cli import build_parser, main
from longspan.files import UNFINISHED
from longspan.progress import Bar
from longspan.text.tokenizer import Tokenizer

TINY_ENCODER = {
    "encoder.width": "32",
    "encoder.num_layers": "1",
    "encoder.num_heads": "2",
    "encoder.inner_width": "32",
    "encoder.trained_length": "64",
    "encoder.max_length": "128",
    "objective.row_length": "32",
}
TINY = {"batch_size": "8", "max_steps": "6", "precision": "fp32", "max_length": "128", "log_every": "1"}


def settings(*changes: dict[str, str]) -> list[str]:
    merged = {key: value for change in changes for key, value in change.items()}
    return [word for key, value in merged.items() for word in ("--set", f"{key}={value}")]


MLM = settings(TINY, TINY_ENCODER)
CONTRASTIVE = settings(TINY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Raw files, prepared data, and runs of all three recipes, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("cli")
    before = Path.cwd()
    os.chdir(folder)
    try:
        _raw_files()
        commands = [
            "prepare books.jsonl --text text --train-tokenizer 400 --out data",
            "prepare pairs.jsonl --out data",
            f"train mlm --data data --out runs/mlm {' '.join(MLM)}",
            f"train contrastive --data data --init runs/mlm --out runs/con {' '.join(CONTRASTIVE)}",
            "curate mine pairs.jsonl --teacher runs/con --out mined",
            "prepare mined/mined.jsonl --negatives negatives --tokenizer runs/con/model --out labelled",
            f"train finetune --data labelled --init runs/con --out runs/fine {' '.join(CONTRASTIVE)}",
        ]
        for command in commands:
            assert main(command.split()) == 0, command
    finally:
        os.chdir(before)
    return folder


def _raw_files() -> None:
    rows = [{"query": f"what is number {n}?", "document": f"number {n} is {n * 7} quick foxes"} for n in range(40)]
    _write("pairs.jsonl", rows)
    _write("books.jsonl", [{"text": f"the lazy dog {n} sleeps and jumps. " * 8} for n in range(40)])
    _write("beir/corpus.jsonl", [{"_id": f"d{n}", "text": row["document"]} for n, row in enumerate(rows)])
    _write("beir/queries.jsonl", [{"_id": f"q{n}", "text": row["query"]} for n, row in enumerate(rows)])
    Path("beir/qrels.tsv").write_text("q\td\ts\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(40)))
    Path("notes.md").write_text("# Foxes\n\nThe quick fox jumps.\n\nThe lazy dog sleeps.\n")
    Path("lines.txt").write_text("what is number 3?\nthe lazy dog\n")


def _write(path: str, rows: list[dict]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture
def work(finished, monkeypatch) -> Path:
    """The folder with everything in it, as the working directory; tests write under names of their own."""
    monkeypatch.chdir(finished)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return finished


@pytest.fixture
def run(work, capsys):
    """Runs a command that must succeed, and returns what it printed."""

    def run(command: str, *more: str) -> str:
        capsys.readouterr()
        status = main([*command.split(), *more])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return run


@pytest.fixture
def refused(work, capsys):
    """Runs a command that must be refused; returns what stderr says. What it writes under the name `new` is removed."""

    def refused(command: str, *more: str) -> str:
        capsys.readouterr()
        status = main([*command.split(), *more])
        captured = capsys.readouterr()
        assert status == 2
        assert captured.out == ""
        message = captured.err[captured.err.index("longspan: ") :]
        what, where, remedy = message.rstrip("\n").rsplit("\n", 2)
        assert where.startswith("  where:  ")
        assert remedy.startswith("  remedy: ")
        assert "Traceback" not in message
        assert len(what) > len("longspan: ")
        return message

    yield refused
    shutil.rmtree(work / "new", ignore_errors=True)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_a_run_of_each_recipe_ends_in_a_model(work):
    for recipe in ("mlm", "con", "fine"):
        assert (work / "runs" / recipe / "finished.json").is_file()
        assert (work / "runs" / recipe / "model" / "model.safetensors").is_file()
    logged = [json.loads(line) for line in (work / "runs" / "con" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5, 6]


def test_prepare_says_what_it_made_and_does_nothing_twice(work, run):
    first = run("prepare pairs.jsonl --train-tokenizer 300 --out new-pairs")
    assert first == run("prepare pairs.jsonl --train-tokenizer 300 --out new-pairs")
    rows, query, document = first.split(" tokens: ")[0], *first.split(" tokens: ")[1].split(", ")
    assert rows == "pairs: 40 rows,"
    assert query.endswith(" query")
    assert document.rstrip().endswith(" document")


def test_prepare_says_that_a_tokenizer_is_there_already(work, capsys):
    assert main(["prepare", "pairs.jsonl", "--name", "again", "--train-tokenizer", "300", "--out", "data-2"]) == 0
    assert "already" not in capsys.readouterr().err
    assert main(["prepare", "pairs.jsonl", "--name", "more", "--train-tokenizer", "300", "--out", "data-2"]) == 0
    assert "data-2/tokenizer.json is there already and is used; nothing is trained" in capsys.readouterr().err


def test_prepare_reads_sources_files(work, run):
    Path("sources.toml").write_text(
        '[[source]]\nname = "faq"\nfiles = "pairs.jsonl"\ndocument_task = "classification"\n'
        '[[source]]\nname = "books"\nfiles = "books.jsonl"\nkind = "text"\n'
    )
    out = run("prepare sources.toml --train-tokenizer 300 --out from-toml")
    assert [line.split(":")[0] for line in out.splitlines()] == ["faq", "books"]
    manifest = json.loads(Path("from-toml/faq/manifest.json").read_text())
    assert manifest["document_task"] == "classification"


def test_prepare_takes_columns_and_tasks(work, run):
    _write("columns.jsonl", [{"q": f"q {n}", "a": f"a {n}", "no": [f"n {n}"]} for n in range(5)])
    run(
        "prepare columns.jsonl --query q --document a --negatives no --query-task clustering --document-task "
        "clustering --name faq --train-tokenizer 100 --out columns"
    )
    manifest = json.loads(Path("columns/faq/manifest.json").read_text())
    assert (manifest["query_task"], manifest["document_task"]) == ("clustering", "clustering")
    assert manifest["columns"]["negatives"]["num_tokens"] > 0


def test_prepare_shows_how_far_it_is_where_there_is_much_to_do(work, monkeypatch, capsys):
    command = ["prepare", "pairs.jsonl", "--train-tokenizer", "300", "--out"]
    assert main([*command, "little"]) == 0
    assert capsys.readouterr().err == ""
    text = "a " * 60_000
    _write("much.jsonl", [{"query": text, "document": text} for n in range(100)])
    command[1] = "much.jsonl"
    assert main([*command, "much", "--workers", "1", "--seed", "3"]) == 0
    assert "much: tokenising (MB): 24/24" in capsys.readouterr().err
    assert json.loads(Path("much/much/manifest.json").read_text())["seed"] == 3


def test_prepare_skips_broken_rows_only_when_told(work, run, refused, capsys):
    Path("broken.jsonl").write_text('{"query": "a", "document": "b"}\n{"query": \n{"query": "c", "document": ""}\n' * 6)
    command = "prepare broken.jsonl --train-tokenizer 100 --out new"
    assert "broken.jsonl:2" in refused(command)
    assert not Path("new").exists(), "not even a tokenizer that was trained on half of the texts"
    assert main([*command.split(), "--on-error", "skip"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("broken: 6 rows, 12 skipped, tokens: ")
    folder = Path("broken.jsonl").resolve().parent
    assert [line.strip() for line in captured.err.splitlines()[-3:]] == [
        "skipped rows of broken, kept in new/broken/skipped.jsonl:",
        f"6 x broken JSON: {', '.join(f'{folder}/broken.jsonl:{number}' for number in (2, 5, 8))}, ...",
        f"6 x 'document' is empty: {', '.join(f'{folder}/broken.jsonl:{number}' for number in (3, 6, 9))}, ...",
    ]
    kept = [json.loads(line) for line in Path("new/broken/skipped.jsonl").read_text().splitlines()]
    assert [row["line"] for row in kept] == [number for number in range(1, 19) if number % 3 != 1]
    assert kept[0]["raw"] == '{"query": \n'
    assert run(command).startswith("broken: 6 rows, 12 skipped, "), "the second time, too"


def test_prepare_reads_a_folder_by_its_layout(work, run, refused):
    command = "prepare beir --train-tokenizer 300 --out from-beir"
    assert run(command).startswith("beir: ")
    assert "has the layout beir" in refused("prepare beir --config de --tokenizer from-beir --out other")
    assert "split has no meaning" in refused("prepare pairs.jsonl --split dev --tokenizer from-beir --out other")
    few = run("prepare pairs.jsonl --max-rows 3 --name few --tokenizer from-beir --out from-beir")
    assert few.startswith("few: 3 rows, ")


def test_recipe_lists_and_shows(run):
    names = [line.split()[0] for line in run("recipe").splitlines()]
    assert names[:3] == ["mlm", "contrastive", "finetune"]
    shown = run("recipe contrastive")
    assert "Paper: section 4.2.2" in shown
    assert json.loads(shown[shown.index("\n{") :])["batch_size"] == 16_384


def test_an_own_recipe_is_shown_and_trained(work, run):
    Path("own.py").write_text(
        "from longspan.recipes.contrastive import contrastive\n"
        "def mine(data, init='runs/mlm'):\n"
        "    return contrastive(data, init).model_copy(update={'recipe': 'mine'})\n"
    )
    assert run("recipe own.py:mine").startswith("own.py:mine (its function has no docstring)\n{")
    run(f"train own.py:mine --data data --init runs/mlm --out runs/own {' '.join(CONTRASTIVE)}")
    assert json.loads(Path("runs/own/run.json").read_text())["config"]["recipe"] == "mine"
    own, paper = (Path(f"runs/{name}/model/model.safetensors").read_bytes() for name in ("own", "con"))
    assert own == paper, "the same settings train the same model"


def test_an_interrupted_run_goes_on_to_the_same_model(work, run, capsys, monkeypatch):
    advance, calls = Bar.advance, []

    def interrupting(self, *arguments):
        advance(self, *arguments)
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)

    command = f"train contrastive --data data --init runs/mlm --out runs/stopped {' '.join(CONTRASTIVE)}"
    with monkeypatch.context() as patch:
        patch.setattr(Bar, "advance", interrupting)
        assert main(command.split()) == 130
    error = capsys.readouterr().err
    assert (
        "stopped after step 3 of 6; the checkpoint is saved; go on with: longspan train --resume runs/stopped" in error
    )
    assert not Path("runs/stopped/finished.json").exists()
    assert run("train --resume runs/stopped") == "finished: runs/stopped/model\n"
    stopped, straight = (Path(f"runs/{name}/model/model.safetensors").read_bytes() for name in ("stopped", "con"))
    assert stopped == straight
    assert run("train --resume runs/stopped") == "finished: runs/stopped/model\n", "a finished run stays as it is"


def test_curate_filter_keeps_and_drops_in_files(work, run):
    out = run("curate filter pairs.jsonl --teacher runs/fine --k 1 --out filtered")
    report = json.loads(Path("filtered/report.json").read_text())
    assert out == f"kept {report['kept']} of 40 pairs: filtered/kept.jsonl\n"
    assert report["kept"] + report["dropped"] == 40
    assert len(Path("filtered/kept.jsonl").read_text().splitlines()) == report["kept"]


def test_curate_filter_takes_several_sources(work, run):
    Path("list.toml").write_text(
        '[[source]]\nname = "one"\nfiles = "pairs.jsonl"\n'
        '[[source]]\nname = "two"\nfiles = "beir"\nquery_task = "clustering"\ndocument_task = "clustering"\n'
    )
    out = run("curate filter list.toml --teacher runs/fine --precision bfloat16 --threshold -1 --out several")
    assert out.splitlines() == [f"{name}: kept 40 of 40 pairs: several/{name}/kept.jsonl" for name in ("one", "two")]
    assert json.loads(Path("several/report.json").read_text())["sources"]["two"]["kept"] == 40
    assert Path("several/report.html").is_file()
    assert json.loads(Path("several/one/report.json").read_text())["teacher_precision"] == "bfloat16"


def test_curate_explain_says_why(work, run):
    run("curate filter pairs.jsonl --teacher runs/fine --k 1 --out filtered")
    out = run("curate explain filtered --row 3 --top 2")
    assert out.startswith("pairs, row 3: ")
    assert len([line for line in out.splitlines() if ", 1 (row " in line or ", 2 (row " in line]) == 2
    assert run("curate explain filtered --top 2 --query", "what is number 2?") == out
    assert "and 35 more: rows 6, 7, " in run("curate explain filtered --query", "WHAT IS")


def test_curate_mine_gives_negatives(work, run):
    out = run("curate mine pairs.jsonl --teacher runs/fine --k 9 --at-least 5 --max-length 16 --out mined-2")
    assert out == "40 of 40 pairs have negatives: mined-2/mined.jsonl\n"
    rows = [json.loads(line) for line in Path("mined-2/mined.jsonl").read_text().splitlines()]
    assert {len(row["negatives"]) for row in rows} == {9}


def test_curate_mine_draws_random_negatives(work, run):
    out = run("curate mine pairs.jsonl --random 3 --seed 1 --out drawn")
    rows = [json.loads(line) for line in Path("drawn/mined.jsonl").read_text().splitlines()]
    assert out == "40 of 40 pairs have negatives: drawn/mined.jsonl\n"
    assert [len(row["negatives"]) for row in rows] == [3] * 40
    assert Path("drawn/report.html").is_file()


def test_embed_writes_every_format(work, run, monkeypatch):
    assert run("embed runs/fine lines.txt --task search_query --out v.npy") == "2 vectors of 32 coordinates: v.npy\n"
    vectors = np.load("v.npy")
    assert vectors.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    run("embed runs/fine lines.txt --task search_query --out v.jsonl")
    rows = [json.loads(line) for line in Path("v.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["what is number 3?", "the lazy dog"]
    np.testing.assert_array_equal(np.array([row["vector"] for row in rows], dtype=np.float32), vectors)
    run("embed runs/fine lines.txt --task search_query --out v.parquet")
    table = parquet.read_table("v.parquet").to_pydict()
    np.testing.assert_array_equal(np.array(table["vector"], dtype=np.float32), vectors)
    monkeypatch.setattr(sys, "stdin", open("lines.txt", encoding="utf-8"))  # noqa: SIM115
    with sys.stdin:
        run("embed runs/fine --task search_query --dim 8 --out small/v.npy")
    expected = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(np.load("small/v.npy"), expected, atol=1e-6)


def test_embed_reads_columns_and_cuts_only_when_told(work, run, refused, capsys):
    run("embed runs/fine pairs.jsonl --column query --task clustering --out v.npy")
    assert np.load("v.npy").shape == (40, 32)
    command = "embed runs/fine pairs.jsonl --column document --task clustering --max-length 6 --out v2.npy"
    assert "--truncate" in refused(command)
    assert main([*command.split(), "--truncate"]) == 0
    assert "40 of 40 texts were too long: only their beginnings were read" in capsys.readouterr().err
    parquet.write_table(pa.table({"text": ["a fox", "a dog"]}), "t.parquet")
    run("embed runs/fine t.parquet --task clustering --out v3.npy")
    assert np.load("v3.npy").shape == (2, 32)


def test_search_shows_the_best_passages(work, run):
    out = run("search runs/fine notes.md lines.txt", "quick fox", "--k", "2", "--cache", "cache").splitlines()
    assert len(out) == 4
    scores = [float(line.split()[0]) for line in out[::2]]
    assert scores == sorted(scores, reverse=True)
    assert all(Path(line.split()[1].rpartition(":")[0]).is_file() for line in out[::2])
    again = run("search runs/fine notes.md lines.txt", "quick fox", "--k", "2", "--cache", "cache").splitlines()
    assert again == out
    assert len(run("search runs/fine lines.txt", "dog", "--k", "100").splitlines()) == 2


def test_search_says_how_many_passages_it_cut(work, capsys):
    Path("long.jsonl").write_text('{"text": "fox"}\n' + json.dumps({"text": "dog " * 300}) + "\n")
    assert main(["search", "runs/fine", "long.jsonl", "quick fox"]) == 0
    assert "1 of 2 texts were too long" in capsys.readouterr().err


def test_evaluate_stands_beside_bm25(work, run):
    out = run("evaluate runs/fine --data beir --bm25 --max-length 64 --out results/r.json").splitlines()
    assert out[0].split() == ["ndcg@10", "recall@10", "recall@100", "mrr@10", "map"]
    assert [line.split()[-1] for line in out[1:]] == ["runs/fine", "BM25"]
    results = json.loads(Path("results/r.json").read_text())
    for line in out[1:]:
        metrics = results[line.split()[-1]]["metrics"]
        assert [f"{metrics[name]:.4f}" for name in out[0].split()] == line.split()[:-1]


def test_evaluate_says_how_many_texts_it_cut(work, capsys):
    assert main(["evaluate", "runs/fine", "--data", "beir", "--max-length", "8"]) == 0
    assert " texts were too long: only their beginnings were read" in capsys.readouterr().err
    assert main(["evaluate", "runs/fine", "--data", "beir"]) == 0
    assert "too long" not in capsys.readouterr().err


def test_export_gives_a_folder_that_is_checked(work, run):
    pytest.importorskip("sentence_transformers", reason="needs the extra st")
    out = run("export runs/fine --out published --check")
    assert out.startswith("published: published\nsentence-transformers gives the same vectors")
    assert "library_name: sentence-transformers" in Path("published/README.md").read_text()
    run("export published --out published")
    run("embed published lines.txt --task clustering --out v.npy")
    expected = np.load("v.npy")
    run("embed runs/fine lines.txt --task clustering --out v.npy")
    np.testing.assert_array_equal(np.load("v.npy"), expected)


# --- a stranger's mistakes --------------------------------------------------------------------------------------------

PREPARE = "--train-tokenizer 100 --out new"
TRAIN = "--data data --out new"
TEACHER = "--teacher runs/fine --out new"

MISTAKES = [
    # prepare
    ("prepare gone.jsonl " + PREPARE, "no file gone.jsonl"),
    ("prepare data " + PREPARE, "data is a folder, not a file"),
    ("prepare gone/*.jsonl " + PREPARE, "no file gone/*.jsonl"),
    ("prepare own.docx " + PREPARE, "no file own.docx"),
    ("prepare beir/qrels.tsv " + PREPARE, "the row has no column 'query'"),
    ("prepare pairs.jsonl pairs.jsonl " + PREPARE, "the file is named twice"),
    ("prepare pairs.jsonl --query question " + PREPARE, "the row has no column 'question'"),
    ("prepare pairs.jsonl --negatives query " + PREPARE, "column 'query' does not list texts"),
    ("prepare pairs.jsonl --text text " + PREPARE, "the row has no column 'text'"),
    ("prepare books.jsonl --text text --query q " + PREPARE, "--text prepares running text, which has no query"),
    ("prepare pairs.jsonl --query-task asking " + PREPARE, "query_task: Input should be 'search_query'"),
    ("prepare pairs.jsonl --name a/b " + PREPARE, "a source's name becomes a folder's"),
    ("prepare empty.jsonl " + PREPARE, "source 'empty' has no rows to learn words from"),
    ("prepare empty.jsonl --tokenizer data --out data", "source 'empty' has no rows"),
    ("prepare pairs.jsonl empty-rows.jsonl --name x --on-error skip --document id " + PREPARE, "'x' has no rows"),
    ("prepare pairs.jsonl --out new", "there is no tokenizer yet"),
    ("prepare pairs.jsonl --tokenizer pairs.jsonl --out new", "this is not a tokenizer"),
    ("prepare pairs.jsonl --tokenizer gone --out new", "no tokenizer 'gone'"),
    ("prepare pairs.jsonl --tokenizer beir --out new", "holds neither tokenizer.json nor vocab.txt"),
    ("prepare pairs.jsonl --train-tokenizer 100 --out notes.md", "notes.md is a file, not a folder"),
    ("prepare books.jsonl --text text --name pairs --out data", "was prepared from other files or settings"),
    ("prepare pairs.jsonl --tokenizer other.json --name x --out data", "another tokenizer"),
    ("prepare pairs.jsonl --name runs --tokenizer data --out .", "runs is there already and is not a prepared source"),
    ("prepare gone.toml " + PREPARE, "there is no such sources file"),
    ("prepare typo.toml " + PREPARE, "unknown key 'source.0.qurey'"),
    ("prepare syntax.toml " + PREPARE, "not valid TOML"),
    ("prepare typo.toml --name x " + PREPARE, "stand in the sources file"),
    ("prepare good.toml good.toml " + PREPARE, "two sources are called 'faq'"),
    # train
    ("train", "name a RECIPE, --data and --out; or --resume RUN"),
    ("train mlm", "name a RECIPE"),
    ("train mlmm " + TRAIN, "there is no recipe 'mlmm'"),
    ("train own-gone.py:f " + TRAIN, "there is no such recipe file"),
    ("train syntax.py:f " + TRAIN, "the recipe file cannot be loaded: SyntaxError"),
    ("train syntax.py " + TRAIN, "there is no recipe 'syntax.py'"),
    ("train mlm --data gone --out new", "no prepared sources of text"),
    ("train mlm --data pairs.jsonl --out new", "no prepared sources of text"),
    ("train mlm --data labelled --out new", "no prepared sources of text"),
    ("train mlm --data data --out new", "cannot fill a batch of 4096"),
    ("train mlm --data data --out runs/mlm", "this run is finished"),
    ("train mlm --data data --out beir", "the directory is not empty"),
    (f"train mlm --data data --out notes.md {' '.join(MLM)}", "notes.md"),
    ("train mlm --set batchsize=2 " + TRAIN, "there is no setting 'batchsize'"),
    ("train mlm --set batch_size " + TRAIN, "write it as KEY=VALUE"),
    ("train mlm --set batch_size=many " + TRAIN, "batch_size: "),
    ("train mlm --set batch_size=true " + TRAIN, "batch_size cannot be true"),
    ("train mlm --set encoder.width=33 " + TRAIN, "encoder: width 33 does not divide"),
    ("train mlm --set sources=[\"pears\"] " + TRAIN, "no prepared source 'pears' of text"),
    ("train mlm --device gpu " + TRAIN, "there is no device 'gpu'"),
    ("train mlm --device cuda:99 " + TRAIN, "there is no device 'cuda:99'"),
    (f"train contrastive --init gone {TRAIN} {' '.join(CONTRASTIVE)}", "no model 'gone'"),
    (f"train contrastive --init beir {TRAIN} {' '.join(CONTRASTIVE)}", "the folder is not a model"),
    (f"train contrastive --init notes.md {TRAIN} {' '.join(CONTRASTIVE)}", "notes.md"),
    (f"train finetune --init runs/con {TRAIN} {' '.join(CONTRASTIVE)}", "has 0 negatives, the recipe draws 7"),
    (f"train contrastive --init runs/con --data columns --out new {' '.join(CONTRASTIVE)}", "cannot fill a batch"),
    ("train --resume gone", "run.json is missing"),
    ("train --resume beir", "run.json is missing"),
    ("train --resume notes.md", "run.json is missing"),
    ("train mlm --resume runs/mlm", "--resume takes everything from the run directory"),
    ("train --resume runs/mlm --set batch_size=2", "--resume takes everything from the run directory"),
    ("recipe mlmm", "there is no recipe 'mlmm'"),
    ("recipe syntax.py:f", "the recipe file cannot be loaded"),
    # curate
    ("curate filter gone.jsonl " + TEACHER, "no file gone.jsonl"),
    ("curate filter runs " + TEACHER, "runs is a folder, not a file, and has none of the layouts"),
    ("curate filter books.jsonl " + TEACHER, "'query' is missing or empty"),
    ("curate filter empty.jsonl " + TEACHER, "there are no pairs to filter"),
    ("curate filter pairs.jsonl --k 0 " + TEACHER, "k 0 would drop every pair"),
    ("curate filter pairs.jsonl --sample 1 " + TEACHER, "nothing could be dropped"),
    ("curate filter list.toml --query ask " + TEACHER, "names and columns stand in the sources file"),
    ("curate explain filtered --row 99", "there is no row 99"),
    ("curate explain runs --row 1", "state.json is missing"),
    ("curate filter pairs.jsonl --query-task asking " + TEACHER, "the model has no task 'asking'"),
    ("curate filter pairs.jsonl --max-length 1 " + TEACHER, "max_length 1 is not between"),
    ("curate filter pairs.jsonl --teacher gone --out new", "no model 'gone'"),
    ("curate filter pairs.jsonl --teacher runs/fine --out notes.md", "notes.md is a file, not a folder"),
    ("curate mine mined/mined.jsonl --teacher runs/fine --out mined", "this file would be overwritten"),
    ("curate mine one.jsonl " + TEACHER, "1 distinct documents cannot give 7 negatives"),
    ("curate mine pairs.jsonl --k 3 " + TEACHER, "3 negatives are kept"),
    ("curate mine pairs.jsonl --out new", "give either --teacher or --random"),
    ("curate mine pairs.jsonl --random 50 --out new", "distinct documents cannot give 50 negatives"),
    ("curate mine pairs.jsonl --corpus gone.jsonl " + TEACHER, "no file gone.jsonl"),
    ("curate mine pairs.jsonl --guard 0 " + TEACHER, "guard 0.0 leaves no candidate"),
    # embed
    ("embed runs/fine gone.txt --out v.npy", "no file gone.txt"),
    ("embed runs/fine beir --out v.npy --task clustering", "the row has no text in column 'text'"),
    ("embed runs/fine pairs.jsonl --out v.npy --task clustering", "the row has no text in column 'text'"),
    ("embed runs/fine lines.txt --out v.csv --task clustering", "vectors are not written as .csv"),
    ("embed runs/fine lines.txt --out v --task clustering", "vectors are not written as a file without ending"),
    ("embed runs/fine lines.txt --out v.npy", "this model needs to know the task"),
    ("embed runs/fine lines.txt --out v.npy --task asking", "the model has no task 'asking'"),
    ("embed runs/fine lines.txt --out v.npy --task clustering --dim 33", "dim 33 is not between 1 and 32"),
    ("embed runs/fine empty.txt --out v.npy --task clustering", "there are no texts"),
    ("embed runs/fine latin.txt --out v.npy --task clustering", "not UTF-8 text"),
    ("embed runs/fine notes.md --out v.npy --task clustering", "the line is empty"),
    ("embed runs/fine lines.txt --out notes.md/v.npy --task clustering", "notes.md is a file, not a folder"),
    ("embed gone lines.txt --out v.npy", "no model 'gone'"),
    ("embed beir lines.txt --out v.npy", "the folder is not a model"),
    ("embed data lines.txt --out v.npy", "the folder is not a model"),
    # search
    ("search runs/fine gone.md fox", "no file gone.md"),
    ("search runs/fine beir fox", "beir is a folder"),
    ("search runs/fine empty.jsonl fox", "there is nothing to search in"),
    ("search runs/fine empty.txt fox", "there is nothing to search in"),
    ("search runs/fine numbers.jsonl fox", "the row has no text"),
    ("search gone notes.md fox", "no model 'gone'"),
    ("search runs/fine lines.txt fox --cache notes.md", "notes.md is a file, not a folder"),
    # evaluate
    ("evaluate runs/fine --data gone", "not a folder"),
    ("evaluate runs/fine --data notes.md", "the retrieval set is not a folder"),
    ("evaluate runs/fine --data data", "there is no corpus.jsonl"),
    ("evaluate gone --data beir", "no model 'gone'"),
    ("evaluate runs/fine --data beir --max-length 1", "max_length 1 is not between"),
    # export
    ("export gone --out new", "no model 'gone'"),
    ("export runs/fine --out notes.md", "this is a file"),
    ("export runs/fine --out beir", "holds something else than a published model"),
    ("export runs/fine --out .", "holds something else than a published model"),
]  # fmt: skip


@pytest.fixture(scope="module")
def odd_files(finished) -> None:
    Tokenizer.train(["other words"] * 3, 50).save(finished / "other.json")
    (finished / "empty.jsonl").touch()
    (finished / "empty.txt").touch()
    (finished / "empty-rows.jsonl").write_text('{"query": "a", "id": ""}\n')
    (finished / "latin.txt").write_bytes("café".encode("latin-1"))
    (finished / "one.jsonl").write_text('{"query": "a b", "document": "c d"}\n')
    (finished / "numbers.jsonl").write_text('{"number": 3}\n')
    (finished / "syntax.py").write_text("def f(:\n")
    (finished / "syntax.toml").write_text("[[source]\n")
    (finished / "typo.toml").write_text('[[source]]\nname = "x"\nfiles = "pairs.jsonl"\nqurey = "q"\n')
    (finished / "good.toml").write_text('[[source]]\nname = "faq"\nfiles = "pairs.jsonl"\n')


@pytest.mark.parametrize(("command", "what"), MISTAKES)
@pytest.mark.usefixtures("odd_files")
def test_a_mistake_is_named(refused, command, what):
    assert what in refused(command)
    assert [path for path in Path.cwd().rglob("*") if UNFINISHED in path.name] == []
    if command.startswith("prepare"):
        assert not Path("new").exists(), "no tokenizer that the next attempt would take for the right one"


def test_a_recipe_with_an_error_in_it_is_named_with_its_line(work, odd_files, refused):
    assert "  where:  syntax.py:1\n" in refused("train syntax.py:f " + TRAIN)


def test_an_empty_query_is_refused(refused):
    assert "empty" in refused("search runs/fine notes.md", " ")


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("nonsense", "invalid choice: 'nonsense'"),
        ("prepare", "the following arguments are required: source, --out"),
        ("prepare a --out b --train-tokenizer x", "'x' is not a whole number of at least 1"),
        ("prepare a --out b --train-tokenizer 0", "'0' is not a whole number of at least 1"),
        ("prepare a --out b --train-tokenizer -5", "'-5' is not a whole number of at least 1"),
        ("prepare a --out b --tokenizer t --train-tokenizer 5", "not allowed with argument"),
        ("prepare a --out b --on-error ignore", "invalid choice: 'ignore'"),
        ("curate", "the following arguments are required: STEP"),
        ("curate filter a --out b", "the following arguments are required: --teacher"),
        ("curate mine a --teacher t --out b --guard x", "invalid float value: 'x'"),
        ("search m query", "the following arguments are required: query"),
        ("search m f q --k 0", "'0' is not a whole number of at least 1"),
        ("evaluate m --data d --suite x", "invalid choice: 'x'"),
        ("export m --out o --format x", "invalid choice: 'x'"),
        ("train mlm --learning-rate 1", "unrecognized arguments: --learning-rate"),
    ],
)
def test_a_wrong_command_line_shows_its_usage(capsys, command, what):
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: longspan")
    assert what in error


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_help_and_version(capsys):
    for arguments, expected in [(["--help"], "Start with: longspan demo"), (["--version"], f"longspan {__version__}")]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out


def test_every_command_has_help_with_an_example(capsys):
    commands = ["demo", "prepare", "curate filter", "curate mine", "recipe", "train", "evaluate", "embed", "search"]
    for command in [*commands, "export", "doctor"]:
        with pytest.raises(SystemExit) as caught:
            main([*command.split(), "--help"])
        assert caught.value.code == 0
        assert f"example:\n  longspan {command}" in capsys.readouterr().out


def test_an_interrupted_command_ends_with_130(work, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("longspan.data.prepare.prepare", interrupted)
    assert main(["prepare", "pairs.jsonl", "--out", "data"]) == 130
    assert capsys.readouterr().err == "\nlongspan: interrupted; run the same command again to go on\n"


def test_a_refusal_of_the_system_is_no_traceback(work, monkeypatch, refused):
    def fails(*arguments, **options):
        raise PermissionError(13, "Permission denied", "/secret/file")

    monkeypatch.setattr("longspan.search.read_passages", fails)
    message = refused("search runs/fine notes.md fox")
    assert "the system refused: Permission denied" in message
    assert "  where:  /secret/file\n" in message


def piped(program: str) -> subprocess.Popen[bytes]:
    # Buffered, as in most people's shells: then the last words are written only when the interpreter ends.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


def test_a_reader_that_has_seen_enough_is_no_error():
    # More than the pipe and Python's buffer hold.
    program = (
        "import sys; from longspan import cli\n"
        "def wordy(parsed):\n    for _ in range(100_000): print('a line of text')\n"
        "cli.recipe._recipe = wordy\n"
        "sys.exit(cli.main(['recipe']))"
    )
    process = piped(program)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"a line of text\n"
    process.stdout.close()
    with process.stdin, process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait(timeout=60) == 0


def test_little_output_into_a_closed_pipe_is_no_error_either():
    program = (
        "import sys; from longspan import cli\n"
        "cli.recipe._recipe = lambda parsed: (sys.stdin.readline(), print('short'), None)[-1]\n"
        "sys.exit(cli.main(['recipe']))"
    )
    process = piped(program)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stdin is not None
    assert process.stderr is not None
    with process.stdin as stdin:
        stdin.write(b"go\n")
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait(timeout=60) == 0


def test_python_m_longspan_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "longspan", "train"], check=False, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.startswith("longspan: name a RECIPE, --data and --out")
    assert result.stdout == ""


def test_the_parser_knows_every_command_of_its_help():
    text = build_parser().format_help()
    for command in ("demo", "prepare", "curate", "recipe", "train", "evaluate", "embed", "search", "export", "doctor"):
        assert f"\n    {command} " in text
