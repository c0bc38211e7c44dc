"""Flat arithmetic on sequences of different lengths equals the loop over them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.ragged import places_of, sequence_hashes, starts_of

SEQUENCES = st.lists(st.lists(st.integers(0, 70_000), min_size=1, max_size=5), max_size=12)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=10))
def test_places_are_those_of_the_loop(runs):
    starts = np.array([start for start, _ in runs], dtype=np.int64)
    lengths = np.array([length for _, length in runs], dtype=np.int64)
    assert places_of(starts, lengths).tolist() == [place for start, n in runs for place in range(start, start + n)]
    assert starts_of(lengths).tolist() == [int(lengths[:n].sum()) for n in range(len(lengths))]


def hashes(sequences, dtype) -> list[int]:
    flat = np.array([value for sequence in sequences for value in sequence], dtype=dtype)
    return sequence_hashes(flat, np.array([len(sequence) for sequence in sequences], dtype=np.int64)).tolist()


@given(SEQUENCES, st.data())
def test_hashes_are_equal_exactly_for_equal_sequences(sequences, data):
    found = hashes(sequences, np.int64)
    for i, a in enumerate(sequences):
        for j, b in enumerate(sequences):
            assert (found[i] == found[j]) == (a == b)
    order = data.draw(st.permutations(range(len(sequences))))
    assert hashes([sequences[i] for i in order], np.int32) == [found[i] for i in order], "whatever stands around it"


def test_hashes_see_order_length_and_zeros():
    different = [[1, 2], [2, 1], [1, 2, 0], [0, 1, 2], [0], [0, 0], [1], [2**31 - 1], [65_535, 1], [1, 65_535]]
    assert len(set(hashes(different, np.int64))) == len(different)


def test_no_two_of_many_sequences_collide():
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 20, 200_000)
    flat = draw.integers(0, 30_522, int(lengths.sum()))
    bounds = np.cumsum(lengths)[:-1]
    distinct = {piece.tobytes() for piece in np.split(flat, bounds)}
    assert len(set(sequence_hashes(flat, lengths).tolist())) == len(distinct)


def test_a_sequence_longer_than_the_table_of_powers():
    long = list(range(70_000))
    whole = hashes([long, long[:-1], [*long[:-1], 0]], np.int64)
    assert len(set(whole)) == 3
    assert hashes([[5], long], np.int64)[1] == whole[0]
