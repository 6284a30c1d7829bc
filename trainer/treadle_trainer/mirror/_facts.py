"""What MLflow should say of a release: parameters, metrics and tags, from its manifest, its scorecards and the audit log. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from treadle_schemas import ReleaseEvent, ReleaseManifest, content_hash
from treadle_schemas.moments import to_micros

from treadle_trainer.registry import Aliases
from treadle_trainer.scorecard.card import Scorecard

__all__ = ["Facts", "Point", "aliases_of", "facts_of", "flat"]

LONGEST_NAME: Final = 250
LONGEST_PARAM: Final = 6_000
LONGEST_TAG: Final = 5_000
"""Characters: what MLflow's stores and servers take."""
DECISIONS: Final = frozenset(
    (
        "promoted",
        "rejected",
        "not_enough_evidence",
        "failed",
        "admitted",
        "withdrawn",
        "awaiting_approval",
        "rolled_back",
    )
)
_NOT_IN_NAMES: Final = re.compile(r"[^\w. -]")
MEASURED: Final = ("gate", "seconds")
"""Parts of a decision's evidence whose numbers are metrics of the release."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of a metric. `step` is the sequence number of the decision that measured it, 0 for what the release came with."""

    name: str
    value: float
    step: int
    at_ms: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run says of a release. `manifest` is the hash of its manifest, which is what the run is known by."""

    release: str
    name: str
    manifest: str
    created_ms: int
    params: dict[str, str]
    points: tuple[Point, ...]
    tags: dict[str, str]

    @property
    def digest(self) -> str:
        """Changes when, and only when, something that the run says does."""
        return content_hash(asdict(self))[:32]


def facts_of(
    manifest: ReleaseManifest,
    manifest_hash: str,
    events: Sequence[ReleaseEvent],
    aliases: Aliases,
    cards: Sequence[Scorecard] = (),
    *,
    collected: bool = False,
) -> Facts:
    """What MLflow should say of a release now. `events` are those about it, oldest first; `cards` its scorecards, oldest first."""
    _, slot, number = manifest.release.split("/")
    created = _ms(manifest.created_at)
    chosen = {key: value for key, value in manifest.config.items() if key != "training"}
    came_with = [*flat("training", manifest.config.get("training")), *flat("evaluation", manifest.evaluation)]
    points = [Point(name=n, value=v, step=0, at_ms=created) for n, v in came_with if isinstance(v, float)]
    for event in events:
        for part in MEASURED:
            for name, value in flat(part, event.evidence.get(part, {})):
                if isinstance(value, float):
                    points.append(Point(name=name, value=value, step=event.sequence, at_ms=_ms(event.at)))
    points += [point for n, card in enumerate(cards) for point in _of_card(card, n)]
    params = {
        "method": manifest.method,
        "base": manifest.base,
        "kind": manifest.kind,
        "hosted_model": manifest.hosted_model,
        **{name: _text(value) for name, value in (*flat("", chosen), *flat("sampling", manifest.sampling))},
        **{name: value for name, value in came_with if isinstance(value, str)},
    }
    return Facts(
        release=manifest.release,
        name=f"{slot}/{number}",
        manifest=manifest_hash,
        created_ms=created,
        params={name: text[:LONGEST_PARAM] for name, text in params.items() if text is not None},
        points=tuple(points),
        tags=_tags(manifest, manifest_hash, events, aliases, number[1:], collected),
    )


def aliases_of(aliases: Aliases) -> dict[str, int | None]:
    """MLflow alias -> number of the release; None: nobody."""
    return {
        "champion": aliases.champion,
        "canary": aliases.canary,
        "previous": aliases.predecessor,
        "control": aliases.control,
    }


def flat(prefix: str, value: Any) -> Iterator[tuple[str, float | str]]:
    """The leaves of nested JSON under dotted names: numbers as floats, everything else as text. None and empty containers say nothing.

    An item of a list is called by its own `name`, where it has one, else by its place.
    """
    match value:
        case None:
            return
        case dict():
            for key, inner in value.items():
                yield from flat(f"{prefix}.{key}" if prefix else str(key), inner)
        case list() | tuple():
            for n, inner in enumerate(value):
                key = inner["name"] if isinstance(inner, dict) and "name" in inner else n
                yield from flat(f"{prefix}.{key}" if prefix else str(key), inner)
        case bool() | str():
            yield _name(prefix), str(value)
        case int() | float():
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            # MLflow would clip what is not finite to a number that nobody measured
            yield _name(prefix), number if math.isfinite(number) else str(value)
        case _:
            yield _name(prefix), str(value)


def _of_card(card: Scorecard, place: int) -> Iterator[Point]:
    at_ms = _ms(card.created_at)
    for part in card.slices:
        for metric in part.metrics:
            values = {"candidate": metric.candidate, "champion": metric.champion, "effect": metric.effect}
            for name, value in flat(f"scorecard.{part.name}.{metric.name}", values):
                if isinstance(value, float):
                    yield Point(name=name, value=value, step=place, at_ms=at_ms)


def _tags(
    manifest: ReleaseManifest,
    manifest_hash: str,
    events: Sequence[ReleaseEvent],
    aliases: Aliases,
    number: str,
    collected: bool,
) -> dict[str, str]:
    decided = next((event for event in reversed(events) if event.event in DECISIONS), None)
    corpus = None if manifest.corpus is None else f"{manifest.corpus}@v{manifest.corpus_version}"
    tags = {
        "treadle.release": manifest.release,
        "treadle.manifest": manifest_hash,
        "treadle.corpus": corpus,
        "treadle.corpus_hash": manifest.corpus_hash,
        "treadle.parent": manifest.parent,
        "treadle.code_version": manifest.code_version or None,
        "treadle.registered": events[0].reason if events else None,
        # an empty tag takes back what an earlier state of the release said: MLflow has no way to write "not there"
        "treadle.decision": decided.event if decided else "",
        "treadle.reason": decided.reason if decided else "",
        "treadle.actor": decided.actor if decided else "",
        "treadle.decided_at": decided.at if decided else "",
        "treadle.quarantined": aliases.quarantined.get(number, ""),
        "treadle.pinned": aliases.pins.get(number, ""),
        "treadle.files": "deleted" if collected else "kept",
        # what MLflow shows as the description
        "mlflow.note.content": manifest.note,
    }
    return {name: text[:LONGEST_TAG] for name, text in tags.items() if text is not None}


def _name(name: str) -> str:
    name = _NOT_IN_NAMES.sub("_", name)[:LONGEST_NAME]
    return name if name.strip(".") else "_"  # MLflow reads names as paths


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{int(value)}" if float(value).is_integer() else repr(value)


def _ms(moment: str) -> int:
    return to_micros(moment, "at") // 1000 if moment else 0
