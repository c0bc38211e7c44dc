"""The forecast of a run, on named hardware and on this machine; and what it says when something is not there."""

import pytest

from longspan.errors import LongspanError
from longspan.recipes.catalog import build_recipe
from longspan.train import trial
from longspan.train.cost import TextLengths
from longspan.train.forecast import forecast
from longspan.train.hardware import find_hardware
from longspan.train.loop import start
from tests.train import tiny

LENGTHS = {"query": TextLengths.equal(20), "document": TextLengths.equal(160)}


@pytest.mark.parametrize(
    ("text", "name", "count"), [("8xH100", "H100", 8), ("A100", "A100", 1), ("2xh100-pcie", "H100-PCIE", 2)]
)
def test_hardware_by_name(text, name, count):
    found = find_hardware(text)
    assert (found.name, found.num_devices) == (name, count)


@pytest.mark.parametrize("text", ["", "8x", "0xH100", "H101", "x8"])
def test_unknown_hardware_is_named(text):
    with pytest.raises(LongspanError, match="unknown hardware") as error:
        find_hardware(text)
    assert "8xH100" in error.value.remedy


def test_the_papers_stages_on_eight_gpus():
    hours = {}
    for name, rows in (("mlm", 0), ("contrastive", 234_553_344), ("finetune", 1_692_672), ("ablated", 1_029_632)):
        config = build_recipe(name, "data", None, {})
        told = forecast(config, find_hardware("8xH100"), utilization=0.4, otherwise=LENGTHS)
        hours[name] = told.hours
        if rows:
            assert told.work.num_steps == round(rows / config.batch_size)
            assert any(f"{rows:,}" in text for text in told.assumed)
        assert told.fits
        assert told.hours == pytest.approx(told.operations.total * told.work.num_steps / (8 * 989e12 * 0.4) / 3600)
    # 100,000 steps of 8.4 million tokens at 0.95 GFLOP each, 3.2 PFLOP/s: about 2.9 days.
    assert hours["mlm"] == pytest.approx(2.9 * 24, rel=0.02)
    assert hours["ablated"] < hours["finetune"] < hours["contrastive"] < hours["mlm"]


def test_a_chunk_that_does_not_fit_is_told():
    config = build_recipe("mlm", "data", None, {"objective.micro_batch_tokens": "1000000"})
    told = forecast(config, find_hardware("8xL4"), utilization=0.4, otherwise=LENGTHS)
    assert told.fits is False
    assert told.largest_chunk_tokens is not None
    assert 0 < told.largest_chunk_tokens < 1_000_000


def test_a_recipe_without_data_in_the_paper_needs_data():
    config = build_recipe("demo-contrastive", "data", None, {})
    with pytest.raises(LongspanError, match="no data for this recipe"):
        forecast(config, find_hardware("A100"), utilization=0.4, otherwise=LENGTHS)


def test_steps_and_tokens_are_those_of_the_run(tmp_path):
    data = tiny.prepare_pairs(tmp_path)
    config = tiny.contrastive_config(data, max_steps="4")
    told = forecast(config, None, data=data, utilization=1, otherwise={})
    run = start(config, tmp_path / "run", device="cpu")
    assert told.work.num_steps == run.total_steps
    tokens = sum(step["tokens"] for step in run.logged())
    assert told.num_tokens == pytest.approx(tokens, rel=0.05)
    assert told.assumed == ()
    assert told.flops > 0
    assert told.update_seconds > 0
    assert told.memory.checkpoint == told.memory.weights + told.memory.optimizer
    assert told.largest_chunk_tokens is None


def test_a_try_keeps_freed_memory_as_a_run_does(tmp_path, monkeypatch):
    """Without it a step takes a third longer than the run's own, and so did the forecast."""
    calls = []
    monkeypatch.setattr(trial, "keep_freed_memory", lambda: calls.append(1))
    data = tiny.prepare_pairs(tmp_path)
    forecast(tiny.contrastive_config(data), None, data=data, utilization=1, otherwise={})
    assert calls


def test_an_epoch_of_text_has_the_rows_that_it_is_packed_into(tmp_path):
    data = tiny.prepare_text(tmp_path)
    config = tiny.masked_config(data).model_copy(update={"max_steps": None, "epochs": 2.0})
    told = forecast(config, find_hardware("A100"), data=data, utilization=0.4, otherwise={})
    assert told.work.num_steps == start(config, tmp_path / "run", device="cpu").total_steps > 1
    with pytest.raises(LongspanError, match="depends on the text"):
        forecast(config, find_hardware("A100"), utilization=0.4, otherwise={})


def test_data_that_is_not_there_is_refused(tmp_path):
    for config in (tiny.masked_config(tmp_path), tiny.contrastive_config(tmp_path)):
        with pytest.raises(LongspanError, match="no prepared"):
            forecast(config, find_hardware("A100"), data=tmp_path / "nowhere", utilization=0.4, otherwise={})
