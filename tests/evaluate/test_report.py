"""Our rows in the paper's tables: the paper's numbers, and what may stand in a cell of ours."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.cli import main
from longspan.errors import LongspanError
from longspan.evaluate.glue import GlueProtocol, GlueResults, SettingScore
from longspan.evaluate.glue_tasks import TASKS
from longspan.evaluate.loco import LocoResults, LocoScore
from longspan.evaluate.loco_sets import V0
from longspan.evaluate.report import build_report, paper_tables, result_files
from longspan.evaluate.report_parts import Plot
from longspan.evaluate.report_text import as_html, as_latex, as_markdown, line_plot
from longspan.files import write_json


def row(number, model, **names):
    names["Model"] = model
    (found,) = [one for one in paper_tables()[number].rows if names.items() <= one.names.items()]
    return list(found.scores.values())


@pytest.mark.parametrize(
    ("number", "model", "names", "scores"),
    [
        ("1", "nomic-embed-text-v1", {"Seq": "8192"}, "62.39 85.53 54.16"),
        ("1", "E5-Mistral-7b-instruct", {"Seq": "4096"}, "66.6 87.8 N/A"),
        ("2", "nomic-bert-2048", {"Steps": "100k"}, "0.50 0.93 0.88 0.90 0.92 0.86 0.92 0.82 0.84"),
        ("2", "MosaicBERT", {"Seq": "128"}, "0.59 0.94 0.89 0.90 0.92 0.86 0.91 0.83 0.85"),
        ("4", "nomic-embed-text-v1", {}, "74.1 43.9 85.2 55.7 52.8 82.1 30.1 62.4"),
        ("4", "BGE-base", {"Params": "110M"}, "75.5 45.8 86.6 58.9 53.3 82.4 31.1 63.6"),
        ("5", "nomic-embed-text-v1", {"Seq": "512"}, "23.9 88.7 70.5 25.3 52.1"),
        ("5", "text-embedding-3-large", {"Seq": "8191"}, "51.6 86.2 77.7 19.3 58.7"),
        ("6", "nomic-embed-text-v1", {"Seq": "8192"}, "90.9 97.8 44.2 94.9 99.9 85.5"),
        ("6", "M2-Bert", {"Seq": "2048"}, "81.8 94.7 58.5 87.3 95.5 83.6"),
    ],
)
def test_the_papers_rows(number, model, names, scores):
    assert row(number, model, **names) == scores.split()


def test_the_papers_tables_are_whole():
    tables = paper_tables()
    assert {number: len(table.rows) for number, table in tables.items()} == {"1": 7, "2": 5, "4": 20, "5": 18, "6": 14}
    assert [len(names) for names in tables["4"].tasks.values()] == [12, 11, 3, 4, 15, 10, 1]
    for number in ("2", "5", "6"):  # a slip of the pen would show: the paper rounds, its averages fit to 0.25
        for one in tables[number].rows:
            *values, average = (float(value) for value in one.scores.values())
            assert average == pytest.approx(sum(values) / len(values), abs=0.25), one


def mteb_summary(tasks):
    scores = {name: {"category": "", "metric": "", "score": score} for name, score in tasks.items()}
    average = sum(tasks.values()) / len(tasks)
    return {"model": "org/ours", "protocol": {"max_length": 512}, "average": average, "categories": {}, "tasks": scores}


def loco(tasks=V0, length=8192, scaling="dynamic"):
    scores = [LocoScore(name, length, scaling, 0.5, (0.4, 0.6), 9, 9, 0, 1.0) for name in tasks]
    return LocoResults("ours", "float32", 2048, 136_700_000, tuple(scores)).as_json()


def ours(report, number):
    table = next(table for table in report.tables if table.number == number)
    return [one for one in table.rows if one.ours]


def test_a_whole_mteb_is_a_row_of_tables_1_and_4(tmp_path):
    names = [name for category in paper_tables()["4"].tasks.values() for name in category]
    write_json(tmp_path / "summary.json", mteb_summary(dict.fromkeys(names, 0.5)))
    report = build_report([tmp_path])
    assert [table.number for table in report.tables] == ["1", "4"]
    assert ours(report, "1")[0].scores == {"MTEB": "50.00"}
    assert ours(report, "4")[0].scores["Avg"] == "50.0"
    assert report.notes == ()


def test_a_part_of_mteb_says_what_part_it_is(tmp_path):
    tasks = {"Banking77Classification": 0.8, "STSBenchmark": 0.9, "NotInThePaper": 0.1}
    write_json(tmp_path / "summary.json", mteb_summary(tasks) | {"protocol": {"max_length": 256}})
    report = build_report([tmp_path])
    assert [table.number for table in report.tables] == ["4"]
    assert ours(report, "4")[0].scores == {"Cls.": "80.0 (1 of 12)", "STS": "90.0 (1 of 10)"}
    assert report.notes == ("ours: MTEB at 256 tokens, the paper's at 512",)


def test_loco_is_in_tables_1_and_6_and_its_scalings_are_rows_and_curves(tmp_path):
    write_json(tmp_path / "a" / "loco.json", loco())
    write_json(tmp_path / "b" / "loco.json", loco(V0[:2], 4096, "none"))
    report = build_report([tmp_path])
    assert ours(report, "1")[0].scores == {"LoCo": "50.00"}
    part, whole = ours(report, "6")  # by length, below the paper's of the same
    assert whole.names == {"Model": "ours", "Seq": "8192", "Params": "137M"}
    assert whole.scores["Avg"] == "50.0"
    assert part.names["Model"] == "ours (none)"
    assert part.scores == {"SummScreenFD": "50.0", "GovReport": "50.0"}
    (plot,) = [plot for plot in report.plots if plot.title == "LoCo: GovReport"]
    curve = plot.series
    assert plot.unit == "tokens"
    assert curve["ours"] == [(8192, 50.0)]
    assert curve["ours (none)"] == [(4096, 50.0)]
    assert curve["nomic-embed-text-v1 (paper)"] == [(2048, 96.9), (4096, 97.4), (8192, 97.8)]


def test_jina_is_in_tables_1_and_5(tmp_path):
    tasks = ("NarrativeQARetrieval", "WikiCitiesClustering", "SciFact", "BigPatentClustering")
    scores = [{"max_length": n, "task": task, "score": n / 10_000} for n in (128, 8191) for task in tasks]
    result = {"suite": "jina-long", "model": "ours", "precision": "int8", "scores": scores}
    write_json(tmp_path / "jina-long.json", result)
    report = build_report([tmp_path])
    assert [(one.names["Seq"], one.scores["Avg"]) for one in ours(report, "5")] == [("128", "1.3"), ("8191", "81.9")]
    assert ours(report, "1")[0].names == {"Model": "ours (int8)"}


def form(length, dim, form, num_bytes, score):
    change = None if (dim, form) == (384, "float32") else {"difference": score - 0.5, "p_value": 0.03}
    return {"max_length": length, "dim": dim, "form": form, "bytes_per_vector": num_bytes, "score": score,
            "interval": [score - 0.1, score + 0.1], "metrics": {}, "change": change}  # fmt: skip


def test_vectors_by_length_dimension_and_form_are_a_table_and_plots(tmp_path):
    scores = [form(128, 384, "float32", 1536, 0.4), form(None, 384, "float32", 1536, 0.5),
              form(None, 96, "float32", 384, 0.45), form(None, 96, "binary", 12, 0.3)]  # fmt: skip
    result = {"suite": "forms", "model": "ours", "precision": "float32", "set": "facts", "queries": 9,
              "documents": 20, "width": 384, "reads": 512, "scores": scores}  # fmt: skip
    write_json(tmp_path / "facts.json", result)
    report = build_report([tmp_path / "facts.json"])
    (one,) = report.tables
    assert one.heading == "facts: 9 queries, 20 documents"
    assert one.cells()[3] == [
        "ours", "512", "96", "binary", "12", "30.00", "20.00 to 40.00", "-20.00", "0.0300",
    ]  # fmt: skip
    assert {plot.unit: plot.series for plot in report.plots} == {
        "tokens": {"ours": [(128, 40.0), (512, 50.0)]},
        "coordinates": {"ours, float32": [(96, 45.0), (384, 50.0)], "ours, binary": [(96, 30.0)]},
        "bytes": {"ours, float32": [(384, 45.0), (1536, 50.0)], "ours, binary": [(12, 30.0)]},
    }
    page = as_html(report)
    for heading in ("Score against sequence length", "Quality against dimension", "Quality against bytes"):
        assert heading in page
    assert "as printed in" not in page + as_markdown(report) + as_latex(report)  # no table of the paper's is there
    write_json(tmp_path / "facts.json", result | {"scores": [{}]})
    with pytest.raises(LongspanError, match="not the results of a suite"):
        build_report([tmp_path / "facts.json"])


def test_mteb_with_cut_vectors_has_a_row_for_each_dimension(tmp_path):
    whole = mteb_summary({"STSBenchmark": 0.9})
    cut = [mteb_summary({"STSBenchmark": score}) | {"protocol": {"max_length": 512, "dim": dim}}
           for dim, score in ((64, 0.7), (128, 0.8))]  # fmt: skip
    write_json(tmp_path / "summary.json", whole | {"width": 256, "by_dim": cut})
    report = build_report([tmp_path])
    assert [(one.names["Model"], one.scores["STS"]) for one in ours(report, "4")] == [
        ("ours", "90.0 (1 of 10)"),
        ("ours, dim 64", "70.0 (1 of 10)"),
        ("ours, dim 128", "80.0 (1 of 10)"),
    ]
    assert [plot.series for plot in report.plots] == [{"ours, 1 task": [(64, 70.0), (128, 80.0), (256, 90.0)]}]


def test_glue_is_in_table_2_with_its_deviations(tmp_path):
    settings = dict.fromkeys(TASKS, (SettingScore(16, 1e-5, (0.25, 0.75, 0.5)),))
    protocol = GlueProtocol(epochs=3)
    write_json(tmp_path / "glue.json", GlueResults("ours", 2048, protocol, settings).as_json())
    report = build_report([tmp_path])
    assert set(ours(report, "2")[0].scores.values()) == {"0.50"}
    assert list(ours(report, "2")[0].scores) == list(paper_tables()["2"].scores)
    assert report.notes == ("ours: GLUE epochs 3, the paper's 10",)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"suite": "chess", "model": "m"}, "there is no suite 'chess'"),
        ({"model": "m"}, "KeyError: 'tasks'"),
        ([], "not the results of a suite"),
    ],
)
def test_what_is_not_a_result_is_refused(tmp_path, content, what):
    write_json(tmp_path / "loco.json", content)
    with pytest.raises(LongspanError, match=re.escape(what)):
        build_report([tmp_path])


def test_a_folder_without_results_is_named(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(LongspanError, match="no results of a suite"):
            result_files(place)


def test_lengths_of_jina_are_not_results_of_their_own(tmp_path):
    for name in ("jina-long.json", "128/summary.json"):
        write_json(tmp_path / name, {})
    assert result_files(tmp_path) == [tmp_path / "jina-long.json"]


@given(st.dictionaries(st.text(min_size=1), st.lists(st.tuples(st.integers(1, 9000), st.floats(0, 100)), min_size=1),
                       min_size=1, max_size=4))  # fmt: skip
def test_a_plot_stays_within_its_frame(series):
    for x, y in re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', line_plot(Plot("t", "bytes", series))):
        assert -0.1 <= float(x) <= 380.1
        assert -0.1 <= float(y) <= 200.1


def test_a_run_is_another_report(tmp_path, capsys):
    write_json(tmp_path / "run" / "run.json", {})
    for arguments, what in (
        ([tmp_path / "run", tmp_path], "a run is reported by itself"),
        ([tmp_path / "run", "--format", "latex"], "a run is reported as html, not as latex"),
        ([tmp_path / "run"], "run.json"),  # read as a run, and found broken
    ):
        assert main(["report", *map(str, arguments)]) == 2
        assert what in capsys.readouterr().err


def test_a_models_results_are_joined_in_table_1_by_the_last_part_of_its_name(tmp_path):
    names = [name for category in paper_tables()["4"].tasks.values() for name in category]
    write_json(tmp_path / "a" / "summary.json", mteb_summary(dict.fromkeys(names, 0.25)) | {"model": "local/finetune"})
    write_json(tmp_path / "b" / "loco.json", loco() | {"model": "/somewhere/runs/finetune"})
    (joined,) = ours(build_report([tmp_path]), "1")
    assert (joined.names, joined.scores) == ({"Model": "finetune"}, {"MTEB": "25.00", "LoCo": "50.00"})
    write_json(tmp_path / "c" / "summary.json", mteb_summary(dict.fromkeys(names, 0.5)) | {"model": "x/finetune"})
    with pytest.raises(LongspanError, match=r"two scores of MTEB for a model called finetune: 25.00 and 50.00"):
        build_report([tmp_path])


def test_markdown_html_and_latex(tmp_path, capsys):
    write_json(tmp_path / "loco.json", loco() | {"model": "a_b<c>|d"})
    report = build_report([tmp_path])
    assert r"| **a_b<c>\|d** | **8192** | **137M** |" in as_markdown(report)
    page = as_html(report)
    assert page.count("<svg") == 6
    assert "a_b&lt;c&gt;|d" in page
    assert "a_b<c>" not in page
    assert r"\textbf{a\_b<c>|d} & \textbf{8192}" in as_latex(report)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == as_markdown(report)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.tex")]) == 0
    assert (tmp_path / "r.tex").read_text() == as_latex(report)
    assert main(["report", str(tmp_path), "--format", "html", "--out", str(tmp_path / "r")]) == 0
    assert (tmp_path / "r").read_text() == page
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert json.loads((tmp_path / "loco.json").read_text())["suite"] == "loco"
