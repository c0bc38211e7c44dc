"""Files are whole or absent, whatever happens to the process, the disk or the body that writes."""

import errno
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longspan import files
from longspan.errors import LongspanError
from longspan.files import (
    UNFINISHED,
    atomic_path,
    read_json,
    sha256_file,
    sha256_json,
    sweep_unfinished,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_python(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


# --- what is written --------------------------------------------------------------------------------------------------


def test_bytes_text_and_json_come_back(tmp_path):
    write_bytes(tmp_path / "a" / "b.bin", b"\x00\xff")
    write_text(tmp_path / "t.txt", "naïve 東京\n")
    write_json(tmp_path / "j.json", {"x": [1, "東京"]})
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "t.txt").read_text("utf-8") == "naïve 東京\n"
    assert read_json(tmp_path / "j.json", remedy="-") == {"x": [1, "東京"]}
    assert "東京" in (tmp_path / "j.json").read_text("utf-8"), "readable by a person"


def test_a_file_is_replaced_and_leaves_nothing_beside_it(tmp_path):
    write_text(tmp_path / "f", "old")
    write_text(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "new"
    assert names(tmp_path) == ["f"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for content in ("old", "new"):
        with atomic_path(tmp_path / "model") as unfinished:
            (unfinished / "sub").mkdir(parents=True)
            (unfinished / "sub" / content).write_text(content)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model" / "sub") == ["new"]


def test_an_unfinished_name_is_hidden_from_readers_and_swept(tmp_path):
    with atomic_path(tmp_path / "f") as unfinished:
        assert unfinished.parent == tmp_path
        assert unfinished.name.startswith(UNFINISHED)
        unfinished.write_text("x")
    (tmp_path / f"{UNFINISHED}1-f").write_text("half")
    (tmp_path / f"{UNFINISHED}2-g").mkdir()
    (tmp_path / f"{UNFINISHED}2-g" / "h").write_text("half")
    sweep_unfinished(tmp_path)
    assert names(tmp_path) == ["f"]
    sweep_unfinished(tmp_path / "nowhere")


def test_the_current_folder_has_a_name_too(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_path(Path(".")) as unfinished:
        assert unfinished.parent == tmp_path
        unfinished.mkdir()
        (unfinished / "x").touch()
    assert names(tmp_path / "here") == ["x"]


# --- when the body fails ----------------------------------------------------------------------------------------------


def interrupted_writing(path: Path, action: Callable[[], Any]) -> None:
    with atomic_path(path) as unfinished:
        unfinished.write_text("half")
        action()


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "f", "old")
    with pytest.raises(type(error)):
        interrupted_writing(tmp_path / "f", raising(error))
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path):
    def write_folder() -> None:
        with atomic_path(tmp_path / "d") as unfinished:
            unfinished.mkdir()
            (unfinished / "new").touch()
            raise ValueError("no")

    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with pytest.raises(ValueError, match="no"):
        write_folder()
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["old"]


def test_a_body_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(LongspanError, match="cannot write f"), atomic_path(tmp_path / "f"):
        pass
    assert names(tmp_path) == []


def test_an_error_about_another_file_is_not_called_a_writing_error(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        interrupted_writing(tmp_path / "f", (tmp_path / "input").read_text)
    assert caught.value.filename == str(tmp_path / "input")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        gzip.BadGzipFile("Not a gzipped file"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        OSError(),
        TimeoutError(),
    ],
)
def test_a_torn_input_or_a_lost_connection_is_not_called_a_writing_error(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        interrupted_writing(tmp_path / "f", raising(error))
    assert caught.value is error
    assert names(tmp_path) == []


def test_an_error_about_a_file_inside_the_unfinished_folder_is_a_writing_error(tmp_path):
    def write_folder() -> None:
        with atomic_path(tmp_path / "d") as unfinished:
            unfinished.mkdir()
            (unfinished / "missing" / "x").touch()

    with pytest.raises(LongspanError, match="cannot write d: No such file"):
        write_folder()
    assert names(tmp_path) == []


def test_a_file_inside_an_unfinished_folder_is_named_as_it_was_to_be_called(tmp_path):
    def write_folder() -> None:
        with atomic_path(tmp_path / "model") as unfinished:
            write_text(unfinished / "config.json", "x")
            with atomic_path(unfinished / "weights") as weights:
                weights.touch()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(LongspanError, match="no room to write weights") as caught:
        write_folder()
    assert caught.value.where == str(tmp_path / "model" / "weights")
    assert names(tmp_path) == []


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_file_place_and_remedy(tmp_path, number):
    write_text(tmp_path / "f", "old")
    with pytest.raises(LongspanError) as caught:
        interrupted_writing(tmp_path / "f", raising(OSError(number, os.strerror(number))))
    assert re.match(rf"no room to write f: {os.strerror(number)} \([\d,]+ MiB free\)", caught.value.what)
    assert caught.value.where == str(tmp_path / "f")
    assert "free some disk space" in caught.value.remedy
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_a_disk_that_fills_while_flushing_is_named_too(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(LongspanError, match="no room to write f"):
        write_text(tmp_path / "f", "new")
    assert names(tmp_path) == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
from longspan.errors import LongspanError
from longspan.files import atomic_path, write_bytes

path, how = Path(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    if how == "bytes":
        write_bytes(path, bytes(100_000))
    elif how == "numpy":
        import numpy as np
        with atomic_path(path) as unfinished, open(unfinished, "wb") as stream:
            np.save(stream, np.zeros(100_000))
    else:
        import pyarrow as pa
        with atomic_path(path) as unfinished, pa.OSFile(str(unfinished), "wb") as stream:
            stream.write(bytes(100_000))
except LongspanError as error:
    print(error.what, error.where, error.remedy, sep="|")
"""


@pytest.mark.parametrize("how", ["bytes", "numpy", "arrow"])
def test_a_real_limit_on_the_size_of_files(tmp_path, how):
    (tmp_path / "f").write_text("old")
    result = run_python(LIMITED, tmp_path / "f", how)
    assert result.returncode == 0, result.stderr
    what, where, remedy = result.stdout.strip().split("|")
    assert what.startswith("no room to write f: ")
    assert where == str(tmp_path / "f")
    assert remedy.startswith("free some disk space")
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


# --- places that cannot be written ------------------------------------------------------------------------------------


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "parent").touch()
    for path in (tmp_path / "parent" / "f", tmp_path / "parent" / "deeper" / "f"):
        with pytest.raises(LongspanError, match="cannot write f: parent is a file, not a folder") as caught:
            write_text(path, "x")
        assert caught.value.where == str(path)
        assert caught.value.remedy == "choose another place"


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    with pytest.raises(LongspanError, match="cannot write d: Is a directory"):
        write_text(tmp_path / "d", "x")
    with pytest.raises(LongspanError, match="cannot write f: Not a directory"), atomic_path(tmp_path / "f") as folder:
        folder.mkdir()
    assert names(tmp_path) == ["d", "f"]


def test_a_place_without_rights_is_named(tmp_path):
    if os.geteuid() == 0:
        # Root may write anywhere but here, where the kernel itself says no.
        place = Path("/proc/longspan")
    else:
        tmp_path.chmod(0o500)
        place = tmp_path / "f"
    with pytest.raises(LongspanError, match=rf"cannot write {place.name}: ") as caught:
        write_text(place, "x")
    assert caught.value.where == str(place)


# --- a process killed at any moment -----------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from longspan import files

path, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
if moment == "flush":
    files.os.fsync = die
elif moment == "rename":
    files.os.replace = die
elif moment == "after":
    files._flush_folder = die
with files.atomic_path(path) as unfinished, open(unfinished, "wb") as stream:
    stream.write(b"new" * 1000)
    stream.flush()
    if moment == "body":
        die()
    stream.write(b"new" * 1000)
"""


@pytest.mark.parametrize(("moment", "left"), [("body", "old"), ("flush", "old"), ("rename", "old"), ("after", "new")])
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, moment, left):
    path = tmp_path / "f"
    path.write_bytes(b"old" * 2000)
    result = run_python(KILLED, path, moment)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert path.read_bytes() == left.encode() * 2000
    assert all(name == "f" or name.startswith(UNFINISHED) for name in names(tmp_path))
    write_text(path, "again")
    sweep_unfinished(tmp_path)
    assert names(tmp_path) == ["f"]
    assert path.read_text() == "again"


# --- reading JSON, hashing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "x.json is missing"),
        (b"{", "x.json is not valid JSON"),
        (b"\xff", "x.json is not valid JSON"),
        (b"[" * 100_000, "x.json is not valid JSON"),
        (b"1" * 5000, "x.json is not valid JSON"),
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path, content, what):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LongspanError) as caught:
        read_json(path, remedy="do this")
    assert caught.value.what.startswith(what)
    assert caught.value.where == str(path)
    assert caught.value.remedy == "do this"


def test_json_in_an_odd_place_is_named(tmp_path):
    (tmp_path / "d.json").mkdir()
    (tmp_path / "f").touch()
    with pytest.raises(LongspanError, match=r"d\.json cannot be read: Is a directory"):
        read_json(tmp_path / "d.json", remedy="-")
    with pytest.raises(LongspanError, match=r"x\.json is missing"):
        read_json(tmp_path / "f" / "x.json", remedy="-")


def test_hashes(tmp_path):
    # The SHA-256 of "abc" as FIPS 180-2 gives it, appendix B.1.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == abc
    assert sha256_json({"b": 1, "a": [1, "é"]}) == sha256_json(json.loads('{"a": [1, "é"], "b": 1}'))
    assert sha256_json({"a": 1}) != sha256_json({"a": "1"})
