"""The forecast of a run: a recipe, its data and the hardware, put together before anything is started."""

from __future__ import annotations

from pathlib import Path

import torch

from longspan.config import Config
from longspan.data.catalog import catalog
from longspan.errors import LongspanError
from longspan.model.config import EncoderConfig
from longspan.model.folder import find_model
from longspan.model.published_config import read_config
from longspan.objective.mlm import MaskedConfig
from longspan.objective.world import Alone, World
from longspan.train.config import TrainConfig
from longspan.train.cost import (
    Memory,
    Operations,
    TextLengths,
    Workload,
    chunk_tokens,
    largest_chunk,
    memory,
    operations,
    pair_lengths,
    read_tokenizer,
    text_rows,
    tokens_at_a_time,
    workload,
)
from longspan.train.hardware import Hardware
from longspan.train.parallel import local_device
from longspan.train.trial import try_step

SECONDS_PER_HOUR = 3600


class Forecast(Config):
    """What a run will take."""

    recipe: str
    hardware: str
    work: Workload
    operations: Operations
    """Of one step."""
    flops: float
    """Operations a second of all devices together."""
    update_seconds: float
    """Time of what is done once in a step whatever the batch (see `trial.StepSeconds`); 0 where it was not tried."""
    memory: Memory
    """On each device."""
    fits: bool | None
    """None where the device's memory is not its own: a CPU."""
    chunk_tokens: int
    largest_chunk_tokens: int | None
    assumed: tuple[str, ...]
    """What was assumed, for want of data or a model."""

    @property
    def num_tokens(self) -> float:
        """Tokens of the whole run."""
        return self.work.num_tokens * self.work.num_steps

    @property
    def step_seconds(self) -> float:
        """Time of a step, the devices computing all the while."""
        return self.operations.total / self.flops + self.update_seconds

    @property
    def hours(self) -> float:
        """Time of the run."""
        return self.step_seconds * self.work.num_steps / SECONDS_PER_HOUR


def forecast(
    config: TrainConfig,
    hardware: Hardware | None,
    *,
    data: Path | None = None,
    utilization: float,
    otherwise: dict[str, TextLengths],
    world: World | None = None,
) -> Forecast:
    """Forecast one stage; collective where it is tried.

    Args:
        hardware: None to try a part of a step on this machine.
        data: folder of prepared sources; without it, the paper's number of pairs and the lengths in `otherwise`.
        utilization: part of the hardware's best rate that is reached.
        otherwise: lengths of "query" and "document".
        world: the processes with which it is tried, each on a device of its own; None: this one alone.

    Raises:
        LongspanError: the data holds no such sources, or the model to start from cannot be read.
    """
    assumed = []
    if isinstance(config.objective, MaskedConfig):
        texts, rows = {}, _text_rows(config, data)
    elif data is not None:
        texts, rows = pair_lengths(data, config)
    else:
        texts, rows = otherwise, _paper_rows(config)
        each = ", ".join(f"{name} {text.mean:.0f}" for name, text in texts.items())
        assumed.append(f"{rows:,} pairs, as in the paper; mean tokens: {each}")
    world = world or Alone()
    work = workload(config, texts, rows, num_devices=world.size if hardware is None else hardware.num_devices)
    shape, known = _shape(config, data)
    if not known:
        assumed.append(f"{config.init} is not here: a model of the paper's shape")
    count, update = operations(shape, work), 0.0
    if hardware is None:
        device = local_device()
        seconds = try_step(config, shape, work, texts, device, world)
        flops, update = count.total / seconds.passes, seconds.update
        total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        hardware = Hardware(name=device.type, num_devices=world.size, flops=flops, memory=total or 1)
    else:
        assumed.append(f"{utilization:.0%} of {hardware.flops / 1e12:.0f} TFLOP/s a device are reached")
        flops, total = hardware.flops * hardware.num_devices * utilization, hardware.memory
    need = memory(config, shape, work, hardware.num_devices, on_cpu=total is None)
    largest = None if total is None else largest_chunk(config, shape, work, hardware.num_devices, total)
    chunk = chunk_tokens(config, work)
    return Forecast(
        recipe=config.recipe,
        hardware=f"{hardware.num_devices}x{hardware.name}",
        work=work,
        operations=count,
        flops=flops,
        update_seconds=update,
        memory=need,
        fits=None if largest is None else largest >= tokens_at_a_time(config, work, hardware.num_devices),
        chunk_tokens=chunk,
        largest_chunk_tokens=largest,
        assumed=tuple(assumed),
    )


def _text_rows(config: TrainConfig, data: Path | None) -> int:
    """Packed rows of the text; without data, 0, which is enough where the recipe says how many steps there are."""
    if data is not None:
        return text_rows(data, config)
    if config.max_steps is None:
        raise LongspanError(
            "how many steps an epoch has depends on the text", where=f"recipe {config.recipe}", remedy="give --data DIR"
        )
    return 0


def _paper_rows(config: TrainConfig) -> int:
    """Rows of the paper's data for a recipe: of the sources that it names, else of the stage of its name."""
    names = config.sources or [one.name for one in catalog().values() if one.stage == config.recipe]
    chosen = [catalog()[name] for name in names if name in catalog()]
    if not chosen:
        raise LongspanError(
            "the paper has no data for this recipe", where=f"recipe {config.recipe}", remedy="give --data DIR"
        )
    return sum(one.num_rows or 0 for one in chosen)


def _shape(config: TrainConfig, data: Path | None) -> tuple[EncoderConfig, bool]:
    """The encoder, and whether it is known; from random weights it has the vocabulary of the data."""
    if config.encoder is not None:
        size = config.encoder.vocab_size if data is None else read_tokenizer(data).vocab_size
        return config.encoder.model_copy(update={"vocab_size": size}), True
    assert config.init is not None
    if not Path(config.init).is_dir():
        return EncoderConfig(), False
    return read_config(find_model(config.init)), True
