"""A scorecard for people: Markdown for terminals and pull requests, HTML that needs nothing but itself."""

from __future__ import annotations

from html import escape

from treadle_trainer.scorecard.card import METRICS, Metric, MetricKind, Scorecard, Slice

__all__ = ["to_html", "to_markdown"]

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1f2328}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid #d1d9e0;text-align:right;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}
.improved{color:#1a7f37}.regressed{color:#cf222e;font-weight:600}.unclear{color:#59636e}
svg{vertical-align:middle}
"""
_HEAD = "".join(
    f"<th>{word}" for word in ("metric", "n", "champion", "candidate", "difference", "95 % interval", "", "")
)
_WIDTH, _HEIGHT = 220, 18


def to_markdown(card: Scorecard) -> str:
    """The scorecard as Markdown."""
    lines = [f"# {card.candidate}" + (f" against {card.champion}" if card.champion else ""), "", _source(card), ""]
    for part in card.slices:
        lines += [
            f"## {_title(part)}",
            "",
            "| metric | n | champion | candidate | difference | 95 % interval | |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(_cells(metric))} |" for metric in part.metrics]
        lines.append("")
    return "\n".join(lines)


def to_html(card: Scorecard) -> str:
    """The scorecard as one page: no script, nothing loaded. Every text is escaped."""
    title = escape(card.candidate + (f" against {card.champion}" if card.champion else ""))
    body = [f"<h1>{title}</h1><p>{escape(_source(card))}</p>"]
    for part in card.slices:
        body.append(f"<h2>{escape(_title(part))}</h2><table><tr>{_HEAD}</tr>")
        widest = max(
            (abs(bound) for m in part.metrics for bound in (m.low, m.high) if bound is not None and m.name != "length"),
            default=0.0,
        )
        for metric in part.metrics:
            cells = [escape(cell) for cell in _cells(metric)]
            row = "".join(f"<td>{cell}" for cell in cells[:-1])
            scale = widest if metric.name != "length" else max(abs(metric.low or 0.0), abs(metric.high or 0.0))
            body.append(f'<tr>{row}<td>{_plot(metric, scale)}<td class="{metric.verdict}">{cells[-1]}</tr>')
        body.append("</table>")
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>{"".join(body)}</html>\n'


def _source(card: Scorecard) -> str:
    version = f"{card.corpus}@v{card.version} ({card.content_hash[:12]})"
    return f"{card.rows} trajectories and {card.pairs} pairs, held out of {version}; {card.created_at}"


def _title(part: Slice) -> str:
    return f"{'all held-out rows' if part.name == 'all' else part.name} ({part.rows})"


def _cells(metric: Metric) -> list[str]:
    kind = METRICS.get(metric.name, MetricKind(metric.name, 1))
    interval = "" if metric.low is None or metric.high is None else f"{metric.low:+.3g} to {metric.high:+.3g}"
    return [
        kind.title,
        f"{metric.n} in {metric.groups} groups" if metric.n != metric.groups else str(metric.n),
        "" if metric.champion is None else f"{metric.champion:.4g}",
        f"{metric.candidate:.4g}",
        "" if metric.effect is None else f"{metric.effect:+.3g}",
        interval,
        "" if metric.effect is None or not kind.better else metric.verdict,
    ]


def _plot(metric: Metric, scale: float) -> str:
    """The interval on a line with zero in the middle."""
    if metric.low is None or metric.high is None or metric.effect is None or scale <= 0:
        return ""
    middle, y = _WIDTH / 2, _HEIGHT / 2

    def x(value: float) -> str:
        return f"{middle + value / scale * (middle - 6):.1f}"

    colour = {"improved": "#1a7f37", "regressed": "#cf222e", "unclear": "#59636e"}[metric.verdict]
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{metric.low:+.3g} to {metric.high:+.3g}">'
        f'<path d="M{middle} 0V{_HEIGHT}" stroke="#d1d9e0"/>'
        f'<path d="M{x(metric.low)} {y}H{x(metric.high)}" stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{x(metric.effect)}" cy="{y}" r="3.5" fill="{colour}"/></svg>'
    )
