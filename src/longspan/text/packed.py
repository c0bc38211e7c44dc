"""Token sequences laid end to end: ids and boundaries, and no padding anywhere.

Axes: T tokens of all sequences, B sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longspan.errors import LongspanError


@dataclass(frozen=True)
class Packed:
    """B token sequences in one flat tensor.

    Attributes:
        ids_T: int64 token ids of all sequences, one after another.
        cu_seqlens: int32, B + 1 boundaries: sequence b is `ids_T[cu_seqlens[b]:cu_seqlens[b + 1]]`.
        lengths: the B lengths on the host, so that no kernel launch has to wait for the device to learn them.
        types_T: optional int64 token types (second segments of sentence pairs); None means all zero.
    """

    ids_T: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    types_T: Tensor | None = None

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> Packed:
        """Pack integer arrays of one axis each; at least one sequence, none of them empty."""
        if not sequences:
            raise ValueError("cannot pack zero sequences")
        for number, sequence in enumerate(sequences):
            if sequence.ndim != 1 or sequence.dtype.kind not in "iu":
                raise ValueError(f"sequence number {number} is not an integer array of one axis")
        lengths = tuple(len(sequence) for sequence in sequences)
        if min(lengths) == 0:
            raise ValueError(f"cannot pack an empty sequence (number {lengths.index(0)})")
        ids_T = torch.from_numpy(np.concatenate(sequences).astype(np.int64, copy=False))
        return cls(ids_T, _boundaries(lengths), lengths)

    @classmethod
    def of_flat(cls, ids_T: np.ndarray, lengths_B: np.ndarray) -> Packed:
        """Sequences that lie end to end already: int64 ids (not copied) and positive lengths that add up to them."""
        boundaries = np.zeros(len(lengths_B) + 1, dtype=np.int32)
        np.cumsum(lengths_B, out=boundaries[1:])
        if not len(lengths_B) or lengths_B.min() <= 0 or boundaries[-1] != len(ids_T):
            raise ValueError(f"{len(lengths_B)} lengths of {boundaries[-1]} tokens do not lay out {len(ids_T)} ids")
        return cls(torch.from_numpy(ids_T), torch.from_numpy(boundaries), tuple(lengths_B.tolist()))

    @property
    def num_sequences(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return self.ids_T.shape[0]

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    def lengths_B(self) -> Tensor:
        """int64 lengths on the device of the ids."""
        return (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).long()

    def sequence_T(self) -> Tensor:
        """int64: which sequence each token belongs to."""
        numbers_B = torch.arange(self.num_sequences, device=self.ids_T.device)
        return torch.repeat_interleave(numbers_B, self.lengths_B(), output_size=self.num_tokens)

    def positions_T(self) -> Tensor:
        """int64: each token's place in its own sequence, from 0."""
        everywhere_T = torch.arange(self.num_tokens, device=self.ids_T.device)
        return everywhere_T - self.cu_seqlens[:-1].long()[self.sequence_T()]

    def check_ids(self, vocab_size: int) -> None:
        """Refuse ids that a table of `vocab_size` rows does not have.

        The ids are read, so this belongs before they go to a device: there it would wait for all that runs.

        Raises:
            LongspanError: an id below 0 or too large; names the first one and its place.
        """
        lowest, highest = self.ids_T.aminmax()
        if int(lowest) >= 0 and int(highest) < vocab_size:
            return
        token = int(((self.ids_T < 0) | (self.ids_T >= vocab_size)).nonzero()[0])
        sequence, position = int(self.sequence_T()[token]), int(self.positions_T()[token])
        raise LongspanError(
            f"token id {int(self.ids_T[token])} is not between 0 and {vocab_size - 1}",
            where=f"sequence {sequence}, token {position}",
            remedy="the ids come from another model's tokenizer: use the tokenizer that belongs to the weights",
        )

    def to(self, device: torch.device | str) -> Packed:
        """The same sequences on another device."""
        types_T = None if self.types_T is None else self.types_T.to(device, non_blocking=True)
        return Packed(
            self.ids_T.to(device, non_blocking=True),
            self.cu_seqlens.to(device, non_blocking=True),
            self.lengths,
            types_T,
        )

    def select(self, order: Sequence[int]) -> Packed:
        """The sequences of the given numbers, in that order; at least one."""
        if len(order) == 0 or not 0 <= min(order) <= max(order) < self.num_sequences:
            raise ValueError(f"cannot select {list(order)} from {self.num_sequences} sequences")
        starts = list(itertools.accumulate(self.lengths, initial=0))
        pieces = [slice(starts[b], starts[b + 1]) for b in order]
        lengths = tuple(self.lengths[b] for b in order)
        types_T = None if self.types_T is None else torch.cat([self.types_T[piece] for piece in pieces])
        ids_T = torch.cat([self.ids_T[piece] for piece in pieces])
        return Packed(ids_T, _boundaries(lengths).to(ids_T.device), lengths, types_T)


def join(parts: Sequence[Packed]) -> Packed:
    """The sequences of several packs, one after another; at least one pack."""
    if not parts:
        raise ValueError("cannot join zero packs")
    lengths = tuple(length for part in parts for length in part.lengths)
    ids_T = torch.cat([part.ids_T for part in parts])
    types_T = None
    if any(part.types_T is not None for part in parts):
        types_T = torch.cat([torch.zeros_like(part.ids_T) if part.types_T is None else part.types_T for part in parts])
    return Packed(ids_T, _boundaries(lengths).to(ids_T.device), lengths, types_T)


def chunks_of_similar_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group sequence numbers, shortest first, so that no group holds more than `token_budget` tokens.

    A sequence longer than the budget gets a group of its own. Neighbours in a group have similar lengths, which is what
    the attention kernels like best; ties keep their order, so the grouping is a pure function of the lengths.
    """
    groups: list[list[int]] = []
    tokens = 0
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or tokens + lengths[number] > token_budget:
            groups.append([])
            tokens = 0
        groups[-1].append(number)
        tokens += lengths[number]
    return groups


def _boundaries(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
