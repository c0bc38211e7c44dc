"""From a configuration to model, objective and batches: where the first weights come from, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.data.batch import MaskedBatch, PairBatch
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.model.heads import MaskedLanguageModel
from longspan.model.hub import load_encoder, load_masked_model, save_encoder
from longspan.model.pooling import PooledEncoder
from longspan.objective.world import Alone
from longspan.train.config import TrainConfig
from longspan.train.loop import resume, start
from longspan.train.stage import Stage, build_stage
from tests.train import folders, tiny
from tests.train.conftest import AtStep

CPU = torch.device("cpu")


def _build(config: TrainConfig, **options: Any) -> Stage:
    return build_stage(config, Alone(), CPU, **options)


def _from(config: TrainConfig, init: Path) -> TrainConfig:
    return config.model_copy(update={"init": str(init), "encoder": None})


def _equal(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def teacher(text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of masked language modelling; not to be changed."""
    return start(tiny.masked_config(text_data, max_steps=2), tmp_path_factory.mktemp("teacher") / "run").folder


def test_what_is_built(text_data: Path, pair_data: Path) -> None:
    mlm, contrastive = _build(tiny.masked_config(text_data)), _build(tiny.contrastive_config(pair_data))
    assert isinstance(mlm.model, MaskedLanguageModel)
    assert isinstance(contrastive.model, PooledEncoder)
    batch = mlm.loader.batch(0)
    assert isinstance(batch, MaskedBatch)
    assert [row.num_tokens for row in batch.rows] == [24] * 4
    batch = contrastive.loader.batch(0)
    assert isinstance(batch, PairBatch)
    assert batch.queries.num_sequences == 4
    assert batch.documents.num_sequences == 4 * 3
    assert batch.queries.max_length <= 16
    assert batch.documents.max_length <= 20


def test_the_vocabulary_is_the_tokenizers(text_data: Path) -> None:
    stage = _build(tiny.masked_config(text_data))
    assert stage.encoder == tiny.ENCODER.model_copy(update={"vocab_size": stage.tokenizer.vocab_size})


def test_random_weights_are_the_seeds(text_data: Path, pair_data: Path) -> None:
    for config in (tiny.masked_config(text_data), tiny.contrastive_config(pair_data)):
        torch.manual_seed(1)
        first = _build(config)
        torch.manual_seed(2)
        assert _equal(_build(config).model, first.model), "no other source of randomness"
        assert not _equal(_build(config.replace({"seed": 4}, where="test")).model, first.model)


def test_contrastive_training_goes_on_from_the_encoder(
    pair_data: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: {"owner/name": teacher / "model"}[name])
    for init in (teacher, teacher / "model", Path("owner/name")):  # a run, a published folder, a model of the hub
        stage = _build(_from(tiny.contrastive_config(pair_data), init))
        assert isinstance(stage.model, PooledEncoder)
        assert _equal(stage.model.encoder, load_encoder(teacher / "model"))


def test_masked_training_goes_on_with_its_head(text_data: Path, teacher: Path, tmp_path: Path) -> None:
    config = _from(tiny.masked_config(text_data), teacher)
    going_on = _build(config).model
    assert isinstance(going_on, MaskedLanguageModel)
    assert _equal(going_on, load_masked_model(teacher / "model"))

    headless = shutil.copytree(teacher / "model", tmp_path / "headless")
    save_encoder(load_encoder(headless), headless)
    without = _build(config.model_copy(update={"init": str(headless)})).model
    assert isinstance(without, MaskedLanguageModel)
    assert _equal(without.encoder, going_on.encoder)
    assert not _equal(without.head, going_on.head)
    again = _build(config.model_copy(update={"init": str(headless)})).model
    assert _equal(again, without), "a head that is missing is drawn from the seed"


def test_with_a_shape_no_model_is_read(text_data: Path, pair_data: Path, tmp_path: Path) -> None:
    for config in (tiny.masked_config(text_data), tiny.contrastive_config(pair_data)):
        stage = _build(_from(config, tmp_path / "gone"), shape=_build(config).encoder)
        assert stage.encoder == _build(config).encoder


def test_another_tokenizer_is_refused(pair_data: Path, teacher: Path, tmp_path: Path) -> None:
    other = shutil.copytree(teacher / "model", tmp_path / "other")
    definition = json.loads((other / "tokenizer.json").read_text("utf-8"))
    definition["model"]["vocab"]["zzz"] = definition["model"]["vocab"].pop("ba")
    (other / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    with pytest.raises(LongspanError, match="another tokenizer") as refused:
        _build(_from(tiny.contrastive_config(pair_data), other))
    assert "longspan prepare" in refused.value.remedy


@pytest.mark.parametrize(
    ("model_type", "other"),
    [
        ("bert", {"positions": "learned", "max_length": 32, "activation": "gelu", "bias": True}),
        ("modernbert", {"prenorm": True, "activation": "geglu", "num_token_types": 0}),
    ],
)
def test_every_family_is_trained_and_published(
    text_data: Path, pair_data: Path, tmp_path: Path, model_type: str, other: dict[str, Any]
) -> None:
    """From random weights to a published folder, and from that on to the next stage."""
    shape = tiny.ENCODER.replace(other, where="test")
    masked = tiny.masked_config(text_data, max_steps=2).model_copy(update={"encoder": shape})
    pretrained = start(masked, tmp_path / "masked").folder / "model"
    contrastive = _from(tiny.contrastive_config(pair_data, max_steps=2), pretrained)
    finished = start(contrastive, tmp_path / "contrastive").folder / "model"
    assert json.loads((finished / "config.json").read_text("utf-8"))["model_type"] == model_type
    before, after = load_masked_model(pretrained).encoder, load_encoder(finished)
    assert after.config.prenorm == shape.prenorm
    assert not _equal(before, after)


@pytest.mark.parametrize("other", [{"bias": True}, {"activation": "gelu"}, {"prenorm": True}])
def test_what_could_not_be_saved_is_not_trained(text_data: Path, other: dict[str, Any]) -> None:
    shape = tiny.ENCODER.replace(other, where="test")
    with pytest.raises(LongspanError, match="no published model type computes this encoder"):
        _build(tiny.masked_config(text_data).model_copy(update={"encoder": shape}))


def test_data_of_the_wrong_kind_is_refused(text_data: Path, pair_data: Path) -> None:
    with pytest.raises(LongspanError, match="no prepared sources of text"):
        _build(tiny.masked_config(pair_data))
    with pytest.raises(LongspanError, match="no prepared sources of pairs"):
        _build(tiny.contrastive_config(text_data))
    with pytest.raises(LongspanError, match="no prepared source 'third'"):
        _build(tiny.contrastive_config(pair_data, sources=["third"]))


def test_a_learnt_temperature_is_in_checkpoints_and_not_in_the_model(
    pair_data: Path, at_step: AtStep, tmp_path: Path
) -> None:
    changes = {"objective.learn_temperature": True, "objective.matryoshka_dims": [16, 8]}
    config = tiny.contrastive_config(pair_data, **changes)
    whole = start(config, tmp_path / "whole")
    temperatures = [row["temperature"] for row in whole.logged()]
    assert temperatures[0] == pytest.approx(0.05)
    assert len(set(temperatures)) == len(temperatures)
    assert Embedder.load(whole.model).embed(["ba be"], task="search_query").shape == (1, 16)

    def stop(model: torch.nn.Module) -> None:
        raise ZeroDivisionError

    at_step(4, stop)
    with pytest.raises(ZeroDivisionError):
        start(config, tmp_path / "run")
    at_step(4, lambda model: None)
    assert folders.differing(resume(tmp_path / "run").folder, whole.folder) == []


def test_matryoshka_dimensions_have_to_fit_the_model(pair_data: Path, tmp_path: Path) -> None:
    config = tiny.contrastive_config(pair_data, **{"objective.matryoshka_dims": [768, 256]})
    with pytest.raises(LongspanError, match="have 16 coordinates") as refused:
        start(config, tmp_path / "run")
    assert refused.value.where == "objective.matryoshka_dims"
    assert not (tmp_path / "run" / "run.json").exists()


def test_too_few_negatives_are_refused_in_the_run(pair_data: Path, tmp_path: Path) -> None:
    config = tiny.contrastive_config(pair_data, **{"objective.num_negatives": tiny.NUM_NEGATIVES + 1})
    with pytest.raises(LongspanError, match="has 5 negatives, the recipe draws 6"):
        start(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"init": "somewhere"}, "either init"),
        ({"encoder": None}, "either init"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": float("inf")}, "epochs"),
        ({"optim.lr": float("nan")}, "lr"),
        ({"precision": "fp16"}, "precision"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
        ({"objective.kind": "bert"}, "objective"),
        ({"dropout": 0.1}, "no setting 'dropout'"),
    ],
)
def test_a_configuration_that_cannot_be(text_data: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(LongspanError, match=reason):
        tiny.masked_config(text_data, **changes)
