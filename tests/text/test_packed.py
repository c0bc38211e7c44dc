"""Packed: sequences come out as they went in; chunks partition their input within a budget."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.text.packed import Packed, chunks_of_similar_length, join

sequences = st.lists(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(lambda ids: np.array(ids, dtype=np.int32)),
    min_size=1,
    max_size=6,
)


def unpack(packed, values_T=None):
    values_T = packed.ids_T if values_T is None else values_T
    bounds = packed.cu_seqlens.tolist()
    return [values_T[a:b].tolist() for a, b in itertools.pairwise(bounds)]


@given(sequences)
def test_of_keeps_every_sequence(given):
    packed = Packed.of(given)
    assert unpack(packed) == [sequence.tolist() for sequence in given]
    assert packed.ids_T.dtype == torch.int64
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.lengths == tuple(map(len, given))
    assert packed.lengths_B().tolist() == list(packed.lengths)
    assert packed.num_sequences == len(given)
    assert packed.num_tokens == sum(packed.lengths)
    assert packed.max_length == max(packed.lengths)


@given(sequences)
def test_positions_and_numbers(given):
    packed = Packed.of(given)
    assert packed.positions_T().tolist() == [i for sequence in given for i in range(len(sequence))]
    assert packed.sequence_T().tolist() == [b for b, sequence in enumerate(given) for _ in sequence]


@given(sequences)
def test_check_ids_passes_what_the_table_has(given):
    packed = Packed.of(given)
    packed.check_ids(int(packed.ids_T.max()) + 1)


@pytest.mark.parametrize("wrong", [-1, 30, 2**40])
def test_check_ids_names_the_id_and_its_place(wrong):
    packed = Packed.of([np.array([1, 29]), np.array([0, 5, wrong, -7])])
    with pytest.raises(LongspanError, match=f"token id {wrong} is not between 0 and 29") as caught:
        packed.check_ids(30)
    assert caught.value.where == "sequence 1, token 2"


@given(sequences, st.data())
def test_select_takes_any_sequences_in_any_order(given, data):
    packed = Packed.of(given)
    packed = Packed(packed.ids_T, packed.cu_seqlens, packed.lengths, types_T=packed.ids_T * 2)
    order = data.draw(st.lists(st.integers(0, len(given) - 1), min_size=1))
    chosen = packed.select(order)
    assert unpack(chosen) == [given[b].tolist() for b in order]
    assert unpack(chosen, chosen.types_T) == [(2 * given[b].astype(np.int64)).tolist() for b in order]
    assert chosen.lengths == tuple(len(given[b]) for b in order)
    assert chosen.cu_seqlens.dtype == torch.int32


@given(st.lists(sequences, min_size=1, max_size=3))
def test_join_is_of_all_sequences(parts):
    joined = join([Packed.of(part) for part in parts])
    assert unpack(joined) == [sequence.tolist() for part in parts for sequence in part]
    assert joined.types_T is None


def test_join_keeps_token_types():
    plain, typed = Packed.of([np.array([1, 2])]), Packed.of([np.array([3]), np.array([4])])
    typed = Packed(typed.ids_T, typed.cu_seqlens, typed.lengths, types_T=torch.tensor([1, 1]))
    types_T = join([plain, typed]).types_T
    assert types_T is not None
    assert types_T.tolist() == [0, 0, 1, 1]


def test_to_keeps_everything():
    packed = Packed.of([np.array([1, 2]), np.array([3])])
    packed = Packed(packed.ids_T, packed.cu_seqlens, packed.lengths, types_T=torch.tensor([0, 1, 0]))
    moved = packed.to("meta")
    assert moved.lengths == packed.lengths
    assert moved.types_T is not None
    assert {x.device.type for x in (moved.ids_T, moved.cu_seqlens, moved.types_T)} == {"meta"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "zero sequences"),
        ([np.array([1]), np.array([], dtype=np.int64)], "empty sequence .number 1"),
        ([np.array([1]), np.array([0.5])], "number 1 is not an integer"),
        ([np.array([[1, 2]])], "number 0 is not an integer array of one axis"),
    ],
)
def test_of_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        Packed.of(bad)


@pytest.mark.parametrize("order", [[], [2], [-1], [0, 5]])
def test_select_refuses(order):
    packed = Packed.of([np.array([1]), np.array([2, 3])])
    with pytest.raises(ValueError, match="cannot select"):
        packed.select(order)


def test_join_refuses_nothing():
    with pytest.raises(ValueError, match="zero packs"):
        join([])


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_chunks_partition_within_the_budget(lengths, budget):
    groups = chunks_of_similar_length(lengths, budget)
    flat = [number for group in groups for number in group]
    assert sorted(flat) == list(range(len(lengths)))
    # Shortest first, ties in their order.
    assert flat == sorted(flat, key=lambda number: (lengths[number], number))
    for group in groups:
        assert group
        assert sum(lengths[n] for n in group) <= budget or len(group) == 1
    # No group could have taken the next one's first: groups are as full as the order allows.
    for group, following in itertools.pairwise(groups):
        assert sum(lengths[n] for n in group) + lengths[following[0]] > budget
