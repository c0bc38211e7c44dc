"""What the sections of the GPU benchmark share: sizes, random texts, clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.text.packed import Packed


@dataclass(frozen=True)
class Setup:
    """Where, how large and how often."""

    device: torch.device
    encoder: EncoderConfig
    row: int
    """Tokens of a packed training row."""
    rows: int
    repeats: int
    """How often the ragged lengths occur in what is embedded."""
    steps: int
    matrix: int
    batch_sizes: tuple[int, ...]
    """Of sentence-transformers, when it embeds."""
    pairs: int
    """Of a contrastive step; the paper's 16,384 are eight GPUs' share of 2,048."""
    finetune_pairs: int
    """Of a finetuning step; the paper's 256 are eight GPUs' share of 32, and larger steps are closer to a whole GPU."""
    chunks: tuple[int, ...]
    """Tokens of a GradCache chunk, ours."""
    mini_batches: tuple[int, ...]
    """Of sentence-transformers' cached loss."""


H200 = Setup(
    device=torch.device("cuda"),
    encoder=EncoderConfig(),
    row=2048,
    rows=32,
    repeats=32,
    steps=10,
    matrix=8192,
    batch_sizes=(8, 32, 128),
    pairs=2048,
    finetune_pairs=256,
    chunks=(65_536, 262_144),
    mini_batches=(32, 128, 512),
)
SMOKE = Setup(
    device=torch.device("cpu"),
    encoder=EncoderConfig(
        vocab_size=128, width=64, num_layers=2, num_heads=4, inner_width=96, trained_length=64, max_length=256
    ),
    row=64,
    rows=2,
    repeats=1,
    steps=2,
    matrix=128,
    batch_sizes=(4,),
    pairs=8,
    finetune_pairs=4,
    chunks=(256, 4096),
    mini_batches=(4,),
)


def encoder_of(setup: Setup) -> Encoder:
    """With random weights, on the device, for use."""
    encoder = Encoder(setup.encoder)
    initialize(encoder, seed=0)
    return encoder.to(setup.device).eval()


def random_texts(lengths: list[int], setup: Setup, seed: int = 0) -> Packed:
    """Random ids of these lengths, on the device."""
    rng = np.random.default_rng(seed)
    return Packed.of([rng.integers(5, setup.encoder.vocab_size, n) for n in lengths]).to(setup.device)


def seconds_of(run: Callable[[], Any], setup: Setup, steps: int | None = None) -> float:
    """Seconds of one call, after three that are not counted."""
    steps = steps or setup.steps
    for _ in range(3):
        run()
    return timed(lambda: [run() for _ in range(steps)], setup) / steps


def timed(run: Callable[[], Any], setup: Setup) -> float:
    """Seconds until the device has finished."""
    wait(setup)
    began = time.perf_counter()
    run()
    wait(setup)
    return time.perf_counter() - began


def wait(setup: Setup) -> None:
    """Until the device has nothing left to do."""
    if setup.device.type == "cuda":
        torch.cuda.synchronize()


def forget_peak(setup: Setup) -> None:
    """Begin a new peak of memory."""
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gib(setup: Setup) -> float | None:
    """Since `forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if setup.device.type == "cuda" else None
