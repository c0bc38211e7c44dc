"""What share of a device's arithmetic training uses: model FLOPs, and the peak they are held against.

Model FLOPs are those of one forward and one backward pass (Chowdhery et al., 2022, appendix B): what GradCache and
activation checkpointing compute again is a cost of theirs, and lowers the share.
"""

from __future__ import annotations

import itertools
import re
import time

import torch

from longspan.data.batch import MaskedBatch, PairBatch
from longspan.errors import LongspanError
from longspan.model.config import EncoderConfig
from longspan.train.cost import Workload, operations
from longspan.train.hardware import find_hardware


def training_flops(shape: EncoderConfig, batch: MaskedBatch | PairBatch) -> float:
    """Model FLOPs of one step on this process's share of a batch (see `cost.operations`)."""
    if isinstance(batch, PairBatch):
        lengths, num_predicted = [*batch.queries.lengths, *batch.documents.lengths], 0
    else:
        lengths = [length for row in batch.rows for length in row.lengths]
        num_predicted = sum(len(positions) for positions, _ in batch.targets)
    return operations(shape, Workload.of_lengths(lengths, num_predicted=num_predicted)).total


def known_peak(device: torch.device, precision: str) -> float | None:
    """The manufacturer's matrix rate of a GPU in FLOP/s; None: it is not known.

    Args:
        precision: `bf16` or `fp32`; the rates that are known are for bf16.
    """
    if device.type != "cuda" or precision != "bf16":
        return None
    words = re.split(r"[ -]", torch.cuda.get_device_name(device))
    pairs = list(itertools.pairwise(words))
    # "NVIDIA H100 PCIe" is another device than "NVIDIA H100 80GB HBM3", so two words count before one.
    for name in [*map("-".join, pairs), *map("".join, pairs), *words]:
        try:
            return find_hardware(name).flops
        except LongspanError:
            continue
    return None


def measured_peak(device: torch.device, precision: str, *, seconds: float = 0.3) -> float:
    """The rate of a product of two large matrices, in FLOP/s, which takes about `seconds` to find out."""
    size, dtype = 1024, torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(left, right)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        torch.mm(left, right)[0, 0].item()  # waits for the device
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - began)
