"""`longspan evaluate`: its suites and their options."""

import json
from pathlib import Path

import pytest

from longspan.cli import main
from longspan.embedder import Embedder


@pytest.fixture
def place(tmp_path: Path, small_embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small_embedder.save("one")
    small_embedder.with_settings(pooling="cls").save("other")
    words = "quick brown fox jumps over lazy dogs naïve café area".split()
    rows = [{"query": word, "document": f"{word} {words[n - 3]}"} for n, word in enumerate(words)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_two_models_are_compared_query_by_query(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("evaluate one --data pairs.jsonl --against other --k 1,5 --out r.json".split()) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["ndcg@10", "recall@10", "recall@100", "mrr@10", "map", "ndcg@1", "ndcg@5"]
    assert [line.split()[-1] for line in out[1:3]] == ["one", "other"]
    assert out[4] == "one less other, of 10 queries"
    report = json.loads(Path("r.json").read_text())
    assert report.keys() == {"one", "other", "comparison"}
    test = report["comparison"]["ndcg@10"]
    assert test["difference"] == pytest.approx(
        report["one"]["metrics"]["ndcg@10"] - report["other"]["metrics"]["ndcg@10"]
    )
    assert test["num_queries"] == 10
    assert f"{test['difference']:+.4f}" in out[5]
    low, high = report["one"]["intervals"]["ndcg@5"]
    assert low <= report["one"]["metrics"]["ndcg@5"] <= high


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("", "the retrieval suite needs --data"),
        ("--data pairs.jsonl --against one", "--against names the same model"),
        (
            "--data pairs.jsonl --tasks STSBenchmark",
            "--tasks belongs to --suite mteb or jina-long or loco or glue, not to --suite retrieval",
        ),
        ("--suite mteb", "the mteb suite needs --tasks or --benchmark"),
        ("--suite mteb --tasks a --benchmark b", "the mteb suite needs --tasks or --benchmark"),
        ("--suite loco", "the loco suite needs --data"),
        (
            "--suite loco --data . --max-length 9",
            "--max-length belongs to --suite retrieval or mteb, not to --suite loco",
        ),
        ("--suite glue --precision int8", "the glue suite trains, and not in int8"),
        ("--suite mteb --tasks a --bm25", "--bm25 belongs to --suite retrieval, not to --suite mteb"),
    ],
)
def test_wrong_options_are_refused(place: Path, capsys: pytest.CaptureFixture[str], options: str, what: str) -> None:
    assert main(["evaluate", "one", *options.split()]) == 2
    assert what in capsys.readouterr().err


def test_a_cut_off_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("evaluate one --data pairs.jsonl --k 1,x".split())
    assert "'1,x' is not a list of whole numbers" in capsys.readouterr().err


def test_mteb_from_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mteb", reason="needs the extra mteb", exc_type=ImportError)
    (place / "data" / "STSBenchmark").mkdir(parents=True)
    rows = [{"sentence1": "fox", "sentence2": f"fox {n}", "score": n % 6} for n in range(9)]
    (place / "data/STSBenchmark/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = "evaluate one --suite mteb --tasks STSBenchmark --data data --out results --name org/one"
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    assert "STSBenchmark (cosine_spearman)" in out
    assert "average over tasks (1)" in out
    assert json.loads(Path("results/summary.json").read_text())["model"] == "org/one"
    assert main(command.replace("STSBenchmark", "STS12").split()) == 2
    assert "no folder for the task STS12" in capsys.readouterr().err


def test_loco_from_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "loco" / "qmsum").mkdir(parents=True)
    rows = [{"input": f"fox {n} " * 50, "output": f"fox {n}"} for n in range(4)]
    (place / "loco/qmsum/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = "evaluate one --suite loco --data loco --tasks qmsum --lengths 32,64 --rope-scaling dynamic,none --out r"
    assert main(command.split()) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out[:4]] == [
        ["32", "dynamic"],
        ["32", "none"],
        ["64", "dynamic"],
        ["64", "none"],
    ]
    assert out[4].endswith("average (some sets only)")
    assert len(json.loads(Path("r/loco.json").read_text())["scores"]) == 4
    with pytest.raises(SystemExit):
        main([*command.split()[:-4], "--rope-scaling", "yarn"])
    assert "'yarn' is none of dynamic, none, linear, ntk" in capsys.readouterr().err


def test_glue_from_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "glue" / "cola").mkdir(parents=True)
    rows = "".join(json.dumps({"sentence": f"fox {n}", "label": n % 2}) + "\n" for n in range(8))
    for split in ("train", "validation"):
        (place / "glue/cola" / f"{split}.jsonl").write_text(rows)
    assert main("evaluate one --suite glue --data glue --tasks cola --quick --no-mnli --out g".split()) == 0
    out = capsys.readouterr().out
    assert "CoLA (batch 32, learning rate 3e-05, median of 1)" in out
    assert "not the paper's protocol: GLUE epochs 3, the paper's 10" in out
    assert Path("g/cola/b32-lr3e-05-s0/score.json").exists()
