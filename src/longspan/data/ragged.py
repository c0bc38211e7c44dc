"""Sequences of different lengths in one flat array, handled without a loop over sequences.

Axes: N sequences, T their elements.
"""

from __future__ import annotations

import functools

import numpy as np

_FACTOR = 0x9E3779B97F4A7C15
_LONGEST_OF_A_TABLE = 1 << 16


def starts_of(lengths_N: np.ndarray) -> np.ndarray:
    """Where each sequence begins when all are laid end to end, int64."""
    starts_N = np.zeros(len(lengths_N), dtype=np.int64)
    np.cumsum(lengths_N[:-1], out=starts_N[1:])
    return starts_N


def places_of(starts_N: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """The places of all elements, sequence by sequence, int64: `starts[n] + 0 ... starts[n] + lengths[n] - 1`."""
    shift_N = starts_N - starts_of(lengths_N)
    places_T = np.repeat(shift_N, lengths_N)
    places_T += np.arange(len(places_T))
    return places_T


def sequence_hashes(values_T: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """A 64-bit hash of every sequence, uint64: equal sequences have equal hashes, others practically never.

    A polynomial in an odd number modulo 2 ** 64, then mixed. Among 2 ** 15 different sequences the chance that any two
    collide is about 2 ** -35. The lengths must be positive.
    """
    if not len(lengths_N):
        return np.empty(0, dtype=np.uint64)
    starts_N = starts_of(lengths_N)
    position_T = places_of(np.zeros_like(lengths_N), lengths_N)
    terms_T = _powers(int(lengths_N.max())).take(position_T)
    terms_T *= values_T.astype(np.int64, copy=False).view(np.uint64) + np.uint64(1)
    sums_N = np.add.reduceat(terms_T, starts_N)
    sums_N ^= sums_N >> np.uint64(32)
    sums_N *= np.uint64(_FACTOR)
    return sums_N ^ (sums_N >> np.uint64(29))


def _powers(length: int) -> np.ndarray:
    if length > _LONGEST_OF_A_TABLE:
        return _powers_up_to(length)
    return _table()[:length]


@functools.cache
def _table() -> np.ndarray:
    return _powers_up_to(_LONGEST_OF_A_TABLE)


def _powers_up_to(length: int) -> np.ndarray:
    powers = np.full(length, _FACTOR, dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)
