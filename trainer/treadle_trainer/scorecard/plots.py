"""Differences with their intervals, drawn: as inline SVG for a page, as characters for a terminal. Pure.

Every metric has a scale of its own, the same in all slices, with zero in the middle. Colours are classes of the page's style sheet, so that
they follow its light and dark form.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from treadle_trainer.scorecard.card import Metric, Slice, kind_of

__all__ = ["figure", "interval", "interval_text", "scales"]

_WIDTH, _HEIGHT = 180, 18
_LABEL, _PLOT, _ROW, _PAD = 200, 420, 20, 8
_TICK_PX: Final = 24
"""Half of the width of a number below the plot."""
"""Sizes of a figure in pixels: names of slices, the plot beside them, a row, the margin."""
_NAME_CHARS: Final = 30
_TEXT_CELLS: Final = 21


def scales(slices: Sequence[Slice]) -> dict[str, float]:
    """Metric -> the farthest that one of its intervals reaches from zero."""
    found: dict[str, float] = {}
    for metric in (metric for part in slices for metric in part.metrics):
        if metric.low is not None and metric.high is not None:
            found[metric.name] = max(found.get(metric.name, 0.0), abs(metric.low), abs(metric.high))
    return found


def interval(metric: Metric, scale: float) -> str:
    """The interval of one metric as a small SVG, nothing without one. Where all intervals are nothing but zero, a dot."""
    if metric.low is None or metric.high is None or metric.effect is None:
        return ""
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{_said(metric)}">'
        f'<path d="M{_WIDTH / 2} 0V{_HEIGHT}" class="zero"/>{_mark(metric, scale, _WIDTH / 2, _WIDTH / 2 - 6, _HEIGHT / 2)}</svg>'
    )


def figure(name: str, slices: Sequence[Slice], scale: float) -> str:
    """One metric over the slices that have it, as an SVG; nothing where fewer than two have."""
    rows = [(part, m) for part in slices for m in part.metrics if m.name == name and m.effect is not None]
    if len(rows) < 2:
        return ""
    middle, half = _LABEL + _PLOT / 2, _PLOT / 2 - _TICK_PX
    width, bottom = _LABEL + _PLOT, _ROW * len(rows) + _PAD
    title = kind_of(rows[0][1]).title
    drawn = [f'<path d="M{middle} {_PAD}V{bottom}" class="zero"/>']
    for n, (part, metric) in enumerate(rows):
        y = _PAD + _ROW * (n + 0.5)
        drawn.append(
            f'<text x="{_LABEL - _PAD}" y="{y + 4}" text-anchor="end">{escape(_short(part.name))}</text>'
            f'<path d="M{_LABEL} {y}H{width}" class="line"/>{_mark(metric, scale, middle, half, y)}'
        )
    for at, text in ((middle - half, f"{-scale:.3g}"), (middle, "0"), (middle + half, f"+{scale:.3g}")):
        drawn.append(f'<text x="{at}" y="{bottom + 14}" text-anchor="middle" class="tick">{text}</text>')
    return (
        f'<figure><figcaption>{escape(title)}: candidate minus champion</figcaption><svg viewBox="0 0 {width} {bottom + 20}" '
        f'width="{width}" role="img" aria-label="{escape(title)}, by slice">{"".join(drawn)}</svg></figure>'
    )


def interval_text(metric: Metric, scale: float) -> str:
    """The same in characters: `·····├──●─┤│·····` with │ at zero; nothing without an interval."""
    if metric.low is None or metric.high is None or metric.effect is None:
        return ""
    middle = _TEXT_CELLS // 2

    def cell(value: float) -> int:
        return middle + round(_share(value, scale) * middle)

    cells = ["·"] * _TEXT_CELLS
    cells[middle] = "│"
    low, high = cell(metric.low), cell(metric.high)
    for n in range(low, high + 1):
        cells[n] = "─"
    if low < high:
        cells[low], cells[high] = "├", "┤"
    cells[cell(metric.effect)] = "●"
    return "".join(cells)


def _mark(metric: Metric, scale: float, middle: float, half: float, y: float) -> str:
    assert metric.low is not None
    assert metric.high is not None
    assert metric.effect is not None

    def x(value: float) -> str:
        return f"{middle + _share(value, scale) * half:.1f}"

    return (
        f'<path d="M{x(metric.low)} {y}H{x(metric.high)}" class="bar {metric.verdict}"/>'
        f'<circle cx="{x(metric.effect)}" cy="{y}" r="3.5" class="dot {metric.verdict}"><title>{_said(metric)}</title></circle>'
    )


def _share(value: float, scale: float) -> float:
    return max(-1.0, min(1.0, value / scale)) if scale > 0 else 0.0


def _said(metric: Metric) -> str:
    return f"{metric.effect:+.3g}, {metric.low:+.3g} to {metric.high:+.3g}, {metric.n} values"


def _short(name: str) -> str:
    name = "all held-out rows" if name == "all" else name
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + "…"
