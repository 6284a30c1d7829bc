"""Graded rows to test with, for this package and for whoever builds on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treadle_schemas.canonical import dumps
from treadle_schemas.codec import to_json
from treadle_schemas.records import Feedback, Grade, GradedRow, MetricState, Provenance
from treadle_schemas.split import Side, split_group

from treadle_corpus._rows import Decision, GradedRecord, read_record
from treadle_corpus.reader import CorpusRow

__all__ = ["SelectAll", "corpus_row", "graded"]


class SelectAll:
    """The selector of a policy without a filter."""

    identity = "all"

    def select(self, rows: Sequence[GradedRow]) -> list[Decision]:
        """Every row."""
        return ["selected"] * len(rows)


def graded(
    interaction_id: str,
    *,
    reward: float | None = 1.0,
    revision: int = 1,
    episode_id: str | None = None,
    task_id: str | None = "task",
    messages: list[dict[str, Any]] | None = None,
    split: Side = "train",
    settled: bool = True,
    metrics: Mapping[str, MetricState] | None = None,
    append_ms: int = 1_700_000_000_000,
    feedback: Sequence[Feedback] = (),
    grading_version: int = 1,
    outcome_ids: Sequence[str] = (),
    **fields: Any,
) -> GradedRecord:
    """A revision as `.graded` carries it. `fields` are further fields of the interaction."""
    said = messages or [
        {"role": "user", "content": f"please do {interaction_id}"},
        {"role": "assistant", "content": f"done {interaction_id}"},
    ]
    interaction = {
        "interaction_id": interaction_id,
        "agent": "agent",
        "messages": said,
        "started_at": "2024-05-15T20:31:00Z",
        "ended_at": "2024-05-15T20:32:00Z",
        **({} if task_id is None else {"task_id": task_id}),
        **({} if episode_id is None else {"episode_id": episode_id}),
        **fields,
    }
    states: dict[str, MetricState] = {"reward": ("absent", None) if reward is None else ("observed", reward)}
    states.update(metrics or {})
    pending = sum(state == "pending" for state, _ in states.values())
    row = GradedRow(
        episode_id=episode_id or interaction_id,
        interaction_id=interaction_id,
        interaction=interaction,
        grade=Grade(
            metrics=states,
            reward=reward,
            completeness=1.0 - pending / len(states),
            settled=settled,
            grading_version=grading_version,
        ),
        split=split,
        split_group=split_group(task_id, said),
        provenance=Provenance(
            revision=revision,
            graded_at="2024-05-15T20:40:00Z",
            append_ms=append_ms,
            interaction_offset=0,
            partition=0,
            outcome_ids=list(outcome_ids),
        ),
        feedback=list(feedback),
    )
    return read_record(dumps(to_json(row)))


def corpus_row(record: GradedRecord) -> CorpusRow:
    """A graded row as a version gives it."""
    found = record.row
    return CorpusRow(
        found.episode_id,
        found.interaction_id,
        found.interaction,
        found.grade,
        found.split,
        found.split_group,
        found.provenance,
        found.feedback,
    )
