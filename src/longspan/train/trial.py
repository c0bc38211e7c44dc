"""A few chunks of a recipe on this machine: how many operations a second training reaches here.

The chunks have the lengths that the recipe will meet, and go through the real model and back. Tokens are random: what
they say does not change how long they take.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.text.packed import Packed
from longspan.train.config import TrainConfig
from longspan.train.cost import Workload, chunk_tokens, operations

ROUNDS = 3


def achieved_flops(config: TrainConfig, shape: EncoderConfig, work: Workload, device: torch.device) -> float:
    """Operations a second of a forward and a backward pass over one chunk; the best of a few.

    The chunk has sequences of the mean length, and as many of them as the configuration lets through at a time.
    """
    length = max(1, round(work.num_tokens / work.num_sequences))
    count = max(1, int(min(chunk_tokens(config, work), work.num_tokens)) // length)
    generator = np.random.default_rng(config.seed)
    packed = Packed.of([generator.integers(0, shape.vocab_size, length) for _ in range(count)]).to(device)
    encoder = Encoder(shape)
    initialize(encoder, config.seed)
    encoder.to(device)
    chunk = work.model_copy(
        update={
            "num_tokens": count * length,
            "sum_of_squares": count * length**2,
            "num_predicted": 0.0,
            "num_forwards": 1,
        }
    )
    seconds = min(_seconds(encoder, packed, config, device) for _ in range(ROUNDS))
    return operations(shape, chunk).total / seconds


def _seconds(encoder: Encoder, packed: Packed, config: TrainConfig, device: torch.device) -> float:
    encoder.zero_grad(set_to_none=True)
    _wait(device)
    began = time.perf_counter()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        loss = encoder(packed).sum()
    loss.backward()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
