"""Sequences of different lengths in one flat array, handled without a loop over sequences.

Axes: N sequences, T their elements.
"""

from __future__ import annotations

import functools

import numpy as np

_FACTOR = 0x9E3779B97F4A7C15
_INVERSE = pow(_FACTOR, -1, 1 << 64)
_BLOCK = 1 << 15
"""Elements that are hashed at a time: what is in between stays in the processor's cache."""


def starts_of(lengths_N: np.ndarray) -> np.ndarray:
    """Where each sequence begins when all are laid end to end, int64."""
    starts_N = np.zeros(len(lengths_N), dtype=np.int64)
    np.cumsum(lengths_N[:-1], out=starts_N[1:])
    return starts_N


def places_of(starts_N: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """The places of all elements, sequence by sequence, int64: `starts[n] + 0 ... starts[n] + lengths[n] - 1`."""
    filled_N = lengths_N > 0
    if not filled_N.all():
        starts_N, lengths_N = starts_N[filled_N], lengths_N[filled_N]
    places_T = np.ones(int(lengths_N.sum()), dtype=np.int64)
    if len(places_T):
        # The running sum of the steps between places, so that nothing else is as long as the result.
        places_T[0] = starts_N[0]
        places_T[np.cumsum(lengths_N[:-1])] = starts_N[1:] - (starts_N[:-1] + lengths_N[:-1] - 1)
    return np.cumsum(places_T, out=places_T)


def sequence_hashes(values_T: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """A 64-bit hash of every sequence, uint64: equal sequences have equal hashes, others practically never.

    A polynomial in an odd number modulo 2 ** 64, then mixed. Among 2 ** 15 different sequences the chance that any two
    collide is about 2 ** -35. The lengths must be positive.
    """
    sums_N = np.empty(len(lengths_N), dtype=np.uint64)
    ends_N = np.cumsum(lengths_N)
    first, begin = 0, 0
    while first < len(lengths_N):
        # As many sequences as fit, and one at least.
        last = max(first + 1, int(np.searchsorted(ends_N, begin + _BLOCK, side="right")))
        end = int(ends_N[last - 1])
        # The powers go on from one sequence to the next; dividing by the power at its start makes up for it.
        powers_T, inverse_T = _powers(_FACTOR, end - begin), _powers(_INVERSE, end - begin)
        terms_T = values_T[begin:end].astype(np.int64).view(np.uint64)
        terms_T += np.uint64(1)
        terms_T *= powers_T
        starts_N = starts_of(lengths_N[first:last])
        np.multiply(np.add.reduceat(terms_T, starts_N), inverse_T.take(starts_N), out=sums_N[first:last])
        first, begin = last, end
    sums_N ^= sums_N >> np.uint64(32)
    sums_N *= np.uint64(_FACTOR)
    return sums_N ^ (sums_N >> np.uint64(29))


def _powers(factor: int, count: int) -> np.ndarray:
    """The first powers of a factor modulo 2 ** 64, uint64."""
    return _table(factor)[:count] if count <= _BLOCK else _powers_up_to(factor, count)


@functools.cache
def _table(factor: int) -> np.ndarray:
    return _powers_up_to(factor, _BLOCK)


def _powers_up_to(factor: int, count: int) -> np.ndarray:
    powers = np.full(count, factor, dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)
