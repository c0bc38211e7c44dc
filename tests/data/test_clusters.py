"""Rows with clusters: sorted by them in the shards, and read back in batches of one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longspan.cli import main
from longspan.data.collate import pair_plan
from longspan.data.dataset import Dataset
from longspan.data.manifest import read_manifest
from longspan.data.prepare import prepare
from longspan.data.source import PairSource
from longspan.errors import LongspanError
from longspan.train.loop import start
from longspan.train.run import ENVIRONMENT
from tests.train import tiny

SIZES = {3: 21, 0: 30, 7: 13}
"""Rows by the number of their cluster; numbers need not be without gaps."""


def _rows() -> list[dict[str, Any]]:
    rows = [
        {"query": f"{tiny.WORDS[cluster]} {tiny.WORDS[10 + n]}", "document": tiny.WORDS[10 + n], "cluster": cluster}
        for cluster, size in SIZES.items()
        for n in range(size)
    ]
    return [rows[n] for n in np.random.default_rng(0).permutation(len(rows))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with clusters and one without; not to be changed."""
    folder = tmp_path_factory.mktemp("clusters")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows()), "utf-8")
    sources = [
        PairSource(name="clustered", files=(str(folder / "rows.jsonl"),), cluster="cluster"),
        PairSource(name="plain", files=(str(folder / "rows.jsonl"),)),
    ]
    prepare(sources, folder / "data", tiny.make_tokenizer(folder))
    return folder / "data"


def _words(data: Path, source: int) -> list[str]:
    dataset = Dataset(data, "pairs")
    column, first = dataset.sources[source].ids("query"), dataset.tokenizer.encode([tiny.WORDS[0]])[0][0]
    return [" ".join(tiny.WORDS[int(i) - first] for i in column[row]) for row in range(len(column))]


def test_rows_are_sorted_by_cluster_and_none_is_lost(data: Path) -> None:
    manifest = read_manifest(data / "clustered")
    assert manifest.clusters == (30, 21, 13)
    words = _words(data, 0)
    assert [word.split()[0] for word in words] == [
        tiny.WORDS[c] for c, n in ((0, 30), (3, 21), (7, 13)) for _ in range(n)
    ]
    assert sorted(words) == sorted(row["query"] for row in _rows())
    assert words[:30] != sorted(words[:30]), "inside a cluster the order is random"
    assert read_manifest(data / "plain").clusters == ()


@pytest.mark.parametrize("by_cluster", [True, False])
def test_batches_of_one_cluster_only_if_asked(by_cluster: bool, data: Path) -> None:
    plan = pair_plan(Dataset(data, "pairs"), 6, seed=2, by_cluster=by_cluster)
    words = _words(data, 0)
    pure = [
        len({words[row].split()[0] for row in batch.rows}) == 1
        for batch in map(plan, range(plan.steps_per_epoch))
        if batch.source == 0
    ]
    assert len(pure) == (5 + 3 + 2 if by_cluster else 64 // 6)
    assert all(pure) if by_cluster else sum(pure) <= 1


def test_any_pieces_and_shards_give_the_same_rows(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longspan.data.pieces import PieceSize

    monkeypatch.setattr("longspan.data.prepare.PIECE_SIZE", PieceSize(300, 100))
    monkeypatch.setattr("longspan.data.prepare.ROWS_PER_SHARD", 10)
    source = PairSource(name="clustered", files=(str(data.parent / "rows.jsonl"),), cluster="cluster")
    [manifest] = prepare([source], tmp_path / "data", tiny.make_tokenizer(tmp_path))
    assert len(manifest.shards) == 7
    assert manifest.clusters == read_manifest(data / "clustered").clusters
    assert _words(tmp_path / "data", 0) == _words(data, 0)


def test_a_run_from_the_command_line_says_what_is_left_over(data: Path, tmp_path: Path) -> None:
    config = tiny.contrastive_config(
        data,
        **{"objective.num_negatives": 0, "objective.batches_of": "cluster", "batch_size": 6, "epochs": 1.0},
        max_steps=3,
    )
    run = start(config, tmp_path / "run")
    about = json.loads((run.folder / ENVIRONMENT).read_text().splitlines()[0])
    assert about["rows_left_over"] == ["clustered: 4", "plain: 4"]  # 30, 21 and 13 rows; 64


def test_what_has_no_clusters_is_refused(data: Path) -> None:
    with pytest.raises(LongspanError, match="no source has clusters") as refused:
        pair_plan(Dataset(data, "pairs", only=["plain"]), 6, seed=0, by_cluster=True)
    assert "longspan curate cluster" in refused.value.remedy
    with pytest.raises(LongspanError, match=r"1 of the 3 clusters .* cannot fill a batch of 16"):
        pair_plan(Dataset(data, "pairs"), 16, seed=0, by_cluster=True)


@pytest.mark.parametrize("cluster", [-1, "far", 1.5, True, None, 2**31])
def test_what_is_no_cluster_is_refused_by_its_row(cluster: object, tmp_path: Path) -> None:
    rows = _rows()[:3]
    rows[1]["cluster"] = cluster
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    source = PairSource(name="s", files=(str(tmp_path / "rows.jsonl"),), cluster="cluster")
    with pytest.raises(LongspanError, match="is not the number of a cluster") as refused:
        prepare([source], tmp_path / "data", tiny.make_tokenizer(tmp_path))
    assert "rows.jsonl:2" in str(refused.value.where)


def test_from_the_command_line(data: Path, tmp_path: Path) -> None:
    tiny.make_tokenizer(tmp_path)
    asked = ["prepare", str(data.parent / "rows.jsonl"), "--cluster", "cluster", "--out", str(tmp_path / "data")]
    assert not main([*asked, "--tokenizer", str(tmp_path / "vocab.txt")])
    assert read_manifest(tmp_path / "data/rows").clusters == (30, 21, 13)
