"""Several processes compute what one does: objectives in float64, and a whole run."""

import functools
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.in_loop import BEST, evaluators
from longspan.objective.world import Alone
from longspan.train.loop import resume, start
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

    for name, config in jobs.OBJECTIVES.items():
        batch = naive.with_repeats(naive.pair_batch(jobs.NUM_PAIRS, config.num_negatives))
        counts = {
            "pairs": jobs.NUM_PAIRS,
            "tokens": batch.queries.num_tokens + batch.documents.num_tokens,
            "cut": batch.num_cut,
            "duplicates": 5 if config.num_negatives else 4,
        }
        _check_ranks(tmp_path, name, size, counts)

    batch = naive.masked_batch(jobs.NUM_ROWS)
    masked = [len(positions) for positions, _ in batch.targets]
    assert size == 1 or sum(masked[: len(masked) // size]) * size != sum(masked), "ranks with unequal shares show more"
    counts = {"masked": sum(masked), "tokens": sum(row.num_tokens for row in batch.rows)}
    _check_ranks(tmp_path, "mlm", size, counts)


@functools.cache
def _plain(name: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of an objective by the plain computation."""
    if name == "mlm":
        model = naive.masked_model()
        loss = naive.masked_loss(model, naive.masked_batch(jobs.NUM_ROWS))
    else:
        config = jobs.OBJECTIVES[name]
        model = naive.pooled_model(config=config)
        batch = naive.with_repeats(naive.pair_batch(jobs.NUM_PAIRS, config.num_negatives))
        loss = naive.contrastive_loss(model, batch, config)
    return float(loss.detach()), naive.plain_gradients(model, loss)


def _check_ranks(folder: Path, name: str, size: int, counts: dict[str, int], prefix: str = "") -> None:
    loss, gradients = _plain(name)
    twice = {key: 2 * gradient for key, gradient in gradients.items()}
    for rank in range(size):
        found = torch.load(folder / f"{prefix}{name}-{rank}.pt")
        assert found["metrics"]["loss"] == pytest.approx(loss, rel=1e-12)
        assert found["metrics"].items() >= counts.items()
        assert naive.largest_difference(found["once"], gradients) < ROUNDING, f"{name}, rank {rank} of {size}"
        assert naive.largest_difference(found["twice"], twice) < ROUNDING, f"{name}, rank {rank} of {size}: accumulated"
    accuracies = {torch.load(folder / f"{prefix}{name}-{rank}.pt")["metrics"]["accuracy"] for rank in range(size)}
    assert len(accuracies) == 1


def test_what_processes_do_together(launch: Launch, tmp_path: Path) -> None:
    size = 2
    _as_ranks(launch, size, jobs.primitives, str(tmp_path))
    first, second = (torch.load(tmp_path / f"primitives-{rank}.pt") for rank in range(size))
    for rank, found in enumerate((first, second)):
        assert torch.equal(found["gathered"], torch.cat([first["mine"], second["mine"]]))
        assert torch.equal(found["strided"], found["gathered"])
        assert torch.equal(found["total"], first["mine"] + second["mine"])
        assert torch.equal(found["scattered"], 3 * torch.arange(4.0)[2 * rank : 2 * rank + 2])
        assert torch.equal(found["mine"], torch.arange(6.0).reshape(2, 3) + 10 * rank), "arguments are not written to"


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_of_sharded_weights(size: int, launch: Launch, tmp_path: Path) -> None:
    _as_ranks(launch, size, jobs.shards, str(tmp_path), with_rank=True)
    for engine in ("zero2", "zero3"):
        for name in ("own", "mlm"):
            _check_ranks(tmp_path, name, size, {}, prefix=f"{engine}-")


def test_runs_of_two_processes(
    text_data: Path, pair_data: Path, launch: Launch, at_step: AtStep, tmp_path: Path
) -> None:
    """All that two processes do, in one launch: every objective and engine gives the run of one process."""
    held_out = {"held_out.data": str(tiny.prepare_pairs(tmp_path / "held-out", num_pairs=12, seed=9))}
    mlm, own = tiny.masked_config(text_data), tiny.contrastive_config(pair_data)
    evaluated = {"evaluate_every": 3, "best_metric": "eval/held/likeness"}
    configs = {
        "mlm": mlm,
        "own": own,
        "all": own.replace({"objective.negatives_for": "all"}, where="test"),
        "mlm-zero2": mlm.replace({"parallel": "zero2"}, where="test"),
        "mlm-zero3": mlm.replace({"parallel": "zero3", "activation_checkpointing": True}, where="test"),
        "own-zero2": own.replace({"parallel": "zero2"}, where="test"),
        "own-zero3": own.replace({"parallel": "zero3", "objective.chunk_tokens": 40, **evaluated}, where="test"),
        "own-measured": own.replace(
            {"parallel": "zero3", "evaluate_every": 3, "best_metric": BEST, **held_out}, where="test"
        ),
        "skip": mlm.replace({"on_non_finite": "skip"}, where="test"),
    }
    planned = [
        jobs.Planned(
            config.model_dump_json(),
            str(tmp_path / name),
            spoil_at=3 if name == "skip" else None,
            evaluated=name == "own-zero3",
        )
        for name, config in configs.items()
    ]
    # One process, then two, then one: it dies after step 2, and is asked to stop in step 4.
    changing = {name: configs[name] for name in ("own", "mlm-zero3")}
    for name, config in changing.items():
        at_step(3, _stop)
        with pytest.raises(ZeroDivisionError):
            start(config, tmp_path / f"{name}-changing")
        planned.append(jobs.Planned(config.model_dump_json(), str(tmp_path / f"{name}-changing"), stop_at=4))
    at_step(3, lambda model: None)
    _as_ranks(launch, 2, jobs.together, *planned)
    for name in changing:
        assert jobs.newest_step(tmp_path / f"{name}-changing") == 4
        resume(tmp_path / f"{name}-changing")

    for name, config in (configs | {f"{name}-changing": config for name, config in changing.items()}).items():
        found = Run(tmp_path / name)
        if name == "skip":
            _check_skipped(found)
            continue
        measured = {"held": jobs.evaluate} if name == "own-zero3" else evaluators(config)
        alone = start(config, tmp_path / f"{name}-alone", evaluators=measured)
        _check_the_same_run(found, alone)
        starts = [json.loads(line) for line in (found.folder / "environment.jsonl").read_text("utf-8").splitlines()]
        assert [line["processes"] for line in starts] == ([1, 2, 1] if "changing" in name else [2]), (
            "one process writes"
        )
        assert {line["parallel"] for line in starts} == {config.parallel}


def _stop(model: Any) -> None:
    raise ZeroDivisionError


def _check_skipped(run: Run) -> None:
    assert run.finished
    assert [row["step"] for row in run.logged() if "skipped" in row] == [3], "what one process finds, all heed"
    saved = sorted(path.name for path in (run.folder / "bad-batches").iterdir())
    assert saved == ["step-00000003-rank-0.safetensors", "step-00000003-rank-1.safetensors"]


def test_all_processes_refuse_together(text_data: Path, launch: Launch, tmp_path: Path) -> None:
    config = tiny.masked_config(text_data, max_steps=1)
    start(config, tmp_path / "run")
    _as_ranks(launch, 2, jobs.start_again, config.model_dump_json(), str(tmp_path / "run"))


def _check_the_same_run(found: Run, expected: Run) -> None:
    assert found.finished
    for row, other in zip(found.logged(), expected.logged(), strict=True):
        for name in ("step", "tokens", "lr", "source", "masked", "cut", "duplicates"):
            assert row.get(name) == other.get(name)
        # float32, whose rounding training amplifies from step to step; in the objectives themselves it is 1e-11 in
        # float64 (above).
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-5)
        assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)
        assert row.get("eval/held/likeness", 0.0) == pytest.approx(other.get("eval/held/likeness", 0.0), rel=1e-3)
        assert (BEST in row) == (BEST in other)
        # Two of twelve documents that rounding lets change places move it by 0.03 at most.
        assert row.get(BEST, 0.0) == pytest.approx(other.get(BEST, 0.0), abs=0.04)
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
