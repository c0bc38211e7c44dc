"""Low-rank adapters on the encoder's linear layers, through peft: a few weights are trained, and the rest is frozen.

LoRA (Hu et al., 2021): a layer `y = W x` becomes `y = W x + (alpha / rank) B A x`, with A (rank, in) drawn at random
and B (out, rank) zero, so that training begins at the model itself. At the end `W + (alpha / rank) B A` takes the place
of W, and the finished model is one like any other.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field
from torch import nn

from longspan.config import Config
from longspan.errors import LongspanError
from longspan.model.encoder import Encoder


class LoraSettings(Config):
    """Which adapters there are."""

    rank: int = Field(default=0, ge=0)
    """Of the products B A; 0: no adapters, all weights are trained."""
    alpha: float = Field(default=16.0, gt=0)
    """The products count alpha / rank times."""
    targets: tuple[str, ...] = ()
    """The linear layers that get one, by their names in a block (`qkv`, `out`, `up_gate`, `up`, `down`); empty: all."""


def add_adapters(encoder: Encoder, settings: LoraSettings, seed: int) -> None:
    """Freeze the encoder and give its linear layers adapters, which are the same for the same seed.

    Raises:
        LongspanError: peft is not installed, or the encoder has no layer of a name.
    """
    there = {name.rpartition(".")[2] for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    targets = settings.targets or tuple(sorted(there))
    for name in targets:
        if name not in there:
            raise LongspanError(
                f"the encoder has no linear layer {name!r}",
                where="lora.targets",
                remedy=f"its linear layers are: {', '.join(sorted(there))}",
            )
    peft = _peft()
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):  # encoders are built on the CPU
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, encoder)


def merged(encoder: Encoder) -> Encoder:
    """A copy whose layers have their adapters in them, without peft's modules; an encoder without adapters as it is."""
    if all(parameter.requires_grad for parameter in encoder.parameters()):
        return encoder
    from peft.tuners.tuners_utils import BaseTunerLayer

    whole = copy.deepcopy(encoder)
    for name, layer in list(whole.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(whole.get_submodule(parent), own, layer.get_base_layer())
    return whole


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise LongspanError(
            "low-rank adapters need peft, which is not installed",
            where="lora.rank",
            remedy="pip install 'longspan[lora]'",
        ) from None
    return peft
