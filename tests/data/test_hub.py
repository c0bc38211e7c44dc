"""Folders in the hub's form are read as `datasets` reads them, and data sets of the hub through `datasets` itself."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from longspan.data import hub, retry
from longspan.data.hub import HubDataset, choose, hub_files, hub_tables
from longspan.data.layouts import layout_of, source_parts
from longspan.data.skipped import stop_on_error
from longspan.data.source import PairSource
from longspan.errors import LongspanError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(folder: Path, name: str) -> None:
    """A file of two rows that tell its name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"query": f"{name} {n}", "document": f"東京 {n}"} for n in range(2)]
    if name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def folder_of(folder: Path, *names: str, readme: str | None = None) -> str:
    for name in names:
        write(folder, name)
    if readme is not None:
        (folder / "README.md").write_text(f"---\n{readme}\n---\n# A data set\n")
    return str(folder)


def source_of(**fields) -> PairSource:
    return PairSource.parse({"name": "faq", **fields}, where="-")


def queries_of(source: PairSource) -> list[str]:
    return [row["query"] for part in source_parts(source) for _, row in part.read(source, stop_on_error)]


def relative(tables: hub.Tables, folder: str) -> hub.Tables:
    return {
        config: {split: [file.removeprefix(f"{folder}/") for file in files] for split, files in splits.items()}
        for config, splits in tables.items()
    }


# --- by the names of files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (
            [
                "data/train-00000-of-00002.parquet",
                "data/train-00001-of-00002.parquet",
                "data/test-00000-of-00001.parquet",
            ],
            {
                "train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
                "test": ["data/test-00000-of-00001.parquet"],
            },
        ),
        (
            ["data/reddit_title_body-00000-of-00001-0a1b.parquet", "data/paq-00000-of-00001-0a1b.parquet"],
            {
                "paq": ["data/paq-00000-of-00001-0a1b.parquet"],
                "reddit_title_body": ["data/reddit_title_body-00000-of-00001-0a1b.parquet"],
            },
        ),
        (["train.jsonl", "dev.jsonl"], {"train": ["train.jsonl"], "validation": ["dev.jsonl"]}),
        (["train/a.jsonl", "test/b.jsonl"], {"train": ["train/a.jsonl"], "test": ["test/b.jsonl"]}),
        (["my_train-1.jsonl", "my_eval_2.jsonl"], {"train": ["my_train-1.jsonl"], "test": ["my_eval_2.jsonl"]}),
    ],
)
def test_names_tell_the_split(tmp_path, names, splits):
    folder = folder_of(tmp_path, *names)
    assert layout_of(folder) == "hub"
    assert relative(hub_tables(folder), folder) == {"default": splits}


def test_a_file_that_would_be_left_out_makes_the_layout_unclear(tmp_path):
    folder = folder_of(tmp_path, "train.jsonl", "other.jsonl")
    with pytest.raises(LongspanError, match="none of the layouts that are known"):
        source_parts(source_of(files=[folder]))
    assert queries_of(source_of(files=[folder], layout="hub")) == ["train.jsonl 0", "train.jsonl 1"], "as datasets does"


def test_files_without_a_split_are_all_for_training_when_the_layout_is_named(tmp_path):
    folder = folder_of(tmp_path, "b.jsonl", "a.jsonl")
    with pytest.raises(LongspanError, match="none of the layouts that are known"):
        source_parts(source_of(files=[folder]))
    assert queries_of(source_of(files=[folder], layout="hub")) == ["a.jsonl 0", "a.jsonl 1", "b.jsonl 0", "b.jsonl 1"]


WORDS = st.sampled_from(
    ["train", "training", "dev", "test", "eval", "validation", "trainer", "a", "data", "evaluating"]
)
NAMES = st.builds(
    lambda folders, words, separator: "/".join([*folders, separator.join(words) + ".jsonl"]),
    st.lists(WORDS, max_size=1),
    st.lists(WORDS, min_size=1, max_size=2),
    st.sampled_from(["-", "_", ".", "1"]),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_splits_are_those_of_datasets(tmp_path_factory, names):
    data_files = pytest.importorskip("datasets.data_files")
    folder = folder_of(tmp_path_factory.mktemp("hub"), *names)
    theirs = data_files.get_data_patterns(folder)
    theirs = {
        str(split): set(data_files.DataFilesList.from_patterns(patterns, base_path=folder))
        for split, patterns in theirs.items()
    }
    ours = {split: set(files) for split, files in hub_tables(folder)["default"].items()}
    both = {file for file in set().union(*theirs.values()) if sum(file in files for files in theirs.values()) > 1}
    # A name that tells two splits is in both for them, and in one for us.
    assert {split: files - both for split, files in ours.items() if files - both} == {
        split: files - both for split, files in theirs.items() if files - both
    }


# --- by the README ----------------------------------------------------------------------------------------------------

README = """\
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: en/*.jsonl
  - split: test
    path:
    - held/one.jsonl
    - "held/t*.jsonl"
- config_name: de
  default: true
  data_files: german.jsonl
- config_name: fr
  data_dir: french
- config_name: empty"""

FILES = [
    *("en/a.jsonl", "en/b.jsonl", "held/one.jsonl", "held/two.jsonl"),
    *("german.jsonl", "french/test.jsonl", "other.jsonl"),
]
WITHOUT_EMPTY = README.removesuffix("\n- config_name: empty")


def test_the_readme_tells_configurations_and_splits(tmp_path):
    folder = folder_of(tmp_path, *FILES, readme=README)
    assert layout_of(folder) == "hub"
    assert relative(hub_tables(folder), folder) == {
        "en": {"train": ["en/a.jsonl", "en/b.jsonl"], "test": ["held/one.jsonl", "held/two.jsonl"]},
        "de": {"train": ["german.jsonl"]},
        "fr": {"test": ["french/test.jsonl"]},
        "default": {"train": ["german.jsonl"]},
    }
    assert queries_of(source_of(files=[folder])) == ["german.jsonl 0", "german.jsonl 1"]
    assert queries_of(source_of(files=[folder], config="en", split="test"))[::2] == [
        "held/one.jsonl 0",
        "held/two.jsonl 0",
    ]
    assert queries_of(source_of(files=[folder], config="fr"))[::2] == ["french/test.jsonl 0"]


@pytest.mark.parametrize("config", ["en", "de", "fr"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_are_those_of_datasets(tmp_path, config, split):
    datasets = pytest.importorskip("datasets")
    folder = folder_of(tmp_path / "hub", *FILES, readme=WITHOUT_EMPTY)
    splits = datasets.get_dataset_split_names(folder, config)
    source = source_of(files=[folder], config=config, split=split)
    if split not in splits:
        with pytest.raises(LongspanError, match=f"there is no split '{split}'"):
            source_parts(source)
        return
    theirs = datasets.load_dataset(folder, config, split=split, cache_dir=str(tmp_path / "cache"))
    assert queries_of(source) == theirs["query"][:]


@pytest.mark.parametrize(
    ("readme", "what"),
    [
        ("configs: [", "broken YAML"),
        ("configs:\n- data_files: gone.jsonl", "README.md names gone.jsonl, and there is no such file"),
        ("configs:\n- data_files: '*.csv'", "README.md names *.csv"),
        ("configs:\n- data_dir: gone", "README.md names gone"),
    ],
)
def test_a_broken_readme_is_named(tmp_path, readme, what):
    folder = folder_of(tmp_path, "train.jsonl", readme=readme)
    with pytest.raises(LongspanError) as caught:
        hub_files(folder, None, None)
    assert caught.value.what.startswith(what)
    assert caught.value.where.startswith(folder)


@pytest.mark.parametrize("readme", [None, "license: mit", "configs:\n- config_name: x", "- 1"])
def test_a_readme_that_tells_no_files_leaves_it_to_their_names(tmp_path, readme):
    folder = folder_of(tmp_path, "train.jsonl", readme=readme)
    assert relative(hub_tables(folder), folder) == {"default": {"train": ["train.jsonl"]}}


# --- what is not whole, or not clear ----------------------------------------------------------------------------------


def test_a_missing_shard_is_named(tmp_path):
    names = [f"data/train-0000{n}-of-00004.parquet" for n in (0, 2)]
    folder = folder_of(tmp_path, *names)
    with pytest.raises(LongspanError, match=r"data/train-00001-of-00004 is not there \(2 of 4 are missing\)") as caught:
        hub_tables(folder)
    assert caught.value.where == folder


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(LongspanError, match="holds no files of rows"):
        hub_tables(str(tmp_path))


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        (None, ["dev"], "dev"),
        (None, ["dev", "train"], "train"),
        ("dev", ["dev", "train"], "dev"),
        (None, ["dev", "test"], "several splits and none is named"),
        ("dev", ["train"], "no split 'dev'"),
    ],
)
def test_choosing(wanted, there, expected):
    if expected in there:
        assert choose("split", wanted, there, preferred="train", where="here") == expected
        return
    with pytest.raises(LongspanError, match=expected) as caught:
        choose("split", wanted, there, preferred="train", where="here")
    assert caught.value.remedy == f"name one of them as split: {', '.join(sorted(there))}"


# --- the hub itself, through datasets ---------------------------------------------------------------------------------


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """`datasets` finds the data set owner/faq, at COMMIT, in a folder of this machine."""
    datasets = pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder = folder_of(tmp_path / "hub", *FILES, "many/train-1.jsonl", readme=WITHOUT_EMPTY)
    asked: list[str | None] = []

    def at_home(function):
        def call(path, *arguments, revision, **options):
            assert (path, revision) == ("owner/faq", COMMIT)
            return function(folder, *arguments, **options)

        return call

    class Api:
        def dataset_info(self, name, *, revision):
            asked.append(revision)
            if name != "owner/faq":
                raise FileNotFoundError(name)
            return type("Info", (), {"sha": COMMIT})

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("load_dataset", "get_dataset_split_names"):
        monkeypatch.setattr(datasets, name, at_home(getattr(datasets, name)))
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    return asked


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_a_data_set_of_the_hub_is_read_through_datasets(fake_hub, monkeypatch, streaming, batch):
    monkeypatch.setattr(hub, "_ROWS_AT_A_TIME", batch)
    source = source_of(hub="owner/faq", config="en", revision="main", streaming=streaming, query="query")
    [part] = source_parts(source)
    assert part == HubDataset("owner/faq", "en", "train", COMMIT, streaming)
    rows = list(part.read(source, stop_on_error))
    names = [f"en/{name}.jsonl {n}" for name in "ab" for n in range(2)]
    assert rows == [(n, {"query": name, "document": f"東京 {(n - 1) % 2}"}) for n, name in enumerate(names, 1)]
    assert fake_hub == ["main"]
    other = HubDataset("owner/faq", "en", "train", COMMIT[::-1], streaming)
    assert part.fingerprint(source) != other.fingerprint(source)


def test_a_commit_needs_no_question(fake_hub):
    [part] = source_parts(source_of(hub="owner/faq", config="en", revision=COMMIT, split="test"))
    assert part.name == "hub:owner/faq@0123456789ab/en/test"
    assert fake_hub == []


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"hub": "owner/gone"}, "the data set cannot be loaded: FileNotFoundError"),
        (
            {"hub": "owner/faq", "config": "xx"},
            "the data set cannot be loaded: ValueError: BuilderConfig 'xx' not found",
        ),
        ({"hub": "owner/faq", "config": "en", "split": "dev"}, "there is no split 'dev'"),
    ],
)
def test_what_the_hub_does_not_have_is_named(fake_hub, fields, what):
    with pytest.raises(LongspanError) as caught:
        source_parts(source_of(**fields))
    assert caught.value.what.startswith(what)
    assert caught.value.where == f"hub = {fields['hub']!r}"


def test_without_datasets_the_remedy_names_both_ways(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(LongspanError, match="read through the package datasets") as caught:
        source_parts(source_of(hub="owner/faq"))
    assert "longspan[data]" in caught.value.remedy
    assert "hf://datasets/" in caught.value.remedy
