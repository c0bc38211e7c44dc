"""One Python file -> its documentation and code, without ever running it.

    text = "<a .py file>"
    module = read_module(text, name="csv", package="python")
    module.objects[0].summary, .body, .code

Everything is read from the syntax tree. Nothing is imported, so a broken or hostile package can do no harm here.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_LINES_OF_TITLE = 4
"""A first paragraph that runs over more lines and has no full stop is a text, not a title."""

CHARACTERS_PER_DOCSTRING = 2_500
"""A file with fewer docstrings than one in so many characters is skipped. In a usual environment this halves the source
to be parsed, and loses a fifth of the documentation."""

_GENERATED = re.compile(r"do not (edit|modify)|auto-?\s?generated|automatically generated|generated (by|from) ", re.I)
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_ADORNMENT = re.compile(r"^\s*([=\-~^*#\"'`_+])\1{2,}\s*$")
_SIGNATURE = re.compile(r"^[\w.]+\s?\(.*\)(\s*->\s*.*)?$|^--$")
_NEW_BLOCK = re.compile(
    r"^\s*(:\w|@\w|>>>|\.\. |[-*+•] |\d+[.)] |```|"
    r"(Args?|Arguments|Params?|Parameters|Keyword Args|Attributes|Returns?|Raises|Yields?|Examples?|Usage|Notes?|"
    r"Warnings?|Inputs?|Outputs?|Shapes?|Methods|References|See also|TODO)\b[^.]{0,30}:?\s*$)",
    re.I,
)
_SENTENCE_END = re.compile(r"[.!?][\"')\]`*]*\s+(?=[A-Z`\"'(\[*:<])")
_ABBREVIATION = re.compile(
    r"(\be\.g|\bi\.e|\betc|\bvs|\bcf|\bresp|\bapprox|\beq|\bfig|\bno|\bal|\bdr|\bst|\b[A-Z])\.$", re.I
)
_PLACEHOLDER = re.compile(r"(?<!\{)\{\w+\}(?!\})")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True)
class PythonObject:
    """A documented function, class or C function.

    Args:
        id: dotted name, `package.module.Class.method`.
        parameters: names in the signature, without `self` and `cls`.
        summary: the first sentence of the docstring on one line ("" if it has none).
        body: the rest of the docstring, dedented ("" if none).
        code: source of a function without its docstring, dedented; "" for classes and C functions.
    """

    id: str
    parameters: tuple[str, ...]
    summary: str
    body: str
    code: str


@dataclass(frozen=True)
class Module:
    """One file. `package` is the group it counts for when packages are balanced.

    Args:
        summary: first sentence of the module docstring ("" if none).
        body: the rest of the module docstring ("" if none).
        source: everything after the module docstring (or from the first statement on), so without the banner of
            licence comments; never cut otherwise.
        objects: in the order of the file; only those that have a docstring.
    """

    name: str
    package: str
    summary: str = ""
    body: str = ""
    source: str = ""
    objects: tuple[PythonObject, ...] = field(default=())


def is_generated(text: str) -> bool:
    """Whether the head of a file says that a program wrote it."""
    return bool(_GENERATED.search(text[:2000]))


def is_bare(text: str) -> bool:
    """Whether a file has so little documentation that parsing it, the dear part, would not pay."""
    return (text.count('"""') + text.count("'''")) / 2 * CHARACTERS_PER_DOCSTRING < len(text)


def read_module(text: str, *, name: str, package: str) -> Module:
    """Parse a file.

    Raises:
        SyntaxError: it is not Python of this interpreter's version (null bytes and too deep nesting included).
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes of old files: not ours to report
            tree = ast.parse(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error)) from error
    lines = text.split("\n")  # not splitlines: the parser counts only newlines, and some old files hold form feeds
    docstring = _docstring_node(tree)
    summary, body = split_docstring(_value(docstring)) if docstring else ("", "")
    start = (docstring.end_lineno or 0) if docstring else (tree.body[0].lineno - 1 if tree.body else 0)
    objects: dict[str, PythonObject] = {}
    for found in _objects(tree.body, name, lines):
        objects.setdefault(found.id, found)  # a property's setter repeats its getter's name: keep the first
    source = clean("\n".join(lines[start:])).strip()
    return Module(name, package, summary, body, source, tuple(objects.values()))


def split_docstring(docstring: str) -> tuple[str, str]:
    """Split a docstring into its first sentence, on one line, and the rest, dedented.

    Left out are only what is no text: a signature in the first line (C functions), the lines drawn under a title, and
    characters that no text file should hold. All other words are in one of the two parts, in order.
    """
    lines = inspect.cleandoc(clean(docstring)).split("\n")
    while len(lines) > 1 and (_ADORNMENT.match(lines[0]) or _SIGNATURE.match(lines[0]) or not lines[0].strip()):
        lines = lines[1:]
    end = 1
    while end < len(lines) and lines[end].strip() and not _NEW_BLOCK.match(lines[end]):
        end += 1
    paragraph, rest = lines[:end], lines[end:]
    drawn = next((i for i, line in enumerate(paragraph) if i and _ADORNMENT.match(line)), None)
    if drawn is not None:  # a title with a line under it: the title is the summary
        paragraph, rest = lines[:drawn], lines[drawn + 1 :]
    summary, remainder = _first_sentence("\n".join(paragraph))
    body = "\n".join([remainder, *rest] if remainder else rest).strip("\n").rstrip()
    return " ".join(summary.split()), textwrap.dedent(body)


def clean(text: str) -> str:
    """Replace control characters, Unicode line separators and lone surrogates by a space."""
    return _UNSAFE.sub(" ", text)


def name_words(*names: str) -> str:
    """Split identifiers into lower-case words: `csv.DictReader` -> `csv dict reader`. A repeated word is said once."""
    words: list[str] = []
    for name in names:
        for word in _WORD.findall(name):
            if not words or words[-1] != word.lower():
                words.append(word.lower())
    return " ".join(words)


def _first_sentence(paragraph: str) -> tuple[str, str]:
    for match in _SENTENCE_END.finditer(paragraph):
        sentence = paragraph[: match.end()].rstrip()
        if _ABBREVIATION.search(sentence) or sentence.count("`") % 2 or sentence.count("(") != sentence.count(")"):
            continue
        return sentence, paragraph[match.end() :]
    lines = paragraph.split("\n")
    if len(lines) > MOST_LINES_OF_TITLE and lines[0].rstrip().endswith((".", ":")):
        return lines[0], "\n".join(lines[1:])
    return paragraph, ""


def _objects(body: list[ast.stmt], prefix: str, lines: list[str]) -> Iterator[PythonObject]:
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not node.name.startswith("test"):
                if docstring := _docstring_node(node):
                    code = _code(node, docstring, lines)
                    yield _object(f"{prefix}.{node.name}", _parameters(node), _value(docstring), code)
            case ast.ClassDef() if not node.name.startswith("Test"):
                if docstring := _docstring_node(node):
                    starts = (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
                    parameters = next((_parameters(start) for start in starts), ())
                    yield _object(f"{prefix}.{node.name}", parameters, _value(docstring), "")
                yield from _objects(node.body, f"{prefix}.{node.name}", lines)
            case ast.If() | ast.Try():  # `if sys.version_info`, `try: import fast`: the definitions are real
                yield from _objects(node.body, prefix, lines)
                yield from _objects(node.orelse, prefix, lines)
            case ast.Expr(value=ast.Call(func=function, args=arguments)):
                yield from _added_docstring(function, arguments)
            case _:
                pass


def _object(name: str, parameters: tuple[str, ...], docstring: str, code: str) -> PythonObject:
    summary, body = split_docstring(docstring)
    return PythonObject(name, parameters, summary, body, code)


def _added_docstring(function: ast.expr, arguments: list[ast.expr]) -> Iterator[PythonObject]:
    # Functions written in C get their docstring from a call: add_docstr(torch.abs, "...") in torch,
    # add_newdoc("numpy._core.multiarray", "empty", "...") in numpy and scipy. These are among the best texts there are.
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if called not in ("add_docstr", "add_newdoc", "_add_docstr") or len(arguments) < 2:
        return
    *names, last = arguments
    if isinstance(last, ast.Tuple) and len(last.elts) == 2:
        names, last = [*names, last.elts[0]], last.elts[1]
    text = _PLACEHOLDER.sub("", _text_of(last))
    name = ".".join(_name_of(node) for node in names if _name_of(node))
    if text.strip() and name:
        signature = re.search(r"\((.*?)\)", text.strip().split("\n")[0])
        parameters = re.findall(r"(?:^|,)\s*\*{0,2}([A-Za-z_]\w*)", signature[1]) if signature else []
        yield _object(name, tuple(parameters), text, "")


def _name_of(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str() as name):
            return name
        case ast.Attribute() | ast.Name():
            return ast.unparse(node)
        case _:
            return ""


def _text_of(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text_of(left) + _text_of(right)
        case ast.Call(func=ast.Attribute(value=template)):
            return _text_of(template)
        case _:
            return ""


def _docstring_node(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.Expr | None:
    match node.body[:1]:
        case [ast.Expr(value=ast.Constant(value=str())) as first]:
            return first
        case _:
            return None


def _value(docstring: ast.Expr) -> str:
    assert isinstance(docstring.value, ast.Constant)
    return str(docstring.value.value)


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    a = node.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    return tuple(x.arg for x in every if x.arg not in ("self", "cls"))


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, docstring: ast.Expr, lines: list[str]) -> str:
    decorators = [decorator.lineno for decorator in node.decorator_list]
    start = min([node.lineno, *decorators]) - 1
    first, last = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
    if first < node.lineno or not lines[first].lstrip().startswith(("'", '"', "r", "R", "u", "U")):
        return ""  # `def f(): "text"` on one line: there is no code to speak of
    kept = lines[start:first] + lines[last : node.end_lineno]
    return clean(textwrap.dedent("\n".join(kept))).strip("\n")
