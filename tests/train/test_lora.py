"""Low-rank adapters: they alone are trained and kept, runs resume bit by bit, and the finished model has them inside.

Tolerance of gradients: float64; sums of some hundred terms in another order differ by less than 1e-10.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.model.hub import load_encoder, read_safetensors
from longspan.model.pooling import PooledEncoder
from longspan.objective.contrastive import Contrastive
from longspan.text.packed import Packed
from longspan.train.checkpoint import checkpoints
from longspan.train.config import TrainConfig
from longspan.train.loop import resume, start
from longspan.train.lora import LoraSettings, add_adapters, merged
from tests.objective import cases, naive
from tests.train import folders, jobs, tiny
from tests.train.conftest import AtStep, Launch
from tests.train.test_parallel import _as_ranks, _check_the_same_run

SETTINGS = LoraSettings(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def model(pair_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run to begin with; not to be changed."""
    config = tiny.contrastive_config(pair_data, max_steps=2)
    return start(config, tmp_path_factory.mktemp("model") / "run").folder


def _config(data: Path, model: Path, **changes: Any) -> TrainConfig:
    changes = {"encoder": None, "init": str(model), "lora.rank": 4, "optim.lr": 0.05} | changes
    return tiny.contrastive_config(data, **changes)


def _adapted_model(seed: int = 0) -> PooledEncoder:
    """In float64, with adapters that are not zero."""
    pooled = naive.pooled_model(seed)
    add_adapters(pooled.encoder, SETTINGS, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pooled.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return pooled.double()


def test_adapters_begin_at_the_model_and_are_drawn_from_the_seed() -> None:
    texts = Packed.of([np.arange(5), np.arange(9)])
    found = []
    for seed in (1, 1, 2):
        pooled = naive.pooled_model()
        before, state = pooled(texts), torch.get_rng_state()
        add_adapters(pooled.encoder, SETTINGS, seed)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(pooled.double()(texts), before)
        found.append(torch.cat([p.flatten() for p in pooled.parameters() if p.requires_grad]))
        trained = {
            name.split(".lora_")[0].rpartition(".")[2] for name, p in pooled.named_parameters() if p.requires_grad
        }
        assert trained == {"qkv", "out", "up_gate", "down"}
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_merged_model_gives_the_same_vectors() -> None:
    pooled, texts = _adapted_model(), Packed.of([np.arange(5), np.arange(9)])
    whole = PooledEncoder(merged(pooled.encoder), "mean")
    torch.testing.assert_close(whole(texts), pooled(texts), rtol=1e-12, atol=1e-12)
    names = {name for name, _ in naive.pooled_model().named_parameters()}
    assert {name for name, _ in whole.named_parameters()} == names
    assert (whole(texts) - naive.pooled_model()(texts)).abs().max() > 0.01
    # The one that is trained still has its adapters.
    assert any("lora_A" in name for name, _ in pooled.named_parameters())


@pytest.mark.parametrize("chunk_tokens", [12, 10**9])
def test_gradients_are_those_of_the_plain_computation(chunk_tokens: int) -> None:
    config, batch = cases.config("own", 2, chunk_tokens=chunk_tokens), naive.pair_batch(5, 2)
    pooled = _adapted_model()
    trained = {name: p for name, p in pooled.named_parameters() if p.requires_grad}
    loss = naive.contrastive_loss(pooled, batch, config)
    expected = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    metrics = Contrastive(config).backward(pooled, batch)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
    found = {name: p.grad for name, p in pooled.named_parameters() if p.grad is not None}
    assert naive.largest_difference(found, expected) < 1e-10


def test_a_run_trains_and_keeps_the_adapters_alone(pair_data: Path, model: Path, tmp_path: Path) -> None:
    run = start(_config(pair_data, model), tmp_path / "run")
    assert run.logged()[-1]["loss"] != run.logged()[0]["loss"]
    kept = checkpoints(run.checkpoints)[-1]
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert all(".lora_" in name for name in read_safetensors(kept / file))
    old, base = (load_encoder(folder).state_dict() for folder in (model / "model", run.base))
    new = load_encoder(run.model).state_dict()
    assert all(torch.equal(base[name], old[name]) for name in old), "the base is the model that it began with"
    changed = {name.split(".")[-2] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"qkv", "out", "up_gate", "down"}
    vectors = [
        Embedder.load(str(folder)).embed(["ba be", "fi fo"], task="search_query") for folder in (model, run.folder)
    ]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_a_run_goes_on_bit_by_bit_without_the_model_it_began_with(
    pair_data: Path, model: Path, at_step: AtStep, tmp_path: Path
) -> None:
    began_with = shutil.copytree(model, tmp_path / "model")
    whole = start(_config(pair_data, began_with, max_steps=5), tmp_path / "whole")

    def stop(_: Any) -> None:
        raise ZeroDivisionError

    at_step(4, stop)
    with pytest.raises(ZeroDivisionError):
        start(_config(pair_data, began_with, max_steps=5), tmp_path / "run")
    at_step(4, lambda _: None)
    shutil.rmtree(began_with)
    base = tmp_path / "run/base/model.safetensors"
    weights = base.read_bytes()
    base.write_bytes(weights[:-4] + b"\0\1\2\3")
    with pytest.raises(LongspanError, match="frozen model is not the one"):
        resume(tmp_path / "run")
    base.write_bytes(weights)
    resume(tmp_path / "run")
    assert folders.differing(tmp_path / "run", whole.folder) == []


def test_a_start_that_was_killed_can_begin_again(pair_data: Path, model: Path, tmp_path: Path) -> None:
    whole = start(_config(pair_data, model, max_steps=1), tmp_path / "run")
    killed = tmp_path / "killed"
    for name in ("base", "tokenizer.json"):
        source = whole.folder / name
        shutil.copytree(source, killed / name) if source.is_dir() else shutil.copy(source, killed / name)
    start(_config(pair_data, model, max_steps=1), killed)
    assert folders.differing(killed, whole.folder) == []


def test_two_processes_do_the_run_of_one(pair_data: Path, model: Path, launch: Launch, tmp_path: Path) -> None:
    config = _config(pair_data, model, **{"objective.chunk_tokens": 60})
    _as_ranks(launch, 2, jobs.together, jobs.Planned(config.model_dump_json(), str(tmp_path / "two")))
    _check_the_same_run(resume(tmp_path / "two"), start(config, tmp_path / "one"))


@pytest.mark.parametrize("changes", [{"parallel": "zero2"}, {"init": None, "encoder": tiny.ENCODER.model_dump()}])
def test_what_does_not_fit_is_refused(changes: dict[str, Any], pair_data: Path, model: Path) -> None:
    with pytest.raises(LongspanError, match="lora adapts a trained model"):
        _config(pair_data, model, **changes)


def test_layers_that_are_not_there(pair_data: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(LongspanError, match="no linear layer 'query'") as refused:
        start(_config(pair_data, model, **{"lora.targets": ["query"]}), tmp_path / "run")
    assert "down, out, qkv, up_gate" in refused.value.remedy
    with pytest.raises(LongspanError, match="whole model on every process"):
        start(_config(pair_data, model), tmp_path / "run", parallel="zero3")
