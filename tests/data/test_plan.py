"""The laws of the plan: what every run, resume and number of processes relies on."""

import itertools
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longspan.data.plan import WINDOW, Plan, PlannedBatch, PlannedSource, keyed_hashes, random_generator, shuffled
from longspan.errors import LongspanError

SEEDS = st.integers(0, 2**63)

# Written down when the plan was first tested: a run may be resumed by a later version, which must go on in its order.
GOLDEN_SHUFFLE = [6, 0, 9, 2, 1, 7, 4, 3, 8, 5]
GOLDEN_PLAN = [(1, [4, 7, 2, 1]), (0, [10, 3, 14, 19]), (1, [3, 8, 0, 4]), (0, [16, 13, 17, 15])]
GOLDEN_RANDOM = [9888603943828187583, 12783806846202357553]


@st.composite
def plans(draw: st.DrawFn, weights: st.SearchStrategy[float] = st.just(1.0)) -> Plan:  # noqa: B008
    batch_size = draw(st.integers(1, 8))
    sizes = draw(st.lists(st.integers(batch_size, 40), min_size=1, max_size=4))
    sources = [PlannedSource(f"s{n}", size, draw(weights)) for n, size in enumerate(sizes)]
    return Plan(sources, batch_size, draw(SEEDS))


def same(a: PlannedBatch, b: PlannedBatch) -> bool:
    return a.source == b.source and np.array_equal(a.rows, b.rows)


def rows_by_source(batches: list[PlannedBatch]) -> dict[int, Counter[int]]:
    read: dict[int, Counter[int]] = {}
    for batch in batches:
        read.setdefault(batch.source, Counter()).update(batch.rows.tolist())
    return read


# --- an epoch ---------------------------------------------------------------------------------------------------------


@given(plans(), st.integers(0, 3))
def test_an_epoch_reads_each_row_once_but_for_the_rest_that_fills_no_batch(plan, epoch):
    first = epoch * plan.steps_per_epoch
    batches = [plan(step) for step in range(first, first + plan.steps_per_epoch)]
    read = rows_by_source(batches)
    for number, source in enumerate(plan.sources):
        full = source.num_rows // plan.batch_size
        assert sum(batch.source == number for batch in batches) == full, "sources in proportion to their size"
        assert len(read[number]) == full * plan.batch_size
        assert set(read[number].values()) == {1}
        assert min(read[number]) >= 0
        assert max(read[number]) < source.num_rows


@given(plans(weights=st.sampled_from([1.0, 2.0, 3.0])))
def test_a_source_of_weight_w_is_read_w_times(plan):
    read = rows_by_source([plan(step) for step in range(plan.steps_per_epoch)])
    for number, source in enumerate(plan.sources):
        weight = round(source.weight)
        full = source.num_rows // plan.batch_size * plan.batch_size
        assert read[number].total() == weight * full
        assert max(read[number].values()) <= weight
        if full == source.num_rows:
            assert set(read[number].values()) == {weight}


@given(plans(weights=st.floats(0.1, 3.5)))
def test_a_source_of_any_weight_has_its_share_of_the_batches(plan):
    batches = [plan(step) for step in range(plan.steps_per_epoch)]
    for number, source in enumerate(plan.sources):
        expected = max(1, round(source.weight * (source.num_rows // plan.batch_size)))
        assert sum(batch.source == number for batch in batches) == expected
        once = rows_by_source(batches)[number]
        assert max(once.values()) <= int(np.ceil(source.weight))


@given(plans())
def test_a_batch_is_full_and_of_one_source(plan):
    for step in range(3 * plan.steps_per_epoch):
        batch = plan(step)
        assert batch.rows.shape == (plan.batch_size,)
        assert batch.rows.dtype == np.int64
        assert len(set(batch.rows.tolist())) == plan.batch_size
        assert 0 <= batch.source < len(plan.sources)


@given(plans(), st.integers(1, 20), st.integers(0, 2))
def test_windows_change_neither_what_is_read_nor_how_often(plan, window, epoch):
    windowed = Plan(plan.sources, plan.batch_size, plan.seed, window=window)
    first = epoch * plan.steps_per_epoch
    read = rows_by_source([windowed(step) for step in range(first, first + plan.steps_per_epoch)])
    for number, source in enumerate(plan.sources):
        full = source.num_rows // plan.batch_size * plan.batch_size
        assert set(read[number].values()) == {1}
        assert len(read[number]) == full
        assert set(read[number]) <= set(range(source.num_rows))


def test_the_rows_of_a_batch_lie_close_together():
    size = 10 * WINDOW + 12_345
    plan = Plan([PlannedSource("a", size)], batch_size=4096, seed=1)
    for step in range(0, plan.steps_per_epoch, 97):
        rows = plan(step).rows
        from_first = np.sort((rows - rows[0]) % size)
        largest_gap = np.diff(np.append(from_first, size)).max()  # around the end, which is next to the beginning
        assert size - largest_gap < 2 * WINDOW
        assert len(set((rows // 1000).tolist())) > 600, "but not in one stretch"


def test_windows_begin_elsewhere_in_every_epoch():
    plan = Plan([PlannedSource("a", 4 * WINDOW)], batch_size=4096, seed=1)
    firsts = [min(plan(epoch * plan.steps_per_epoch + 5).rows) for epoch in range(4)]
    assert len({first // 1000 for first in firsts}) == 4


def test_rows_left_over_in_one_epoch_are_read_in_another():
    plan = Plan([PlannedSource("a", 15)], batch_size=8, seed=3)
    read = rows_by_source([plan(step) for step in range(40)])[0]
    assert set(read) == set(range(15))


def test_sources_are_mixed_and_not_read_one_after_another():
    plan = Plan([PlannedSource("a", 400), PlannedSource("b", 400)], batch_size=4, seed=0)
    order = [plan(step).source for step in range(plan.steps_per_epoch)]
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert 70 <= changes <= 130  # 100 are expected of a fair shuffle, with a spread of 7


# --- a pure function --------------------------------------------------------------------------------------------------


@given(plans(weights=st.floats(0.1, 3.5)), st.data())
def test_a_step_depends_on_nothing_but_the_plan(plan, data):
    steps = data.draw(st.lists(st.integers(0, 10 * plan.steps_per_epoch), min_size=1, max_size=8))
    expected = {step: plan(step) for step in sorted(steps)}
    again = Plan([PlannedSource(s.name, s.num_rows, s.weight) for s in plan.sources], plan.batch_size, plan.seed)
    for step in data.draw(st.permutations(steps)):
        assert same(again(step), expected[step])


@given(st.integers(1, 4), st.lists(st.integers(1, 20), min_size=1, max_size=3), SEEDS, st.integers(0, 10**6))
def test_any_number_of_processes_reads_the_same_rows(eighths, extra, seed, step):
    batch_size = 8 * eighths
    plan = Plan([PlannedSource(f"s{n}", batch_size + more) for n, more in enumerate(extra)], batch_size, seed)
    whole = plan(step).rows
    for world_size in (1, 2, 4, 8):
        share = batch_size // world_size
        parts = [plan(step).rows[rank * share : (rank + 1) * share] for rank in range(world_size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(st.lists(st.integers(24, 40), min_size=1, max_size=3), SEEDS, SEEDS)
@settings(max_examples=20)
def test_epochs_and_seeds_have_their_own_orders(sizes, seed, other_seed):
    assume(other_seed != seed)
    plan = Plan([PlannedSource(f"s{n}", size) for n, size in enumerate(sizes)], 8, seed)

    def sequence(plan: Plan, epoch: int) -> list[int]:
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        return [row for step in steps for row in (plan(step).source, *plan(step).rows.tolist())]

    other = Plan(plan.sources, plan.batch_size, other_seed)
    assert sequence(plan, 0) != sequence(plan, 1)
    assert sequence(plan, 0) != sequence(other, 0)


def test_two_readings_of_one_epoch_have_their_own_orders():
    plan = Plan([PlannedSource("a", 64, 2.0)], batch_size=64, seed=0)
    first, second = plan(0).rows, plan(1).rows
    assert sorted(first) == sorted(second)
    assert not np.array_equal(first, second)


# --- size -------------------------------------------------------------------------------------------------------------


def test_any_step_of_the_papers_data_is_there_at_once():
    # 29 sources and 235 million pairs, as in table 7 of the paper, in batches of 16,384.
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(29)) * 234e6
    sources = [PlannedSource(f"s{n}", 20_000 + int(share)) for n, share in enumerate(shares)]
    began = time.process_time()
    tracemalloc.start()
    plan = Plan(sources, 16_384, seed=0)
    batches = [plan(step) for step in (0, 1, 14_315, 10**9)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - began < 2.0
    assert peak < 8 * 2**20, "some arrays of a batch's size, and none of a source's"
    for batch in batches:
        assert len(set(batch.rows.tolist())) == 16_384
        assert batch.rows.max() < sources[batch.source].num_rows


def test_a_source_smaller_than_a_batch_is_refused_by_name():
    with pytest.raises(LongspanError) as caught:
        Plan([PlannedSource("big", 100), PlannedSource("tiny", 3)], batch_size=4, seed=0)
    assert caught.value.what == "source 'tiny' has 3 rows and cannot fill a batch of 4"
    assert caught.value.where == "source tiny"
    assert "smaller batch_size" in caught.value.remedy


# --- the shuffle ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.lists(st.integers(-(2**63), 2**64), max_size=4))
def test_shuffled_is_a_bijection(size, key):
    np.testing.assert_array_equal(np.sort(shuffled(np.arange(size), size, key)), np.arange(size))


@given(st.integers(2**31, 2**40), SEEDS, st.integers(0, 2**31 - 2000))
@settings(max_examples=20)
def test_shuffled_is_one_to_one_and_place_by_place_at_any_size(size, key, first):
    places = np.arange(first, first + 1000)
    values = shuffled(places, size, (key,))
    assert len(set(values.tolist())) == 1000
    assert values.min() >= 0
    assert values.max() < size
    np.testing.assert_array_equal(shuffled(places[417:418], size, (key,)), values[417:418])
    np.testing.assert_array_equal(shuffled(places[::-1], size, (key,)), values[::-1])


@pytest.mark.parametrize("size", [2, 3, 8, 29, 100])
def test_shuffled_is_fair(size):
    # Where a place goes, over many keys: chi-squared with size - 1 degrees of freedom, mean size - 1 and variance
    # 2 (size - 1); six standard deviations are never met by chance.
    num_keys = 2000
    for place in (0, size - 1):
        counts = np.zeros(size)
        for key in range(num_keys):
            counts[shuffled(np.array([place]), size, (7, key))[0]] += 1
        expected = num_keys / size
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert chi_squared < (size - 1) + 6 * np.sqrt(2 * (size - 1)) + 6


def test_neighbours_do_not_stay_together():
    values = shuffled(np.arange(10_000), 10_000, (0,))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(values, np.arange(10_000))[0, 1]) < 0.05


def test_the_order_is_that_of_earlier_versions():
    assert shuffled(np.arange(10), 10, (1, 2)).tolist() == GOLDEN_SHUFFLE
    plan = Plan([PlannedSource("a", 20), PlannedSource("b", 9, 1.5)], batch_size=4, seed=5)
    assert [(plan(step).source, plan(step).rows.tolist()) for step in (0, 1, 2, 100)] == GOLDEN_PLAN
    assert random_generator(1, 2, 3).bit_generator.random_raw(2).tolist() == GOLDEN_RANDOM


# --- random draws -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4))
def test_random_generator_is_a_function_of_its_key(key):
    numbers = random_generator(*key).random(5)
    random_generator(*key, 1).random(3)  # nobody else's draws change it
    np.testing.assert_array_equal(random_generator(*key).random(5), numbers)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=5), st.lists(st.integers(-9, 2**63), max_size=3))
def test_keyed_hashes_are_a_function_of_the_values_and_the_key(values, key):
    whole = keyed_hashes(np.array(values)[:, None], key, np.arange(3)[None, :])
    assert whole.dtype == np.uint64
    for i, value in enumerate(values):
        for j in range(3):
            assert keyed_hashes(np.array([value]), key, j)[0] == whole[i, j]
    assert (keyed_hashes(np.array(values), (*key, 1)) != keyed_hashes(np.array(values), (*key, 2))).all()


def test_random_generators_of_near_keys_are_unlike():
    draws = [tuple(random_generator(*key).random(2)) for key in itertools.product(range(4), repeat=3)]
    draws += [tuple(random_generator(*key).random(2)) for key in itertools.product(range(4), repeat=2)]
    assert len(set(draws)) == len(draws)
    first = np.array([draw[0] for draw in draws])
    assert 0.35 < first.mean() < 0.65  # 80 uniform numbers: a half, with a spread of 0.03


# --- clusters ---------------------------------------------------------------------------------------------------------


@st.composite
def clustered_plans(draw: st.DrawFn, weights: st.SearchStrategy[float] = st.just(1.0)) -> Plan:  # noqa: B008
    batch_size = draw(st.integers(1, 6))
    sizes = st.lists(st.integers(batch_size, 20), min_size=1, max_size=4)
    sources = []
    for n in range(draw(st.integers(1, 3))):
        clusters = draw(sizes)
        # Some of the sources have no clusters.
        of_source = tuple(clusters) if n == 0 or draw(st.booleans()) else ()
        sources.append(PlannedSource(f"s{n}", sum(clusters), draw(weights), of_source, is_sorted=bool(of_source)))
    return Plan(sources, batch_size, draw(SEEDS))


def cluster_of(source: PlannedSource, rows: np.ndarray) -> set[int]:
    return set(np.searchsorted(np.cumsum(source.clusters), rows, side="right").tolist())


@given(clustered_plans(), st.integers(0, 3))
def test_a_batch_is_of_one_cluster_and_an_epoch_reads_every_row_once_but_for_the_rests(plan, epoch):
    first = epoch * plan.steps_per_epoch
    batches = [plan(step) for step in range(first, first + plan.steps_per_epoch)]
    read = rows_by_source(batches)
    for batch in batches:
        source = plan.sources[batch.source]
        assert batch.rows.shape == (plan.batch_size,)
        assert 0 <= batch.rows.min() <= batch.rows.max() < source.num_rows
        if source.clusters:
            assert len(cluster_of(source, batch.rows)) == 1
    for number, source in enumerate(plan.sources):
        sizes = source.clusters or (source.num_rows,)
        left_over = sum(size % plan.batch_size for size in sizes)
        assert plan.left_over[number] == left_over
        assert set(read[number].values()) == {1}
        assert len(read[number]) == source.num_rows - left_over


@given(clustered_plans(weights=st.floats(0.1, 2.5)), st.data())
def test_a_step_of_clusters_depends_on_nothing_but_the_plan(plan, data):
    steps = data.draw(st.lists(st.integers(0, 5 * plan.steps_per_epoch), min_size=1, max_size=6))
    expected = {step: plan(step) for step in sorted(steps)}
    again = Plan(plan.sources, plan.batch_size, plan.seed)
    for step in data.draw(st.permutations(steps)):
        assert same(again(step), expected[step])


def test_what_an_epoch_leaves_over_of_a_cluster_is_read_in_another():
    plan = Plan([PlannedSource("a", 22, clusters=(7, 15))], batch_size=4, seed=3)
    read = rows_by_source([plan(step) for step in range(20 * plan.steps_per_epoch)])[0]
    assert set(read) == set(range(22))


def test_half_a_reading_is_of_all_clusters():
    source = PlannedSource("a", 400, 0.5, clusters=(40,) * 10)
    plan = Plan([source], batch_size=4, seed=1)
    clusters = [cluster_of(source, plan(step).rows).pop() for step in range(plan.steps_per_epoch)]
    assert len(clusters) == 50
    assert len(set(clusters)) >= 9, "and not of the first five"


def test_clusters_are_mixed():
    source = PlannedSource("a", 800, clusters=(400, 400))
    plan = Plan([source], batch_size=4, seed=0)
    order = [cluster_of(source, plan(step).rows).pop() for step in range(plan.steps_per_epoch)]
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert 70 <= changes <= 130


def test_a_cluster_that_fills_no_batch_is_refused():
    with pytest.raises(LongspanError, match="2 of the 3 clusters of source 'a' cannot fill a batch of 4: their 5 rows"):
        Plan([PlannedSource("a", 13, clusters=(8, 3, 2))], batch_size=4, seed=0)


def test_sorted_rows_are_shuffled_all_together():
    size = 3 * WINDOW
    plan = Plan([PlannedSource("a", size, is_sorted=True)], batch_size=1024, seed=0)
    for step in (0, 7, 100):
        thirds = np.bincount(plan(step).rows // WINDOW, minlength=3)
        assert thirds.min() > 200  # 341 are expected of each
