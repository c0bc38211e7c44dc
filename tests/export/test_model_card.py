"""The card tells what is known, from the files that know it, and leaves out what nobody knows."""

import pytest

from longspan.data.manifest import read_manifest
from longspan.data.prepare import prepare
from longspan.data.source import PairSource
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export.history import is_run, read_history
from longspan.export.model_card import CardFacts, read_results
from longspan.export.publish import publish
from longspan.files import sha256_file, write_json, write_text
from longspan.model.config import EmbeddingConfig
from longspan.recipes.contrastive import contrastive
from longspan.text.tasks import PREFIXES
from longspan.train.loop import start
from longspan.train.run import Run


@pytest.fixture(scope="module")
def runs(small_tokenizer, tmp_path_factory):
    """Two short runs, the second from the first, on a prepared source with a licence."""
    folder = tmp_path_factory.mktemp("runs")
    rows = "".join(f'{{"query": "quick fox {n}", "document": "the lazy dog {n}"}}\n' for n in range(24))
    write_text(folder / "pairs.jsonl", rows)
    source = PairSource(name="foxes", files=(str(folder / "pairs.jsonl"),), licence="CC-BY-4.0")
    prepare([source], folder / "data", small_tokenizer, workers=1)
    encoder = {"width": 32, "num_layers": 1, "num_heads": 2, "inner_width": 32, "trained_length": 64, "max_length": 128}
    small = {"batch_size": 8, "max_steps": 2, "max_length": 128, "precision": "fp32"}
    second = contrastive(str(folder / "data"), str(folder / "first")).replace(small, where="a test")
    start(second.replace({"init": None, "encoder": encoder}, where="a test"), folder / "first")
    start(second, folder / "second")
    return folder


def card_of(embedder, folder, **facts):
    publish(embedder, folder, facts=CardFacts(**facts))
    return (folder / "README.md").read_text("utf-8")


def test_the_card_says_how_to_use_the_model(small_embedder, tmp_path):
    card = card_of(small_embedder, tmp_path / "model", body="By a test.")
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    assert "longspan, nomic_bert]" in card
    assert "license" not in card
    for task, prefix in PREFIXES.items():
        assert f"- `{task}`: `{prefix}`" in card
        assert f"""model.encode(["how do I read a file?"], prompt_name='{task}')""" in card
        assert f"""embedder.embed(["how do I read a file?"], task='{task}')""" in card
    num_parameters = sum(w.numel() for w in small_embedder.model.encoder.state_dict().values())
    assert f"{num_parameters:,} parameters, 64 dimensions" in card
    assert "up to 128 tokens\n(32 in training, dynamic NTK beyond), mean pooling" in card
    assert "\n\nBy a test.\n\n" in card
    assert "Texts past 32 tokens are read with dynamic NTK." in card


def test_the_card_of_a_model_without_tasks(small_encoder, small_tokenizer, tmp_path):
    encoder = small_encoder(positions="learned", activation="gelu", bias=True, trained_length=128)
    card = card_of(
        Embedder(encoder, small_tokenizer, EmbeddingConfig(max_length=128), device="cpu"), tmp_path / "model"
    )
    assert "Texts need no prefix." in card
    assert 'model.encode(["how do I read a file?"])' in card
    assert "prompt_name" not in card
    assert "dynamic NTK" not in card


def test_a_card_without_history_has_no_empty_tables(small_embedder, tmp_path):
    card = card_of(small_embedder, tmp_path / "model")
    assert [line for line in card.splitlines() if line.startswith("## ")] == ["## Limits", "## Files"]


def test_every_file_is_hashed(small_embedder, tmp_path):
    card = card_of(small_embedder, tmp_path / "model")
    for path in (tmp_path / "model").rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert f"`{sha256_file(path)}`" in card, path.name
    assert small_embedder.fingerprint in card


def test_the_card_tells_the_runs_and_their_data(runs, tmp_path):
    assert is_run(runs / "second")
    assert not is_run(runs / "second" / "model")
    history = read_history(runs / "second")
    card = card_of(Embedder.load(runs / "second"), tmp_path / "model", history=history, licence="apache-2.0")
    assert "license: apache-2.0" in card
    foxes = read_manifest(runs / "data" / "foxes")
    counts = f"{foxes.num_rows:,} | {sum(foxes.num_tokens.values()):,}"
    row = f"| contrastive | foxes | {counts} | search_query / search_document"
    assert card.count(f"{row} | CC-BY-4.0 | ") == 2
    for name, origin in (("first", "random weights"), ("second", "`first`")):
        run = Run(runs / name)
        assert f"from {origin}, seed 0" in card
        assert sha256_file(run.model / "model.safetensors") in card
        assert run.settings.data_fingerprint in card
    assert "2 steps of 8 rows, precision fp32" in card
    assert str(runs) not in card.partition("## Training")[2]  # no place on this machine


def test_data_that_is_gone_or_other_is_not_told(runs, tmp_path):
    manifest = runs / "data" / "foxes" / "manifest.json"
    aside = manifest.rename(tmp_path / "aside.json")
    try:
        assert [stage.sources for stage in read_history(runs / "second")] == [None, None]
        card = card_of(Embedder.load(runs / "second"), tmp_path / "model", history=read_history(runs / "second"))
    finally:
        aside.rename(manifest)
    assert card.count("| contrastive | not at hand when this card was written |") == 2


def test_results_are_those_of_evaluate(small_embedder, tmp_path):
    result = {"name": "scifact", "metrics": {"ndcg@10": 0.70312, "map": 0.5, "hits@1": 1.0}}
    write_json(tmp_path / "r.json", {"runs/fine": result, "BM25": {"name": "scifact", "metrics": {"ndcg@10": 0.6}}})
    card = card_of(small_embedder, tmp_path / "model", results=read_results([tmp_path / "r.json"]))
    assert "| set: model | ndcg@10 | map |" in card
    assert "| scifact: runs/fine | 0.7031 | 0.5000 |" in card
    assert "| scifact: BM25 | 0.6000 |  |" in card


@pytest.mark.parametrize("content", [[], {"model": 1}, {"model": {"name": "x"}}])
def test_other_files_are_not_results(tmp_path, content):
    write_json(tmp_path / "r.json", content)
    with pytest.raises(LongspanError, match="this is not a file of results"):
        read_results([tmp_path / "r.json"])
