"""The whole way at a tiny size: an untrained model learns to find what a corpus of made-up words says."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from longspan.adapt.report import write_report
from longspan.adapt.road import ADAPTED, GUARD, HELD_OUT, ORIGINAL, Adaptation, AdaptConfig, decide
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.significance import PairedTest
from longspan.model.config import EmbeddingConfig
from longspan.model.encoder import Encoder, initialize
from longspan.stages import Done, run_stages
from tests.train.tiny import ENCODER, WORDS, make_tokenizer

TRAINING = {"optim.lr": "0.005", "epochs": "2", "batch_size": "12", "checkpoint_every": "3"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An untrained model that reads plain text, as many published ones do."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer(folder / "vocabulary")
    encoder = Encoder(ENCODER.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    initialize(encoder, 0)
    Embedder(encoder, tokenizer, EmbeddingConfig(max_length=48, pooling="cls")).save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Questions whose answers repeat two of their words."""
    draw = random.Random(0)
    rows = []
    for _ in range(60):
        query = draw.sample(WORDS[:60], 3)
        document = [*draw.sample(WORDS[:60], 4), *query[:2]]
        draw.shuffle(document)
        rows.append({"query": " ".join(query), "document": " ".join(document)})
    file = tmp_path_factory.mktemp("pairs") / "faq.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config(model: Path, pairs: Path, **changes: Any) -> AdaptConfig:
    values = {"model": str(model), "data": str(pairs), "guard": str(pairs), "training": TRAINING} | changes
    return AdaptConfig.parse(values, where="test")


def go(adaptation: Adaptation) -> dict[str, Done]:
    return run_stages(adaptation.stages(), adaptation.out, adaptation.console)


@pytest.fixture(scope="module")
def finished(model, pairs, tmp_path_factory) -> tuple[Adaptation, dict[str, Done]]:
    adaptation = Adaptation(config(model, pairs), tmp_path_factory.mktemp("out") / "adapted", Console(quiet=True))
    return adaptation, go(adaptation)


def test_every_stage_leaves_its_work(finished, model):
    adaptation, done = finished
    held = done["hold-out"].result
    assert held["train"] + held["held_out_queries"] == held["pairs"] == 60
    settings = done["train"].result["settings"]
    assert settings["prefixes"] == {}, "a model without prefixes is trained without them"
    assert settings["objective"]["pooling"] == "cls"
    assert settings["max_length"] == 48
    assert settings["optim"]["lr"] == 0.005
    scores = {name: done[name].result[HELD_OUT]["metrics"]["ndcg@10"] for name in ("before", "after")}
    verdict = done["publish"].result
    test = verdict["comparisons"][HELD_OUT]
    assert test["difference"] == pytest.approx(scores["after"] - scores["before"])
    kept = Embedder.load(adaptation.published, device="cpu")
    expected = (
        adaptation.adapted(verdict["blend"]) if verdict["kept"] == ADAPTED else Embedder.load(model, device="cpu")
    )
    assert kept.config == expected.config
    assert kept.fingerprint == expected.fingerprint
    assert not adaptation.cache.exists()


def test_at_bfloat16_all_but_the_published_weights_are_rounded(model, pairs, tmp_path):
    settings = config(model, pairs, precision="bfloat16", guard=None, blend=0.5, training=TRAINING | {"epochs": "1"})
    adaptation = Adaptation(settings, tmp_path / "adapted", Console(quiet=True))
    done = go(adaptation)
    assert done["train"].result["settings"]["precision"] == "bf16"
    kept = Embedder.load(adaptation.published, device="cpu")
    is_adapted = done["publish"].result["kept"] == ADAPTED
    expected = adaptation.adapted(0.5) if is_adapted else adaptation.original
    assert kept.fingerprint == expected.fingerprint
    weights = kept.exact_encoder().embeddings.tokens.weight
    assert not weights.equal(weights.bfloat16().float())


def test_report_says_what_was_measured(finished):
    adaptation, done = finished
    page = write_report(done, adaptation, Console(quiet=True)).read_text()
    for name in ("before", "after"):
        for which in (HELD_OUT, GUARD):
            assert f"{done[name].result[which]['metrics']['ndcg@10']:.4f}" in page
    assert "<polyline" in page
    results = json.loads((adaptation.out / "results.json").read_text())
    assert results["results"]["publish"]["kept"] in page
    assert "| held-out (" in (adaptation.out / "report.md").read_text()


def test_a_kill_in_any_stage_changes_nothing(finished, model, pairs, tmp_path, monkeypatch):
    """Each stage is cut off once after its work, before it is marked as done; then all goes on to the same weights."""
    _, done = finished
    adaptation = Adaptation(config(model, pairs), tmp_path / "adapted", Console(quiet=True))
    for name in done:
        stages = adaptation.stages()
        [number] = [n for n, stage in enumerate(stages) if stage.name == name]
        work = stages[number].work

        def killed(work=work):
            work()
            raise KeyboardInterrupt

        object.__setattr__(stages[number], "work", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stages(stages, adaptation.out, adaptation.console)
    again = go(adaptation)
    assert again["train"].result["model_sha256"] == done["train"].result["model_sha256"]
    assert again["publish"].result == done["publish"].result


def test_other_settings_are_refused(finished, model, pairs):
    adaptation, _ = finished
    other = Adaptation(config(model, pairs, part=0.3), adaptation.out, Console(quiet=True))
    with pytest.raises(LongspanError, match="other settings"):
        go(other)


def test_unknown_settings_are_told_before_any_work(model, pairs, tmp_path):
    adaptation = Adaptation(config(model, pairs, training={"optim.rate": "1"}), tmp_path / "out", Console(quiet=True))
    with pytest.raises(LongspanError, match=r"optim\.rate"):
        adaptation.stages()
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(model, pairs, tmp_path):
    precious = tmp_path / "data" / "train.jsonl"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(LongspanError, match="made by something else"):
        Adaptation(config(model, pairs), tmp_path, Console(quiet=True)).stages()
    assert precious.read_text() == "years of work"


def test_a_model_without_the_tasks_of_search_is_refused(model, pairs, tmp_path):
    embedder = Embedder.load(model, device="cpu").with_settings(prefixes={"clustering": "_: "})
    embedder.save(tmp_path / "model")
    with pytest.raises(LongspanError, match="search_query"):
        Adaptation(config(tmp_path / "model", pairs), tmp_path / "out", Console(quiet=True))


def test_blend_is_the_average_of_the_weights(finished):
    adaptation, _ = finished
    old, new, mean = (
        one.model.encoder.state_dict()
        for one in (adaptation.original, adaptation.adapted(1.0), adaptation.adapted(0.25))
    )
    assert any(not old[name].equal(new[name]) for name in old)
    for name in old:
        assert mean[name].allclose(0.75 * old[name] + 0.25 * new[name], atol=1e-6)


def test_less_is_blended_in_until_the_guard_is_safe(finished, monkeypatch):
    """The guard falls by a tenth of the part of the trained weights: 1 and 0.5 lose more than 0.03, 0.25 does not."""
    adaptation, _ = finished
    monkeypatch.setattr(adaptation, "config", adaptation.config.replace({"most_lost": 0.03}, where="test"))
    monkeypatch.setattr(adaptation, "adapted", lambda blend, precision: blend)
    before = json.loads((adaptation.out / "before.json").read_text())

    def fallen(blend: float) -> dict[str, Any]:
        guard = before[GUARD]["metrics"] | {"ndcg@10": before[GUARD]["metrics"]["ndcg@10"] - 0.1 * blend}
        return before | {GUARD: before[GUARD] | {"metrics": guard}}

    monkeypatch.setattr(adaptation, "_measure", fallen)
    kept = (adaptation.out / "after.json").read_text()
    result = adaptation.measure_after()
    (adaptation.out / "after.json").write_text(kept)
    assert [one["blend"] for one in result["tried"]] == [1.0, 0.5, 0.25]
    assert result["blend"] == 0.25


def comparison(difference: float, low: float) -> PairedTest:
    return PairedTest(difference, (low, difference + 0.1), 0.5, 1, 1, 10)


@pytest.mark.parametrize(
    ("held_out", "guard", "kept", "says"),
    [
        (comparison(0.05, 0.01), None, ADAPTED, "+0.050"),
        (comparison(0.05, -0.01), None, ADAPTED, "chance"),
        (comparison(0.0, -0.01), None, ORIGINAL, "not better"),
        (comparison(0.05, 0.01), comparison(-0.009, -0.02), ADAPTED, "+0.050"),
        (comparison(0.05, 0.01), comparison(-0.011, -0.02), ORIGINAL, "--blend"),
    ],
)
def test_the_better_model_is_kept(held_out, guard, kept, says):
    tests = {HELD_OUT: held_out} | ({GUARD: guard} if guard else {})
    chosen, why = decide(tests, most_lost=0.01)
    assert chosen == kept
    assert says in why
