"""Words of a query in a passage, and the sentences of a passage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.ui.words import matches, sentences


@pytest.mark.parametrize(
    ("query", "text", "expected"),
    [
        ("read a file", "Files are read by readers.", ["Files", "read", "readers"]),
        ("the inverse of a matrix", "Invert the matrices: inverse", ["Invert", "matrices", "inverse"]),
        ("how do I use it?", "how to use it", []),
        ("naïve CAFÉ", "A Naïve café.", ["Naïve", "café"]),
        ("東京", "東京 is a city", ["東京"]),
        ("foxes", "a fox", ["fox"]),
        ("rank", "random ranks", ["ranks"]),
        ("snake_case", "a snake in a case", ["snake", "case"]),
        ("", "anything", []),
    ],
)
def test_forms_of_the_querys_words(query, text, expected):
    assert [text[start:stop] for start, stop in matches(query, text)] == expected


def test_sentences_end_at_full_stops_blank_lines_and_items():
    text = "The first sentence. The second,\nin two lines!\n\nA heading\n-------\n- the first item\n- the second item"
    assert [text[start:stop] for start, stop in sentences(text)] == [
        "The first sentence.",
        "The second,\nin two lines!",
        "the first item",
        "the second item",
    ]


@given(st.text("ab. \n-Ωé", max_size=2000))
def test_sentences_are_in_order_bounded_and_without_blanks_around_them(text):
    before = 0
    for start, stop in sentences(text):
        assert before <= start < stop <= len(text)
        assert text[start:stop] == text[start:stop].strip().lstrip("-")
        assert stop - start <= 400
        before = stop


@given(st.text("abcd fghij", max_size=60), st.text("abcd fghij ", max_size=200))
def test_every_match_is_a_whole_word_in_order(query, text):
    found = matches(query, text)
    assert found == sorted(found)
    for start, stop in found:
        assert not text[start - 1 : start].isalpha()
        assert not text[stop : stop + 1].isalpha()
        assert text[start:stop].isalpha()


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_will_do(query, text):
    matches(query, text)
    sentences(text)
