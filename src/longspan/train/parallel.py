"""The only file that knows `torch.distributed`: the processes that share a batch, and how they share a model.

- `ddp`: every process has the whole model; gradients are summed in one reduction a step.
- `zero2`, `zero3` (Rajbhandari et al., 2020, stages 2 and 3; the paper trained with DeepSpeed's stage 2): weights,
  gradients and the optimiser's state are cut into shards, one for each process, by PyTorch's `fully_shard`. Under zero2
  the whole weights are gathered once a step, under zero3 block by block in every pass, so that no process ever holds
  them all at once. Gradients are whole while they accumulate, and reduced to shards once a step, either way.

Weights and gradients stay float32 under bf16 (autocast rounds the factors of each product only), so gradients are
accumulated and reduced in float32, and all three compute the same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from longspan.errors import LongspanError
from longspan.objective.world import Alone, World
from longspan.text.packed import Packed

Engine = Literal["ddp", "zero2", "zero3"]


class Processes:
    """All processes of a torchrun job: gloo on CPUs, NCCL on GPUs.

    Collectives take lists of tensors: those that take one tensor have other names in torch 2.11 and 2.13.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.shards: _Shards | None = None

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
        """See `World.sum_gradients`: one reduction of one flat buffer, or of one a block where there are shards."""
        if self.shards is not None:
            self.shards.reduce_gradients()
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def passes(self, needed: int) -> int:
        """See `World.passes`."""
        if self.shards is None or not self.shards.in_step:
            return needed
        device = self.shards.device
        return max(self.gather(torch.tensor([needed], device=device)).tolist())

    def shard(self, model: nn.Module, *, gather_once: bool) -> None:
        """Cut the weights of `model` into shards (see `shard_model`)."""
        self.shards = _Shards(model, self.size, gather_once=gather_once)


class _Shards:
    """A model whose weights are cut into shards.

    Between steps only shards are held. In a step gradients of the whole weights accumulate on every process, and are
    reduced into shards at its end.

    Attributes:
        in_step: whether the processes have to make the same number of passes, because each gathers weights.
    """

    def __init__(self, model: nn.Module, size: int, *, gather_once: bool) -> None:
        self.device = next(model.parameters()).device
        self.in_step = not gather_once
        mesh = init_device_mesh(self.device.type, (size,))
        for block in model.encoder.layers:  # pyright: ignore[reportGeneralTypeIssues, reportAttributeAccessIssue]
            fully_shard(block, mesh=mesh, reshard_after_forward=not gather_once)
        sharded = fully_shard(model, mesh=mesh, reshard_after_forward=not gather_once)
        assert isinstance(sharded, FSDPModule)
        self._model, self._call, self._gather_once = sharded, model, gather_once
        # What objectives leave is the sum over processes, not the mean; gloo has no other reduction.
        self._parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for part in self._parts:
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        self._at_the_end_of_a_step(False)

    def reduce_gradients(self) -> None:
        """PyTorch reduces in a backward pass, and has no call to reduce what has accumulated: one more pass, over four
        tokens and with gradient zero, does it. (Which pass of an objective is its last one, only the objective knows.)
        """
        self._at_the_end_of_a_step(True)
        tokens = Packed.of([np.zeros(2, dtype=np.int64)] * 2).to(self.device)
        if hasattr(self._call, "head"):
            first = torch.zeros(1, dtype=torch.int64, device=self.device)
            out, _ = self._call(tokens, first, first)
        else:
            out = self._call(tokens)
        out.backward(torch.zeros_like(out))
        self._at_the_end_of_a_step(False)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """See `gathered`."""
        self._model.set_reshard_after_forward(False)
        for part in self._parts:
            part.unshard()
        try:
            yield
        finally:
            self._model.set_reshard_after_forward(not self._gather_once)
            for part in self._parts:
                part.reshard()

    def _at_the_end_of_a_step(self, at_end: bool) -> None:
        self._model.set_requires_gradient_sync(at_end)
        self._model.set_reshard_after_backward(at_end or not self._gather_once)


def shard_model(model: nn.Module, world: World, engine: Engine) -> None:
    """Share the weights of `model`, which every process has whole, among the processes as `engine` says; collective.

    Args:
        model: has its blocks in `encoder.layers`.

    Raises:
        LongspanError: the model has a weight that cannot be cut.
    """
    if engine == "ddp" or not isinstance(world, Processes):
        return
    for name, parameter in model.named_parameters():
        if parameter.numel() < world.size:
            raise LongspanError(
                f"the weight {name} has {parameter.numel()} elements and cannot be cut into {world.size} shards",
                where=f"parallel: {engine}",
                remedy="use parallel=ddp",
            )
    world.shard(model, gather_once=engine == "zero2")


@contextlib.contextmanager
def gathered(world: World) -> Iterator[None]:
    """All weights of the sharded model, if there is one, are whole on every process while the body runs without
    gradients: each may make any number of passes by itself. Collective at the beginning."""
    shards = world.shards if isinstance(world, Processes) else None
    with contextlib.nullcontext() if shards is None else shards.gathered():
        yield


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each process has a shard (collective); any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_like(complete: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor that all processes have, cut as `like` is; no communication."""
    if not isinstance(like, DTensor):
        return complete
    return distribute_tensor(complete.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def own_part(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, as a plain tensor on the same memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of each tensor, whole ones and shards (then collective); as long as `tensors`."""
    own = torch.stack(torch._foreach_norm([own_part(x) for x in tensors]))  # pyright: ignore[reportPrivateImportUsage]
    if not any(isinstance(x, DTensor) for x in tensors):
        return own
    squares = own**2
    dist.all_reduce(squares)
    return squares.sqrt()


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has only its shards of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def any_process(world: World, device: torch.device, *flags: bool) -> list[bool]:
    """Which of the flags are set in at least one process; collective, so that all decide alike."""
    if world.size == 1:
        return list(flags)
    return (world.sum(torch.tensor(flags, dtype=torch.float32, device=device)) > 0).tolist()


def on_first_process(world: World, device: torch.device, act: Callable[[], None]) -> None:
    """Let the first process `act` while the others wait; collective.

    Raises:
        LongspanError: what `act` raised, or on the other processes that it raised something.
    """
    error: Exception | None = None
    if world.rank == 0:
        try:
            act()
        except Exception as raised:  # the others must not wait for ever
            error = raised
    (failed,) = any_process(world, device, error is not None)
    if error is not None:
        raise error
    if failed:
        raise LongspanError("the first process has failed", where="process 0", remedy="see its own message")


def join_world(device: torch.device) -> World:
    """Join the job that torchrun started, or be alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    world = Processes()
    # One that is quick to find an error would leave while others are still connecting, and hide it behind theirs.
    world.sum(torch.zeros(1, device=device))
    return world


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
