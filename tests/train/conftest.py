"""Processes for the tests of training: forked from a server that has imported torch once, so that each costs little."""

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from longspan.train import loop
from longspan.train.config import TrainConfig
from longspan.train.stage import Stage
from tests.train import jobs, tiny

ROOT = Path(__file__).resolve().parents[2]

Launch = Callable[..., ForkServerProcess]


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """`launch(job, *arguments, **environment)` starts a function of `jobs` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    # The first optimiser imports torch._dynamo, which takes a second.
    context.set_forkserver_preload(["tests.train.jobs", "torch._dynamo", "numpy.random"])
    started: list[ForkServerProcess] = []

    def begin(job: Callable[..., None], *arguments: Any, **environment: str) -> ForkServerProcess:
        process = context.Process(target=jobs.in_order, args=(job, arguments, environment), daemon=True)
        process.start()
        started.append(process)
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield begin
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()
        process.close()


@pytest.fixture(scope="session")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared running text; not to be changed."""
    return tiny.prepare_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared sources of pairs with negatives; not to be changed."""
    return tiny.prepare_pairs(tmp_path_factory.mktemp("pairs"))


AtStep = Callable[[int, Callable[[Any], None]], None]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> AtStep:
    """`at_step(n, act)` calls `act(model)` in step n (from 1) of the runs that follow, when its gradient is ready."""
    build_stage = loop.build_stage
    actions: dict[int, Callable[[Any], None]] = {}

    def build(config: TrainConfig, *arguments: Any, **options: Any) -> Stage:
        stage = build_stage(config, *arguments, **options)
        make_batches, objective = stage.loader, stage.objective
        step = 0

        class Batches:
            rows = staticmethod(make_batches.rows)

            def __call__(self, first_step: int, last_step: int) -> Any:
                nonlocal step
                step = first_step
                return make_batches(first_step, last_step)

        class Watched:
            def backward(self, model: Any, batch: Any) -> dict[str, float | str]:
                nonlocal step
                metrics, step = objective.backward(model, batch), step + 1
                if step in actions:
                    actions[step](model)
                return metrics

        watched: dict[str, Any] = {"objective": Watched(), "loader": Batches()}
        return dataclasses.replace(stage, **watched)

    monkeypatch.setattr(loop, "build_stage", build)
    return actions.__setitem__
