"""A Ray of this machine leaves the same files as this process alone; its machines' cores and GPUs are shared out."""

import functools
import os
import pickle
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.curate import engine_ray, vectors
from longspan.curate.engine import Block, RemoteTeacher
from longspan.curate.engine_ray import Actors, RayEngine, _Actor, share
from longspan.curate.vectors import VectorStore
from longspan.embedder import Embedder
from longspan.errors import LongspanError

TEXTS = [f"the quick brown fox {n} " * (n % 5 + 1) for n in range(11)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_leaves_the_same_files_and_says_that_workers_die(tmp_path, small_embedder, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(vectors, "TEXTS_PER_BLOCK", 2)
    monkeypatch.setattr(engine_ray, "MAX_ATTEMPTS", 1)
    small_embedder.save(tmp_path / "teacher")
    VectorStore(tmp_path / "here", small_embedder, task="clustering").fill(TEXTS)
    with RayEngine(RemoteTeacher.of(str(tmp_path / "teacher"), small_embedder), 1, "local") as engine:
        VectorStore(tmp_path / "ray", small_embedder, task="clustering", engine=engine).fill(TEXTS)
        assert contents(tmp_path / "ray") == contents(tmp_path / "here")
        kill: Any = lambda device: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        with RayEngine(RemoteTeacher(kill, "-"), 1, "local") as dying:
            with pytest.raises(LongspanError, match="workers of Ray died") as caught:
                list(dying.embed([Block(0, ["fox"], "clustering", None)]))
            assert caught.value.where == "local"
            assert "fewer --processes" in caught.value.remedy
        assert ray.is_initialized(), "it belongs to the first"
    assert not ray.is_initialized()


def test_an_error_comes_back_in_words_and_the_teacher_is_loaded_once(small_embedder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda answer: answer))
    attempts = SimpleNamespace(begin=SimpleNamespace(remote=lambda number: True))
    loaded = []

    def load(device: str):
        loaded.append(device)
        return small_embedder

    actor = _Actor(RemoteTeacher(load, small_embedder.fingerprint), 1, 0, attempts)
    blocks = [Block(0, ["fox", " "], "clustering", None), Block(1, ["fox"], "clustering", None)]
    batch = pyarrow.table({"block": [pickle.dumps(block) for block in blocks]})
    failure, embedded = map(pickle.loads, actor(batch)["result"])
    assert failure.what == "text number 1 is empty"
    assert failure.where == "texts[1]"
    np.testing.assert_array_equal(embedded.vectors_MD, small_embedder.embed(["fox"], task="clustering"))
    assert loaded == ["cpu"]


def test_ray_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LongspanError, match="Ray is not installed") as caught:
        RayEngine(RemoteTeacher(functools.partial(Embedder.load, "-"), "-"))
    assert "pip install 'longspan[ray]'" in caught.value.remedy


@pytest.mark.parametrize(
    ("nodes", "count", "expected"),
    [
        ([{"CPU": 8.0}], None, Actors(8, 1, 0)),
        ([{"CPU": 8.0}], 2, Actors(2, 4, 0)),
        ([{"CPU": 8.0}, {"CPU": 3.0}, {"memory": 5.0}], 3, Actors(3, 3, 0)),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}, {"CPU": 64.0, "GPU": 8.0}], None, Actors(16, 1, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}], 3, Actors(3, 1, 1)),
    ],
)
def test_shares(nodes, count, expected):
    assert share(nodes, count, "here") == expected


@pytest.mark.parametrize("nodes", [[{"CPU": 3.0}], [{"CPU": 64.0, "GPU": 3.0}], [{"CPU": 0.0}]])
def test_more_processes_than_fit_are_refused(nodes):
    with pytest.raises(LongspanError, match=r"4 processes do not fit on Ray's [03] (cores|GPUs)") as caught:
        share(nodes, 4, "head:6379")
    assert caught.value.where == "head:6379"


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any), st.data())
def test_all_actors_find_a_place_and_could_not_be_larger(cores, data):
    count = data.draw(st.integers(1, sum(cores)))
    size = share([{"CPU": float(num)} for num in cores], count, "-").num_cpus
    assert sum(num // size for num in cores) >= count
    assert sum(num // (size + 1) for num in cores) < count
