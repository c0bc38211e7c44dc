"""Bulk embedding gives what embedding at once gives, in any form, and after any kill the same bytes."""

import contextlib
import gzip
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.files import write_text
from longspan.output import survey as survey_module
from longspan.output.bulk import PART, Settings, embed_files
from longspan.output.formats import read_description
from longspan.output.texts import Inputs, open_inputs
from longspan.storage import FORMS, Ranges, Storage

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"the quick brown fox {n} " * (n % 5 + 1) + "é\u2028 東京" for n in range(40)]
TASK: dict[str, Any] = {"task": "clustering"}


@pytest.fixture
def corpus(tmp_path):
    """Three files of 40 texts."""
    rows = [json.dumps({"_id": f"d{n}", "text": text}, ensure_ascii=False) + "\n" for n, text in enumerate(TEXTS)]
    folder = tmp_path / "corpus"
    write_text(folder / "a.jsonl", "".join(rows[:15]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(rows[15:33]).encode()))
    write_text(folder / "c.jsonl", "".join(rows[33:]))
    return folder


@pytest.fixture
def inputs(corpus):
    return Inputs(tuple(str(corpus / name) for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl")), id_column="_id")


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(survey_module, "_TEXTS_PER_BLOCK", 7)
    monkeypatch.setattr("longspan.output.formats._ROWS_PER_PART", 5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["v.npy", "v.jsonl", "v.parquet"])
def test_files_hold_what_embedding_at_once_gives(tmp_path, inputs, small_embedder, small_blocks, form, name):
    out = tmp_path / "new" / name
    done = embed_files(small_embedder, inputs, out, Settings(**TASK, dim=16, form=form))
    exact_ND = small_embedder.embed(TEXTS, task="clustering", dim=16)
    about = read_description(out)
    assert (done.num_texts, done.num_cut, about.num_vectors) == (40, 0, 40)
    assert (about.fingerprint, about.task, about.storage.form) == (small_embedder.fingerprint, "clustering", form)
    if name == "v.npy":
        stored_NS = np.load(out)
    else:
        if name == "v.jsonl":
            rows = [json.loads(line) for line in out.read_text("utf-8").split("\n")[:-1]]
        else:
            rows = parquet.read_table(out).to_pylist()
            assert parquet.ParquetFile(out).num_row_groups == 8
        assert [row["text"] for row in rows] == TEXTS
        assert [row["id"] for row in rows] == [f"d{n}" for n in range(40)]
        stored_NS = np.array([list(row["vector"]) for row in rows], dtype=about.storage.dtype)
    # Batches differ, and with them the last bits: of float32, and now and then a bin of int8 or the sign of a zero.
    expected_ND = about.storage.decode(about.storage.encode(exact_ND))
    near_ND = about.storage.decode(stored_NS)
    assert np.mean(np.abs(near_ND - expected_ND) > 1e-6) < (0 if form == "float32" else 0.01) + 1e-9
    assert sorted(path.name for path in out.parent.iterdir()) == sorted([name, f"{name}.json"])


def test_int8_is_calibrated_on_the_texts_or_on_ranges_that_are_given(tmp_path, inputs, small_embedder):
    exact_ND = small_embedder.embed(TEXTS, task="clustering")
    storage = embed_files(small_embedder, inputs, tmp_path / "v.npy", Settings(**TASK, form="int8")).storage
    assert storage.ranges is not None
    np.testing.assert_allclose(storage.ranges.lowest, exact_ND.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(storage.ranges.highest, exact_ND.max(axis=0), atol=1e-6)
    given = Ranges.of(exact_ND[:5])
    again = embed_files(small_embedder, inputs, tmp_path / "w.npy", Settings(**TASK, form="int8", ranges=given))
    assert again.storage == Storage(form="int8", dim=64, ranges=given)


def test_a_sample_is_drawn_from_all_texts(monkeypatch, inputs, small_embedder):
    monkeypatch.setattr(survey_module, "SAMPLE", 10)
    many = [text for _ in range(50) for text in inputs.read()]
    options: dict[str, Any] = {"task": "clustering", "max_length": None, "truncate": False, "with_sample": True}
    found = survey_module.survey(many, small_embedder, **options)
    assert found.num_texts == 2000
    assert len(found.sample) == 10
    assert len(set(found.sample)) > 5
    assert found.sample == survey_module.survey(many, small_embedder, **options).sample


def test_blocks_are_bounded_by_texts_and_by_characters(monkeypatch, inputs, small_embedder):
    monkeypatch.setattr(survey_module, "_CHARACTERS_PER_TOKEN_OF_A_BATCH", 0.1)
    options: dict[str, Any] = {"task": "clustering", "max_length": None, "truncate": True, "with_sample": False}
    found = survey_module.survey(inputs.read(), small_embedder, **options)
    sizes = [sum(map(len, TEXTS[found.starts[n] : found.end(n)])) for n in range(len(found.starts))]
    assert sum(sizes) == sum(map(len, TEXTS))
    assert 2 < len(sizes) < 40
    assert max(sizes) <= 205 + max(map(len, TEXTS))


def test_a_long_text_is_named_before_anything_is_embedded(tmp_path, inputs, small_embedder, small_blocks):
    with pytest.raises(LongspanError, match="tokens, more than 20") as caught:
        embed_files(small_embedder, inputs, tmp_path / "v.npy", Settings(**TASK, max_length=20))
    assert caught.value.where.endswith("corpus/a.jsonl:3")
    assert "--truncate" in caught.value.remedy
    assert not list(tmp_path.glob("v*"))
    settings = Settings(**TASK, max_length=20, truncate=True)
    done = embed_files(small_embedder, inputs, tmp_path / "v.npy", settings)
    lengths = small_embedder.num_tokens(TEXTS, task="clustering")
    assert done.num_cut == sum(length > 20 for length in lengths) > 0


@pytest.fixture(scope="module")
def launch():
    """Starts `jobs.embed` in a process that is forked from a warm one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        from tests.output import jobs

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.output.jobs"])

        def run(*arguments):
            process = context.Process(target=jobs.embed, args=arguments)
            process.start()
            process.join()
            return process.exitcode

        yield run


@pytest.mark.parametrize(
    ("name", "settings", "moments"),
    [("v.npy", {"form": "int8"}, (8, 12, 17, 19, -1, -4)), ("v.parquet", {"form": "float16", "dim": 8}, (21, -2))],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    tmp_path, corpus, small_embedder, small_blocks, launch, name, settings, moments
):
    small_embedder.save(tmp_path / "model")
    embedder = Embedder.load(tmp_path / "model", device="cpu")

    def finish(folder: Path) -> dict[str, bytes]:
        with open_inputs([str(corpus)]) as inputs:
            embed_files(embedder, inputs, folder / name, Settings(**TASK, **settings))
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    whole = finish(tmp_path / "whole")
    assert sorted(whole) == sorted([name, f"{name}.json"])
    for moment in moments:
        folder = tmp_path / f"killed{moment}"
        assert launch(str(tmp_path / "model"), [str(corpus)], str(folder / name), TASK | settings, moment) == -9
        assert f"{name}{PART}" in [path.name for path in folder.iterdir()]
        assert finish(folder) == whole


def test_several_processes_give_the_same_vectors(tmp_path, corpus, small_embedder, launch):
    small_embedder.save(tmp_path / "model")
    assert launch(str(tmp_path / "model"), [str(corpus)], str(tmp_path / "v.npy"), TASK, 0, 2) == 0
    # Other threads, and batches of other texts: the last bits of a sum.
    expected_ND = small_embedder.embed(TEXTS, task="clustering")
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected_ND, atol=1e-6)


def test_what_is_there_is_not_computed_again(tmp_path, inputs, small_embedder, small_blocks):
    out, seen = tmp_path / "v.npy", []

    def stop(count: int) -> None:
        seen.append(count)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        embed_files(small_embedder, inputs, out, Settings(**TASK), progress=stop)
    assert not out.exists()
    plans, rest = [], []
    embed_files(
        small_embedder, inputs, out, Settings(**TASK), on_plan=lambda *plan: plans.append(plan), progress=rest.append
    )
    assert plans == [(40, 21)]
    assert rest == [7, 7, 5]


def test_an_unfinished_file_of_something_else_is_refused(tmp_path, inputs, small_embedder, small_blocks):
    out = tmp_path / "v.npy"

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        embed_files(small_embedder, inputs, out, Settings(**TASK), progress=stop)
    other = Inputs(inputs.files[:2])
    for texts, settings in ((inputs, Settings(**TASK, dim=8)), (inputs, Settings(task="search_query")), (other, None)):
        with pytest.raises(LongspanError, match="unfinished file of other texts") as caught:
            embed_files(small_embedder, texts, out, settings or Settings(**TASK))
        assert caught.value.where == str(tmp_path / f"v.npy{PART}")
    assert embed_files(small_embedder, inputs, out, Settings(**TASK)).num_texts == 40


def test_a_file_is_replaced(tmp_path, inputs, small_embedder):
    for name in ("v.npy", "v.parquet"):
        out = tmp_path / name
        embed_files(small_embedder, inputs, out, Settings(**TASK))
        embed_files(small_embedder, Inputs(inputs.files[:1]), out, Settings(**TASK, with_text=False))
        assert read_description(out).num_vectors == 15
    assert parquet.read_schema(tmp_path / "v.parquet").names == ["vector"]
