"""From a configuration to what the loop needs: model, objective, batches.

The one place that knows which objective goes with which model and which batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from longspan.data.collate import MaskedCollator, PairCollator, pair_plan, text_plan
from longspan.data.dataset import Dataset
from longspan.data.loader import Loader
from longspan.data.packing import PackedRows
from longspan.data.plan import Plan
from longspan.errors import LongspanError
from longspan.files import atomic_path
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.folder import find_model, write_model
from longspan.model.heads import MaskedLanguageModel, start_from_frequencies
from longspan.model.hub import has_masked_head, load_encoder, load_masked_model
from longspan.model.pooling import PooledEncoder
from longspan.model.published_config import model_type
from longspan.objective.contrastive import Contrastive, ContrastiveConfig
from longspan.objective.mlm import MaskedConfig, MaskedLanguageModelling
from longspan.objective.temperature import TemperedEncoder
from longspan.objective.world import World
from longspan.text.tokenizer import Tokenizer
from longspan.train.config import TrainConfig
from longspan.train.lora import add_adapters, merged


class Objective(Protocol):
    """Turns a batch into gradients."""

    def backward(self, model: nn.Module, batch: Any) -> dict[str, float | str]:
        """Add the gradient of the global batch's mean loss to `.grad`; return `loss`, `tokens` and others."""
        ...


@dataclass(frozen=True)
class Stage:
    """What the loop needs to run one stage of training."""

    model: nn.Module
    encoder: EncoderConfig
    objective: Objective
    loader: Loader[Any]
    total_steps: int
    left_over: dict[str, int]
    """Rows that one epoch does not read, because they fill no batch, by source; other ones in every epoch."""
    data_fingerprint: str
    tokenizer: Tokenizer
    save_model: Callable[[Path], None]


def build_stage(
    config: TrainConfig,
    world: World,
    device: torch.device,
    *,
    shape: EncoderConfig | None = None,
    base: Path | None = None,
) -> Stage:
    """Open the data, build the model, and join them.

    Args:
        shape: of the encoder of a run that has checkpoints; its first weights are then neither drawn nor read from
            `config.init`, for they will come from a checkpoint.
        base: where such a run keeps the frozen weights, if it trains adapters: its checkpoints do not have them.

    Raises:
        LongspanError: data or model are missing or do not fit each other.
    """
    autocast = torch.bfloat16 if config.precision == "bf16" else None
    if isinstance(config.objective, MaskedConfig):
        return _masked(config, config.objective, world, device, autocast, shape)
    return _contrastive(config, config.objective, world, device, autocast, shape, base)


def _masked(
    config: TrainConfig,
    settings: MaskedConfig,
    world: World,
    device: torch.device,
    autocast: torch.dtype | None,
    shape: EncoderConfig | None,
) -> Stage:
    dataset = Dataset(Path(config.data), "text", only=config.sources)
    tokenizer = dataset.tokenizer
    texts = [source.ids("text") for source in dataset.sources]
    rows = PackedRows(texts, settings.row_length, tokenizer.cls_id, tokenizer.sep_id)
    collate = MaskedCollator(
        dataset,
        rows,
        mask_rate=settings.mask_rate,
        within_documents=settings.within_documents,
        seed=config.seed,
    )
    plan = text_plan(rows, config.batch_size, config.seed)
    model = MaskedLanguageModel(_encoder(config, tokenizer, shape))
    if shape is None:
        _first_masked_weights(model, config)
        if settings.bias_from_counts and config.init is None:
            size = model.head.bias.shape[0]
            start_from_frequencies(model.head, np.sum([text.counts(size) for text in texts], axis=0))

    def save_model(folder: Path) -> None:
        with atomic_path(folder) as unfinished:
            write_model(unfinished, model, tokenizer, embedding_config(config, "mean"))

    return Stage(
        model=model.to(device),
        encoder=model.encoder.config,
        objective=MaskedLanguageModelling(settings, world=world, autocast=autocast),
        loader=Loader(plan, collate, rank=world.rank, world_size=world.size),
        total_steps=_total_steps(config, plan),
        left_over=_left_over(plan),
        data_fingerprint=dataset.fingerprint,
        tokenizer=tokenizer,
        save_model=save_model,
    )


def _contrastive(
    config: TrainConfig,
    settings: ContrastiveConfig,
    world: World,
    device: torch.device,
    autocast: torch.dtype | None,
    shape: EncoderConfig | None,
    base: Path | None,
) -> Stage:
    dataset = Dataset(Path(config.data), "pairs", only=config.sources)
    tokenizer = dataset.tokenizer
    collate = PairCollator(
        dataset,
        num_negatives=settings.num_negatives,
        max_query_tokens=settings.max_query_tokens,
        max_document_tokens=settings.max_document_tokens,
        max_document_tokens_of=settings.max_document_tokens_of,
        prefixes=config.prefixes,
        scores=settings.distillation is not None,
        seed=config.seed,
    )
    plan = pair_plan(dataset, config.batch_size, config.seed, by_cluster=settings.batches_of == "cluster")
    encoder = _encoder(config, tokenizer, shape)
    settings.check_width(encoder.config.width)
    if shape is None and config.init is None:
        initialize(encoder, config.seed)
    if config.lora.rank:
        if shape is not None and base is not None:
            encoder.load_state_dict(load_encoder(base).state_dict())
        add_adapters(encoder, config.lora, config.seed)
    model = (
        TemperedEncoder(encoder, settings.pooling, settings.temperature)
        if settings.learn_temperature
        else PooledEncoder(encoder, settings.pooling)
    )

    def save_model(folder: Path) -> None:
        with atomic_path(folder) as unfinished:
            write_model(unfinished, merged(model.encoder), tokenizer, embedding_config(config, settings.pooling))

    return Stage(
        model=model.to(device),
        encoder=model.encoder.config,
        objective=Contrastive(settings, world=world, autocast=autocast),
        loader=Loader(plan, collate, rank=world.rank, world_size=world.size),
        total_steps=_total_steps(config, plan),
        left_over=_left_over(plan),
        data_fingerprint=dataset.fingerprint,
        tokenizer=tokenizer,
        save_model=save_model,
    )


def _encoder(config: TrainConfig, tokenizer: Tokenizer, shape: EncoderConfig | None) -> Encoder:
    if shape is not None:
        return Encoder(shape)
    if config.init is not None:
        folder = find_model(config.init)
        encoder = load_encoder(folder)
        model_type(encoder.config, config.init)  # saving would refuse it too, but only at the end of the run
        theirs = Tokenizer.load(folder)
        if theirs.fingerprint != tokenizer.fingerprint:
            raise LongspanError(
                "the model to start from has another tokenizer than the prepared data",
                where=f"{config.init} and {config.data}",
                remedy=f"prepare the data with the model's tokenizer: longspan prepare ... --tokenizer {config.init}",
            )
        return encoder
    assert config.encoder is not None
    model_type(config.encoder, config.recipe)
    return Encoder(config.encoder.model_copy(update={"vocab_size": tokenizer.vocab_size}))


def _first_masked_weights(model: MaskedLanguageModel, config: TrainConfig) -> None:
    initialize(model.head if config.init else model, config.seed)
    folder = find_model(config.init) if config.init else None
    if folder is not None and has_masked_head(folder):
        model.head = load_masked_model(folder).head


def embedding_config(config: TrainConfig, pooling: str) -> EmbeddingConfig:
    """How the model of a run, as it is published, makes one vector of a text."""
    return EmbeddingConfig.parse(
        {"pooling": pooling, "max_length": config.max_length, "prefixes": config.prefixes}, where=config.recipe
    )


def _left_over(plan: Plan) -> dict[str, int]:
    return {source.name: count for source, count in zip(plan.sources, plan.left_over, strict=True)}


def _total_steps(config: TrainConfig, plan: Plan) -> int:
    if config.max_steps is not None:
        return config.max_steps
    return max(1, round(config.epochs * plan.steps_per_epoch))
