"""The statistics of prepared sources as a page to look at: one HTML file with its plots in it (SVG), and no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from longspan.data.stats import ColumnStats, SequenceLengths, SourceStats, Stats
from longspan.page import page, table

_WIDTH, _HEIGHT = 420, 90
_PER_DOUBLING = 4
"""Bars of a length plot from one length to its double."""

_HUES, _LIGHTNESS = 12, (50, 36, 66)


def stats_page(stats: Stats) -> str:
    """One self-contained HTML file: shares, lengths, cuts, repeats and overlaps."""
    parts = [
        *(_kind_section(stats, kind) for kind in dict.fromkeys(source.kind for source in stats.sources)),
        _repeats_section(stats),
    ]
    return page(f"Prepared sources in {stats.folder}", parts)


def _kind_section(stats: Stats, kind: str) -> str:
    sources = [source for source in stats.sources if source.kind == kind]
    measure = "tokens" if kind == "text" else "batches" if stats.batch_size is not None else "rows times weight"
    bars = {bar for source in sources for column in source.columns for bar in _bins(column.lengths)}
    edges = (min(bars), max(bars) + 1)  # one scale for all plots, so that they compare
    epochs = "; ".join(
        f"{'whole' if epoch.length is None else f'cut at {epoch.length:,}'}: {epoch.num_tokens:,}"
        for epoch in stats.epoch_tokens
        if epoch.kind == kind
    )
    return "\n".join(
        [
            f"<h2>{'Pairs' if kind == 'pairs' else 'Running text'}</h2>",
            f"<p>Share of an epoch ({measure}):</p>",
            _share_bar(sources),
            f"<p>Tokens of an epoch, mined negatives not counted: {epochs}.</p>",
            "<h3>Lengths</h3><p>Tokens of the sequences that the model reads, prefix and special tokens counted.</p>",
            _lengths_table(sources),
            *(_length_plot(source.name, column, edges) for source in sources for column in source.columns),
        ]
    )


def _share_bar(sources: Sequence[SourceStats]) -> str:
    pieces, keys, left = [], [], 0.0
    for number, source in enumerate(sources):
        # Five and twelve have no common divisor: every hue comes up once, and neighbours differ.
        colour = f"hsl({number * 5 % _HUES * 360 // _HUES} 50% {_LIGHTNESS[number // _HUES % len(_LIGHTNESS)]}%)"
        width, title = 2 * _WIDTH * source.share, f"{escape(source.name)}: {source.share:.1%}"
        pieces.append(
            f'<rect x="{left:.2f}" width="{width:.2f}" height="24" fill="{colour}"><title>{title}</title></rect>'
        )
        keys.append(f'<span class="key" style="background:{colour}"></span>{title}')
        left += width
    return f'<svg width="{2 * _WIDTH}" height="24">{"".join(pieces)}</svg><p>{" &emsp; ".join(keys)}</p>'


def _lengths_table(sources: Sequence[SourceStats]) -> str:
    cuts = [f"over {cut.length:,}" for cut in sources[0].columns[0].cuts]
    heads = ["source", "column", "task", "rows", "mean", "p50", "p90", "p99", "longest", *cuts]
    rows = []
    for source in sources:
        for column in source.columns:
            lengths, total = column.lengths, sum(column.lengths.counts)
            numbers = (f"{n:,}" for n in (lengths.p50, lengths.p90, lengths.p99, lengths.longest))
            over = (f"{cut.num_cut / total:.2%} ({cut.num_tokens_lost:,} tokens)" for cut in column.cuts)
            names = [source.name, column.column, column.task or ""]
            rows.append([*names, f"{total:,}", f"{lengths.mean:,.1f}", *numbers, *over])
    return table(heads, rows, names=3)


def _length_plot(source: str, column: ColumnStats, edges: tuple[int, int]) -> str:
    """Sequences by length; the axis of lengths is logarithmic, the cuts are dashed lines.

    Args:
        edges: number of the first bar that there is room for, and of the first that there is not.
    """
    counts = _bins(column.lengths)
    first, last = edges
    highest, total, step = max(counts.values()), sum(counts.values()), _WIDTH / (last - first)

    def x_of(length: float) -> float:
        return (math.log2(length) * _PER_DOUBLING - first) * step

    bars = []
    for number, count in sorted(counts.items()):
        height = _HEIGHT * count / highest
        low, high = math.ceil(2 ** (number / _PER_DOUBLING)), math.ceil(2 ** ((number + 1) / _PER_DOUBLING)) - 1
        title = f"{low:,} to {high:,} tokens: {count:,} ({count / total:.1%})"
        bars.append(
            f'<rect x="{(number - first) * step:.2f}" y="{_HEIGHT - height:.2f}" width="{max(step - 1, 0.5):.2f}" '
            f'height="{height:.2f}" fill="#47a"><title>{title}</title></rect>'
        )
    ticks = [2**power for power in range(math.ceil(first / _PER_DOUBLING), last // _PER_DOUBLING + 1)]
    labels = [f'<text x="{x_of(tick):.2f}" y="{_HEIGHT + 14}" text-anchor="middle">{tick:,}</text>' for tick in ticks]
    cuts = [
        f'<line class="cut" x1="{x_of(cut.length):.2f}" x2="{x_of(cut.length):.2f}" y1="0" y2="{_HEIGHT}"/>'
        for cut in column.cuts
        if first <= math.log2(cut.length) * _PER_DOUBLING <= last
    ]
    axis = f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>'
    return (
        f"<figure><figcaption>{escape(source)}: {escape(column.column)}</figcaption>"
        f'<svg width="{_WIDTH}" height="{_HEIGHT + 20}">{"".join([*bars, axis, *cuts, *labels])}</svg></figure>'
    )


def _bins(lengths: SequenceLengths) -> dict[int, int]:
    """Sequences by the number of their bar: bar b holds the lengths from 2 ** (b / 4) to below 2 ** ((b + 1) / 4)."""
    counts: dict[int, int] = {}
    for value, count in zip(lengths.values, lengths.counts, strict=True):
        number = math.floor(math.log2(value) * _PER_DOUBLING + 1e-9)
        counts[number] = counts.get(number, 0) + count
    return counts


def _repeats_section(stats: Stats) -> str:
    rows = []
    for source in stats.sources:
        repeats = {column.column: column.repeats for column in source.columns}
        if source.pair_repeats is not None:
            repeats["pair"] = source.pair_repeats
        for column, found in repeats.items():
            numbers = (f"{found.num_seen:,}", f"{found.num_repeated:,}", f"{found.part:.2%}", f"{found.most:,}")
            rows.append([source.name, column, *numbers])
    heads = ["source", "column", "texts", "occurred before", "part", "most frequent occurs"]
    parts = ["<h2>Repeats</h2>", _sampled(stats), table(heads, rows, names=2)]
    if stats.overlaps:
        heads = ["column", "source", "source", "shared texts", "of the first", "of the second"]
        rows = [
            [o.column, o.first, o.second, f"{o.num_shared:,}", f"{o.part_of_first:.2%}", f"{o.part_of_second:.2%}"]
            for o in stats.overlaps
        ]
        parts += ["<h2>Overlap between sources</h2>", table(heads, rows, names=3)]
    return "\n".join(parts)


def _sampled(stats: Stats) -> str:
    if stats.sampled == 1:
        return "<p>Exact repeats of token ids, by a 64-bit hash.</p>"
    return f"<p>Exact repeats of token ids, estimated from one text in {stats.sampled} and all its copies.</p>"
