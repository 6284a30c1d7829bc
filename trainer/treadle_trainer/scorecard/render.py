"""A scorecard for people: Markdown for terminals and pull requests, HTML that needs nothing but itself."""

from __future__ import annotations

from html import escape

from treadle_trainer.scorecard.card import Metric, Scorecard, Slice, kind_of
from treadle_trainer.scorecard.plots import figure, interval, interval_text, scales

__all__ = ["to_html", "to_markdown"]

_STYLE = """
:root{color-scheme:light dark;--text:#1f2328;--page:#fff;--rule:#d1d9e0;--faint:#59636e;--good:#1a7f37;--bad:#cf222e}
@media(prefers-color-scheme:dark){:root{--text:#f0f6fc;--page:#0d1117;--rule:#3d444d;--faint:#9198a1;--good:#3fb950;--bad:#f85149}}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:var(--text);background:var(--page)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--rule);text-align:right;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}td:not(:first-child){white-space:nowrap}
td.improved{color:var(--good)}td.regressed{color:var(--bad);font-weight:600}td.unclear{color:var(--faint)}
figure{margin:1rem 0}figcaption{font-weight:600}
svg{vertical-align:middle}figure svg{max-width:100%}
svg text{font:12px system-ui,sans-serif;fill:var(--text)}svg .tick{fill:var(--faint)}
.zero{stroke:var(--faint);fill:none}.line{stroke:var(--rule);stroke-width:.5;fill:none}.bar{stroke-width:2.5;fill:none}
.bar.improved{stroke:var(--good)}.bar.regressed{stroke:var(--bad)}.bar.unclear{stroke:var(--faint)}
.dot.improved{fill:var(--good)}.dot.regressed{fill:var(--bad)}.dot.unclear{fill:var(--faint)}
.note{color:var(--faint)}
"""
_WORDS = ("metric", "n", "champion", "candidate", "difference", "95 % interval", "", "")
_HEAD = "".join(f"<th>{word}" for word in _WORDS)


def to_markdown(card: Scorecard) -> str:
    """The scorecard as Markdown; intervals are drawn in characters, with │ at zero."""
    widest = scales(card.slices)
    lines = [f"# {_heading(card)}", "", *(line for text in _said(card) for line in (text, ""))]
    for part in card.slices:
        lines += [f"## {_title(part)}", "", f"| {' | '.join(_WORDS)} |", "|---|---|---|---|---|---|---|---|"]
        for metric in part.metrics:
            *cells, verdict = _cells(metric)
            drawn = interval_text(metric, widest.get(metric.name, 0.0))
            row = [cell.replace("|", "\\|") for cell in cells]
            row += [f"`{drawn}`" if drawn else "", verdict]
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines)


def to_html(card: Scorecard) -> str:
    """The scorecard as one page, light or dark as the reader's system is: no script, nothing loaded. Every text is escaped."""
    title, widest = escape(_heading(card)), scales(card.slices)
    body = [f"<h1>{title}</h1>", *(f"<p>{escape(text)}</p>" for text in _said(card))]
    figures = [figure(name, card.slices, scale) for name, scale in widest.items()]
    if any(figures):
        body.append(
            '<h2>By slice</h2><p class="note">95 % intervals of the difference; what crosses the line may be chance.</p>'
        )
        body += [f'<div class="wide">{each}</div>' for each in figures if each]
    for part in card.slices:
        body.append(f'<h2>{escape(_title(part))}</h2><div class="wide"><table><tr>{_HEAD}</tr>')
        for metric in part.metrics:
            cells = [escape(cell) for cell in _cells(metric)]
            row = "".join(f"<td>{cell}" for cell in cells[:-1])
            drawn = interval(metric, widest.get(metric.name, 0.0))
            body.append(f'<tr>{row}<td>{drawn}<td class="{metric.verdict}">{cells[-1]}</tr>')
        body.append("</table></div>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style>{''.join(body)}</html>\n"
    )


def _heading(card: Scorecard) -> str:
    return card.candidate + (f" against {card.champion}" if card.champion else "")


def _said(card: Scorecard) -> list[str]:
    """What it was measured on, what got worse, what judges used and which evaluators broke."""
    version = f"{card.corpus}@v{card.version} ({card.content_hash[:12]})"
    said = [f"{card.rows} trajectories and {card.pairs} pairs, held out of {version}; {card.created_at}"]
    worse = [f"{name}: {kind_of(metric).title}" for name, metric in card.regressions]
    if card.champion is not None:
        said.append(f"Worse: {'; '.join(worse)}." if worse else "Nothing is shown to be worse.")
    if card.judge is not None:
        used = card.judge
        said.append(
            f"Judges: {used.calls} calls, {used.prompt_tokens} prompt and {used.completion_tokens} completion tokens, {used.seconds:.1f} s."
        )
    said += [f"Evaluator {name} broke: {why}" for name, why in card.failures.items()]
    return said


def _title(part: Slice) -> str:
    return f"{'all held-out rows' if part.name == 'all' else part.name} ({part.rows})"


def _cells(metric: Metric) -> list[str]:
    kind = kind_of(metric)
    spread = "" if metric.low is None or metric.high is None else f"{metric.low:+.3g} to {metric.high:+.3g}"
    return [
        kind.title,
        f"{metric.n} in {metric.groups} groups" if metric.n != metric.groups else str(metric.n),
        "" if metric.champion is None else f"{metric.champion:.4g}",
        f"{metric.candidate:.4g}",
        "" if metric.effect is None else f"{metric.effect:+.3g}",
        spread,
        "" if metric.effect is None or not kind.better else metric.verdict,
    ]
