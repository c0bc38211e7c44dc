"""What an objective needs of the other processes. The processes themselves live in `train/parallel.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class World(Protocol):
    """The processes that share a batch. All methods are collective: every rank calls them in the same order."""

    rank: int
    size: int

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all ranks in the order of ranks, (size * n, ...); without gradient."""
        ...

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """The sum over ranks of a (size * n, ...) tensor, of which this rank gets its n rows."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, on every rank."""
        ...

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every `.grad` by its sum over ranks, in one reduction."""
        ...

    def passes(self, needed: int) -> int:
        """How many passes through the model this rank has to make where it needs `needed`: as many as the rank that
        needs most, if each pass gathers sharded weights from all ranks; else `needed`."""
        ...


class Alone:
    """A world of one process."""

    rank = 0
    size = 1

    def gather(self, x: Tensor) -> Tensor:
        return x

    def reduce_scatter(self, x: Tensor) -> Tensor:
        return x

    def sum(self, x: Tensor) -> Tensor:
        return x

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        pass

    def passes(self, needed: int) -> int:
        return needed


def gather_with_gradient(x: Tensor, world: World) -> Tensor:
    """Rows of all ranks, (size * n, ...); the gradient is what all ranks together say of this rank's rows.

    Collective, and so is going back through it.
    """
    return x if world.size == 1 else _Gather.apply(x, world)  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.world.reduce_scatter(gradient), None


@contextlib.contextmanager
def adding_summed_gradients(model: nn.Module, world: World) -> Iterator[None]:
    """Add to every `.grad` the sum over ranks of the gradient that the body leaves; collective.

    What was in `.grad` before is a sum over ranks already (of another batch) and must not be summed again.
    """
    before = [(p, p.grad) for p in model.parameters() if p.grad is not None] if world.size > 1 else []
    for parameter, _ in before:
        parameter.grad = None
    yield
    world.sum_gradients(model.parameters())
    for parameter, gradient in before:
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
