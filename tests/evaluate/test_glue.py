"""GLUE: a trial learns and is kept, and a sweep is the paper's, resumable, and says where it is not."""

import dataclasses
import json
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from longspan.errors import LongspanError
from longspan.evaluate import glue
from longspan.evaluate.glue import QUICK, SUMMARY, GlueProtocol, GlueResults, SettingScore, run_glue
from longspan.evaluate.glue_tasks import TASKS
from longspan.evaluate.glue_trial import METRICS, SCORE, WEIGHTS, Trial, TrialConfig, pair_ids, run_trial
from longspan.files import write_json_lines

TINY = GlueProtocol(batch_sizes=(8,), lrs=(1e-3,), seeds=(0,), epochs=1, max_length=24, from_mnli=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_embedder, small_encoder, small_tokenizer):
    folder = tmp_path_factory.mktemp("model") / "small"
    encoder = small_encoder(width=32, inner_width=32, rope_scaling="none")
    type(small_embedder)(encoder, small_tokenizer, small_embedder.config, device="cpu").save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """cola: does the text speak of a fox? rte and mnli: do both texts say the same?"""
    folder = tmp_path_factory.mktemp("glue")
    words = "quick brown fox jumps over lazy dogs area".split()
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, 3)) for _ in range(48)]
    single = [{"sentence": text, "label": int("fox" in text)} for text in texts]
    pairs = [(text, text if n % 2 else texts[n - 1], n % 2) for n, text in enumerate(texts)]
    rte = [{"sentence1": one, "sentence2": other, "label": label} for one, other, label in pairs]
    mnli = [{"premise": one, "hypothesis": other, "label": label} for one, other, label in pairs]
    for task, rows, split in (("cola", single, "validation"), ("rte", rte, "validation"),
                              ("mnli", mnli, "validation_matched")):  # fmt: skip
        write_json_lines(folder / task / "train.jsonl", rows)
        write_json_lines(folder / task / f"{split}.jsonl", rows[:16])
    return folder


def trial(model, data, folder, **changes):
    settings = {"task": "cola", "batch_size": 8, "lr": 3e-3, "seed": 0, "epochs": 2, "max_length": 24}
    return Trial(TrialConfig(**(settings | changes)), folder, model, data)


def test_a_trial_learns_and_is_a_folder(model, data, tmp_path):
    steps = []
    one = trial(model, data, tmp_path / "one", epochs=6)
    score = run_trial(one, "cpu", lambda step, total: steps.append((step, total)))
    assert score > 0.8
    assert steps == [(n + 1, 36) for n in range(36)]
    metrics = [json.loads(line) for line in (tmp_path / "one" / METRICS).read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == list(range(1, 7))
    assert metrics[-1]["loss"] < metrics[0]["loss"] / 2
    assert metrics[-1]["score"] == score  # the last epoch's, not the best
    assert json.loads((tmp_path / "one" / SCORE).read_text())["score"] == score


def test_a_finished_trial_is_read_and_another_is_not(model, data, tmp_path):
    one = trial(model, data, tmp_path)
    score, steps = run_trial(one, "cpu"), []
    assert run_trial(one, "cpu", lambda *step: steps.append(step)) == score
    assert not steps
    other = dataclasses.replace(one, config=one.config.model_copy(update={"seed": 1}))
    run_trial(other, "cpu", lambda *step: steps.append(step))
    assert len(steps) == 12


def test_the_same_seed_gives_the_same_trial(model, data, tmp_path):
    losses = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run_trial(trial(model, data, tmp_path / name, seed=seed, epochs=1), "cpu")
        losses.append(json.loads((tmp_path / name / METRICS).read_text())["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_not_finite_is_refused(model, data, tmp_path):
    with pytest.raises(LongspanError, match="the loss is"):
        run_trial(trial(model, data, tmp_path, lr=1e38), "cpu")
    assert not (tmp_path / SCORE).exists()


@given(st.integers(1, 40), st.integers(0, 40), st.integers(5, 40))
def test_a_pair_is_cut_at_the_longer_text(small_tokenizer, num_first, num_second, max_length):
    first, second = np.full(num_first, 7), np.full(num_second, 8) if num_second else None
    ids, num_first_segment = pair_ids(small_tokenizer, first, second, max_length)
    specials = 2 if second is None else 3
    assert len(ids) == min(max_length, num_first + num_second + specials)
    assert ids[0] == small_tokenizer.cls_id
    assert ids[-1] == ids[num_first_segment - 1] == small_tokenizer.sep_id
    kept_first, kept_second = int((ids == 7).sum()), int((ids == 8).sum())
    assert num_first_segment == kept_first + 2
    if second is not None and (kept_first < num_first or kept_second < num_second):
        assert kept_first == num_first or kept_first >= kept_second - 1
        assert kept_second == num_second or kept_second >= kept_first - 1


def test_the_papers_protocol_is_30_trials():
    trials = GlueProtocol().trials("rte")
    assert len({one.name for one in trials}) == 30
    assert {one.epochs for one in trials} == {10}
    assert GlueProtocol().deviations() == []
    assert "GLUE seeds 0, the paper's 0, 1, 2, 3, 4" in QUICK.deviations()


@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_score_is_the_best_median_over_seeds(rows):
    settings = tuple(SettingScore(16, 1e-5 * (n + 1), tuple(scores)) for n, scores in enumerate(rows))
    results = GlueResults("m", 128, GlueProtocol(), {"cola": settings})
    assert results.best("cola").median == max(statistics.median(scores) for scores in rows)
    assert results.average() is None
    whole = GlueResults("m", 128, GlueProtocol(), dict.fromkeys(TASKS, settings))
    assert whole.average() == pytest.approx(results.best("cola").median)


def test_rte_starts_from_the_best_mnli_trial_and_a_sweep_goes_on(model, data, tmp_path, monkeypatch):
    protocol = TINY.model_copy(update={"from_mnli": True, "lrs": (1e-3, 1e-4)})
    began = []

    def dies(one, device, advance=None):
        began.append(one)
        if len(began) == 3:
            raise KeyboardInterrupt
        return run_trial(one, device, advance)

    with monkeypatch.context() as patch:
        patch.setattr(glue, "run_trial", dies)
        with pytest.raises(KeyboardInterrupt):
            run_glue(model, tmp_path, data=data, tasks=["rte"], protocol=protocol, devices=["cpu"])
    told = []
    results = run_glue(
        model, tmp_path, data=data, tasks=["rte"], protocol=protocol, devices=["cpu"],
        progress=lambda *what: told.append(what),
    )  # fmt: skip
    assert list(results.settings) == ["mnli", "rte"]
    assert {what for what, _, _ in told} == {"rte b8-lr0.001-s0", "rte b8-lr0.0001-s0"}  # MNLI was finished
    kept = list(tmp_path.glob(f"*/*/{WEIGHTS}"))
    assert [path.parent.parent.name for path in kept] == ["mnli"]
    assert began[2].start == kept[0]
    best = results.best("mnli")
    assert kept[0].parent.name == f"b8-lr{best.lr:g}-s0"
    assert load_file(kept[0])
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert summary["tasks"]["rte"]["score"] == results.best("rte").median
    assert summary["average"] is None


def test_missing_tasks_are_named_before_anything_is_trained(model, data, tmp_path):
    with pytest.raises(LongspanError, match="sst2, mrpc, stsb, qqp, qnli is not there") as caught:
        run_glue(model, tmp_path, data=data)
    assert "--tasks cola,mnli,rte" in caught.value.remedy
    (tmp_path / "rte").mkdir()
    with pytest.raises(LongspanError, match="GLUE's mnli is not there") as caught:
        run_glue(model, tmp_path, data=tmp_path, tasks=["rte"])
    assert "--no-mnli" in caught.value.remedy
