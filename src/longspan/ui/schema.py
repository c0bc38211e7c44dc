"""Bodies of the page's requests and answers. Places in a text are counted in characters (Unicode code points)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from longspan.serve.schema import Body, body_config

MOST_RESULTS = 100
LARGEST_NUMBER = 2**31 - 1

PassageNumber = Annotated[int, Field(ge=0, le=LARGEST_NUMBER)]
Span = tuple[int, int]


class SearchRequest(Body):
    """The body of `/search`: either `query` or `like`."""

    model_config = body_config({"query": "how do I sort a list?", "k": 5})

    query: str | None = None
    """What to look for, in words."""
    like: PassageNumber | None = None
    """The number of a passage: look for passages that are like it."""
    k: int = Field(default=10, ge=1, le=MOST_RESULTS)
    """How many passages to give."""
    sources: list[str] | None = None
    """Only passages of these sources; all if it is left out."""


class SentencesRequest(Body):
    """The body of `/search/sentences`."""

    model_config = body_config({"query": "how do I sort a list?", "passages": [0, 1]})

    query: str
    """What was looked for."""
    passages: list[PassageNumber] = Field(min_length=1, max_length=MOST_RESULTS)
    """Numbers of passages, as `/search` gives them."""


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class FoundPassage(_Answer):
    """A passage."""

    passage: int
    """Its number, as long as the server runs."""
    where: str
    """The file and the line, or the row's id."""
    source: str
    text: str


class SearchHit(FoundPassage):
    """A passage that was found."""

    score: float
    """The cosine between its vector and that of the query."""
    words: list[Span]
    """Places of the words that are forms of a word of the query."""


class SearchAnswer(_Answer):
    """The answer of `/search`: passages, best first."""

    hits: list[SearchHit]


class BestSentence(_Answer):
    """The sentence of a passage that is nearest to the query."""

    passage: int
    place: Span | None
    """null if the passage has no sentences."""
    score: float | None


class SentencesAnswer(_Answer):
    """The answer of `/search/sentences`, in the order of the request."""

    sentences: list[BestSentence]


class CorpusSource(_Answer):
    """A source of passages; its passages have successive numbers, source after source."""

    name: str
    passages: int


class Signpost(_Answer):
    """Words that stand out in a region of the map."""

    x: float
    y: float
    words: str
    level: int
    """0: to be shown always; 1: only from near."""


class CorpusAnswer(_Answer):
    """The answer of `/search/corpus`: all that the map is drawn from."""

    model: str
    passages: int
    sources: list[CorpusSource]
    x: list[float]
    """Of each passage, between 0 and 1."""
    y: list[float]
    topics: list[Signpost]
