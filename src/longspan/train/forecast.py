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
    text_rows,
    workload,
)
from longspan.train.hardware import Hardware
from longspan.train.trial import achieved_flops

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
        return self.operations.total / self.flops

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
) -> Forecast:
    """Forecast one stage.

    Args:
        hardware: None to try a chunk on this machine.
        data: folder of prepared sources; without it, the paper's number of pairs and the lengths in `otherwise`.
        utilization: part of the hardware's best rate that is reached.
        otherwise: lengths of "query" and "document".

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
    work = workload(config, texts, rows)
    shape, known = _shape(config)
    if not known:
        assumed.append(f"{config.init} is not here: a model of the paper's shape")
    count = operations(shape, work)
    if hardware is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        flops = achieved_flops(config, shape, work, device)
        total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        hardware = Hardware(name=device.type, num_devices=1, flops=flops, memory=total or 1)
    else:
        assumed.append(f"{utilization:.0%} of {hardware.flops / 1e12:.0f} TFLOP/s a device are reached")
        flops, total = hardware.flops * hardware.num_devices * utilization, hardware.memory
    need = memory(config, shape, work, hardware.num_devices)
    largest = None if total is None else largest_chunk(config, shape, work, hardware.num_devices, total)
    chunk = chunk_tokens(config, work)
    return Forecast(
        recipe=config.recipe,
        hardware=f"{hardware.num_devices}x{hardware.name}",
        work=work,
        operations=count,
        flops=flops,
        memory=need,
        fits=None if largest is None else largest >= min(chunk, work.num_tokens / hardware.num_devices),
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


def _shape(config: TrainConfig) -> tuple[EncoderConfig, bool]:
    if config.encoder is not None:
        return config.encoder, True
    assert config.init is not None
    if not Path(config.init).is_dir():
        return EncoderConfig(), False
    return read_config(find_model(config.init)), True
