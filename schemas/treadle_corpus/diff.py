"""What changed between two versions, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import msgspec
from treadle_schemas.canonical import canonical_json
from treadle_schemas.records import GradedRow, MetricState

from treadle_corpus._rows import Key, RowMeta

__all__ = ["Change", "Diff", "RowChange", "difference"]

Change = Literal["reward", "metrics", "split", "messages", "tools", "task_id", "feedback"]
"""A part of what a version holds of a row."""
_BLOCK: int = 500


class RowChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row that both versions have, with other content."""

    episode_id: str
    interaction_id: str
    changed: list[Change]
    reward: tuple[float | None, float | None] | None = None
    """Before and after, where it changed."""
    metrics: dict[str, tuple[MetricState | None, MetricState | None]] = {}
    """Those that changed, before and after; None where one had not been seen."""
    split: tuple[str, str] | None = None


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of rows that only one version has, and the rows that both have with other content. Each list is in the order of ids."""

    added: list[Key]
    removed: list[Key]
    updated: list[RowChange]


def difference(
    before: Mapping[Key, RowMeta],
    after: Mapping[Key, RowMeta],
    read_before: Callable[[list[tuple[Key, RowMeta]]], Iterator[GradedRow]],
    read_after: Callable[[list[tuple[Key, RowMeta]]], Iterator[GradedRow]],
) -> Diff:
    """Compare the members of two versions. Only rows whose content differs are read, with the functions given."""
    differ = sorted(key for key, meta in after.items() if key in before and before[key].line != meta.line)
    updated: list[RowChange] = []
    for start in range(0, len(differ), _BLOCK):
        block = differ[start : start + _BLOCK]
        pairs = zip(
            read_before([(key, before[key]) for key in block]),
            read_after([(key, after[key]) for key in block]),
            strict=True,
        )
        updated += [_change(one, two) for one, two in pairs]
    return Diff(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        updated=updated,
    )


def _change(before: GradedRow, after: GradedRow) -> RowChange:
    changed: list[Change] = []
    reward = split = None
    old, new = before.grade, after.grade
    if old.reward != new.reward:
        changed.append("reward")
        reward = (old.reward, new.reward)
    names = sorted(old.metrics.keys() | new.metrics.keys())
    metrics = {name: (old.metrics.get(name), new.metrics.get(name)) for name in names}
    metrics = {name: (one, two) for name, (one, two) in metrics.items() if _json(one) != _json(two)}
    if metrics:
        changed.append("metrics")
    if before.split != after.split:
        changed.append("split")
        split = (str(before.split), str(after.split))
    fields: tuple[Literal["messages", "tools", "task_id"], ...] = ("messages", "tools", "task_id")
    for field in fields:
        if canonical_json(before.interaction.get(field)) != canonical_json(after.interaction.get(field)):
            changed.append(field)
    if before.feedback != after.feedback:
        changed.append("feedback")
    return RowChange(
        episode_id=after.episode_id,
        interaction_id=after.interaction_id,
        changed=changed,
        reward=reward,
        metrics=metrics,
        split=split,
    )


def _json(state: MetricState | None) -> bytes:
    return canonical_json(None if state is None else list(state))
