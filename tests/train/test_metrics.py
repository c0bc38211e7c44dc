"""What a run tells: metrics.jsonl, the progress line, TensorBoard."""

import builtins
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from longspan.errors import LongspanError
from longspan.objective.world import Alone
from longspan.train.flops import training_flops
from longspan.train.loop import resume, start
from longspan.train.metrics import JsonLines, ProgressBar
from longspan.train.run import Run, trim_metrics
from longspan.train.stage import build_stage
from tests.train import folders, tiny
from tests.train.conftest import AtStep

METRICS = {"loss": 1.25, "tokens_per_second": 12_345.6}


def _cut_short(start_it: Callable[[], Run], at_step: AtStep, step: int) -> None:
    def stop(model: Any) -> None:
        raise ZeroDivisionError

    at_step(step, stop)
    with pytest.raises(ZeroDivisionError):
        start_it()
    at_step(step, lambda model: None)


# --- metrics.jsonl ---------------------------------------------------------------------------------------------------


def test_every_line_says_what_a_curve_needs(text_data: Path, pair_data: Path, tmp_path: Path) -> None:
    mlm = start(tiny.masked_config(text_data), tmp_path / "mlm").logged()
    contrastive = start(tiny.contrastive_config(pair_data), tmp_path / "contrastive").logged()
    always = {"step", "loss", "accuracy", "tokens", "lr", "gradient_norm", "seconds", "tokens_per_second"}
    assert all(row.keys() == always | {"masked"} for row in mlm)
    assert all(
        row.keys() == always | {"source", "pairs", "cut", "duplicates", "pairs_per_second"} for row in contrastive
    )
    assert {row["source"] for row in contrastive} == {"first", "second"}
    for row in mlm + contrastive:
        assert all(math.isfinite(value) for value in row.values() if not isinstance(value, str))
        assert row["tokens"] > 0
        assert row["gradient_norm"] > 0
        assert row["seconds"] > 0
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    assert {row["tokens"] for row in mlm} == {4 * 24}


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as reporter:
        reporter.step(1, METRICS, log=True)
        reporter.step(2, METRICS, log=False)
        assert [json.loads(line)["step"] for line in path.read_text("utf-8").splitlines()] == [1]


def test_no_step_twice_after_a_resume(text_data: Path, at_step: AtStep, tmp_path: Path) -> None:
    config = tiny.masked_config(text_data, checkpoint_every=4, max_steps=8)
    _cut_short(lambda: start(config, tmp_path / "run"), at_step, 7)
    assert [row["step"] for row in folders.metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in resume(tmp_path / "run").logged()] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("content", "last_step", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', 2, [1, 2]),
        ('{"step": 1}\n{"step": 2}\n{"st', 2, [1, 2]),
        ('{"step": 1}\n{"step": 2}', 5, [1, 2]),
        ('{"step": 5}\n', 0, []),
        ("", 3, []),
    ],
)
def test_trimmed(tmp_path: Path, content: str, last_step: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content, "utf-8")
    trim_metrics(path, last_step)
    lines = path.read_text("utf-8")
    assert [json.loads(line)["step"] for line in lines.splitlines()] == kept
    assert not lines or lines.endswith("\n"), "the next line begins a line"


def test_nothing_to_trim(tmp_path: Path) -> None:
    trim_metrics(tmp_path / "metrics.jsonl", 3)
    assert not (tmp_path / "metrics.jsonl").exists()


# --- the progress line -----------------------------------------------------------------------------------------------


def test_progress_without_a_terminal() -> None:
    text = io.StringIO()
    with ProgressBar("mlm", 2, 4, console=Console(file=text, width=100)) as bar:
        bar.step(3, METRICS, log=True)
        assert text.getvalue() == "", "a line now and then, not one a step"
        bar.step(4, METRICS, log=False)
    assert text.getvalue() == "mlm: 4/4  loss 1.250  12,346 tok/s\n"


def test_progress_on_a_terminal() -> None:
    text = io.StringIO()
    with ProgressBar("mlm", 0, 2, console=Console(file=text, width=100, force_terminal=True)) as bar:
        bar.step(1, METRICS, log=True)
        bar.step(2, METRICS, log=True)
    assert "2/2" in text.getvalue()
    assert "loss 1.250" in text.getvalue()


def test_a_run_tells_on_stderr(text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(tiny.masked_config(text_data), tmp_path / "run")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tiny-mlm: 6/6  loss ")


def test_progress_says_how_fast_and_what_to_look_at() -> None:
    text = io.StringIO()
    with ProgressBar("contrastive", 0, 2, console=Console(file=text, width=100)) as bar:
        bar.step(1, METRICS | {"flags": ["loss spike: 9"]}, log=True)
        bar.step(2, METRICS | {"pairs_per_second": 4321.0, "mfu": 0.456}, log=True)
    first, last = text.getvalue().splitlines()
    assert first == "step 1: loss spike: 9"
    assert last.endswith("12,346 tok/s  4,321 pairs/s  46% of peak")


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def test_tensorboard(text_data: Path, at_step: AtStep, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny.masked_config(text_data, checkpoint_every=4, max_steps=8)
    _cut_short(lambda: start(config, tmp_path / "run", tensorboard=True), at_step, 7)
    run = resume(tmp_path / "run", tensorboard=True)
    events = accumulator.EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert {"loss", "lr", "gradient_norm", "tokens_per_second"} <= set(events.Tags()["scalars"])
    points = events.Scalars("loss")
    assert [point.step for point in points] == [1, 2, 3, 4, 5, 6, 7, 8], "steps 5 and 6 were done twice"
    assert [point.value for point in points] == pytest.approx([row["loss"] for row in run.logged()], rel=1e-6)


def test_no_tensorboard_unless_asked_for(text_data: Path, tmp_path: Path) -> None:
    assert not (start(tiny.masked_config(text_data), tmp_path / "run").folder / "tensorboard").exists()


def test_tensorboard_is_missing(text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LongspanError, match="TensorBoard is not installed"):
        start(tiny.masked_config(text_data), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists(), "said before the run is begun"


# --- Weights & Biases ------------------------------------------------------------------------------------------------


class _FakeWandB:
    """What the package does, as far as we use it."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: dict[int, dict[str, float]] = {}
        self.exits: list[int] = []

    def init(self, **settings: Any) -> "_FakeWandB":
        self.started.append(settings)
        return self

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        self.logged[step] = numbers

    def finish(self, *, exit_code: int) -> None:
        self.exits.append(exit_code)


def test_wandb(pair_data: Path, at_step: AtStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # pyright: ignore[reportArgumentType]
    config = tiny.contrastive_config(pair_data, checkpoint_every=4)
    _cut_short(lambda: start(config, tmp_path / "run", wandb="embedders"), at_step, 5)
    run = resume(tmp_path / "run", wandb="embedders")
    first, second = fake.started
    assert first == second, "one run there too"
    assert (first["project"], first["name"], first["resume"]) == ("embedders", "run", "allow")
    assert first["config"]["config"]["seed"] == 3
    assert fake.exits == [1, 0]
    assert fake.logged.keys() == {1, 2, 3, 4, 5, 6}
    for row in run.logged():
        assert fake.logged[row["step"]]["loss"] == row["loss"]
        assert fake.logged[row["step"]][f"accuracy/{row['source']}"] == row["accuracy"]


def test_wandb_is_missing(text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(LongspanError, match="wandb is not installed"):
        start(tiny.masked_config(text_data), tmp_path / "run", wandb="embedders")
    assert not (tmp_path / "run").exists()


# --- share of peak ---------------------------------------------------------------------------------------------------


def test_share_of_peak(text_data: Path, tmp_path: Path) -> None:
    run = start(tiny.masked_config(text_data), tmp_path / "run", peak_flops=1e9)
    stage = build_stage(run.config, Alone(), torch.device("cpu"))
    for step, row in enumerate(run.logged()):
        expected = training_flops(stage.encoder, stage.loader.batch(step)) / row["seconds"] / 1e9
        assert row["mfu"] == pytest.approx(expected)
