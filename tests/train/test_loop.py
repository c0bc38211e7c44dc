"""Start, interrupt, resume, refuse: what happens to a run and to its directory.

Runs that are compared bit by bit are computed in one process with the same number of threads.
"""

import functools
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from longspan.data.batch import PairBatch
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.model.hub import read_safetensors
from longspan.objective.world import Alone, World
from longspan.train import checkpoint, loop, writer
from longspan.train.config import TrainConfig
from longspan.train.loop import Interrupted, resume, start
from longspan.train.run import Run
from longspan.train.stage import build_stage
from tests.train import folders, tiny
from tests.train.conftest import AtStep


@pytest.fixture(params=["mlm", "contrastive"])
def config(request: pytest.FixtureRequest, text_data: Path, pair_data: Path) -> TrainConfig:
    """A run of six steps with a checkpoint after every second."""
    return tiny.masked_config(text_data) if request.param == "mlm" else tiny.contrastive_config(pair_data)


@pytest.fixture
def mlm(text_data: Path) -> TrainConfig:
    """The same, for what does not depend on the objective."""
    return tiny.masked_config(text_data)


Undisturbed = Callable[[TrainConfig], Path]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The directory of a finished run of a configuration, computed once; not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def run(config: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "build_stage", build_stage)  # without what the test does in its steps
            return start(TrainConfig.model_validate_json(config), folder / str(len(list(folder.iterdir())))).folder

    return lambda config: run(config.model_dump_json())


def _raising(error: type[BaseException]) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        raise error

    return act


def _cut_short(config: TrainConfig, folder: Path, at_step: AtStep, step: int) -> Run:
    """A run that something unforeseen ended in `step`."""
    at_step(step, _raising(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        start(config, folder)
    at_step(step, lambda model: None)
    return Run(folder)


# --- from start to end -----------------------------------------------------------------------------------------------


def test_a_finished_run(config: TrainConfig, undisturbed: Undisturbed) -> None:
    run = Run(undisturbed(config))
    assert run.finished
    assert [row["step"] for row in run.logged()] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((run.folder / "finished.json").read_text("utf-8"))
    assert summary["steps"] == 6
    assert summary["loss"] == run.logged()[-1]["loss"]
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-00000004", "step-00000006"]
    vectors = Embedder.load(run.model).embed(["ba be bi", "bo bu"], task="search_query")
    assert vectors.shape == (2, tiny.ENCODER.width)


def test_training_learns(config: TrainConfig, tmp_path: Path) -> None:
    losses = folders.losses(start(config.replace({"max_steps": 30}, where="test"), tmp_path / "run").folder)
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.1


def test_the_same_twice(config: TrainConfig, undisturbed: Undisturbed, tmp_path: Path) -> None:
    again = start(config, tmp_path / "again")
    assert folders.differing(again.folder, undisturbed(config)) == []
    other = start(config.replace({"seed": 4}, where="test"), tmp_path / "other")
    assert "model/model.safetensors" in folders.differing(other.folder, undisturbed(config))


def test_only_every_so_many_steps_are_logged_and_the_last(mlm: TrainConfig, tmp_path: Path) -> None:
    run = start(mlm.replace({"log_every": 4}, where="test"), tmp_path / "run")
    assert [row["step"] for row in run.logged()] == [4, 6]


def test_epochs_or_steps(mlm: TrainConfig, tmp_path: Path) -> None:
    half = start(mlm.replace({"max_steps": None, "epochs": 0.5}, where="test"), tmp_path / "half")
    whole = start(mlm.replace({"max_steps": None, "epochs": 1.0}, where="test"), tmp_path / "whole")
    assert half.total_steps == round(whole.total_steps / 2)
    assert len(whole.logged()) == whole.total_steps


# --- stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(
    config: TrainConfig, undisturbed: Undisturbed, number: signal.Signals, at_step: AtStep, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    at_step(3, lambda model: signal.raise_signal(number))
    with pytest.raises(Interrupted, match="step 3 of 6"):
        start(config, tmp_path / "run")
    assert signal.getsignal(number) is before
    run = Run(tmp_path / "run")
    assert not run.finished
    assert checkpoint.newest_checkpoint(run.checkpoints).name == "step-00000003"
    at_step(5, lambda model: signal.raise_signal(number))
    with pytest.raises(Interrupted, match="step 5 of 6"):
        resume(run.folder)
    resume(run.folder)
    # Step 5 was saved instead of step 4; the rest is the same.
    different = folders.differing(run.folder, undisturbed(config))
    assert all(name.startswith(("checkpoints/step-00000004", "checkpoints/step-00000005")) for name in different)
    assert len(list(run.checkpoints.iterdir())) == 2


def test_asked_to_stop_in_the_last_step_it_finishes(
    mlm: TrainConfig, undisturbed: Undisturbed, at_step: AtStep, tmp_path: Path
) -> None:
    at_step(6, lambda model: signal.raise_signal(signal.SIGTERM))
    assert folders.differing(start(mlm, tmp_path / "run").folder, undisturbed(mlm)) == []


def test_the_second_ctrl_c_stops_at_once(
    mlm: TrainConfig, undisturbed: Undisturbed, at_step: AtStep, tmp_path: Path
) -> None:
    def impatient(model: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(4, impatient)
    with pytest.raises(KeyboardInterrupt):
        start(mlm, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert checkpoint.newest_checkpoint(run.checkpoints).name == "step-00000002"
    at_step(4, lambda model: None)
    assert folders.differing(resume(run.folder).folder, undisturbed(mlm)) == []


def test_an_error_between_checkpoints(
    config: TrainConfig, undisturbed: Undisturbed, at_step: AtStep, tmp_path: Path
) -> None:
    run = _cut_short(config, tmp_path / "run", at_step, 4)
    assert [row["step"] for row in run.logged()] == [1, 2, 3]
    resume(run.folder)
    assert [row["step"] for row in run.logged()] == [1, 2, 3, 4, 5, 6], "step 3 was done twice and is logged once"
    assert folders.differing(run.folder, undisturbed(config)) == []


def test_signals_are_left_alone_outside_the_main_thread(
    mlm: TrainConfig, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    thread = threading.Thread(target=start, args=(mlm, tmp_path / "run"))
    thread.start()
    thread.join()
    assert Run(tmp_path / "run").finished


@pytest.mark.parametrize("moment", ["before finished.json", "before the model", "before old checkpoints were deleted"])
def test_stopped_between_the_last_step_and_the_end(
    mlm: TrainConfig, undisturbed: Undisturbed, moment: str, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(undisturbed(mlm), tmp_path / "run"))
    (run.folder / "finished.json").unlink()
    if moment != "before finished.json":
        shutil.rmtree(run.model)
    if moment == "before old checkpoints were deleted":
        shutil.copytree(run.checkpoints / "step-00000004", run.checkpoints / "step-00000002")
    resume(run.folder)
    assert folders.differing(run.folder, undisturbed(mlm)) == []


def test_leftovers_of_killed_writers_are_ignored_and_swept(
    mlm: TrainConfig, undisturbed: Undisturbed, at_step: AtStep, tmp_path: Path
) -> None:
    run = _cut_short(mlm, tmp_path / "run", at_step, 4)
    half = run.checkpoints / ".unfinished-123-step-00000004"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (run.folder / ".unfinished-123-model").mkdir()
    (run.folder / ".unfinished-123-run.json").write_text("{", "utf-8")
    with open(run.metrics, "a", encoding="utf-8") as stream:
        stream.write('{"step": 4, "lo')
    resume(run.folder)
    assert folders.differing(run.folder, undisturbed(mlm)) == []


# --- a run directory needs nothing else ------------------------------------------------------------------------------


def test_resume_needs_only_the_directory_and_the_data(
    text_data: Path, pair_data: Path, at_step: AtStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tiny.masked_config(text_data), tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    for name, config in {
        "mlm": tiny.masked_config(text_data),
        "contrastive": tiny.contrastive_config(pair_data),
    }.items():
        config = config.model_copy(update={"init": "teacher", "encoder": None})
        undisturbed = start(config, tmp_path / f"{name}-undisturbed")
        assert undisturbed.settings.encoder.width == tiny.ENCODER.width
        run = _cut_short(config, tmp_path / name, at_step, 1)  # so early that there is no checkpoint but the first
        (tmp_path / "teacher").rename(tmp_path / "gone")
        resume(run.folder)
        (tmp_path / "gone").rename(tmp_path / "teacher")
        assert folders.differing(run.folder, undisturbed.folder) == []


def test_resume_from_another_working_directory(
    text_data: Path, at_step: AtStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text_data.parent)
    run = _cut_short(tiny.masked_config(Path("data")), tmp_path / "run", at_step, 3)
    monkeypatch.chdir(tmp_path)
    assert resume(Path("run")).finished
    assert Path(run.config.data) == text_data


def test_a_hub_id_is_not_a_path(text_data: Path, tmp_path: Path) -> None:
    config = tiny.masked_config(text_data).model_copy(update={"init": str(tmp_path / "none"), "encoder": None})
    with pytest.raises(LongspanError, match="no model"):
        start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "what cannot begin leaves nothing behind"


def test_run_json_is_the_whole_configuration(mlm: TrainConfig, undisturbed: Undisturbed) -> None:
    run = Run(undisturbed(mlm))
    assert run.config == mlm
    starts = [json.loads(line) for line in (run.folder / "environment.jsonl").read_text("utf-8").splitlines()]
    assert len(starts) == 1
    assert starts[0]["torch"] == torch.__version__
    assert starts[0]["processes"] == 1
    assert len(starts[0]["code"]) == 64


def test_every_start_is_recorded(mlm: TrainConfig, at_step: AtStep, tmp_path: Path) -> None:
    run = _cut_short(mlm, tmp_path / "run", at_step, 3)
    resume(run.folder)
    assert len((run.folder / "environment.jsonl").read_text("utf-8").splitlines()) == 2


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_finished_run_does_not_change(mlm: TrainConfig, undisturbed: Undisturbed, tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed(mlm), tmp_path / "run")
    shutil.rmtree(run / "checkpoints")  # resume returns at once: it does not even look for them

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}

    before = state()
    with pytest.raises(LongspanError, match="finished runs do not change"):
        start(mlm, run)
    assert resume(run).finished
    assert state() == before


def test_start_refuses_an_unfinished_run(mlm: TrainConfig, at_step: AtStep, tmp_path: Path) -> None:
    run = _cut_short(mlm, tmp_path / "run", at_step, 3)
    before = folders.contents(run.folder)
    with pytest.raises(LongspanError, match="unfinished run") as refused:
        start(mlm, run.folder)
    assert f"--resume {run.folder}" in refused.value.remedy
    assert folders.contents(run.folder) == before


def test_start_refuses_a_directory_that_is_not_empty(mlm: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(LongspanError, match="not empty"):
        start(mlm, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_start_refuses_somebody_elses_checkpoints(mlm: TrainConfig, tmp_path: Path) -> None:
    # A killed start leaves the checkpoint of step 0 and no run.json; later checkpoints without run.json are something
    # that a person should look at.
    (tmp_path / "run" / "checkpoints" / "step-00000500").mkdir(parents=True)
    with pytest.raises(LongspanError, match="not empty"):
        start(mlm, tmp_path / "run")


def test_start_takes_an_empty_directory(mlm: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert start(mlm, tmp_path / "run").finished


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "run.json is missing"),
        ("{}", "missing key 'config'"),
        ("{", "not valid JSON"),
        ("[1]", "valid dictionary"),
    ],
)
def test_resume_refuses_what_is_not_a_run(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, "utf-8")
    with pytest.raises(LongspanError, match=reason):
        resume(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_resume_refuses_a_key_it_does_not_know(mlm: TrainConfig, at_step: AtStep, tmp_path: Path) -> None:
    run = _cut_short(mlm, tmp_path / "run", at_step, 3)
    values = json.loads((run.folder / "run.json").read_text("utf-8"))
    values["config"]["dropout"] = 0.1
    (run.folder / "run.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(LongspanError, match="dropout"):
        resume(run.folder)


def test_resume_refuses_changed_data(at_step: AtStep, tmp_path: Path) -> None:
    data = tiny.prepare_text(tmp_path / "text")
    run = _cut_short(tiny.masked_config(data), tmp_path / "run", at_step, 3)
    before = folders.contents(run.folder)
    shutil.rmtree(data)
    tiny.prepare_text(tmp_path / "text", seed=1)
    with pytest.raises(LongspanError, match="not the data this run was started on"):
        resume(run.folder)
    assert folders.contents(run.folder) == before
    shutil.rmtree(data)
    with pytest.raises(LongspanError, match="no prepared sources"):
        resume(run.folder)
    tiny.prepare_text(tmp_path / "text")  # the same data again
    assert resume(run.folder).finished


# --- damaged checkpoints ---------------------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint_and_its_remedy(
    mlm: TrainConfig, undisturbed: Undisturbed, at_step: AtStep, tmp_path: Path
) -> None:
    run = _cut_short(mlm, tmp_path / "run", at_step, 6)
    newest = run.checkpoints / "step-00000004"
    with open(newest / "optimizer.safetensors", "r+b") as stream:
        stream.truncate(100)
    with pytest.raises(LongspanError, match="torn") as refused:
        resume(run.folder)
    assert str(newest) in refused.value.where
    assert "delete this folder and resume again" in refused.value.remedy
    assert "step-00000002" in refused.value.remedy
    assert (run.checkpoints / "step-00000002").is_dir(), "nothing is deleted while the newest is not known to be whole"
    shutil.rmtree(newest)
    resume(run.folder)
    assert folders.differing(run.folder, undisturbed(mlm)) == []


def test_an_older_checkpoint_is_not_deleted_before_the_newest_is_verified(
    mlm: TrainConfig, undisturbed: Undisturbed, at_step: AtStep, tmp_path: Path
) -> None:
    run = _cut_short(mlm, tmp_path / "run", at_step, 6)
    # As if one checkpoint were kept, and a kill had come between writing the new one and deleting the old one.
    values = json.loads((run.folder / "run.json").read_text("utf-8"))
    values["config"]["keep_checkpoints"] = 1
    (run.folder / "run.json").write_text(json.dumps(values), "utf-8")
    (run.checkpoints / "step-00000004" / "state.json").unlink()
    with pytest.raises(LongspanError, match="goes on from step-00000002"):
        resume(run.folder)
    shutil.rmtree(run.checkpoints / "step-00000004")
    resume(run.folder)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000006"]
    assert folders.losses(run.folder) == folders.losses(undisturbed(mlm))


def test_the_last_checkpoint_left_is_damaged(mlm: TrainConfig, at_step: AtStep, tmp_path: Path) -> None:
    run = _cut_short(mlm.replace({"keep_checkpoints": 1}, where="test"), tmp_path / "run", at_step, 4)
    (newest,) = run.checkpoints.iterdir()
    (newest / "model.safetensors").unlink()
    with pytest.raises(LongspanError, match="is missing") as refused:
        resume(run.folder)
    assert "start a new run" in refused.value.remedy
    shutil.rmtree(newest)
    with pytest.raises(LongspanError, match="no checkpoint left"):
        resume(run.folder)


# --- what is applied -------------------------------------------------------------------------------------------------


def test_the_rate_of_the_schedule_is_applied(mlm: TrainConfig, tmp_path: Path) -> None:
    run = start(mlm.replace({"checkpoint_every": 1, "keep_checkpoints": 9}, where="test"), tmp_path / "run")
    rates = [mlm.optim.lr * mlm.schedule.factor(step, 6) for step in range(6)]
    assert [row["lr"] for row in run.logged()] == rates
    # Adam's first step moves every weight by the rate in the direction of its gradient; norms are not decayed.
    before, after = (read_safetensors(run.checkpoints / f"step-0000000{n}" / "model.safetensors") for n in (0, 1))
    moved = (after["encoder.layers.1.norm2.weight"] - before["encoder.layers.1.norm2.weight"]).abs()
    assert float(moved.max()) == pytest.approx(rates[0], rel=1e-3)


@pytest.mark.parametrize("clip_norm", [0.01, None])
def test_the_clipped_gradient_is_the_one_applied(config: TrainConfig, clip_norm: float | None, tmp_path: Path) -> None:
    changes = {"optim.clip_norm": clip_norm, "max_steps": 1}
    run = start(config.replace(changes, where="test"), tmp_path / "run")
    state = read_safetensors(run.checkpoints / "step-00000001" / "optimizer.safetensors")
    # After one step Adam's mean of gradients is (1 - beta1) times the gradient.
    gradients = [
        tensor.flatten() / (1 - config.optim.beta1) for name, tensor in state.items() if name.endswith("exp_avg")
    ]
    applied, before_clipping = float(torch.cat(gradients).norm()), run.logged()[0]["gradient_norm"]
    assert before_clipping > 0.1
    assert applied == pytest.approx(clip_norm or before_clipping, rel=1e-4)


def test_bf16_stays_close(config: TrainConfig, undisturbed: Undisturbed, tmp_path: Path) -> None:
    run = start(config.replace({"precision": "bf16"}, where="test"), tmp_path / "run")
    exact, rounded = folders.losses(undisturbed(config)), folders.losses(run.folder)
    assert exact != rounded
    # bfloat16 keeps 8 bits of every factor: within some per cent over a few steps.
    assert rounded == pytest.approx(exact, rel=0.1)
    weights = read_safetensors(run.checkpoints / "step-00000006" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


# --- not finite ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "clip_norm"), [(float("nan"), 1.0), (float("inf"), None)])
def test_a_gradient_that_is_not_finite(
    config: TrainConfig,
    value: float,
    clip_norm: float | None,
    undisturbed: Undisturbed,
    at_step: AtStep,
    tmp_path: Path,
) -> None:
    config = config.replace({"optim.clip_norm": clip_norm}, where="test")
    seen = {}

    def spoil(model: torch.nn.Module) -> None:
        parameter = next(model.parameters())
        assert parameter.grad is not None
        parameter.grad[0, 0] = value
        seen["model"] = model
        seen["before"] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    at_step(4, spoil)
    with pytest.raises(LongspanError, match=r"gradient_norm is (nan|inf) in step 4: the step was not applied"):
        start(config, tmp_path / "run")
    for name, tensor in seen["model"].state_dict().items():
        assert torch.equal(tensor, seen["before"][name]), name
    run = Run(tmp_path / "run")
    assert [row["step"] for row in run.logged()] == [1, 2, 3]
    assert checkpoint.newest_checkpoint(run.checkpoints).name == "step-00000002"
    at_step(4, lambda model: None)
    resume(run.folder)
    assert _differing_but_for_bad_batches(run.folder, undisturbed(config)) == []


def _differing_but_for_bad_batches(folder: Path, other: Path) -> list[str]:
    return [name for name in folders.differing(folder, other) if not name.startswith("bad-batches")]


def test_a_loss_that_is_not_finite(mlm: TrainConfig, undisturbed: Undisturbed, at_step: AtStep, tmp_path: Path) -> None:
    def spoil(model: torch.nn.Module) -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))

    at_step(3, spoil)  # after the gradient of step 3, so that step 4 is the first to see it
    with pytest.raises(LongspanError, match="loss is nan in step 4"):
        start(mlm, tmp_path / "run")
    assert not Run(tmp_path / "run").finished
    at_step(3, lambda model: None)
    assert _differing_but_for_bad_batches(resume(tmp_path / "run").folder, undisturbed(mlm)) == []


def _spoil(model: torch.nn.Module) -> None:
    parameter = next(model.parameters())
    assert parameter.grad is not None
    parameter.grad[0, 0] = float("nan")


def test_the_batch_that_spoilt_the_gradient_is_saved(config: TrainConfig, at_step: AtStep, tmp_path: Path) -> None:
    at_step(4, _spoil)
    with pytest.raises(LongspanError) as refused:
        start(config, tmp_path / "run")
    path = tmp_path / "run" / "bad-batches" / "step-00000004-rank-0.safetensors"
    assert refused.value.where == str(path)
    stage = build_stage(config, Alone(), torch.device("cpu"))
    batch, saved = stage.loader.batch(3), read_safetensors(path)
    assert saved["rows"].tolist() == stage.loader.rows(3).tolist()
    assert len(saved["rows"]) == config.batch_size
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["why"] == "gradient_norm is nan"
    if isinstance(batch, PairBatch):
        assert metadata["source"] == batch.source
        for name, packed in (("queries", batch.queries), ("documents", batch.documents)):
            assert torch.equal(saved[f"{name}.ids"], packed.ids_T)
            assert saved[f"{name}.lengths"].tolist() == list(packed.lengths)
    else:
        assert torch.equal(saved["ids"], torch.cat([row.ids_T for row in batch.rows]))
        assert saved["row_lengths"].tolist() == [24] * 4
        assert saved["positions"].split(saved["targets"].tolist())[1].tolist() == batch.targets[1][0].tolist()
        assert torch.equal(saved["labels"], torch.cat([labels for _, labels in batch.targets]))


def test_a_step_that_is_not_finite_is_skipped(
    mlm: TrainConfig, at_step: AtStep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = mlm.replace({"on_non_finite": "skip", "checkpoint_every": 1, "keep_checkpoints": 9}, where="test")
    at_step(4, _spoil)
    run = start(config, tmp_path / "run")
    assert run.finished
    third, fourth, fifth = run.logged()[2:5]
    assert fourth["skipped"] == "gradient_norm is nan"
    assert fourth["gradient_norm"] is None, "NaN is not JSON"
    assert "skipped" not in third
    assert "skipped" not in fifth
    assert "step 4: step skipped: gradient_norm is nan" in capsys.readouterr().err
    for name in ("model.safetensors", "optimizer.safetensors"):
        before, after, later = ((run.checkpoints / f"step-0000000{n}" / name).read_bytes() for n in (3, 4, 5))
        assert before == after, "weights and moments are as they were"
        assert after != later


def test_not_too_many_steps_are_skipped(mlm: TrainConfig, at_step: AtStep, tmp_path: Path) -> None:
    config = mlm.replace({"on_non_finite": "skip", "max_skips": 2}, where="test")
    for step in (1, 3, 4):
        at_step(step, _spoil)
    assert start(config, tmp_path / "run").finished
    at_step(5, _spoil)
    with pytest.raises(LongspanError, match="in step 5, the 3th in succession"):
        start(config, tmp_path / "other")


# --- what a person should look at -------------------------------------------------------------------------------------


def test_weights_without_gradient_are_flagged(
    mlm: TrainConfig, at_step: AtStep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill(model: torch.nn.Module) -> None:
        gradients = dict(model.named_parameters())
        gradients["encoder.layers.1.mlp.down.weight"].grad = None
        gradient = gradients["encoder.layers.0.norm1.weight"].grad
        assert gradient is not None
        gradient.zero_()

    for step in (2, 3, 4, 5):
        at_step(step, kill)
    rows = start(mlm, tmp_path / "run").logged()
    names = ["encoder.layers.0.norm1.weight", "encoder.layers.1.mlp.down.weight"]
    assert [row.get("zero_gradients") for row in rows] == [None, *[names] * 4, None]
    flagged = [row["step"] for row in rows if "flags" in row]
    assert flagged == [4]
    assert "step 4: dead gradient" in capsys.readouterr().err


# --- evaluation in the loop -------------------------------------------------------------------------------------------


def test_evaluation_and_the_best_checkpoint(mlm: TrainConfig, at_step: AtStep, tmp_path: Path) -> None:
    quality = {3: 0.5, 6: 0.9, 9: 0.7, 10: 0.2}
    changes = {"max_steps": 10, "evaluate_every": 3, "best_metric": "eval/held/ndcg", "checkpoint_every": 5}
    config = mlm.replace(changes | {"log_every": 4, "keep_checkpoints": 1}, where="test")
    steps = iter([*quality] * 2)

    def held(model: torch.nn.Module, world: World) -> dict[str, float]:
        assert not torch.is_grad_enabled()
        return {"ndcg": quality[next(steps)], "size": world.size}

    whole = start(config, tmp_path / "whole", evaluators={"held": held})
    rows = {row["step"]: row for row in whole.logged()}
    assert rows.keys() == {3, 4, 6, 8, 9, 10}
    assert {step: row["eval/held/ndcg"] for step, row in rows.items() if "eval/held/ndcg" in row} == quality
    best = checkpoint.best_checkpoint(whole.checkpoints)
    assert best is not None
    assert best.name == "step-00000006"
    assert sorted(path.name for path in whole.checkpoints.iterdir()) == ["step-00000006", "step-00000010"]

    at_step(8, _raising(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        start(config, tmp_path / "run", evaluators={"held": held})
    at_step(8, lambda model: None)
    with pytest.raises(LongspanError, match="nothing to evaluate with"):
        resume(tmp_path / "run")
    run = resume(tmp_path / "run", evaluators={"held": held})  # goes on from step 6, the best
    assert folders.differing(run.folder, whole.folder) == []


def test_the_least_is_best(mlm: TrainConfig, tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0])
    changes = {"evaluate_every": 2, "best_metric": "eval/a/loss", "best_is": "min", "checkpoint_every": 6}
    config = mlm.replace(changes, where="test")
    run = start(config, tmp_path / "run", evaluators={"a": lambda model, world: {"loss": next(values)}})
    assert checkpoint.best_checkpoint(run.checkpoints) == run.checkpoints / "step-00000004"


def test_a_metric_that_is_not_evaluated(mlm: TrainConfig, tmp_path: Path) -> None:
    config = mlm.replace({"evaluate_every": 2, "best_metric": "eval/a/mrr"}, where="test")
    with pytest.raises(LongspanError, match="gives no 'eval/a/mrr'") as refused:
        start(config, tmp_path / "run", evaluators={"a": lambda model, world: {"ndcg": 1.0}})
    assert "eval/a/ndcg" in refused.value.remedy
    with pytest.raises(LongspanError, match="nothing to evaluate with"):
        start(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# --- one at a time, and in the background -----------------------------------------------------------------------------


def test_two_do_not_work_on_one_run(mlm: TrainConfig, at_step: AtStep, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def intrude(model: torch.nn.Module) -> None:
        with pytest.raises(LongspanError, match="is working on this run"):
            resume(folder)

    at_step(4, intrude)
    assert start(mlm, folder).finished


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    mlm: TrainConfig, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, snapshot: checkpoint.Snapshot, *, keep: int) -> None:
        raise LongspanError("no room to write", where=folder, remedy="free some disk space")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_checkpoint", full)
        with pytest.raises(LongspanError, match="no room to write"):
            start(mlm, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert not run.finished
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000000"]
    assert folders.differing(resume(run.folder).folder, undisturbed(mlm)) == []


def test_one_snapshot_at_a_time(mlm: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk is: the next one is taken when the last one is written."""
    take, write = loop.take_snapshot, writer.write_checkpoint

    def slow(*args: Any, **options: Any) -> Path:
        time.sleep(0.05)
        return write(*args, **options)

    def alone(*args: Any, **options: Any) -> checkpoint.Snapshot:
        assert "longspan-checkpoint" not in {thread.name for thread in threading.enumerate()}
        return take(*args, **options)

    monkeypatch.setattr(writer, "write_checkpoint", slow)
    monkeypatch.setattr(loop, "take_snapshot", alone)
    assert start(mlm.model_copy(update={"checkpoint_every": 1}), tmp_path / "run").finished


# --- how blocks run ---------------------------------------------------------------------------------------------------


def test_activation_checkpointing_computes_the_same(
    config: TrainConfig, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    run = start(config.replace({"activation_checkpointing": True}, where="test"), tmp_path / "run")
    assert folders.losses(run.folder) == folders.losses(undisturbed(config))
    assert run.logged()[-1]["gradient_norm"] == Run(undisturbed(config)).logged()[-1]["gradient_norm"]
