"""The complete configuration of a training run: what a recipe returns and a run directory keeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longspan.config import Config
from longspan.model.config import EncoderConfig
from longspan.objective.contrastive import ContrastiveConfig
from longspan.objective.mlm import MaskedConfig
from longspan.text.tasks import PREFIXES
from longspan.train.lora import LoraSettings
from longspan.train.optim import OptimConfig
from longspan.train.parallel import Engine
from longspan.train.schedule import ScheduleConfig


class HeldOutConfig(Config):
    """What the model is measured on while it trains (evaluate/in_loop.py), every `evaluate_every` steps."""

    data: str | None = None
    """A folder of prepared sources that are not trained on, or a retrieval set; None: nothing is measured."""
    split: str = "test"
    """Of the judgements, where `data` is a retrieval set that has several."""
    max_pairs: int = Field(default=1000, gt=1)
    """So many pairs of each prepared source: the first, or a random choice if rows are not in random order."""


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
    parallel: Engine = "ddp"
    """How several processes share the model: `ddp` (each has all of it), `zero2` or `zero3` (each has a shard; see
    train/parallel.py). Changes nothing that is computed."""
    activation_checkpointing: bool = False
    """Keep only what goes into each block of the encoder, and compute the rest of it again on the way back: a third
    more arithmetic for a fraction of the memory (Chen et al., 2016)."""
    compile: bool = False
    """Let torch.compile fuse what is between the matrix products of a block. Rounds a little differently."""
    lora: LoraSettings = LoraSettings()
    """Train low-rank adapters on the encoder's linear layers instead of its weights."""
    seed: int = 0
    max_length: int = Field(default=8192, gt=0)
    """Longest text, in tokens, that the finished model reads."""
    prefixes: dict[str, str] = Field(default_factory=lambda: dict(PREFIXES))
    """Task -> text put before each of its texts; empty for a model that reads plain text, as many published ones do."""
    log_every: int = Field(default=10, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    """So many of the newest stay, beside the best."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What to do where loss or gradient are not finite; either way the batch is saved and the step is not applied."""
    max_skips: int = Field(default=10, gt=0)
    """Stop after all when more steps than this were skipped one after another."""
    evaluate_every: int | None = Field(default=None, gt=0)
    """Evaluate after every so many steps, and after the last; None: only after the last, if there is an evaluator."""
    best_metric: str | None = None
    """The evaluated metric, `eval/NAME`, by which the best checkpoint is kept beside the newest ones."""
    best_is: Literal["max", "min"] = "max"
    published: Literal["last", "best"] = "last"
    """Which weights become the finished model: those of the last step, or of the best checkpoint."""
    held_out: HeldOutConfig = HeldOutConfig()

    @model_validator(mode="after")
    def _one_start(self) -> TrainConfig:
        if (self.init is None) == (self.encoder is None):
            raise ValueError("give either init (a model to start from) or encoder (a shape to start from scratch)")
        return self

    @model_validator(mode="after")
    def _adapters_fit(self) -> TrainConfig:
        if self.lora.rank and (self.init is None or self.objective.kind != "contrastive" or self.parallel != "ddp"):
            raise ValueError(
                "lora adapts a trained model (init) by contrastive training with parallel=ddp: set lora.rank to 0, or "
                "change what does not fit"
            )
        return self

    @model_validator(mode="after")
    def _best_is_known(self) -> TrainConfig:
        if self.published == "best" and self.best_metric is None:
            raise ValueError("published is best, and best_metric does not say by what")
        return self
