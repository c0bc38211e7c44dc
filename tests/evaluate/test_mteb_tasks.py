"""mteb's tasks by name, and their data from a folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from longspan.errors import LongspanError
from longspan.evaluate.mteb_tasks import find_task_files, leaves, read_task, tasks_by_name, tasks_of_benchmark

mteb = pytest.importorskip("mteb", reason="needs the extra mteb", exc_type=ImportError)

Make = Callable[[], Path]


def read(name: str, data: Path):
    (task,) = tasks_by_name([name])
    files = find_task_files(task, data)
    read_task(task, files)
    return task, files


@pytest.mark.parametrize(("name", "count", "measured"), [("MTEB(eng, v1)", 56, 67), ("MTEB(eng, v2)", 41, 41)])
def test_benchmarks_have_their_tasks(name: str, count: int, measured: int) -> None:
    tasks = tasks_of_benchmark(name)
    assert len(tasks) == count
    assert sum(len(leaves(task)) for task in tasks) == measured


def test_names_that_mteb_does_not_know_are_refused() -> None:
    with pytest.raises(LongspanError, match="no task 'STSBenchmrk'") as caught:
        tasks_by_name(["STSBenchmark", "STSBenchmrk"])
    assert "STSBenchmark" in caught.value.remedy
    with pytest.raises(LongspanError, match="no benchmark") as caught:
        tasks_of_benchmark("MTEB(eng,v1)")
    assert "MTEB(eng, v1)" in caught.value.remedy


def test_a_task_of_several_languages_is_read_in_english() -> None:
    assert [task.hf_subsets for task in tasks_by_name(["STS17", "STSBenchmark"])] == [["en-en"], ["default"]]


def test_tables_come_as_mteb_has_them(mteb_data: Make) -> None:
    data = mteb_data()
    task, files = read("STSBenchmark", data)
    assert (task.data_loaded, files.folder.name) == (True, "stsbenchmark")
    assert task.dataset["test"][1] == {"sentence1": "the quick fox", "sentence2": "brown dogs jump", "score": 2.0}
    assert task.metadata.revision == files.revision != tasks_by_name(["STSBenchmark"])[0].metadata.revision
    task, files = read("Banking77Classification", data)
    assert {split: len(rows) for split, rows in task.dataset.items()} == {"train": 40, "test": 12}
    assert files.folder == data / "mteb" / "banking77"


def test_retrieval_comes_as_mteb_has_it(mteb_data: Make) -> None:
    task, _ = read("SciFact", mteb_data())
    split = task.dataset["default"]["test"]
    assert split["corpus"][1] == {"id": "d1", "text": "a lazy dog 1", "title": "fox"}
    assert split["queries"]["id"][:] == ["q0", "q1", "q2"]  # q3 is not judged
    assert split["relevant_docs"] == {f"q{n}": {f"d{n}": 1} for n in range(3)}
    assert split["top_ranked"] is None
    task, _ = read("AskUbuntuDupQuestions", mteb_data())
    assert task.dataset["default"]["test"]["top_ranked"]["q1"] == ["d1", "d4", "d5"]


def test_parts_of_longembed_are_read_from_a_folder_of_their_own(mteb_data: Make) -> None:
    data = mteb_data()
    with pytest.raises(LongspanError, match="no folder for the task LEMBQMSumRetrieval") as caught:
        read("LEMBQMSumRetrieval", data)
    assert "LongEmbed/qmsum" in caught.value.remedy
    assert "qrels/test.tsv" in caught.value.remedy
    shutil.copytree(data / "SciFact", data / "LongEmbed" / "qmsum")
    shutil.copytree(data / "SciFact", data / "LEMBWikimQARetrieval")
    for name in ("LEMBQMSumRetrieval", "LEMBWikimQARetrieval"):
        task, _ = read(name, data)
        assert task.dataset["default"]["test"]["queries"]["id"][:] == ["q0", "q1", "q2"]


def test_a_table_of_several_languages_gives_the_one_that_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "sts17-crosslingual-sts"
    folder.mkdir()
    rows = [
        f'{{"sentence1": "{lang}", "sentence2": "b", "score": 1.0, "lang": "{lang}"}}' for lang in ("en-en", "ar-ar")
    ]
    (folder / "test.jsonl").write_text("\n".join(rows))
    task, _ = read("STS17", tmp_path)
    assert task.dataset["en-en"]["test"]["sentence1"][:] == ["en-en"]


def test_the_revision_follows_the_contents(mteb_data: Make) -> None:
    data = mteb_data()
    before = read("SciFact", data)[1].revision
    moved = shutil.move(data / "SciFact", data / "scifact")
    assert read("SciFact", data)[1].revision == before
    with open(Path(moved) / "corpus.jsonl", "a") as file:
        file.write('{"_id": "new", "text": "new"}\n')
    assert read("SciFact", data)[1].revision != before


@pytest.mark.parametrize(
    ("name", "spoil", "what"),
    [
        ("STSBenchmark", shutil.rmtree, "data folder is not there"),
        ("STSBenchmark", lambda data: shutil.rmtree(data / "stsbenchmark"), "no folder for the task STSBenchmark"),
        ("STSBenchmark", lambda data: (data / "stsbenchmark/test.jsonl").unlink(), "holds no files of rows"),
        ("STSBenchmark", lambda data: (data / "stsbenchmark/test.jsonl").write_text('{"score": 1}\n'), "'sentence1'"),
        ("STSBenchmark", lambda data: (data / "stsbenchmark/test.jsonl").write_text('{"score": \n'), "broken JSON"),
        ("Banking77Classification", lambda data: (data / "mteb/banking77/train.jsonl").unlink(), "the split 'train'"),
        ("SciFact", lambda data: (data / "SciFact/corpus.jsonl").unlink(), "corpus"),
        ("SciFact", lambda data: (data / "SciFact/queries.jsonl").write_text('{"text": "x"}\n'), "no _id"),
        (
            "AskUbuntuDupQuestions",
            lambda data: shutil.rmtree(data / "AskUbuntuDupQuestions/top_ranked"),
            "ranked again",
        ),
        ("HumanEvalRetrieval", lambda data: None, "made by its own program"),
        ("LEMBNeedleRetrieval", lambda data: None, "made by its own program"),
    ],
)
def test_broken_folders_are_named(mteb_data: Make, name: str, spoil: Callable[[Path], object], what: str) -> None:
    data = mteb_data()
    spoil(data)
    with pytest.raises(LongspanError, match=what) as caught:
        read(name, data)
    assert caught.value.remedy
    assert caught.value.where.startswith(str(data)) or caught.value.where == name
