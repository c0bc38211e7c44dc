"""Reports: counts that add up, pages that need nothing else, and texts that cannot break out of them."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.curate import report as module
from longspan.curate.report import (
    Example,
    Histogram,
    Other,
    Report,
    Table,
    evenly,
    score_histogram,
    shortened,
    write_overview,
    write_report,
    write_values,
)

NASTY = '<script>alert("x")</script> & co'

REPORT = Report(
    "filter",
    "a & b",
    {"pairs": 1234567, "part_kept": 0.25, "threshold": None, "kept_at": {"1": 0.5}},
    histograms=(Histogram("Scores", (0.0, 0.5, 1.0), {"own": (3, 1), NASTY: (0, 9)}, {"cut": 0.25, "off": 7.0}),),
    tables=(Table("Places", ("place", "pairs"), (("1", "3"), ("2 to 5", "1"))),),
    examples={"kept": (Example(7, NASTY, "a document", 0.5, 0, (Other("another", 0.25, 9),)),), "dropped": ()},
)


class Page(HTMLParser):
    """Refuses tags that do not match, and anything that is loaded or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.counts: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href"} & {name for name, _ in attrs}
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


def test_a_report_is_json_and_a_page(tmp_path):
    values = write_report(tmp_path, REPORT)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(values))
    assert (values["step"], values["source"], values["pairs"], values["threshold"]) == (
        "filter",
        "a & b",
        1234567,
        None,
    )
    assert values["histograms"][0]["series"]["own"] == (3, 1)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert not page.open
    for text in ("filter: a & b", "1,234,567", NASTY, "a document", "↳ another", "Places", "2 to 5", "kept (1)"):
        assert text in page.text
    assert "dropped (0)" not in page.text
    assert page.counts["svg"] == 1


def test_bars_are_as_high_as_their_part_of_the_series(tmp_path):
    write_report(tmp_path, REPORT)
    text = (tmp_path / "report.html").read_text("utf-8")
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', text)]
    assert heights == pytest.approx([105, 35, 140]), "three bars that are not empty; the highest has the full height"
    assert text.count('class="cut"') == 1, "a mark outside the scores is not drawn"


def test_an_overview_has_every_source(tmp_path):
    other = Report("filter", "other", {**REPORT.facts, "pairs": 5})
    write_overview(tmp_path, "filter", [REPORT, other], ("pairs", "part_kept"))
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["sources"] == {
        "a & b": {"pairs": 1234567, "part_kept": 0.25},
        "other": {"pairs": 5, "part_kept": 0.25},
    }
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert not page.open
    assert page.counts["h2"] == 2


def test_plain_values_are_a_page_of_tables(tmp_path):
    values = {
        "rows": 12345,
        "settings": {"ngram": 5, "columns": {"query": 1.0}},
        "files": [{"file": NASTY, "kept": 7}, {"file": "b", "dropped": 8, "places": [1, 2]}],
        "names": ["one", "two"],
        "nothing": [],
        "candidates": None,
        "lengths": {"mean": 2.5, "histogram": {"up to 8": 0, "up to 16": 3, "up to 32": 1, "beyond": 0}},
        "kinds": {"first": {"pairs": 3}, "second": {"pairs": 4, "left_out": {"too_short": 2}}},
        "benchmarks": {"one": {"texts": {"queries": {"met": 1}}, "examples": [{"row": 5, "text": "met here"}]}},
    }
    write_values(tmp_path, "dedup", values)
    assert json.loads((tmp_path / "report.json").read_text()) == values
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert not page.open
    for text in (
        "dedup",
        "12,345",
        "query: 1",
        NASTY,
        "dropped",
        "1, 2",
        "two",
        "none",
        "up to 16",
        "too short: 2",
        "met here",
    ):
        assert text in page.text
    assert page.counts["rect"] == 2, "bars from the first to the last that there is"
    for text in ("nothing", "up to 8", "beyond", "left_out"):
        assert text not in page.text


def test_a_search_is_told_in_words(tmp_path):
    index = {"exact": False, "num_lists": 400, "num_probes": 8, "recall": 0.987, "num_measured": 1000}
    for search, said in (
        (
            {"exact": True, "screened": True, "ranks_known_to": 20},
            "every document was looked at; ranks are known up to 20",
        ),
        ({"exact": True}, "every document was looked at"),
        (index, "8 of an index's 400 lists, which find 98.7% of the nearest documents (measured on 1,000 queries)"),
    ):
        write_report(tmp_path, Report("mine", "a", {"search": search}))
        assert said in Page((tmp_path / "report.html").read_text("utf-8")).text


@given(st.lists(st.floats(-1, 1, width=32)), st.lists(st.floats(-1, 1, width=32)))
def test_a_histogram_counts_every_score_once(first, second):
    series = {"first": np.array(first, dtype=np.float32), "second": np.array(second, dtype=np.float32)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SCORES_AT_A_TIME", 3)
        histogram = score_histogram("title", series, {"cut": 0.5})
    edges = np.array(histogram.edges)
    for name, scores in series.items():
        counts = histogram.series[name]
        assert sum(counts) == len(scores)
        assert len(counts) == len(edges) - 1
        inner = np.cumsum(counts)[:-1]
        # Edges are rounded, so a score that lies on one may be on either side.
        below = [((scores < edge - 1e-6).sum(), (scores <= edge + 1e-6).sum()) for edge in edges[1:-1]]
        assert all(low <= count <= high for count, (low, high) in zip(inner, below, strict=True))


def test_scores_that_are_not_finite_are_left_out():
    histogram = score_histogram("title", {"one": np.array([0.1, -np.inf, np.nan]), "none": np.array([])})
    assert {name: sum(counts) for name, counts in histogram.series.items()} == {"one": 1, "none": 0}


@given(st.integers(0, 200), st.integers(1, 30))
def test_examples_are_spread_evenly(size, count):
    chosen = evenly(np.arange(size), count).tolist()
    assert len(chosen) == min(size, count) == len(set(chosen))
    assert chosen == sorted(chosen)
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (0, size - 1)
        steps = np.diff(chosen)
        assert steps.max() - steps.min() <= 1


def test_examples_are_excerpts_on_one_line():
    assert shortened("a\n b\tc") == "a b c"
    assert len(shortened("word " * 1000)) == module.EXCERPT
