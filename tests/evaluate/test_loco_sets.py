"""Sets of LoCo on disk: which layouts are read, and what is refused."""

import json
import re
from pathlib import Path

import pytest

from longspan.errors import LongspanError
from longspan.evaluate.loco_sets import V0, V1, load_loco
from longspan.files import write_json_lines, write_text


def beir(folder: Path, text: str = "a long text") -> None:
    write_json_lines(folder / "corpus.jsonl", [{"_id": "d", "text": text}])
    write_json_lines(folder / "queries.jsonl", [{"_id": "q", "text": "short"}])
    write_text(folder / "qrels.tsv", "query-id\tcorpus-id\tscore\nq\td\t1\n")


def paper() -> dict[str, object]:
    return {
        "title": "On foxes",
        "abstract": "Foxes jump.",
        "full_text": {"section_name": ["Intro", None], "paragraphs": [["They run.", "Fast."], ["The end."]]},
    }


def test_v0_from_a_beir_folder_from_scrolls_rows_and_from_qasper_rows(tmp_path):
    beir(tmp_path / "QMSum")
    same = {"input": "a report", "output": "its summary"}
    write_json_lines(tmp_path / "gov-report" / "validation.jsonl", [same, same])
    write_json_lines(tmp_path / "gov-report" / "train.jsonl", [{"input": "unused", "output": "unused"}])
    write_json_lines(tmp_path / "summ_screen_fd" / "validation.jsonl", [same])
    write_json_lines(tmp_path / "qasper" / "test.jsonl", [paper()])
    sets = {one.name: one for one in load_loco(tmp_path)}
    assert tuple(sets) == V0
    assert sets["qmsum"].corpus == {"d": "a long text"}
    # As in the published evaluation a row is a passage of its own, even where another row has the same text.
    assert sets["gov_report"].corpus == {"Passage_0": "a report", "Passage_1": "a report"}
    assert sets["gov_report"].qrels["Query_1"] == {"Passage_1": 1.0}
    assert sets["qasper_title"].queries == {"Query_0": "On foxes"}
    assert sets["qasper_abstract"].queries == {"Query_0": "Foxes jump."}
    assert sets["qasper_title"].corpus == {"Passage_0": "Intro\nThey run. Fast.\nThe end."}


def test_v1_from_its_two_tables(tmp_path):
    queries = [{"dataset": name, "qid": f"{name}_q", "query": "who", "answer_pids": [f"{name}_1"]} for name in V1]
    documents = [{"dataset": name, "pid": f"{name}_{n}", "passage": f"text {n}"} for name in V1 for n in range(2)]
    write_json_lines(tmp_path / "LoCoV1-Queries" / "test.jsonl", queries)
    write_json_lines(tmp_path / "LoCoV1-Documents" / "test.jsonl", documents)
    sets = load_loco(tmp_path)
    assert tuple(one.name for one in sets) == V1
    assert sets[-1].qrels == {"stackoverflow_q": {"stackoverflow_1": 1.0}}
    assert len(sets[-1].corpus) == 2
    with pytest.raises(LongspanError, match="no set qmsun") as caught:
        load_loco(tmp_path, ["qmsun"])
    assert "2wikimqa" in caught.value.remedy
    write_json_lines(tmp_path / "LoCoV1-Queries" / "test.jsonl", [queries[0] | {"answer_pids": "d"}])
    with pytest.raises(LongspanError, match="answer_pids is not a list"):
        load_loco(tmp_path)


def test_a_missing_folder_and_missing_sets_are_named(tmp_path):
    with pytest.raises(LongspanError, match="folder of LoCo is not there"):
        load_loco(tmp_path / "nowhere")
    beir(tmp_path / "qmsum")
    with pytest.raises(LongspanError, match="no set summ_screen_fd, gov_report, qasper_title") as caught:
        load_loco(tmp_path)
    assert "--tasks qmsum" in caught.value.remedy
    assert [one.name for one in load_loco(tmp_path, ["qmsum"])] == ["qmsum"]


def test_any_beir_folder_can_be_named(tmp_path):
    beir(tmp_path / "big_patent")
    assert [one.name for one in load_loco(tmp_path, ["big_patent"])] == ["big_patent"]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"input": "text"}, "no text under 'output'"),
        ({"input": " ", "output": "summary"}, "no text under 'input'"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path, row, what):
    write_json_lines(tmp_path / "qmsum" / "validation.jsonl", [{"input": "a", "output": "b"}, row])
    with pytest.raises(LongspanError, match=re.escape(what)) as caught:
        load_loco(tmp_path, ["qmsum"])
    assert caught.value.where.endswith("validation.jsonl:2")


def test_a_paper_without_sections_is_refused(tmp_path):
    write_json_lines(tmp_path / "qasper" / "test.jsonl", [paper() | {"full_text": {"section_name": ["one"]}}])
    with pytest.raises(LongspanError, match="full_text has no section_name and paragraphs"):
        load_loco(tmp_path, ["qasper_title"])


@pytest.mark.shared_data
def test_the_shared_sets_are_read(shared_data):
    (qmsum,) = load_loco(shared_data / "longcontext", ["qmsum"])
    assert (len(qmsum.queries), len(qmsum.corpus)) == (272, 35)
    assert json.dumps(qmsum.qrels).count("1.0") == 272
