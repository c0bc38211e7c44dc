"""Stages are done once, whatever interrupts them, and never under other settings."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from longspan.errors import LongspanError
from longspan.stages import Stage, clear, refuse_foreign, run_stages


def test_stages_are_done_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def work(name: str, fail: bool = False) -> dict[str, Any]:
        calls.append(name)
        if fail:
            raise LongspanError("no", where="here", remedy="none")
        return {"name": name}

    def stages(fail: bool) -> list[Stage]:
        return [Stage("a", "", 1, lambda: work("a")), Stage("b", "", 2, lambda: work("b", fail))]

    with pytest.raises(LongspanError):
        run_stages(stages(fail=True), tmp_path, Console(quiet=True))
    done = run_stages(stages(fail=False), tmp_path, Console(quiet=True))
    run_stages(stages(fail=False), tmp_path, Console(quiet=True))
    assert calls == ["a", "b", "b"]
    assert done["b"].resumed
    assert not done["a"].resumed


def test_a_changed_stage_invalidates_those_after_it(tmp_path: Path) -> None:
    def stages(setting: int) -> list[Stage]:
        return [Stage("a", "", setting, dict), Stage("b", "", 0, dict)]

    run_stages(stages(1), tmp_path, Console(quiet=True))
    (tmp_path / "stages" / "01-a.json").unlink()
    with pytest.raises(LongspanError, match="other settings"):
        run_stages(stages(2), tmp_path, Console(quiet=True))


def test_only_what_stages_made_is_deleted(tmp_path: Path) -> None:
    precious = tmp_path / "mine" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(LongspanError, match="made by something else"):
        clear(precious.parent)
    with pytest.raises(LongspanError, match="made by something else"):
        refuse_foreign(precious.parent)
    assert precious.exists()
    demo = tmp_path / "demo"
    run_stages([Stage("a", "", 0, dict)], demo, Console(quiet=True))
    refuse_foreign(demo)
    clear(demo)
    assert not demo.exists()
