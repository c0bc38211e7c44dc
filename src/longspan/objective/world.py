"""What an objective needs of the other processes. The processes themselves live in `train/parallel.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn


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
