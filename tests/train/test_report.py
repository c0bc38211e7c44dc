"""The page of a run shows its curves, its data, its machine, its settings and what it read."""

import json
import re

import pytest

from longspan.errors import LongspanError
from longspan.train.loop import start
from longspan.train.report import curves, write_report
from tests.train import tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    pairs = tiny.contrastive_config(tiny.prepare_pairs(folder / "pairs"), max_steps=4)
    text = tiny.masked_config(tiny.prepare_text(folder / "text"), max_steps=2)
    return {"pairs": start(pairs, folder / "a", device="cpu"), "text": start(text, folder / "b", device="cpu")}


def test_page_of_a_contrastive_run(runs, tmp_path):
    run = runs["pairs"]
    page = write_report(run.folder, tmp_path / "report.html").read_text()
    for title in ("loss", "accuracy", "learning rate", "gradient norm", "tokens per second"):
        assert f"<figcaption>{title}, at the end" in page
    steps = {name: re.search(rf'class="name">{name}</td><td>(\d+)</td>', page) for name in ("first", "second")}
    assert sum(int(found[1]) for found in steps.values() if found) == 4, "every step is of one source"
    assert "search_query: " in page
    assert "negative 1" in page
    assert "objective.temperature" in page
    environment = json.loads((run.folder / "environment.jsonl").read_text().splitlines()[0])
    assert environment["torch"] in page
    assert "finished: step 4 of 4" in page
    tokens = sum(row["tokens"] for row in run.logged())
    assert f'tokens read</td><td class="name">{tokens:,}</td>' in page
    assert "<script" not in page


def test_page_of_a_masked_run(runs, tmp_path):
    page = write_report(runs["text"].folder, tmp_path / "report.html").read_text()
    assert "[MASK]" in page or "[mask]" in page
    assert "What it learnt from" not in page, "a packed row crosses sources"


def test_page_of_a_run_whose_data_is_gone(runs, tmp_path):
    run = runs["text"]
    values = json.loads((run.folder / "run.json").read_text())
    values["config"]["data"] = str(tmp_path / "gone")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(values))
    page = write_report(tmp_path / "run", tmp_path / "report.html").read_text()
    assert "gives no samples" in page
    assert "not finished: step 0 of 2" in page
    assert "No step is logged yet" in page


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(LongspanError):
        write_report(tmp_path, tmp_path / "report.html")


def test_curves_leave_out_what_is_not_a_number_and_thin_long_ones():
    logged = [{"step": n, "loss": None if n == 3 else float(n), "eval/x/ndcg": 0.5} for n in range(1, 5001)]
    drawn = curves(logged)
    assert drawn.count("<figure>") == 2
    points = re.findall(r'points="([^"]*)"', drawn)
    assert all(len(one.split()) <= 400 for one in points)
    assert "at the end 0.5" in drawn
    assert curves([]) == ""


def test_a_single_point_is_a_dot_and_a_long_curve_has_its_mean_over_it():
    assert "<circle" in curves([{"step": 7, "loss": 1.0}])
    few, many = (curves([{"step": n, "loss": float(n % 2)} for n in range(count)]) for count in (10, 100))
    assert (few.count("<polyline"), many.count("<polyline")) == (1, 2)
    smooth = [float(point.split(",")[1]) for point in re.findall(r'points="([^"]*)"', many)[1].split()]
    assert max(smooth[5:]) - min(smooth[5:]) < 30, "of 120: the mean hardly moves where the points jump from end to end"
