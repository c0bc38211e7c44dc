"""Progress speaks on a terminal and keeps quiet where there is none."""

import io

import pytest
from rich.console import Console

from longspan import progress
from longspan.progress import Bar, Bars


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def written(bar_console: Console) -> str:
    assert isinstance(bar_console.file, io.StringIO)
    return bar_console.file.getvalue()


def test_without_a_terminal_there_is_one_line_at_the_end():
    out = console(terminal=False)
    with Bar("embed", 3000, console=out) as bar:
        for _ in range(3):
            bar.advance(1000, "loss 1.0")
    assert written(out) == "embed: 3,000/3,000  loss 1.0\n"


def test_long_work_prints_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = console(terminal=False)
    with Bar("train", 100, done=50, console=out) as bar:
        for _ in range(40):
            now[0] += 1.0
            bar.advance(1)
    # 20 steps in 20 seconds leave 30 for the other 30; what was done before the start does not count for the speed.
    assert written(out).splitlines() == ["train: 70/100, 30 s left", "train: 90/100, 10 s left"]


def test_on_a_terminal_a_bar_is_drawn():
    out = console(terminal=True)
    with Bar("mine", 2, console=out) as bar:
        bar.advance(2, "done")
    assert "mine" in written(out)
    assert "2/2" in written(out)


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_to_do_and_errors_pass_through(terminal):
    with Bar("x", 0, console=console(terminal=terminal)) as bar:
        bar.advance(0)
    with pytest.raises(ValueError, match="no"), Bar("x", 5, console=console(terminal=terminal)):
        raise ValueError("no")


def test_bars_follow_one_another_with_their_throughput(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = console(terminal=False)
    with Bars("squad", out) as bars:
        bars.show("counting", 5, 0)
        for what, total, speed in (("embedding", 3000, 100), ("ranking", 90, 10)):
            for done in range(0, total + 1, total // 3):
                bars.show(what, done, total)
                now[0] += total / 3 / speed
    assert written(out).splitlines() == [
        "squad: embedding: 2,000/3,000, 10 s left  100/s",
        "squad: embedding: 3,000/3,000  100/s",
        "squad: ranking: 90/90  10/s",
    ]
