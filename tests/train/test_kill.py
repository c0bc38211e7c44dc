"""A run that is killed at any moment and resumed is the run that was never killed, to the last bit.

All runs of a comparison are computed by processes of the same kind (one thread, one machine), so nothing is allowed to
differ but the clock.
"""

import random
from pathlib import Path

import pytest

from longspan.train.config import TrainConfig
from longspan.train.run import RUN
from tests.train import folders, jobs, tiny
from tests.train.conftest import Launch

KILLED, FINE = -9, 0
NUM_KILLS = 10


@pytest.fixture(params=["mlm", "contrastive"])
def config(request: pytest.FixtureRequest, text_data: Path, pair_data: Path) -> TrainConfig:
    """Some dozen steps with a checkpoint after each, so that a good part of the time goes into writing."""
    changes = {"max_steps": 24, "checkpoint_every": 1}
    if request.param == "mlm":
        return tiny.masked_config(text_data, **changes)
    return tiny.contrastive_config(pair_data, **changes)


def test_killed_at_random_moments(config: TrainConfig, launch: Launch, tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    draw = random.Random(seed)
    undisturbed = tmp_path / "undisturbed"
    _go_on(launch, config, undisturbed)
    kills, folder = 0, tmp_path / "run-0"
    while kills < NUM_KILLS:
        process = launch(jobs.train, config.model_dump_json(), str(folder))
        process.join(draw.uniform(0.0, 0.4))
        process.kill()
        process.join()
        assert process.exitcode in (KILLED, FINE)
        kills += process.exitcode == KILLED
        if process.exitcode == FINE:
            assert folders.differing(folder, undisturbed) == [], f"seed {seed}"
            folder = tmp_path / f"run-{kills}"
    _go_on(launch, config, folder)
    assert folders.differing(folder, undisturbed) == [], f"seed {seed}"


@pytest.mark.parametrize(("keep", "moment"), [(1, 1), (2, 5)])
def test_killed_before_a_change_of_the_directory(
    text_data: Path, keep: int, moment: int, launch: Launch, tmp_path: Path
) -> None:
    """Killed before every eighth file operation of a short run: in the start, in a checkpoint, in the end."""
    config = tiny.masked_config(text_data, max_steps=2, checkpoint_every=1, keep_checkpoints=keep)
    undisturbed = tmp_path / "undisturbed"
    _go_on(launch, config, undisturbed)
    kills_before_and_after_run_json, finished = [0, 0], False
    while not finished:
        folder = tmp_path / f"killed-{moment}"
        process = launch(jobs.train, config.model_dump_json(), str(folder), moment)
        process.join()
        assert process.exitcode in (KILLED, FINE)
        finished = process.exitcode == FINE
        if not finished:
            kills_before_and_after_run_json[(folder / RUN).is_file()] += 1
            _go_on(launch, config, folder)
        assert folders.differing(folder, undisturbed) == [], f"killed before change {moment}"
        moment += 8
    assert min(kills_before_and_after_run_json) >= 2


def _go_on(launch: Launch, config: TrainConfig, folder: Path) -> None:
    process = launch(jobs.train, config.model_dump_json(), str(folder))
    process.join()
    assert process.exitcode == FINE
