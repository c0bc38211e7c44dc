"""Blocks of texts become vectors here; a worker's teacher is the one it was told of; memory that runs out is named."""

import argparse
import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from longspan.cli.engine import add_engine, open_engine, say_throughput, show_with
from longspan.curate.engine import Block, LocalEngine, RemoteTeacher, embed_block
from longspan.curate.engine_pool import PoolEngine, device_of
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.progress import Bars

BLOCKS = [
    Block(7, ["the quick brown fox", "jumps"], "clustering", None),
    Block(3, ["over the lazy dogs " * 9], "search_query", 8),
]


def test_a_block_has_the_vectors_of_its_texts_for_its_task_and_length(small_embedder):
    with LocalEngine(small_embedder) as engine:
        first, second = engine.embed(iter(BLOCKS))
    assert (first.number, first.num_cut, second.number, second.num_cut) == (7, 0, 3, 1)
    np.testing.assert_array_equal(first.vectors_MD, small_embedder.embed(BLOCKS[0].texts, task="clustering"))
    cut = small_embedder.embed(BLOCKS[1].texts, task="search_query", max_length=8, truncate=True)
    np.testing.assert_array_equal(second.vectors_MD, cut)
    assert first.num_tokens == sum(small_embedder.num_tokens(BLOCKS[0].texts, task="clustering"))
    assert second.num_tokens == 8
    done = engine.throughput
    assert (done.num_texts, done.num_tokens) == (3, first.num_tokens + 8)
    assert str(done) == f"{3 / done.seconds:,.0f} texts/s, {(first.num_tokens + 8) / done.seconds:,.0f} tokens/s"


def test_a_worker_refuses_a_teacher_that_is_not_the_same(small_embedder, tmp_path):
    small_embedder.save(tmp_path / "teacher")
    threads = torch.get_num_threads()
    teacher = RemoteTeacher.of(str(tmp_path / "teacher"), small_embedder)
    assert teacher.loaded("cpu", threads).fingerprint == small_embedder.fingerprint
    other = RemoteTeacher(functools.partial(Embedder.load, tmp_path / "teacher"), "another")
    with pytest.raises(LongspanError, match="another teacher") as caught:
        other.loaded("cpu", threads)
    assert caught.value.where == str(tmp_path / "teacher")


def test_a_relative_teacher_is_found_from_elsewhere(small_embedder, tmp_path, monkeypatch):
    small_embedder.save(tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    teacher = RemoteTeacher.of("teacher", small_embedder)
    monkeypatch.chdir("/")
    assert teacher.loaded("cpu", torch.get_num_threads()).dim == small_embedder.dim


def test_a_gpu_without_memory_is_named(make_embedder, monkeypatch):
    def embed(self, texts, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore words")

    monkeypatch.setattr(make_embedder, "embed", embed)
    with pytest.raises(LongspanError, match="memory ran out") as caught:
        embed_block(make_embedder(), BLOCKS[0])
    assert caught.value.what.endswith("CUDA out of memory. Tried to allocate 2 GiB.")
    assert "fewer --processes" in caught.value.remedy


def test_workers_take_the_gpus_in_turn():
    assert [device_of(worker, 2) for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of(3, 0) == "cpu"


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_engine(parser)
    return parser.parse_args(arguments, argparse.Namespace(teacher="teacher", out=Path("out")))


def test_arguments_choose_the_engine(small_embedder):
    for arguments in ([], ["--processes", "1"]):
        assert isinstance(open_engine(parse(*arguments), small_embedder, "curate filter"), LocalEngine)
    assert isinstance(open_engine(parse("--processes", "2"), small_embedder, "curate filter"), PoolEngine)
    with pytest.raises(LongspanError, match="--ray-address goes with --engine ray"):
        open_engine(parse("--ray-address", "head:6379"), small_embedder, "curate filter")


def test_throughput_is_of_what_was_computed(small_embedder, capsys):
    engine = LocalEngine(small_embedder)
    say_throughput(engine)
    assert capsys.readouterr().err == ""
    with Bars("pairs") as bars:
        show = show_with(bars, engine)
        show("embedding", 5, 100)  # five were found
        list(engine.embed(BLOCKS))
        show("embedding", 100, 100)
        show("ranking", 8, 8)
    say_throughput(engine)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == f"pairs: embedding: 100/100  {engine.throughput}"
    assert "texts/s" not in shown[1]
    assert shown[2].startswith("embedded 3 texts, ")
    assert shown[2].endswith(f" s: {engine.throughput}")
