"""Preparing that is killed at any moment and started again gives the bytes that it gives undisturbed."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from longspan.data.manifest import MANIFEST
from longspan.data.prepare import PIECES
from longspan.data.shards import VERIFIED

ROOT = Path(__file__).resolve().parents[2]
FINE = 0
STEP = 13
"""Kills come before every so many changes of the folder."""

Launch = Callable[..., ForkServerProcess]


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    """`launch(raw, out, tokenizer, ...)` starts `jobs.prepare_pairs` in a process that is forked from a warm one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        from tests.data import jobs

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.data.jobs"])

        def begin(*arguments: object) -> ForkServerProcess:
            process = context.Process(target=jobs.prepare_pairs, args=arguments)
            process.start()
            return process

        yield begin


@pytest.fixture
def raw(tmp_path, write_rows, pair_rows, small_tokenizer) -> tuple[str, Path]:
    """Files of 30 pairs, three of them broken, and a tokenizer."""
    rows = pair_rows(30)
    rows[3]["query"], rows[12]["document"], rows[29]["negatives"] = "", "\x01", None
    write_rows(tmp_path / "raw" / "a.jsonl", rows[:20])
    write_rows(tmp_path / "raw" / "b.jsonl", rows[20:])
    small_tokenizer.save(tmp_path / "tokenizer.json")
    return f"{tmp_path}/raw/*.jsonl", tmp_path / "tokenizer.json"


def content(folder: Path) -> dict[str, bytes]:
    # Not the note of what was verified, which holds times of files.
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != VERIFIED]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def finish(launch: Launch, raw: tuple[str, Path], out: Path, workers: int = 1) -> dict[str, bytes]:
    process = launch(raw[0], str(out), str(raw[1]), 0, workers)
    process.join()
    assert process.exitcode == FINE
    return content(out)


def test_killed_before_a_change_of_the_folder(launch, raw, tmp_path):
    undisturbed = finish(launch, raw, tmp_path / "undisturbed")
    assert sorted(undisturbed) == sorted(
        ["tokenizer.json", f"faq/{MANIFEST}", "faq/skipped.jsonl", *(f"faq/shard-0000{n}.arrow" for n in range(4))]
    )
    in_pieces = in_shards = 0
    for moment in range(1, 1000, STEP):
        out = tmp_path / f"killed-{moment}"
        process = launch(raw[0], str(out), str(raw[1]), moment)
        process.join()
        if process.exitcode == FINE:
            break
        assert process.exitcode == -signal.SIGKILL
        in_shards += any(out.glob("faq/shard-*"))
        in_pieces += not any(out.glob("faq/shard-*"))
        assert finish(launch, raw, out) == undisturbed, f"killed before change {moment}"
    assert min(in_pieces, in_shards) >= 2


def test_killed_again_and_again_at_random_moments(launch, raw, tmp_path):
    undisturbed = finish(launch, raw, tmp_path / "undisturbed")
    seed = random.randrange(1_000_000)
    draw, kills, number = random.Random(seed), 0, 0
    while kills < 8:
        out = tmp_path / f"run-{number}"
        process = launch(raw[0], str(out), str(raw[1]))
        process.join(draw.uniform(0.0, 0.25))
        process.kill()
        process.join()
        kills += process.exitcode != FINE
        if process.exitcode == FINE:
            assert content(out) == undisturbed, f"seed {seed}"
            number += 1
    assert finish(launch, raw, tmp_path / f"run-{number}") == undisturbed, f"seed {seed}"


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them_and_their_work_is_kept(launch, raw, tmp_path):
    undisturbed = finish(launch, raw, tmp_path / "undisturbed")
    out = tmp_path / "out"
    process = launch(raw[0], str(out), str(raw[1]), 0, 2)
    pieces = out / "faq" / PIECES
    while not any(pieces.glob("0*.json")) and process.is_alive():
        time.sleep(0.005)
    children = children_of(process.pid)
    assert children
    process.kill()
    process.join()
    end = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(is_running, children))
    assert finish(launch, raw, out, workers=2) == undisturbed


def children_of(pid: int | None) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("change", ["row", "pieces", "nothing"])
def test_only_what_was_asked_for_is_gone_on_with(launch, raw, tmp_path, change):
    out = tmp_path / "out"
    process = launch(raw[0], str(out), str(raw[1]), 60)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    pieces = out / "faq" / PIECES
    old = {path.name: path.stat().st_mtime_ns for path in pieces.glob("0*.json")}
    assert old
    if change == "row":
        path = tmp_path / "raw" / "b.jsonl"
        path.write_text(path.read_text().replace("query 25", "query x"))
    if change == "pieces":
        for path in pieces.glob("0*.arrow"):
            path.write_bytes(path.read_bytes()[:-1])
    launch(raw[0], str(out), str(raw[1]), 15).join()
    new = {path.name: path.stat().st_mtime_ns for path in pieces.glob("0*.json")}
    kept = {name for name, stamp in old.items() if new.get(name) == stamp}
    if change == "nothing":
        assert kept == set(old)
    else:
        assert "00000-00000-00000.json" not in kept
    assert finish(launch, raw, out) == finish(launch, raw, tmp_path / "undisturbed")
