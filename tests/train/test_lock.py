"""One process at a time works on a run."""

import os
import socket
from pathlib import Path

import pytest

from longspan.errors import LongspanError
from longspan.train.lock import locked


def test_the_second_is_told_who_is_there(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(LongspanError) as refused, locked(tmp_path / "run"):
            pass
        assert f"process {os.getpid()} on {socket.gethostname()} is working on this run" in refused.value.what
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_it_is_given_back_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path):
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()


def test_what_a_killed_process_left_locks_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('{"pid": 1, "host": "elsewhere"}\n{"pi', "utf-8")
    with locked(tmp_path):
        assert "elsewhere" not in (tmp_path / "lock").read_text("utf-8")


def test_not_yet_known_who_it_is(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / "lock").write_text("", "utf-8")
        with pytest.raises(LongspanError, match="another process is working"), locked(tmp_path):
            pass


def test_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(LongspanError, match="cannot make the run directory"), locked(tmp_path / "file" / "run"):
        pass
