"""Words of a query in a passage, and the sentences of a passage, by their places in the text.

Places are counted in characters (Unicode code points), from `start` up to, not including, `stop`.
"""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W_]+")
STOP_WORDS = frozenset(
    "a an and are as at be but by can do does for from has have how i if in into is it its me my no not of on or our "
    "so such that the their them then there these they this to use used using was we were what when where which who "
    "why will with without you your".split()
)
"""Words of a query that say nothing about what it looks for."""
_STEM, _ENDING = 4, 3
"""Two words are forms of one where they begin with so many equal letters and end in up to so many different ones ..."""
_PLURALS = ("s", "es")
"""... or where one is the other and such an ending."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n[ \t]*\n\s*|\n[ \t]*[-=~^]{3,}[ \t]*(?=\n)|\n(?=[ \t]*[-*•>:@])")
_MARKS = " \t\r\n\f\v-=~*#>•"
_LONGEST_SENTENCE = 400
_FEWEST_LETTERS = 12
"""What is shorter is no sentence that could answer anything: a heading, a number, a rest of a table."""


def matches(query: str, text: str) -> list[tuple[int, int]]:
    """The places of the words of `text` that are forms of a word of the query."""
    wanted = [word for word in _words(query) if word not in STOP_WORDS]
    if not wanted:
        return []
    same: dict[str, bool] = {}
    found = []
    for match in WORD.finditer(text):
        word = match[0].casefold()
        if word not in same:
            same[word] = any(_is_form(word, other) for other in wanted)
        if same[word]:
            found.append(match.span())
    return found


def sentences(text: str) -> list[tuple[int, int]]:
    """The places of the sentences of a text, in order; what is too short to say something is left out."""
    places, start = [], 0
    for end in [*_SENTENCE_END.finditer(text), None]:
        stop = len(text) if end is None else end.start()
        places += _cut(text, start, stop)
        start = stop if end is None else end.end()
    return [(start, stop) for start, stop in places if sum(map(str.isalpha, text[start:stop])) >= _FEWEST_LETTERS]


def _cut(text: str, start: int, stop: int) -> list[tuple[int, int]]:
    """Pieces of bounded length, without blanks around them, cut between words where there is a place for it."""
    places = []
    while stop - start > _LONGEST_SENTENCE:
        blank = max(
            text.rfind(" ", start + 1, start + _LONGEST_SENTENCE),
            text.rfind("\n", start + 1, start + _LONGEST_SENTENCE),
        )
        cut = blank if blank > start else start + _LONGEST_SENTENCE
        places.append((start, cut))
        start = cut
    places.append((start, stop))
    return [_stripped(text, *place) for place in places]


def _stripped(text: str, start: int, stop: int) -> tuple[int, int]:
    """Without blanks around it, and without the marks of a list, a heading or a rule before it."""
    part = text[start:stop].rstrip()
    return start + len(part) - len(part.lstrip(_MARKS)), start + len(part)


def _words(text: str) -> list[str]:
    return [match[0].casefold() for match in WORD.finditer(text)]


def _is_form(word: str, other: str) -> bool:
    if word == other or any(word == other + ending or other == word + ending for ending in _PLURALS):
        return True
    common = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    return common >= _STEM and max(len(word), len(other)) - common <= _ENDING
