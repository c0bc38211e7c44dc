"""`longspan data`: what it prints, what it writes, and what it refuses."""

import json
import os
import shutil
from pathlib import Path

import pytest

from longspan.cli import main
from longspan.data.catalog import catalog
from longspan.data.source import read_sources


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with two prepared sources of pairs and one of text."""
    folder = tmp_path_factory.mktemp("cli-data")
    pairs = [
        {"query": f"what is {n}?", "document": f"number {n % 30} " + "the quick fox " * n, "negatives": [f"no {n}"]}
        for n in range(40)
    ]
    prefixes = "search_query: search_document: clustering: what is number no 0123456789?"
    books = [{"text": f"{prefixes} the lazy dog {n} sleeps and jumps. " * 8} for n in range(30)]
    for name, rows in (("faq", pairs), ("more", pairs[10:]), ("books", books)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    out = folder / "data"
    commands = [
        f"prepare {folder}/books.jsonl --text text --train-tokenizer 300 --out {out}",
        f"prepare {folder}/faq.jsonl --negatives negatives --out {out}",
        f"prepare {folder}/more.jsonl --query-task clustering --document-task clustering --out {out}",
    ]
    for command in commands:
        assert main(command.split()) == 0
    return folder


@pytest.fixture
def run(work, monkeypatch, capsys):
    """Runs a command in the folder; gives its status, stdout and stderr."""
    monkeypatch.chdir(work)

    def run(command: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(command.split())
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize("action", ["list", "show", "stats", "sample", "verify"])
def test_every_action_has_help_with_an_example(capsys, action):
    with pytest.raises(SystemExit) as caught:
        main(["data", action, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  longspan data {action}" in capsys.readouterr().out


# --- list and show ----------------------------------------------------------------------------------------------------


def test_list_has_every_entry_on_one_line_and_the_papers_sums(run):
    status, out, _ = run("data list")
    assert status == 0
    first_words = [line.split()[0] for line in out.splitlines()]
    assert first_words[1 : 1 + len(catalog())] == list(catalog())
    assert "sum of contrastive: 234,553,344" in out
    assert "sum of finetune: 1,692,672" in out


def test_list_of_a_stage(run):
    _, out, _ = run("data list --stage finetune")
    assert len(out.splitlines()) == 1 + 10 + 2
    assert "contrastive" not in out


@pytest.mark.parametrize("name", list(catalog()))
def test_show_ends_in_a_table_for_prepare(run, work, name):
    _, out, _ = run(f"data show {name}")
    facts, table = out.split("\n\n")
    _, only_table, _ = run(f"data show {name} --toml")
    assert only_table == table
    (work / "one.toml").write_text(table, "utf-8")
    [source] = read_sources(work / "one.toml")
    assert source.name == name
    assert facts.startswith(f"name                   {name}\n")


def test_show_says_what_was_read_and_what_is_recalled(run):
    _, out, _ = run("data show npr")
    lines = {line[:22].strip(): line[23:] for line in out.splitlines()}
    assert lines["rows in the paper"] == "344,064"
    assert lines["rows before filtering"] == "594,384"
    assert lines["rows on the hub"] == "365,075"
    assert lines["tasks"] == "classification / classification (symmetric)"
    assert lines["licence"] == "not stated  (recalled, not confirmed)"
    assert lines["paper rows read in"] == "paper, Table 7"
    assert "recalled, not confirmed" not in lines["origin"]


def test_negatives_are_told_of_finetuning_sets(run):
    assert "negatives              mined: the top 20" in run("data show fever")[1]
    assert "negatives              drawn at random" in run("data show nli")[1]


def test_an_unknown_name_is_refused(run):
    status, out, err = run("data show godaq")
    assert (status, out) == (2, "")
    assert "there is no data set 'godaq'" in err
    assert "did you mean gooaq" in err


# --- stats ------------------------------------------------------------------------------------------------------------


def test_stats_prints_a_table(run):
    status, out, _ = run("data stats data --length 16 --length 32 --batch-size 10")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == "source rows share column task mean p50 p90 p99 longest over 16 over 32 repeated".split()
    rows = {(words[0], words[1]): words for words in lines if len(words) > 2}
    assert rows["faq", "40"][2:4] == ["57.1%", "(4)"]
    assert rows["more", "30"][2:4] == ["42.9%", "(3)"]
    assert rows["books", "30"][2:4] == ["100.0%", "text"]
    assert len(rows["books", "30"]) == 10, "no task, and nothing is cut"
    assert rows["document", "search_document"]
    assert [words[-2:] for words in lines if words[:1] == ["pair"]] == [["pair", "0.00%"]] * 2
    assert "tokens of an epoch of pairs, cut at 32: " in out
    shared = [words for words in lines if words[:3] == ["query", "faq", "more"]]
    assert shared == [["query", "faq", "more", "30", "75.00%", "100.00%"]]


def test_stats_writes_json(run, work):
    assert run("data stats data --length 16 --out stats.json")[0] == 0
    values = json.loads((work / "stats.json").read_text())
    [faq] = [source for source in values["sources"] if source["name"] == "faq"]
    assert faq["num_negatives"] == [1, 1]
    for column in faq["columns"]:
        lengths = column["lengths"]
        assert sum(lengths["counts"]) == 40
        assert lengths["num_tokens"] == sum(v * c for v, c in zip(lengths["values"], lengths["counts"], strict=True))
        assert lengths["p50"] <= lengths["p90"] <= lengths["p99"] <= lengths["longest"] == lengths["values"][-1]


def test_stats_writes_a_page(run, work):
    assert run("data stats data --length 16 --out stats.html")[0] == 0
    page = (work / "stats.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("<figure>") == 5


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("data stats data --out stats.csv", "statistics are written as .html or .json"),
        ("data stats gone", "no prepared sources"),
        ("data stats data --length 2", "leaves no room for text"),
        ("data sample gone", "no prepared sources of pairs"),
        ("data sample data --source gone", "no prepared source 'gone' of pairs"),
        ("data sample data --query-length 3", "leaves no room for text"),
        ("data sample data --row-length 1000000", "less than one row"),
        ("data verify gone", "no prepared sources"),
    ],
)
def test_a_mistake_is_named(run, command, what):
    status, _, err = run(command)
    assert status == 2
    assert what in err
    assert "  remedy: " in err


# --- sample -----------------------------------------------------------------------------------------------------------


def test_sample_shows_rows_of_every_source(run):
    status, out, _ = run("data sample data --rows 2 --row-length 32")
    assert status == 0
    for name, tasks in (("faq", "search_query -> search_document"), ("more", "clustering")):
        heads = [line for line in out.splitlines() if line.startswith(f"{name}, row")]
        assert len(heads) == 2
        assert all(head.endswith(f", {tasks}") for head in heads)
    assert out.count("packed text, row") == 2
    assert out.count("tokens to predict") == 2
    assert out.count("negative 1") == 2
    assert "[CLS] search" in out


def test_sample_marks_where_a_text_is_cut(run):
    _, out, _ = run("data sample data --source faq --rows 40 --document-length 20 --full")
    cut = [line for line in out.splitlines() if "tokens are cut off here" in line]
    assert cut
    assert all("document" in line and line.endswith(" tokens are cut off here [SEP]") for line in cut)
    assert all("    20 tokens " in line for line in cut)


def test_sample_leaves_the_middle_of_long_texts_out(run):
    _, short, _ = run("data sample data --source faq --rows 40")
    assert "more words …" in short
    _, full, _ = run("data sample data --source faq --rows 40 --full")
    assert "more words …" not in full
    assert len(full) > len(short)


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_says_that_all_is_well(run):
    status, out, _ = run("data verify data")
    assert status == 0
    assert out.startswith("3 sources, 3 shards, ")
    assert "all as the manifests say" in out


def test_verify_names_every_broken_shard(run, work):
    shutil.copytree(work / "data", work / "broken")
    for name in ("books", "more"):
        path = next((work / "broken" / name).glob("shard-*.arrow"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        path.write_bytes(content)
        os.utime(path, ns=times)  # nothing but the content tells
    status, out, err = run("data verify broken")
    assert (status, out) == (2, "")
    assert "faq" not in err.replace("verify:", "")
    for name in ("books", "more"):
        assert f"broken/{name}/shard-" in err
    assert err.count("  remedy: ") == 2
