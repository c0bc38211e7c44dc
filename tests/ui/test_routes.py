"""The page's routes: what is found, where, and which of its words; refusals; the key."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from longspan.cli import build_parser
from longspan.files import write_text
from longspan.search import Index, Passage
from longspan.ui.corpus import Corpus, by_source
from longspan.ui.layout import lay_out
from longspan.ui.routes import PAGE_PATHS, search_page
from tests.serve.conftest import running

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from longspan.serve.app import create_app
from longspan.serve.service import Service
from longspan.serve.telemetry import Log

TEXTS = {
    "animals": ["The quick brown fox jumps over lazy dogs. Nothing else happens.", "Lazy dogs sleep all day."],
    "words": ["A naïve café in 東京 😀 serves quick lunches.", "Brown bread is baked at night.", "x y"],
}
PASSAGES = by_source(
    [Passage(f"{name}.md:{n}", text, name) for name, texts in TEXTS.items() for n, text in enumerate(texts)]
)


@pytest.fixture(scope="module")
def corpus(small_embedder):
    index = Index.build(small_embedder, PASSAGES)
    return Corpus(index, lay_out(index.vectors_MD))


@pytest.fixture(scope="module")
def client(small_embedder, corpus, tmp_path_factory):
    with (tmp_path_factory.mktemp("log") / "log").open("w") as log:
        service = Service({"m": small_embedder}, log=Log(log))
        app = create_app(service, mounts=[search_page(corpus, "m")], open_paths=PAGE_PATHS)
        with TestClient(app) as made:
            yield made


def found(client, **request):
    answer = client.post("/search", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()["hits"]


def test_passages_are_ranked_as_by_search(client, corpus):
    query = "a quick fox"
    expected = corpus.index.search(query, k=5)
    hits = found(client, query=query)
    assert [hit["text"] for hit in hits] == [hit.passage.text for hit in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    for hit in hits:
        passage = PASSAGES[hit["passage"]]
        assert (hit["where"], hit["source"]) == (passage.where, passage.source)
    marked = {hit["text"][start:stop] for hit in hits for start, stop in hit["words"]}
    assert marked == {"quick", "fox"}


def test_by_source_and_number(client):
    assert {hit["source"] for hit in found(client, query="dogs", sources=["animals"])} == {"animals"}
    everything = found(client, query="dogs", sources=["words", "animals", "words"])
    assert everything == found(client, query="dogs")
    assert found(client, query="dogs", k=2) == everything[:2]


def test_a_passage_is_most_like_itself(client):
    for number in range(len(PASSAGES)):
        first = found(client, like=number, k=1)[0]
        assert first["passage"] == number
        assert first["score"] == pytest.approx(1, abs=1e-5)
        assert first["words"] == []


def test_the_best_sentence_is_the_nearest_vector(client, small_embedder):
    fox = next(n for n, passage in enumerate(PASSAGES) if "fox" in passage.text)
    short = next(n for n, passage in enumerate(PASSAGES) if passage.text == "x y")
    query = "dogs and foxes"
    answer = client.post("/search/sentences", json={"query": query, "passages": [fox, short]}).json()["sentences"]
    parts = ["The quick brown fox jumps over lazy dogs.", "Nothing else happens."]
    query_D = small_embedder.embed([query], task="search_query")[0]
    scores = small_embedder.embed(parts, task="search_document") @ query_D
    start, stop = answer[0]["place"]
    assert PASSAGES[fox].text[start:stop] == parts[int(scores.argmax())]
    assert answer[0]["score"] == pytest.approx(scores.max(), abs=1e-5)
    assert answer[1] == {"passage": short, "place": None, "score": None}


def test_the_map_has_a_place_for_every_passage(client, corpus):
    answer = client.get("/search/corpus").json()
    assert answer["passages"] == len(answer["x"]) == len(answer["y"]) == len(PASSAGES)
    assert answer["sources"] == [{"name": "words", "passages": 3}, {"name": "animals", "passages": 2}]
    assert np.allclose(np.stack([answer["x"], answer["y"]], axis=1), corpus.places_M2, atol=1e-4)
    assert [client.get(f"/search/passage?number={n}").json()["text"] for n in range(5)] == [p.text for p in PASSAGES]


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("/search", {}, 422, "either a query or the number"),
        ("/search", {"query": "a", "like": 1}, 422, "either a query or the number"),
        ("/search", {"query": " "}, 422, "text number 0 is empty"),
        ("/search", {"like": 5}, 404, "there is no passage 5: there are 5"),
        ("/search", {"query": "a", "sources": ["none"]}, 422, "there is no source 'none'"),
        ("/search", {"query": "a", "k": 101}, 400, "k: "),
        ("/search", {"query": "a", "top": 1}, 400, "there is no field 'top'"),
        ("/search/sentences", {"query": "a", "passages": []}, 400, "passages: "),
        ("/search/sentences", {"query": "a", "passages": [99]}, 404, "there is no passage 99"),
    ],
)
def test_refusals(client, path, body, status, part):
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert part in answer.json()["error"]


def test_no_source_at_all_finds_nothing(client):
    assert found(client, query="dogs", sources=[]) == []
    assert client.get("/search/passage?number=-1").status_code == 404
    assert client.get("/search/passage?number=x").status_code == 400


def test_the_page_needs_nothing_from_elsewhere(client):
    for path in PAGE_PATHS:
        answer = client.get(path)
        assert answer.status_code == 200
        assert "http:" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https:" not in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")


def test_the_routes_are_documented(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/search", "/search/sentences", "/search/corpus", "/search/passage"} <= set(paths)
    assert "/" not in paths
    assert "a passage" in client.get("/docs").text.lower()


@pytest.fixture(scope="module")
def real_server(small_embedder, corpus):
    with running({"m": small_embedder}, mounts=[search_page(corpus, "m")]) as started:
        yield started


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_fuzzed_requests_are_answered_as_documented(real_server, mode):
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    api = schemathesis.openapi.from_dict(real_server.call("/openapi.json").json).include(path_regex="^/search")

    every = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @settings(max_examples=40, suppress_health_check=every)
    @given(api.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def fuzz(case):
        case.call_and_validate(base_url=real_server.url, checks=checks)

    fuzz()
    assert real_server.call("/search", {"query": "dogs"}).status == 200


def test_the_page_is_open_and_the_corpus_is_not(small_embedder, corpus, tmp_path):
    with (tmp_path / "log").open("w") as log:
        service = Service({"m": small_embedder}, log=Log(log))
        app = create_app(service, api_key="key", mounts=[search_page(corpus, "m")], open_paths=PAGE_PATHS)
        with TestClient(app) as client:
            assert [client.get(path).status_code for path in PAGE_PATHS] == [200] * len(PAGE_PATHS)
            assert client.get("/search/corpus").status_code == 401
            assert client.post("/search", json={"query": "a"}).status_code == 401
            assert client.get("/search/corpus", headers={"authorization": "Bearer key"}).status_code == 200
            paths = client.get("/openapi.json").json()["paths"]
            assert "security" in paths["/search"]["post"]


def test_the_log_has_no_query(small_embedder, corpus, tmp_path):
    with (tmp_path / "log").open("w") as log:
        service = Service({"m": small_embedder}, log=Log(log))
        with TestClient(create_app(service, mounts=[search_page(corpus, "m")])) as client:
            client.post("/search", json={"query": "secretword"})
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert any(line.get("route") == "/search" and line["hits"] == 5 for line in lines)
    assert "secretword" not in json.dumps(lines)


def test_the_command_builds_the_page(small_embedder, tmp_path):
    """Vectors and map are kept, and the second time only read."""
    from longspan.cli.serve import _search_page

    notes = tmp_path / "notes.md"
    write_text(notes, "A fox is quick.\n\nDogs are lazy.")
    parsed = build_parser().parse_args(["serve", "m", "--ui", str(notes), "--cache", str(tmp_path / "cache")])
    assert parsed.models == ["m"]
    for _ in range(2):
        _, paths = _search_page(small_embedder, "m", parsed.ui, parsed.cache)
        assert paths == PAGE_PATHS
    assert len(list((tmp_path / "cache").glob("map-*.npy"))) == 1
