"""Checkpoints are written in the background: one at a time, in order, and no error is lost."""

import threading
from pathlib import Path

import pytest

from longspan.errors import LongspanError
from longspan.train import writer as writer_module
from longspan.train.checkpoint import Snapshot
from longspan.train.writer import CheckpointWriter


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that were written; step 13 is one that cannot be."""
    steps: list[int] = []

    def write(folder: Path, snapshot: Snapshot, *, keep: int) -> None:
        if snapshot.step == 13:
            raise LongspanError("no room", where=folder, remedy="make some")
        steps.append(snapshot.step)

    monkeypatch.setattr(writer_module, "write_checkpoint", write)
    return steps


def _snapshot(step: int) -> Snapshot:
    return Snapshot(step, {}, {}, {})


def test_in_order_and_waited_for(written: list[int], tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in range(5):
            writer.submit(_snapshot(step))
            assert written in (list(range(step)), list(range(step + 1))), "one is in flight, no more"
    assert written == [0, 1, 2, 3, 4]


def test_training_goes_on_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_is_ready, begun = threading.Event(), threading.Event()

    def write(folder: Path, snapshot: Snapshot, *, keep: int) -> None:
        begun.set()
        assert disk_is_ready.wait(10)

    monkeypatch.setattr(writer_module, "write_checkpoint", write)
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.submit(_snapshot(1))
        assert begun.wait(10)  # `submit` has returned, and writing has only begun
        disk_is_ready.set()


@pytest.mark.parametrize("moment", ["next", "wait", "end"])
def test_an_error_comes_out(written: list[int], tmp_path: Path, moment: str) -> None:
    def use() -> None:
        with CheckpointWriter(tmp_path, keep=2) as writer:
            writer.submit(_snapshot(13))
            if moment == "next":
                writer.submit(_snapshot(14))
            if moment == "wait":
                writer.wait()

    with pytest.raises(LongspanError, match="no room"):
        use()
    assert written == []


def test_the_first_error_counts(written: list[int], tmp_path: Path) -> None:
    def use() -> None:
        with CheckpointWriter(tmp_path, keep=2) as writer:
            writer.submit(_snapshot(1))
            writer.submit(_snapshot(13))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert written == [1]
