"""Checkpoints are whole or absent, and what is read back is what was written.

(Killed writers: test_kill.py; what a run makes of a damaged checkpoint: test_loop.py.)
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from longspan.errors import LongspanError
from longspan.files import sha256_json
from longspan.train import checkpoint
from longspan.train.checkpoint import (
    Best,
    best_checkpoint,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    read_best,
    take_snapshot,
    tidy_checkpoints,
    write_checkpoint,
)
from longspan.train.optim import OptimConfig, build_optimizer

ABOUT = {"data": "d" * 64, "encoder": {"width": 6}, "config": {"seed": 1}, "environment": {"torch": "2"}}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def _model(seed: int, width: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(5, width), nn.Linear(width, width), nn.LayerNorm(width))


def _trained(seed: int, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = _model(seed)
    optimizer = build_optimizer(model, OptimConfig(lr=0.1))
    for step in range(steps):
        _step(model, optimizer, step)
    return model, optimizer


def _save(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int = 2, best: Best | None = None
) -> Path:
    return write_checkpoint(folder, take_snapshot(step, model, optimizer, ABOUT, best=best), keep=keep)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def _states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {f"weights/{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            found[f"{name}/{key}"] = value.clone()
    return found


def _same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of step 7."""
    model, optimizer = _trained(0)
    return _save(tmp_path / "checkpoints", 7, model, optimizer)


def test_weights_and_optimiser_come_back(tmp_path: Path) -> None:
    model, optimizer = _trained(0)
    path = _save(tmp_path, 7, model, optimizer)
    assert path == tmp_path / "step-00000007"
    expected = _states(model, optimizer)
    assert sum("exp_avg_sq" in name for name in expected) == len(list(model.parameters()))

    other, its_optimizer = _trained(1, steps=1)
    assert not _same(_states(other, its_optimizer), expected)
    assert load_checkpoint(path, other, its_optimizer) == 7
    assert _same(_states(other, its_optimizer), expected)
    assert all(float(state["step"]) == 3 for state in its_optimizer.state.values())

    _step(model, optimizer, 99)
    _step(other, its_optimizer, 99)
    assert _same(_states(other, its_optimizer), _states(model, optimizer)), "they go on the same way"


def test_training_on_leaves_the_checkpoint_alone(saved: Path) -> None:
    # What is read from a safetensors file is a view of it; the optimiser works in place.
    before = {name: (saved / name).read_bytes() for name in FILES}
    model, optimizer = _trained(1)
    load_checkpoint(saved, model, optimizer)
    _step(model, optimizer, 0)
    assert {name: (saved / name).read_bytes() for name in FILES} == before


def test_before_the_first_step(tmp_path: Path) -> None:
    model, optimizer = _trained(0, steps=0)
    path = _save(tmp_path, 0, model, optimizer)
    other, its_optimizer = _trained(1, steps=2)
    assert load_checkpoint(path, other, its_optimizer) == 0
    assert _same(_states(other, its_optimizer), _states(model, optimizer))
    _step(other, its_optimizer, 0)
    assert all(float(state["step"]) == 1 for state in its_optimizer.state.values())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = _trained(0)
    for step in (2, 10, 9, 100):
        _save(tmp_path, step, model, optimizer, keep=3)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000009", "step-00000010", "step-00000100"]
    assert newest_checkpoint(tmp_path).name == "step-00000100"
    tidy_checkpoints(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000100"]


def test_a_snapshot_is_a_moment(tmp_path: Path) -> None:
    model, optimizer = _trained(0)
    expected = _states(model, optimizer)
    snapshot = take_snapshot(7, model, optimizer, ABOUT)
    _step(model, optimizer, 0)  # in place, while the checkpoint is not yet written
    load_checkpoint(write_checkpoint(tmp_path, snapshot, keep=1), model, optimizer)
    assert _same(_states(model, optimizer), expected)
    assert take_snapshot(7, model, optimizer, ABOUT, keep=False).weights == {}


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    model, optimizer = _trained(0)
    third, fifth = Best(3, "eval/x/ndcg", 0.3), Best(5, "eval/x/ndcg", 0.5)
    for step, best in [(2, None), (3, third), (4, third), (5, fifth), (6, fifth), (7, fifth)]:
        path = _save(tmp_path, step, model, optimizer, keep=1, best=best)
        assert read_best(path) == best
        kept = {step} | ({best.step} if best else set())
        assert [path.name for path in checkpoints(tmp_path)] == [f"step-{number:08d}" for number in sorted(kept)]
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000005"
    assert best_checkpoint(tmp_path / "none") is None


def test_it_says_what_it_is_of_and_was_made_with(saved: Path) -> None:
    state = json.loads((saved / "state.json").read_text("utf-8"))
    assert state.items() >= (ABOUT | {"step": 7, "best": None}).items()


def test_only_whole_checkpoints_are_listed(saved: Path) -> None:
    folder = saved.parent
    for name in (".unfinished-1-step-00000009", "step-9", "step-00000008.bak", ".unfinished-2-old-step-00000005"):
        shutil.copytree(saved, folder / name)
    assert checkpoints(folder) == [saved]
    tidy_checkpoints(folder, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000007", "step-00000008.bak", "step-9"]


def test_deleting_begins_with_taking_the_name_away(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if a kill had come while the old folder was being deleted: what is left of it must not pass for a checkpoint.
    newer = shutil.copytree(saved, saved.with_name("step-00000009"))
    monkeypatch.setattr(checkpoint, "sweep_unfinished", lambda folder: None)
    tidy_checkpoints(saved.parent, keep=1)
    assert checkpoints(saved.parent) == [newer]
    assert len(list(saved.parent.iterdir())) == 2


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "none") == []
    with pytest.raises(LongspanError, match="no checkpoint left"):
        newest_checkpoint(tmp_path)


# --- damage ----------------------------------------------------------------------------------------------------------


def _refused(path: Path, reason: str) -> LongspanError:
    model, optimizer = _trained(1)
    before = _states(model, optimizer)
    with pytest.raises(LongspanError, match=reason) as refused:
        load_checkpoint(path, model, optimizer)
    assert _same(_states(model, optimizer), before), "a refused checkpoint changes nothing"
    assert str(path) in refused.value.where
    return refused.value


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    _refused(saved, f"torn: {name} is missing")


@pytest.mark.parametrize("name", FILES)
def test_truncated_anywhere(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    # The last byte of state.json is the end of its line, which says nothing.
    for size in (0, 1, len(whole) // 2, len(whole) - 2):
        (saved / name).write_bytes(whole[:size])
        _refused(saved, r"torn|not valid JSON")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (saved / name).write_bytes(damaged)
        if name == "state.json" and _means_the_same(damaged, whole):
            continue
        _refused(saved, r"torn|not valid JSON")


def _means_the_same(damaged: bytearray, whole: bytes) -> bool:
    try:
        return json.loads(damaged) == json.loads(whole)
    except ValueError:
        return False


def test_the_step_is_that_of_the_folder(saved: Path) -> None:
    later = saved.rename(saved.with_name("step-00000008"))
    _refused(later, "torn or was changed")


def test_the_remedy_names_the_checkpoint_before(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert "start a new run" in _refused(saved, "missing").remedy
    for step in (3, 5, 9):
        shutil.copytree(saved, saved.with_name(f"step-{step:08d}"))
    assert "delete this folder" in _refused(saved, "missing").remedy
    assert "step-00000005" in _refused(saved, "missing").remedy


def test_another_shape(saved: Path) -> None:
    for other, reason in (
        (_model(1, width=8), r"shape \(5, 6\), the model's is \(5, 8\)"),
        (_model(1)[:2], "only in the checkpoint"),
        (nn.Sequential(*_model(1), nn.Linear(6, 1)), "only in the model"),
    ):
        optimizer = build_optimizer(other, OptimConfig(lr=0.1))
        with pytest.raises(LongspanError, match=reason):
            load_checkpoint(saved, other, optimizer)


@pytest.mark.parametrize(("key", "reason"), [("data", "other prepared data"), ("encoder", "another shape")])
def test_of_another_run(saved: Path, key: str, reason: str) -> None:
    model, optimizer = _trained(1)
    facts = {name: ABOUT[name] for name in ("data", "encoder")}
    assert load_checkpoint(saved, model, optimizer, belongs_to=facts) == 7
    before = _states(model, optimizer)
    with pytest.raises(LongspanError, match=reason):
        load_checkpoint(saved, model, optimizer, belongs_to=facts | {key: "other"})
    assert _same(_states(model, optimizer), before)


def test_of_another_format(saved: Path) -> None:
    path = saved / "state.json"
    state = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({name: state[name] for name in ("step", "sha256")}), "utf-8")  # as it was at first
    _refused(saved, "has format 1, and this longspan reads format 2")
    del state["checksum"]
    state["format"] = 3
    path.write_text(json.dumps(state | {"checksum": sha256_json(state)}), "utf-8")
    _refused(saved, "has format 3")
