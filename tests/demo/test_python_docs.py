"""Reading docstrings and code from source text."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.demo.pairs import Pair, as_query, refusal
from longspan.demo.python_docs import is_bare, name_words, read_module, split_docstring

words = st.text("abcdeXYZ.,e!? ", min_size=1, max_size=40)
docstrings = st.lists(st.one_of(words, st.just("")), min_size=1, max_size=12).map("\n    ".join)


@given(docstrings)
def test_a_split_docstring_keeps_every_word_in_order(docstring: str) -> None:
    summary, body = split_docstring(docstring)
    assert f"{summary} {body}".split() == inspect.cleandoc(docstring).split()
    assert "\n" not in summary


@pytest.mark.parametrize(
    ("docstring", "summary", "body"),
    [
        ("One line.", "One line.", ""),
        ("A title\nover two lines.\n\n  Body.", "A title over two lines.", "Body."),
        ("First. Second here.\nThird.", "First.", "Second here.\nThird."),
        ("Read a file, e.g. A csv file. Then close.", "Read a file, e.g. A csv file.", "Then close."),
        ("Title\n=====\n\nText.", "Title", "Text."),
        ("=====\nTitle\n=====\nText.", "Title", "Text."),
        ("Do it.\nArgs:\n    x: a thing", "Do it.", "Args:\n    x: a thing"),
        ("Do it\n:param x: a thing", "Do it", ":param x: a thing"),
        ("abs(input, *, out=None) -> Tensor\n\nThe absolute value.\n\nMore.", "The absolute value.", "More."),
        ("", "", ""),
    ],
)
def test_split_docstring(docstring: str, summary: str, body: str) -> None:
    assert split_docstring(docstring) == (summary, body)


def test_code_is_the_function_without_its_docstring() -> None:
    source = '''
        class Box:
            """A box."""

            @property
            def size(self, unit: str = "cm") -> int:
                """How large it is.

                Of the inside.
                """
                # rounded
                return 3

            @size.setter
            def size(self, value):
                """Change it."""
    '''
    module = read_module(textwrap.dedent(source), name="shop", package="shop")
    box, size = module.objects
    assert (box.id, box.code) == ("shop.Box", "")
    assert (size.id, size.parameters) == ("shop.Box.size", ("unit",))
    assert (size.summary, size.body) == ("How large it is.", "Of the inside.")
    assert size.code == '@property\ndef size(self, unit: str = "cm") -> int:\n    # rounded\n    return 3'
    ast.parse(size.code)


def test_a_one_line_function_has_no_code() -> None:
    (item,) = read_module('def f(x): "Say hello."\n', name="m", package="m").objects
    assert (item.summary, item.code) == ("Say hello.", "")


def test_lines_are_counted_as_the_parser_counts_them() -> None:
    source = 'x = 1\n\x0c\ndef f(x):\r\n    """Do."""\r\n    return "\u2028"\n'
    (item,) = read_module(source, name="m", package="m").objects
    assert item.code == 'def f(x):\n    return " "'


def test_the_banner_of_licence_comments_is_no_text() -> None:
    module = read_module('# Copyright\n\n"""What it does.\n\nHow."""\nimport os\n', name="m", package="m")
    assert (module.summary, module.body, module.source) == ("What it does.", "How.", "import os")
    assert read_module("# Copyright\nimport os\n", name="m", package="m").source == "import os"
    assert read_module("", name="m", package="m").source == ""


def test_docstrings_of_c_functions_are_found() -> None:
    source = '''
        add_docstr(torch.abs, r"""
        abs(input, *, out=None) -> Tensor

        Computes the absolute value.
        """ + """
        Args:
            {input}
        """.format(**common))
        add_newdoc("numpy", "ndarray", ("size", """Number of elements."""))
    '''
    absolute, size = read_module(textwrap.dedent(source), name="docs", package="docs").objects
    assert (absolute.id, absolute.parameters) == ("torch.abs", ("input", "out"))
    assert (absolute.summary, "Args" in absolute.body, "{" in absolute.body) == (
        "Computes the absolute value.",
        True,
        False,
    )
    assert (size.id, size.summary) == ("numpy.ndarray.size", "Number of elements.")


@pytest.mark.parametrize("source", ["def f(:", "x = '\0'", "(" * 5000 + ")" * 5000])
def test_what_is_not_python_is_a_syntax_error(source: str) -> None:
    with pytest.raises(SyntaxError):
        read_module(source, name="m", package="m")


def test_a_file_without_documentation_is_bare() -> None:
    assert is_bare("x = 1\n" * 10)
    assert not is_bare('"""Docs."""\n' + "x = 1\n" * 10)
    assert is_bare('"""Docs."""\n' + "x = 1\n" * 1000)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("csv.DictReader", "csv dict reader"),
        ("HTTPServer.do_GET", "http server do get"),
        ("conv2d", "conv 2 d"),
        ("rich.rich", "rich"),
    ],
)
def test_name_words(name: str, expected: str) -> None:
    assert name_words(name) == expected


@pytest.mark.parametrize(
    ("summary", "query"),
    [
        ("Return the :class:`~a.Foo` of ``x``.", "Return the a.Foo of x"),
        ("Parse an :rfc:`3986` URL.", "Parse an rfc 3986 URL"),
        ("Get a [Tensor][torch.Tensor] from [here](https://x.y).", "Get a Tensor from here"),
    ],
)
def test_as_query(summary: str, query: str) -> None:
    assert as_query(summary) == query


@pytest.mark.parametrize(
    ("query", "document", "reason"),
    [
        ("Count the words", "Some text " * 20, None),
        ("Count words", "Some text " * 20, "query too short"),
        ("TODO count the words", "Some text " * 20, "query says nothing"),
        ("Count the words", "Some text", "document too short"),
        ("Count the words", "a b " * 1000, "document too long"),
        ("Count the words", "Then count the  WORDS " + "of it " * 20, "query stands in its document"),
        ("Count the words", "123456 x " * 30, "document is a table"),
        ("Count the words", "文字文字文字 " * 30, "mostly not ASCII"),
    ],
)
def test_refusal(query: str, document: str, reason: str | None) -> None:
    assert refusal("docstring", Pair("a", "a", query, document), fewest_words=3) == reason
