"""The page's routes on the server: the page itself, `/search` and what belongs to it."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of functions, whose types are imported
# where they are needed.

import asyncio
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import numpy as np
from pydantic_core import to_json

from longspan.search import DOCUMENT, QUERY
from longspan.serve.app import Mount, add_post
from longspan.serve.endpoint import Answer
from longspan.serve.engine import Texts
from longspan.serve.refusal import Refusal
from longspan.serve.schema import TEIError, parse
from longspan.serve.service import Service
from longspan.ui.corpus import Corpus
from longspan.ui.schema import (
    CorpusAnswer,
    FoundPassage,
    SearchAnswer,
    SearchRequest,
    SentencesAnswer,
    SentencesRequest,
)
from longspan.ui.words import matches, sentences

_FILES = {
    "/": ("index.html", "text/html"),
    "/ui/style.css": ("style.css", "text/css"),
    "/ui/search.js": ("search.js", "text/javascript"),
    "/ui/map.js": ("map.js", "text/javascript"),
}
PAGE_PATHS = tuple(_FILES)
"""Paths that hold nothing of the corpus, and need no key: the page asks for it."""
_MOST_SENTENCES = 12
"""Sentences of a passage that are compared with the query."""
_POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Nothing from elsewhere, and no script within the page."""


def search_page(corpus: Corpus, model: str) -> Mount:
    """What adds the page and its routes to a server, whose model of this name gave the vectors of the corpus."""

    def mount(app: Any, service: Service) -> None:
        _add_page(app)
        _add_corpus(app, corpus, model)
        _Search(corpus, model).add(app, service)

    return mount


def _add_page(app: Any) -> None:
    from fastapi.responses import Response

    def add(path: str, content: bytes, media_type: str) -> None:
        headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}

        async def file() -> Response:
            return Response(content, media_type=media_type, headers=headers)

        app.add_api_route(path, file, methods=["GET"], include_in_schema=False)

    folder = files("longspan.ui") / "page"
    for path, (name, media_type) in _FILES.items():
        add(path, (folder / name).read_bytes(), media_type)


def _add_corpus(app: Any, corpus: Corpus, model: str) -> None:
    from fastapi.responses import Response

    content = to_json(
        {
            "model": model,
            "passages": len(corpus.passages),
            "sources": [{"name": source.name, "passages": len(source.passages)} for source in corpus.sources],
            "x": [round(x, 4) for x in corpus.places_M2[:, 0].tolist()],
            "y": [round(y, 4) for y in corpus.places_M2[:, 1].tolist()],
            "topics": [asdict(topic) for topic in corpus.topics],
        }
    )

    @app.get("/search/corpus", response_model=CorpusAnswer, summary="The corpus that is searched, and its map")
    async def map_of_corpus() -> Any:
        return Response(content, media_type="application/json")

    @app.get(
        "/search/passage",
        response_model=FoundPassage,
        responses={400: {"model": TEIError}, 404: {"model": TEIError}},
        summary="A passage by its number",
    )
    async def passage(number: int) -> Any:
        return _passage(corpus, number)


class _Search:
    """The handlers of requests with bodies."""

    def __init__(self, corpus: Corpus, model: str) -> None:
        self._corpus, self._model = corpus, model

    def add(self, app: Any, service: Service) -> None:
        add_post(
            app, service, "/search", "Search in the corpus", self.search, body=SearchRequest, answer_with=SearchAnswer
        )
        add_post(
            app,
            service,
            "/search/sentences",
            "The sentences of passages that are nearest to a query",
            self.sentences,
            body=SentencesRequest,
            answer_with=SentencesAnswer,
        )

    async def search(self, service: Service, body: bytes) -> Answer:
        """`POST /search`."""
        request = parse(body, SearchRequest)
        if (request.query is None) == (request.like is None):
            raise Refusal(422, "give either a query or the number of a passage (like)", param="query")
        if request.like is not None:
            _passage(self._corpus, request.like)
            query_D = self._corpus.index.vectors_MD[request.like]
        else:
            query_D = (await self._embed(service, [request.query or ""], QUERY))[0]
        try:
            hits = await asyncio.to_thread(self._corpus.nearest, query_D, request.k, request.sources)
        except KeyError as error:
            raise Refusal(422, f"there is no source {error.args[0]!r:.100}", param="sources") from None
        found = [
            _passage(self._corpus, number)
            | {"score": score, "words": matches(request.query or "", self._corpus.passages[number].text)}
            for number, score in hits
        ]
        return Answer({"hits": found}, told={"model": self._model, "hits": len(found)})

    async def sentences(self, service: Service, body: bytes) -> Answer:
        """`POST /search/sentences`."""
        request = parse(body, SentencesRequest)
        share = min(_MOST_SENTENCES, max(1, service.settings.max_texts // len(request.passages)))
        texts = [_passage(self._corpus, number)["text"] for number in request.passages]
        places = [_likely_sentences(request.query, text, share) for text in texts]
        flat = [text[start:stop] for text, spans in zip(texts, places, strict=True) for start, stop in spans]
        query_1D = await self._embed(service, [request.query], QUERY)
        scores = iter((await self._embed(service, flat, DOCUMENT) @ query_1D[0]).tolist() if flat else [])
        best = []
        for number, spans in zip(request.passages, places, strict=True):
            score, place = max(((next(scores), span) for span in spans), default=(None, None))
            best.append({"passage": number, "place": place, "score": score})
        return Answer({"sentences": best}, told={"model": self._model, "texts": len(flat)})

    async def _embed(self, service: Service, texts: list[str], task: str) -> np.ndarray:
        """Vectors of length 1, through the queue of all requests; texts that are too long are cut."""
        _, vectors = await service.embed(self._model, Texts(texts, task, normalize=True, truncate=True))
        return vectors.vectors_ND


def _likely_sentences(query: str, text: str, most: int) -> list[tuple[int, int]]:
    """The sentences with the most words of the query, and of those with as many the first."""
    words = matches(query, text)
    places = sentences(text)
    counts = {place: sum(place[0] <= start < place[1] for start, _ in words) for place in places}
    return sorted(places, key=lambda place: -counts[place])[:most]


def _passage(corpus: Corpus, number: int) -> dict[str, Any]:
    if not 0 <= number < len(corpus.passages):
        raise Refusal(404, f"there is no passage {number}: there are {len(corpus.passages)}", param="passage")
    passage = corpus.passages[number]
    return {"passage": number, "where": passage.where, "source": passage.source, "text": passage.text}
