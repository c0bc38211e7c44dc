"""The complete configuration of a training run: what a recipe returns and a run directory keeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longspan.config import Config
from longspan.model.config import EncoderConfig
from longspan.objective.contrastive import ContrastiveConfig
from longspan.objective.mlm import MaskedConfig
from longspan.train.optim import OptimConfig
from longspan.train.schedule import ScheduleConfig


class TrainConfig(Config):
    """One training run."""

    recipe: str
    """Name of the recipe it came from."""
    data: str
    """Folder of prepared sources."""
    sources: tuple[str, ...] = ()
    """Names of the sources to use; empty for all in the folder."""
    init: str | None = None
    """Model to start from: a folder, a finished run or a hub id; None: from random weights."""
    encoder: EncoderConfig | None = None
    """Shape of the encoder when it starts from random weights; its vocabulary is that of the data's tokenizer."""
    objective: Annotated[MaskedConfig | ContrastiveConfig, Field(discriminator="kind")]
    batch_size: int = Field(gt=0)
    """Rows (MLM) or pairs (contrastive) of a global batch, over all processes."""
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many steps instead of `epochs`."""
    optim: OptimConfig
    schedule: ScheduleConfig
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrices are multiplied in bfloat16 under autocast; weights, gradients and optimiser stay float32."""
    seed: int = 0
    max_length: int = Field(default=8192, gt=0)
    """Longest text, in tokens, that the finished model reads."""
    log_every: int = Field(default=10, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)

    @model_validator(mode="after")
    def _one_start(self) -> TrainConfig:
        if (self.init is None) == (self.encoder is None):
            raise ValueError("give either init (a model to start from) or encoder (a shape to start from scratch)")
        return self
