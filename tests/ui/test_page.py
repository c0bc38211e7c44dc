"""The page in a real browser: type a query, see results and the map, and hear no complaint."""

import pytest

from longspan.search import Index, Passage
from longspan.ui.corpus import Corpus, by_source
from longspan.ui.layout import lay_out
from longspan.ui.routes import PAGE_PATHS, search_page
from tests.serve.conftest import running
from tests.ui.browser import KEYS, browsing

LONG = "Padding that says nothing. " * 30
PASSAGES = by_source(
    [Passage(f"{source}.md:{n}", f"{LONG}{word} number {n} 😀 lives here.", source)
     for source, words in (("animals.md", ("fox", "dog", "cat")), ("plants.md", ("oak", "fern")))
     for n, word in enumerate(words)]
)  # fmt: skip
READY = "return document.getElementById('source-list').children.length > 0"
HITS = "return document.querySelectorAll('.hit').length"
PIXELS = """
const map = document.getElementById('map'), copy = new OffscreenCanvas(map.width, map.height);
const context = copy.getContext('2d', { willReadFrequently: true });
context.drawImage(map, 0, 0);
const values = context.getImageData(0, 0, copy.width, copy.height).data;
const seen = new Set();
for (let i = 0; i < values.length; i += 4) if (values[i + 3] > 200) seen.add(values.slice(i, i + 3).join());
return seen.size;
"""


@pytest.fixture(scope="module")
def corpus(small_embedder):
    index = Index.build(small_embedder, PASSAGES)
    return Corpus(index, lay_out(index.vectors_MD))


@pytest.fixture(scope="module")
def browser():
    with browsing() as made:
        made.size(1280, 860)
        yield made


@pytest.mark.slow
def test_search_in_a_browser(browser, corpus, small_embedder):
    with running({"m": small_embedder}, mounts=[search_page(corpus, "m")], open_paths=PAGE_PATHS) as server:
        browser.open(server.url)
        browser.until(READY)
        assert "5 passages of 2 sources, by m" in browser.run("return document.body.innerText")
        assert browser.run(PIXELS) >= 2, "the map has points in two colours"

        browser.type("#query", "foxes" + KEYS["enter"])
        assert browser.until(HITS) == 5
        browser.until("return document.querySelectorAll('.sentence').length == 5")
        assert browser.run("return location.search") == "?q=foxes"

        # Whole passages, with the words and the sentences in them; only some sources.
        browser.run("document.querySelectorAll('.hit .actions button:first-child').forEach(b => b.click()); return 1")
        text = browser.run("return document.getElementById('results').innerText")
        assert all(passage.text in text for passage in PASSAGES)
        assert browser.run("return [...document.querySelectorAll('mark')].map(mark => mark.textContent)") == ["fox"]
        browser.click("#source-list label:nth-child(1) input")
        browser.until("return document.querySelectorAll('.hit').length == 2")
        browser.click("#no-sources")
        browser.until("return document.getElementById('status').textContent == 'No source is chosen.'")
        browser.click("#all-sources")
        browser.until("return document.querySelectorAll('.hit').length == 5")

        # Point at the first result on the map, then ask for passages like it.
        place = browser.run(
            "const box = document.getElementById('map').getBoundingClientRect(),"
            " number = [...document.querySelectorAll('.hit')].map(hit => Number(hit.dataset.passage))[0];"
            " return fetch('search/corpus').then(answer => answer.json()).then(corpus => [box, number, corpus])"
        )
        box, number, found = place
        assert found["passages"] == 5
        browser.run("document.getElementById('map').focus(); return 1")
        x, y = on_screen(box, found, number)
        browser.point(x, y)
        browser.until("return !document.getElementById('tip').hidden")
        browser.point(x, y, click=True)
        browser.until("return location.search.startsWith('?like=')")
        browser.until("return document.querySelector('.score')?.textContent == '1.000'")
        browser.click("#zoom-in")
        assert browser.run(PIXELS) >= 2
        assert browser.console() == []


@pytest.mark.slow
def test_trouble_shows_on_the_page(browser, corpus, small_embedder):
    mounts = [search_page(corpus, "m")]
    with running({"m": small_embedder}, api_key="open sesame", mounts=mounts, open_paths=PAGE_PATHS) as server:
        browser.open(server.url)
        browser.until("return !document.getElementById('key-form').hidden")
        browser.type("#key", "open sesame" + KEYS["enter"])
        browser.until(READY)
        assert browser.run("return document.getElementById('trouble').hidden")
        browser.type("#query", "fox " * 3 + KEYS["enter"])
        browser.until(HITS)
    browser.type("#query", "dog" + KEYS["enter"])
    browser.until("return document.getElementById('trouble-text').textContent.includes('cannot be reached')")
    assert not browser.run("return document.getElementById('trouble').hidden")


def on_screen(box, corpus, number):
    """Where the map shows a passage at first (see `wholeView` in map.js)."""
    x, y = corpus["x"], corpus["y"]
    spans = [max(v) - min(v) for v in (x, y)]
    size = 0.9 * min(box["width"] / max(spans[0], 0.05), box["height"] / max(spans[1], 0.05))
    left = box["x"] + box["width"] / 2 - size * (min(x) + max(x)) / 2
    top = box["y"] + box["height"] / 2 - size * (min(y) + max(y)) / 2
    return left + size * x[number], top + size * y[number]
