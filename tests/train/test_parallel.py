"""Several processes compute what one does: objectives in float64, and a whole run."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.objective.world import Alone
from longspan.train.config import TrainConfig
from longspan.train.loop import start
from longspan.train.parallel import join_world, local_device
from longspan.train.run import Run
from longspan.train.stage import build_stage
from tests.objective import naive
from tests.train import folders, jobs, tiny
from tests.train.conftest import AtStep, Launch

ROUNDING = 1e-11
"""float64; the sums over ranks are added in another order."""


def _as_ranks(launch: Launch, size: int, job: Any, *arguments: Any, with_rank: bool = False) -> None:
    ranks, port = [], _free_port()
    for rank in range(size):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        own = (size, rank) if with_rank else ()
        ranks.append(launch(job, *own, *arguments, **environment))
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0] * size


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_objectives(size: int, launch: Launch, tmp_path: Path) -> None:
    _as_ranks(launch, size, jobs.objectives, str(tmp_path), with_rank=True)

    for name, (negatives_for, num_negatives) in jobs.OBJECTIVES.items():
        model, batch = naive.pooled_model(), naive.with_repeats(naive.pair_batch(jobs.NUM_PAIRS, num_negatives))
        loss = naive.contrastive_loss(model, batch, 0.1, negatives_for)
        counts = {
            "pairs": jobs.NUM_PAIRS,
            "tokens": batch.queries.num_tokens + batch.documents.num_tokens,
            "cut": batch.num_cut,
            "duplicates": 5 if num_negatives else 4,
        }
        _check_ranks(tmp_path, name, size, model, loss, counts)

    model, batch = naive.masked_model(), naive.masked_batch(jobs.NUM_ROWS)
    masked = [len(positions) for positions, _ in batch.targets]
    assert size == 1 or sum(masked[: len(masked) // size]) * size != sum(masked), "ranks with unequal shares show more"
    counts = {"masked": sum(masked), "tokens": sum(row.num_tokens for row in batch.rows)}
    _check_ranks(tmp_path, "mlm", size, model, naive.masked_loss(model, batch), counts)


def _check_ranks(
    folder: Path, name: str, size: int, model: torch.nn.Module, loss: torch.Tensor, counts: dict[str, int]
) -> None:
    gradients = naive.plain_gradients(model, loss)
    twice = {key: 2 * gradient for key, gradient in gradients.items()}
    for rank in range(size):
        found = torch.load(folder / f"{name}-{rank}.pt")
        assert found["metrics"]["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
        assert found["metrics"].items() >= counts.items()
        assert naive.largest_difference(found["once"], gradients) < ROUNDING, f"{name}, rank {rank} of {size}"
        assert naive.largest_difference(found["twice"], twice) < ROUNDING, f"{name}, rank {rank} of {size}: accumulated"
    accuracies = {torch.load(folder / f"{name}-{rank}.pt")["metrics"]["accuracy"] for rank in range(size)}
    assert len(accuracies) == 1


def test_what_processes_do_together(launch: Launch, tmp_path: Path) -> None:
    size = 2
    _as_ranks(launch, size, jobs.objectives, str(tmp_path), with_rank=True)
    first, second = (torch.load(tmp_path / f"primitives-{rank}.pt") for rank in range(size))
    for rank, found in enumerate((first, second)):
        assert torch.equal(found["gathered"], torch.cat([first["mine"], second["mine"]]))
        assert torch.equal(found["strided"], found["gathered"])
        assert torch.equal(found["total"], first["mine"] + second["mine"])
        assert torch.equal(found["scattered"], 3 * torch.arange(4.0)[2 * rank : 2 * rank + 2])
        assert torch.equal(found["mine"], torch.arange(6.0).reshape(2, 3) + 10 * rank), "arguments are not written to"


@pytest.fixture(params=["mlm", "own", "all"])
def config(request: pytest.FixtureRequest, text_data: Path, pair_data: Path) -> TrainConfig:
    """A short run of each objective."""
    if request.param == "mlm":
        return tiny.masked_config(text_data)
    return tiny.contrastive_config(pair_data, **{"objective.negatives_for": request.param})


def test_a_run_of_two_processes(config: TrainConfig, launch: Launch, tmp_path: Path) -> None:
    alone = start(config, tmp_path / "alone")
    _as_ranks(launch, 2, jobs.train, config.model_dump_json(), str(tmp_path / "two"))
    two = Run(tmp_path / "two")
    _check_the_same_run(two, alone)
    environment = (two.folder / "environment.jsonl").read_text("utf-8")
    assert environment.count("\n") == 1, "one process writes"
    assert '"processes": 2' in environment


def test_all_processes_refuse_together(text_data: Path, launch: Launch, tmp_path: Path) -> None:
    config = tiny.masked_config(text_data, max_steps=1)
    start(config, tmp_path / "run")
    _as_ranks(launch, 2, jobs.start_again, config.model_dump_json(), str(tmp_path / "run"))


def test_a_run_goes_on_with_another_number_of_processes(
    pair_data: Path, launch: Launch, at_step: AtStep, tmp_path: Path
) -> None:
    config = tiny.contrastive_config(pair_data)
    alone = start(config, tmp_path / "alone")

    def stop(model: Any) -> None:
        raise ZeroDivisionError

    at_step(4, stop)
    with pytest.raises(ZeroDivisionError):
        start(config, tmp_path / "run")
    _as_ranks(launch, 2, jobs.train, config.model_dump_json(), str(tmp_path / "run"))
    _check_the_same_run(Run(tmp_path / "run"), alone)


def _check_the_same_run(found: Run, expected: Run) -> None:
    assert found.finished
    for row, other in zip(found.logged(), expected.logged(), strict=True):
        for name in ("step", "tokens", "lr", "source", "masked", "cut", "duplicates"):
            assert row.get(name) == other.get(name)
        # float32, whose rounding training amplifies from step to step; in the objectives themselves it is 1e-11 in
        # float64 (above).
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-5)
        assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)
    assert found.config == expected.config
    assert folders.contents(found.folder).keys() == folders.contents(expected.folder).keys()
    texts = ["ba be bi", "bo bu da"]
    vectors = [Embedder.load(run.model).embed(texts, task="search_query") for run in (found, expected)]
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-2)


def test_a_batch_must_divide_among_the_processes(text_data: Path) -> None:
    class Three(Alone):
        size = 3

    with pytest.raises(LongspanError, match="does not divide among 3 processes"):
        build_stage(tiny.masked_config(text_data), Three(), torch.device("cpu"))


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Also under torchrun: there is nobody to wait for.
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert isinstance(join_world(torch.device("cpu")), Alone)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert isinstance(join_world(torch.device("cpu")), Alone)


def test_the_device_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device() == torch.device("cpu")
    assert local_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert local_device("cpu") == torch.device("cpu")
    assert chosen == []
    assert local_device() == torch.device("cuda:3")
    assert local_device("cuda") == torch.device("cuda:3"), "not all processes on the first GPU"
    assert chosen == [torch.device("cuda:3")] * 2
    assert local_device("cuda:1") == torch.device("cuda:1")
