"""From measured values to a scorecard: means, paired differences with intervals clustered by group, slices. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from treadle_trainer.gate import cluster_bounds
from treadle_trainer.scorecard.rows import ANCHOR, EvalRow, Measured

__all__ = ["METRICS", "Metric", "MetricKind", "Scorecard", "Slice", "make_card"]

LEVEL: Final = 0.95
"""Of the two-sided intervals."""
Values = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Model -> metric -> index as text -> value."""


class MetricKind(NamedTuple):
    """What a metric says, and which way is better: 1 up, -1 down, 0 neither."""

    title: str
    better: Literal[-1, 0, 1]


METRICS: Final[dict[str, MetricKind]] = {
    "log_likelihood": MetricKind("log-likelihood a token of successful responses", 1),
    "preference": MetricKind("better answer of a pair is likelier", 1),
    "exact": MetricKind("response as logged", 1),
    "tool_name": MetricKind("calls the logged tools", 1),
    "arguments": MetricKind("with the logged arguments", 1),
    "format": MetricKind("well-formed and finished", 1),
    "length": MetricKind("tokens of a response", 0),
    "kl": MetricKind("KL to the champion, a token", 0),
}
"""Generation metrics (exact to length) are of greedy answers to successful rows; `format` and `length` of answers to all rows."""
_OF_SUCCESSES: Final = ("log_likelihood", "exact", "tool_name", "arguments")


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric: means over the `n` values that both have, and of their difference (candidate minus champion) a 95 % interval.

    Without a champion, and for `kl`, only the candidate's mean is there. `regressed`, `improved`: the interval excludes zero.
    """

    name: str
    n: int
    groups: int
    candidate: float
    champion: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Literal["improved", "regressed", "unclear"] = "unclear"


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of a part of the rows; the name `all` is the whole."""

    name: str
    rows: int
    metrics: list[Metric]


class Scorecard(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a candidate, beside a champion where there is one. `made` says from what."""

    candidate: str
    champion: str | None
    corpus: str
    version: int
    content_hash: str
    rows: int
    pairs: int
    slices: list[Slice]
    created_at: str
    made: dict[str, Any] = {}

    @property
    def regressions(self) -> list[tuple[str, Metric]]:
        """(slice, metric) of everything that got worse."""
        return [(part.name, m) for part in self.slices for m in part.metrics if m.verdict == "regressed"]


def make_card(
    measured: Measured, values: Values, extra: Mapping[str, MetricKind] | None = None, **about: Any
) -> Scorecard:
    """Put a scorecard together. `values` names `candidate` and perhaps `champion`; `extra` are the metrics of evaluators of one's own.

    `about` are the other fields of Scorecard.
    """
    kinds = {**METRICS, **(extra or {})}
    parts: dict[str, Callable[[EvalRow], bool]] = {"all": lambda row: ANCHOR not in row.slices}
    for name in sorted({name for row in measured.rows for name in row.slices}, key=lambda n: (n != ANCHOR, n)):
        parts[name] = lambda row, name=name: name in row.slices  # type: ignore[misc]
    slices = []
    for name, holds in parts.items():
        chosen = [n for n, row in enumerate(measured.rows) if holds(row)]
        metrics = [
            m for metric, kind in kinds.items() if (m := _metric(metric, kind, chosen, measured, values, name == "all"))
        ]
        if metrics:
            slices.append(Slice(name=name, rows=len(chosen), metrics=metrics))
    return Scorecard(rows=len(measured.rows), pairs=len(measured.pairs), slices=slices, **about)


def _metric(
    name: str, kind: MetricKind, chosen: Sequence[int], measured: Measured, values: Values, whole: bool
) -> Metric | None:
    if name == "preference":
        if not whole:
            return None
        places: Iterable[int] = range(len(measured.pairs))
        groups = [pair.group for pair in measured.pairs]
    else:
        groups = [row.group for row in measured.rows]
        places = chosen
        if name in _OF_SUCCESSES:
            places = [n for n in chosen if (measured.rows[n].reward or 0.0) > 0]
    ours = values["candidate"].get(name, {})
    theirs = values.get("champion", {}).get(name, {})
    alone = not theirs or name == "kl"
    both = [n for n in places if str(n) in ours and (alone or str(n) in theirs)]
    if not both:
        return None
    clusters = [groups[n] for n in both]
    candidate = sum(ours[str(n)] for n in both) / len(both)
    if alone:
        return Metric(name=name, n=len(both), groups=len(set(clusters)), candidate=candidate)
    bounds = cluster_bounds([ours[str(n)] - theirs[str(n)] for n in both], clusters, (1 - LEVEL) / 2)
    sign = (bounds.low > 0) - (bounds.high < 0)
    verdict: Literal["improved", "regressed", "unclear"] = "unclear"
    if sign * kind.better:
        verdict = "improved" if sign == kind.better else "regressed"
    return Metric(
        name=name,
        n=len(both),
        groups=bounds.tasks,
        candidate=candidate,
        champion=sum(theirs[str(n)] for n in both) / len(both),
        effect=bounds.effect,
        low=bounds.low,
        high=bounds.high,
        verdict=verdict,
    )
