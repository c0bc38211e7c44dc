"""Learning-rate schedules: the paper's three, and what holds for all."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.train.schedule import ScheduleConfig

MLM = ScheduleConfig(kind="linear", warmup_fraction=0.06)  # section 4.1.2, 100,000 steps (Table 2)
CONTRASTIVE = ScheduleConfig(kind="inverse_sqrt", warmup_steps=700)  # section 4.2.2
FINETUNE = ScheduleConfig(kind="linear", warmup_steps=400)  # section 4.2.5


@pytest.mark.parametrize(
    ("schedule", "total", "step", "factor"),
    [
        (MLM, 100_000, 0, 1 / 6000),
        (MLM, 100_000, 2999, 0.5),
        (MLM, 100_000, 5999, 1.0),
        (MLM, 100_000, 6000, 1.0),
        (MLM, 100_000, 53_000, 0.5),
        (MLM, 100_000, 99_999, 1 / 94_000),
        (CONTRASTIVE, 15_000, 0, 1 / 700),
        (CONTRASTIVE, 15_000, 349, 0.5),
        (CONTRASTIVE, 15_000, 699, 1.0),
        (CONTRASTIVE, 15_000, 2799, 0.5),
        (CONTRASTIVE, 15_000, 6299, 1 / 3),
        (FINETUNE, 6400, 399, 1.0),
        (FINETUNE, 6400, 400, 1.0),
        (FINETUNE, 6400, 3400, 0.5),
        (FINETUNE, 6400, 6399, 1 / 6000),
        (ScheduleConfig(kind="constant", warmup_steps=2), 10, 0, 0.5),
        (ScheduleConfig(kind="constant", warmup_steps=2), 10, 9, 1.0),
        (ScheduleConfig(kind="linear", warmup_steps=0), 4, 0, 1.0),
        (ScheduleConfig(kind="linear", warmup_fraction=0.0), 4, 3, 0.25),
        (ScheduleConfig(kind="inverse_sqrt", warmup_steps=0), 4, 3, 0.5),
        (ScheduleConfig(kind="linear", warmup_steps=1), 1, 0, 1.0),
    ],
)
def test_values(schedule: ScheduleConfig, total: int, step: int, factor: float) -> None:
    assert schedule.factor(step, total) == pytest.approx(factor, rel=1e-12)


schedules = st.builds(
    ScheduleConfig, kind=st.sampled_from(["linear", "inverse_sqrt", "constant"]), warmup_steps=st.integers(0, 50)
)


@given(schedule=schedules, total=st.integers(1, 120))
def test_rises_to_the_top_and_never_reaches_zero(schedule: ScheduleConfig, total: int) -> None:
    warmup = schedule.warmup_steps or 0
    factors = [schedule.factor(step, total) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    rising, falling = factors[:warmup], factors[max(warmup - 1, 0) :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if 0 < warmup <= total:
        assert factors[warmup - 1] == 1


@given(schedule=schedules, total=st.integers(60, 120))
def test_no_jump_where_the_warmup_ends(schedule: ScheduleConfig, total: int) -> None:
    warmup = schedule.warmup_steps or 0
    if warmup:
        jump = abs(schedule.factor(warmup, total) - schedule.factor(warmup - 1, total))
        assert jump <= 1 - math.sqrt(warmup / (warmup + 1)) + 1e-12


@given(st.floats(0, 0.99), st.integers(1, 1000))
def test_a_fraction_is_a_number_of_steps(fraction: float, total: int) -> None:
    by_fraction = ScheduleConfig(kind="linear", warmup_fraction=fraction)
    by_steps = ScheduleConfig(kind="linear", warmup_steps=round(fraction * total))
    assert [by_fraction.factor(s, total) for s in range(total)] == [by_steps.factor(s, total) for s in range(total)]


@pytest.mark.parametrize(
    "values",
    [{}, {"warmup_steps": 10, "warmup_fraction": 0.1}, {"warmup_fraction": 1.0}, {"warmup_steps": -1}],
)
def test_exactly_one_warmup(values: dict[str, float]) -> None:
    with pytest.raises(LongspanError, match="warmup"):
        ScheduleConfig.parse({"kind": "linear", **values}, where="test")
