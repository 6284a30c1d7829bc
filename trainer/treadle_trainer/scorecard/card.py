"""From measured values to a scorecard: means, paired differences with intervals clustered by group, slices. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from treadle_trainer.gate import cluster_bounds
from treadle_trainer.scorecard.metrics import METRICS, WHOLE, MetricKind, Valued, Values, parts_of, valued
from treadle_trainer.scorecard.rows import ANCHOR, MAX_SLICES, MIN_SLICE, Measured
from treadle_trainer.scorecard.spend import Spend

__all__ = ["ENVIRONMENT", "Metric", "Played", "Scorecard", "Slice", "brief", "kind_of", "make_card"]

LEVEL: Final = 0.95
"""Of the two-sided intervals."""
ENVIRONMENT: Final = "environment"
"""The slice of the tasks that both played, and the first word of its parts."""


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
    better: Literal[-1, 0, 1] | None = None
    """Which way is better, where the name alone does not say it."""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of a part of the rows; the name `all` is the whole."""

    name: str
    rows: int
    metrics: list[Metric]


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What both made of the same tasks of an environment: metric -> (candidate's, champion's) values, the task of each, and the values of
    the tasks' data by key, which divide them."""

    metrics: dict[str, tuple[list[float], list[float]]]
    clusters: list[str]
    labels: dict[str, list[str]] = {}
    kinds: dict[str, Literal[-1, 0, 1]] = {}
    """Metric -> which way is better, where that is known."""


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
    judge: Spend | None = None
    """What models as evaluators used."""
    failures: dict[str, str] = {}
    """Evaluators that broke, and why."""

    @property
    def regressions(self) -> list[tuple[str, Metric]]:
        """(slice, metric) of everything that got worse."""
        return [(part.name, m) for part in self.slices for m in part.metrics if m.verdict == "regressed"]


def make_card(
    measured: Measured,
    values: Values,
    extra: Mapping[str, MetricKind] | None = None,
    played: Played | None = None,
    **about: Any,
) -> Scorecard:
    """Put a scorecard together. `values` names `candidate` and perhaps `champion`; `extra` are the metrics of evaluators of one's own.

    `played` adds what an environment said. `about` are the other fields of Scorecard.
    """
    kinds = {**METRICS, **(extra or {})}
    slices = []
    for name, places in parts_of(measured).items():
        found = {metric: valued(metric, places, measured, values, whole=name == WHOLE) for metric in kinds}
        metrics = [_metric(metric, kinds[metric].better, said) for metric, said in found.items() if said is not None]
        if metrics:
            slices.append(Slice(name=name, rows=len(places), metrics=metrics))
    if played is not None:
        after = sum(part.name in (WHOLE, ANCHOR) for part in slices)
        slices[after:after] = _environment(played)
    rows = sum(row.on_card for row in measured.rows)
    return Scorecard(rows=rows, pairs=len(measured.pairs), slices=slices, **about)


def brief(card: Scorecard) -> dict[str, Any]:
    """What a turn's evidence says of a scorecard: the metrics of the main parts, and the names of all that got worse."""
    main = {part.name: part for part in card.slices if part.name in (WHOLE, ANCHOR, ENVIRONMENT)}
    shown = ("n", "candidate", "champion", "effect", "low", "high", "verdict")
    return {
        "against": card.champion,
        "rows": card.rows,
        "pairs": card.pairs,
        "metrics": {
            name: {
                m.name: {key: v for key in shown if (v := _rounded(getattr(m, key))) is not None} for m in part.metrics
            }
            for name, part in main.items()
        },
        "regressed": [f"{name}/{metric.name}" for name, metric in card.regressions],
        **({"failures": card.failures} if card.failures else {}),
    }


def kind_of(metric: Metric) -> MetricKind:
    """What a metric says, and which way is better. One that nobody here knows is its own title."""
    known = METRICS.get(metric.name, MetricKind(metric.name.replace("_", " "), 1))
    return known if metric.better is None else known._replace(better=metric.better)


def _environment(played: Played) -> list[Slice]:
    """The slice of all tasks, and one of each value of their data that enough of them share and not all."""
    n = len(played.clusters)
    parts: dict[str, list[int]] = {ENVIRONMENT: list(range(n))}
    for label, said in sorted(played.labels.items()):
        for value in sorted(set(said)):
            parts[f"{ENVIRONMENT} {label}={value}"] = [i for i, each in enumerate(said) if each == value]
    big = [name for name, places in parts.items() if name == ENVIRONMENT or MIN_SLICE <= len(places) < n]
    return [
        Slice(
            name=name,
            rows=len(parts[name]),
            metrics=[
                _metric(
                    metric,
                    played.kinds.get(metric, 0),
                    Valued(
                        [ours[i] for i in parts[name]],
                        [theirs[i] for i in parts[name]],
                        [played.clusters[i] for i in parts[name]],
                    ),
                    told=True,
                )
                for metric, (ours, theirs) in played.metrics.items()
            ],
        )
        for name in big[: MAX_SLICES + 1]
        if parts[name]
    ]


def _metric(name: str, better: Literal[-1, 0, 1], said: Valued, *, told: bool = False) -> Metric:
    n, candidate = len(said.candidate), _mean(said.candidate)
    shown = better if told or name not in METRICS else None
    if said.champion is None:
        return Metric(name=name, n=n, groups=len(set(said.clusters)), candidate=candidate, better=shown)
    differences = [a - b for a, b in zip(said.candidate, said.champion, strict=True)]
    bounds = cluster_bounds(differences, said.clusters, (1 - LEVEL) / 2)
    sign = (bounds.low > 0) - (bounds.high < 0)
    verdict: Literal["improved", "regressed", "unclear"] = "unclear"
    if sign * better:
        verdict = "improved" if sign == better else "regressed"
    return Metric(
        name=name,
        n=n,
        groups=bounds.tasks,
        candidate=candidate,
        champion=_mean(said.champion),
        effect=bounds.effect,
        low=bounds.low,
        high=bounds.high,
        verdict=verdict,
        better=shown,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
