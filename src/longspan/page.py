"""Pages to look at: one HTML file with its plots in it (SVG), and no script."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884; vertical-align: top; }
th.name, td.name { text-align: left; }
th, td { white-space: nowrap; }
tr.ours td { font-weight: 600; background: #1f6fb41f; }
figure { display: inline-block; margin: .5rem 1.5rem .5rem 0; }
figcaption { font-size: .9rem; }
svg { display: block; overflow: visible; }
svg text { font-size: 11px; fill: currentColor; }
.axis { stroke: currentColor; opacity: .4; }
.cut { stroke: #c22; stroke-dasharray: 3 3; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
summary { cursor: pointer; font-weight: 600; margin: .8rem 0; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A self-contained HTML file.

    Args:
        parts: HTML below the heading; empty ones are left out.
    """
    head = f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(part for part in parts if part)
    return f"<!doctype html>\n{head}\n<h1>{escape(title)}</h1>\n{body}\n</html>\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], names: int, ours: Collection[int] = ()) -> str:
    """An HTML table whose first `names` columns are names and the others numbers; rows of `ours` stand out."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        kinds = [' class="name"' if number < names else "" for number in range(len(texts))]
        return "".join(f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True))

    starts = ('<tr class="ours">' if number in ours else "<tr>" for number in itertools.count())
    body = "\n".join(f"{start}{cells('td', row)}</tr>" for row, start in zip(rows, starts, strict=False))
    return f"<table><tr>{cells('th', heads)}</tr>\n{body}</table>"
