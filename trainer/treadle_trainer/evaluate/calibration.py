"""Does offline evidence foretell live rewards? Every canary that was judged live, with both differences. Pure but for reading the registry.

The offline difference is the gate's effect on held-out tasks, the live one that of the trial, both canary minus champion. An evaluation
that is worth its money has its points near a rising line; one that promotes what live traffic then withdraws shows at a glance.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from treadle_trainer.registry import Registry

__all__ = ["Point", "as_html", "as_text", "points"]

SIZE_PX = 420
MARGIN_PX = 48


@dataclass(frozen=True, kw_only=True)
class Point:
    """One canary: what was expected of it and what came of it. `offline` is None where it was admitted without an evaluation."""

    release: str
    against: str | None
    decision: str
    offline: float | None
    offline_low: float | None
    offline_high: float | None
    kind: str | None
    """What the offline scores were: `environment` (success) or `logged` (log-likelihood, in nats)."""
    live: float
    live_low: float
    live_high: float
    episodes: int
    at: str


def points(registry: Registry) -> list[Point]:
    """The canaries of a slot that live rewards decided about, oldest first."""
    admitted: dict[str, Any] = {}
    out = []
    for event in registry.events():
        if event.event == "admitted" and event.release is not None:
            admitted[event.release] = event
        live = event.evidence.get("live")
        if event.event not in ("promoted", "withdrawn") or live is None or event.release is None:
            continue
        before = admitted.get(event.release)
        evidence = before.evidence if before is not None else {}
        gate, evaluation = evidence.get("gate", {}), evidence.get("evaluation", {})
        out.append(
            Point(
                release=event.release,
                against=live.get("champion"),
                decision=str(live["decision"]),
                offline=gate.get("effect"),
                offline_low=gate.get("low"),
                offline_high=gate.get("high"),
                kind=evaluation.get("kind"),
                live=live["effect"]["effect"],
                live_low=live["effect"]["low"],
                live_high=live["effect"]["high"],
                episodes=live["canary_units"],
                at=event.at,
            )
        )
    return out


def as_text(found: list[Point]) -> str:
    """A table, a line a canary."""
    lines = [f"{'release':<24} {'offline':>8} {'live':>8}  {'live interval':<18} {'episodes':>8}  decision"]
    for p in found:
        offline = "-" if p.offline is None else f"{p.offline:+.3f}"
        interval = f"[{p.live_low:+.3f}, {p.live_high:+.3f}]"
        lines.append(f"{p.release:<24} {offline:>8} {p.live:>+8.3f}  {interval:<18} {p.episodes:>8}  {p.decision}")
    known = [(p.offline, p.live) for p in found if p.offline is not None]
    if known:
        agreed = sum((offline > 0) == (live > 0) for offline, live in known)
        lines.append(f"same sign offline and live: {agreed} of {len(known)}")
    return "\n".join(lines)


def as_html(found: list[Point], title: str) -> str:
    """A page that needs nothing else: a plot of live over offline difference with intervals, and the table."""
    plotted = [p for p in found if p.offline is not None]
    xs = [v for p in plotted for v in (p.offline, p.offline_low, p.offline_high) if v is not None]
    ys = [v for p in plotted for v in (p.live, p.live_low, p.live_high)]
    wide, high = _reach(xs), _reach(ys)

    def x(value: float) -> float:
        return MARGIN_PX + (value / wide + 1) / 2 * (SIZE_PX - 2 * MARGIN_PX)

    def y(value: float) -> float:
        return SIZE_PX - MARGIN_PX - (value / high + 1) / 2 * (SIZE_PX - 2 * MARGIN_PX)

    marks = [
        f'<line x1="{x(-wide):.1f}" y1="{y(0):.1f}" x2="{x(wide):.1f}" y2="{y(0):.1f}" class="axis"/>',
        f'<line x1="{x(0):.1f}" y1="{y(-high):.1f}" x2="{x(0):.1f}" y2="{y(high):.1f}" class="axis"/>',
        f'<text x="{SIZE_PX / 2:.0f}" y="{SIZE_PX - 12}">offline difference (reaches {wide:.3g})</text>',
        f'<text x="14" y="{SIZE_PX / 2:.0f}" transform="rotate(-90 14 {SIZE_PX / 2:.0f})">live difference (reaches {high:.3g})</text>',
    ]
    for p in plotted:
        assert p.offline is not None
        low, top = p.offline_low or p.offline, p.offline_high or p.offline
        marks += [
            f'<line x1="{x(low):.1f}" y1="{y(p.live):.1f}" x2="{x(top):.1f}" y2="{y(p.live):.1f}" class="bar"/>',
            f'<line x1="{x(p.offline):.1f}" y1="{y(p.live_low):.1f}" x2="{x(p.offline):.1f}" y2="{y(p.live_high):.1f}" class="bar"/>',
            f'<circle cx="{x(p.offline):.1f}" cy="{y(p.live):.1f}" r="5" class="{html.escape(p.decision)}">'
            f"<title>{html.escape(p.release)}</title></circle>",
        ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>'
        "body{font:14px sans-serif;margin:2em}.axis{stroke:#999}.bar{stroke:#bbb}circle{fill:#888}"
        ".promote{fill:#1a7f37}.withdraw{fill:#cf222e}text{text-anchor:middle;font-size:12px}</style>"
        f"<h1>{html.escape(title)}</h1><p>Canary minus champion. Green: promoted, red: withdrawn as worse, grey: undecided in its time.</p>"
        f'<svg width="{SIZE_PX}" height="{SIZE_PX}" role="img">{"".join(marks)}</svg>'
        f"<pre>{html.escape(as_text(found))}</pre></html>\n"
    )


def _reach(values: list[float]) -> float:
    return 1.1 * max((abs(v) for v in values), default=1.0) or 1.0
