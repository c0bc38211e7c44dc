"""The only file that knows `torch.distributed`: the processes that share a batch."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from longspan.objective.world import Alone, World


class Processes:
    """All processes of a torchrun job: gloo on CPUs, NCCL on GPUs.

    Collectives take lists of tensors: those that take one tensor have other names in torch 2.11 and 2.13.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def gather(self, x: Tensor) -> Tensor:
        """See `World.gather`."""
        out = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        dist.all_gather(list(out.chunk(self.size)), x.contiguous())
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """See `World.reduce_scatter`."""
        if dist.get_backend() == "gloo":  # has no reduce_scatter in every supported release
            return self.sum(x).chunk(self.size)[self.rank]
        out = x.new_empty((x.shape[0] // self.size, *x.shape[1:]))
        dist.reduce_scatter(out, list(x.contiguous().chunk(self.size)))
        return out

    def sum(self, x: Tensor) -> Tensor:
        """See `World.sum`."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `World.sum_gradients`: one reduction of one flat buffer."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def join_world(device: torch.device) -> World:
    """Join the job that torchrun started, or be alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes()


def leave_world(world: World) -> None:
    """Say goodbye to the other processes."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def local_device(name: str | None = None) -> torch.device:
    """The device of this process: the named one, else this rank's GPU, else the CPU; "cuda" is this rank's GPU too."""
    if name not in (None, "cuda"):
        return torch.device(name)
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")
