"""Work is spread over processes, errors come back in words, and no process outlives its parent's interest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from longspan.data.workers import Workers, num_cores
from longspan.errors import LongspanError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def jobs(monkeypatch):
    """The functions that other processes can find."""
    monkeypatch.syspath_prepend(str(ROOT))
    from tests.data import jobs

    return jobs


@pytest.mark.parametrize("count", [1, 2])
def test_every_task_is_done_once_and_counted(jobs, tmp_path, count):
    done: list[int] = []
    with Workers(count, 10, tmp_path) as workers:
        results = list(workers.run(jobs.multiply, range(1, 51), done.append))
        results += workers.run(jobs.multiply, iter([51]), done.append)
    assert sorted(product for product, _ in results) == [10 * task for task in range(1, 52)]
    assert sum(done) == sum(range(52))
    processes = {process for _, process in results}
    assert (os.getpid() in processes) == (count == 1)
    assert len(processes) <= count


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_comes_back_in_words(jobs, tmp_path, count):
    with (
        pytest.raises(LongspanError, match="three is broken") as caught,
        Workers(count, 0, tmp_path) as workers,
    ):
        list(workers.run(jobs.refuse, range(10), lambda done: None))
    assert (caught.value.where, caught.value.remedy) == ("task 3", "leave it out")


def test_a_process_that_is_killed_is_named(jobs, tmp_path):
    with pytest.raises(LongspanError, match="a worker process died") as caught, Workers(2, 0, tmp_path) as workers:
        list(workers.run(jobs.die, range(3), lambda done: None))
    assert caught.value.where == str(tmp_path)
    assert "run the same command again" in caught.value.remedy


def test_nobody_waits_for_work_that_is_given_up(jobs, tmp_path):
    with pytest.raises(KeyboardInterrupt), Workers(2, str(tmp_path), tmp_path) as workers:
        next(workers.run(jobs.wait_forever, range(2), lambda done: interrupt(tmp_path)))
    for process in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(process.name), 0)


def interrupt(folder: Path) -> None:
    if len(list(folder.iterdir())) == 2:
        raise KeyboardInterrupt


def test_cores_are_those_that_may_be_used():
    assert 1 <= num_cores() <= (os.cpu_count() or 1)


def test_a_script_that_is_run_again_by_its_workers_fails_in_words_however_much_they_share(tmp_path):
    # Without the guard a worker runs the script itself, and dies before it has read what it was sent.
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from longspan.data.workers import Workers\n"
        "from longspan.errors import LongspanError\n"
        "with Workers(2, b'x' * 2**20, Path('here')) as workers:\n"
        "    try:\n"
        "        print(list(workers.run(len, ['task'], lambda done: None)))\n"
        "    except LongspanError as error:\n"
        "        print(error)\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert "a worker process died" in ended.stdout
    assert "__name__ == '__main__'" in ended.stdout
