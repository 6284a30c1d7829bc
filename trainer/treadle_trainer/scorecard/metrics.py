"""What the metrics of a scorecard are, and the values of each on a part of the rows, pair by pair. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.gate import Paired
from treadle_trainer.scorecard.rows import ANCHOR, Measured

__all__ = ["METRICS", "WHOLE", "Better", "MetricKind", "Valued", "Values", "for_gate", "parts_of", "valued"]

Better = Literal[-1, 0, 1]
"""Which way is better: 1 up, -1 down, 0 neither."""
Values = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Model (`candidate`, `champion`) -> metric -> index as text -> value."""
WHOLE: Final = "all"
"""The part that is every held-out row; the anchor suite is not in it."""


class MetricKind(NamedTuple):
    """What a metric says, and which way is better."""

    title: str
    better: Better


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
_SLICE_KINDS: Final = (ANCHOR, "tag ", "task ", "model ", "agent ")


class Valued(NamedTuple):
    """Values of both on the same places; `champion` None where there is nothing to compare with. `clusters[i]`: the group of place i."""

    candidate: list[float]
    champion: list[float] | None
    clusters: list[str]


def parts_of(measured: Measured) -> dict[str, list[int]]:
    """The parts of a scorecard, the whole first, the anchor suite second: places of rows."""
    rows = [(n, row) for n, row in enumerate(measured.rows) if row.on_card]
    parts = {WHOLE: [n for n, row in rows if ANCHOR not in row.slices]}
    for name in sorted({name for _, row in rows for name in row.slices}, key=lambda name: (name != ANCHOR, name)):
        parts[name] = [n for n, row in rows if name in row.slices]
    return parts


def valued(name: str, places: Sequence[int], measured: Measured, values: Values, *, whole: bool) -> Valued | None:
    """A metric on a part of the rows. None: neither has a value there. `preference` is of pairs, and of the whole alone."""
    if name == "preference":
        groups = [pair.group for pair in measured.pairs]
        places = range(len(measured.pairs)) if whole else ()
    else:
        groups = [row.group for row in measured.rows]
        if name in _OF_SUCCESSES:
            places = [n for n in places if (measured.rows[n].reward or 0.0) > 0]
    ours = values["candidate"].get(name, {})
    theirs = values.get("champion", {}).get(name, {})
    alone = not theirs or name == "kl"
    both = [n for n in places if str(n) in ours and (alone or str(n) in theirs)]
    if not both:
        return None
    return Valued(
        [ours[str(n)] for n in both], None if alone else [theirs[str(n)] for n in both], [groups[n] for n in both]
    )


def for_gate(
    name: str, measured: Measured, values: Values, own: Sequence[str] = (), failures: Mapping[str, str] | None = None
) -> Paired | None:
    """What the gate compares by the name `METRIC` or `SLICE/METRIC`: of the champion's divergence from itself, zeros.

    None for a name that no scorecard has. Without pairs where the slice has no rows in this version, or the metric no values: then nothing
    is known of it. `own` are the evaluators. Raises EvaluationFailed for a metric whose evaluator broke, or that lacks the champion's side.
    """
    part, slash, metric = name.rpartition("/")
    part = part if slash else WHOLE
    if metric not in METRICS and metric not in own:
        return None
    if part != WHOLE and not part.startswith(_SLICE_KINDS):
        return None
    if failures and metric in failures:
        raise EvaluationFailed(
            f"the policy's gate names the metric {name!r}, but its evaluator broke: {failures[metric]}"
        )
    found = valued(metric, parts_of(measured).get(part, ()), measured, values, whole=part == WHOLE)
    if found is None:
        return Paired(candidate=[], champion=[], clusters=[])
    champion = found.champion
    if champion is None and metric == "kl":
        champion = [0.0] * len(found.candidate)
    if champion is None:
        raise EvaluationFailed(
            f"the policy's gate names the metric {name!r}, but the champion has no values of it to compare with"
        )
    return Paired(candidate=found.candidate, champion=champion, clusters=found.clusters)
