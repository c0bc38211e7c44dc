"""A pool of processes leaves the same files as one, ends with the process that began it, and goes on where it was."""

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from longspan.curate import vectors
from longspan.curate.consistency import Rule, Teacher
from longspan.curate.engine import Block, RemoteTeacher
from longspan.curate.engine_pool import PoolEngine
from longspan.curate.filtering import filter_source
from longspan.curate.mining import mine_source
from longspan.curate.negatives import Mining
from longspan.data.source import PairSource
from longspan.errors import LongspanError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def jobs(monkeypatch):
    """The functions that other processes can find."""
    monkeypatch.syspath_prepend(str(ROOT))
    from tests.curate import jobs

    return jobs


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pool_leaves_the_same_files_and_a_death_in_it_is_named(
    tmp_path, jobs, small_embedder, word_pairs, monkeypatch
):
    monkeypatch.setattr(vectors, "TEXTS_PER_BLOCK", 8)
    small_embedder.save(tmp_path / "teacher")
    load = functools.partial(jobs.load_fragile, tmp_path / "teacher")
    source, teacher = PairSource.parse({"name": "pairs", "files": [word_pairs]}, where="test"), Teacher(small_embedder)
    mining = Mining(k=3, at_least=1)
    filter_source(source, teacher, tmp_path / "filter 1", rule=Rule(1))
    mine_source(source, teacher, tmp_path / "mine 1", mining)
    fingerprint = small_embedder.fingerprint
    with PoolEngine(RemoteTeacher(load, fingerprint), 2, tmp_path) as engine:
        filter_source(source, teacher, tmp_path / "filter 2", rule=Rule(1), engine=engine)
        mine_source(source, teacher, tmp_path / "mine 2", mining, engine=engine)
        with pytest.raises(LongspanError, match="a worker process died") as caught:
            list(engine.embed([Block(0, [jobs.DEATH], "clustering", None)]))
    assert caught.value.where == str(tmp_path)
    assert "run the same command again" in caught.value.remedy
    assert "--processes" in caught.value.remedy
    for step in ("filter", "mine"):
        assert contents(tmp_path / f"{step} 1") == contents(tmp_path / f"{step} 2")


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_kill_9_ends_the_workers_and_costs_what_they_had_in_hand(tmp_path, jobs, monkeypatch):
    monkeypatch.setattr(vectors, "TEXTS_PER_BLOCK", jobs.TEXTS_PER_BLOCK)
    (seen := tmp_path / "seen").mkdir()
    command = f"from tests.curate.jobs import fill_slowly; fill_slowly({str(tmp_path / 'killed')!r}, {str(seen)!r})"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, "-c", command], env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(tmp_path.glob("killed/*/block-*"))) >= 6, process)
    process.kill()
    process.communicate()
    workers = [int(file.name) for file in seen.iterdir()]
    assert len(workers) == 2
    wait_for(lambda: not any(map(is_alive, workers)))
    blocks = list(tmp_path.glob("killed/*/block-*"))
    finished = {text for block in blocks for text in np.load(block / "vectors.npy")[:, 1].astype(int).tolist()}
    assert jobs.TEXTS_PER_BLOCK * 6 <= len(finished) < len(jobs.TEXTS)
    whole, rest = jobs.SlowEmbedder(), jobs.SlowEmbedder()
    vectors.VectorStore(tmp_path / "whole", whole, task=None).fill(jobs.TEXTS)
    vectors.VectorStore(tmp_path / "killed", rest, task=None).fill(jobs.TEXTS)
    assert rest.embedded == [text for number, text in enumerate(jobs.TEXTS) if number not in finished]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
