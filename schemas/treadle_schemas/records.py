"""The records that treadle writes: progress, graded rows, snapshots, releases. Values on the wire are JSON of these structs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from treadle_schemas.events import Rights
from treadle_schemas.split import Side
from treadle_schemas.traffic import Traffic

__all__ = [
    "Announcement",
    "Feedback",
    "Grade",
    "GradedRow",
    "ImportMarker",
    "MetricState",
    "Progress",
    "Provenance",
    "Regraded",
    "ReleaseEvent",
    "ReleaseEventKind",
    "ReleaseManifest",
    "SnapshotRecord",
    "Vitals",
    "row_content",
]

State = Literal["pending", "observed", "absent"]
MetricState = tuple[State, bool | float | int | str | None]
"""[state, value] of one metric on one row. The value is null unless observed."""


class Grade(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a row's success. `completeness` is the share of declared metrics that are not pending."""

    metrics: dict[str, MetricState]
    reward: float | None
    completeness: float
    settled: bool
    grading_version: int


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a revision comes from. `append_ms` is the broker's append time of the row's first copy; offsets name the inputs."""

    revision: int
    graded_at: str
    append_ms: int
    interaction_offset: int
    partition: int
    outcome_ids: list[str]
    last_outcome_append_ms: int | None = None
    import_id: str | None = None


class Feedback(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was said of a row and is no metric, as its outcome said it.

    A comment has a `value`; a preference names the interaction `over` which the row is preferred, or the `messages` of the answer that it
    is better than; a demonstration has the `messages` that should have been said.
    """

    kind: Literal["comment", "preference", "demonstration"]
    name: str
    outcome_id: str
    observed_at: str
    value: str | None = None
    over: str | None = None
    messages: list[dict[str, Any]] | None = None
    source: str | None = None


class GradedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One revision of one row on `.graded`: content (interaction, grade, split, rights) and provenance. `interaction` is verbatim.

    Parts that the interaction names come before the row, as part records under the same key; treadle_schemas.parts puts them back.
    """

    episode_id: str
    interaction_id: str
    interaction: dict[str, Any]
    grade: Grade
    split: Side
    split_group: str
    provenance: Provenance
    rights: Rights | None = None
    """Where something is denied; null: everything is allowed."""
    erased: bool = False
    """Its episode, or a part of the interaction, was erased: the row is in no later version."""
    feedback: list[Feedback] = []
    """Comments, preferences and demonstrations that were not taken back, in the order in which they were observed."""


class Regraded(msgspec.Struct, frozen=True, kw_only=True):
    """Every row that a partition keeps is graded by this grading version: on `.graded` after those rows, and on `.progress`."""

    grading_version: int
    rows: int
    """Rows that were looked at."""


class Vitals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an interaction tells of its health the moment it is there, long before any outcome."""

    error: bool = False
    invalid_calls: int = 0
    """Tool calls that name no offered tool, or have no JSON object as arguments."""
    latency_ms: int = 0
    """From started_at to ended_at."""
    cost: float | None = None
    """US dollars."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change of a row's grade on `.progress`, at once and without messages."""

    episode_id: str
    interaction_id: str
    task_id: str | None
    agent: str
    slot: str
    release: str | None
    grade: Grade
    split: Side
    revision: int
    append_ms: int
    ended_at: str
    vitals: Vitals | None = None
    """Null where treadle 0.1 wrote it."""
    erased: bool = False
    """Its episode was erased: nothing is known of the row any more but that it was there."""


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """Which row a name stands for, on `.references`, keyed by the name.

    A name is one of the interaction's references, or its interaction id where the episode is another id: outcomes may know no more.
    """

    name: str
    kind: Literal["reference", "interaction"]
    episode_id: str
    interaction_id: str


class ImportMarker(msgspec.Struct, frozen=True, kw_only=True):
    """Begin or end of an import, written to every partition of interactions and outcomes."""

    import_id: str
    phase: Literal["begin", "end"]


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A new corpus version, on `.snapshots`. It wakes the trainer. `new_rows` counts rows settled since the version before."""

    corpus: str
    version: int
    content_hash: str
    rows: int
    new_rows: int
    added: int
    updated: int
    removed: int
    created_at: str
    last_append_ms: int | None = None
    """Append time of the newest interaction in the version: where its cycle time begins."""
    written_bytes: int | None = None
    """What the corpus grew by on disk since the version before. Null where that is not known, as in records of treadle 0.1."""


class ReleaseManifest(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable release: what an agent loads, and where it came from. `files` maps relative paths to sha256."""

    release: str
    kind: Literal["model", "adapter", "hosted", "prompt"] = "model"
    path: str | None = None
    hosted_model: str | None = None
    system_prompt: str | None = None
    skills: list[str] = []
    sampling: dict[str, Any] = {}
    files: dict[str, str] = {}
    parent: str | None = None
    base: str | None = None
    corpus: str | None = None
    corpus_version: int | None = None
    corpus_hash: str | None = None
    method: str | None = None
    config: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    note: str | None = None
    code_version: str = ""
    created_at: str = ""


ReleaseEventKind = Literal[
    "registered",
    "promoted",
    "rejected",
    "not_enough_evidence",
    "rolled_back",
    "quarantined",
    "failed",
    "admitted",
    "withdrawn",
    "awaiting_approval",
    "approved",
    "controlled",
    "pinned",
    "unpinned",
    "exported",
    "collected",
    "trusted",
]
"""What can be decided of a release."""


class ReleaseEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry decided, on `.releases`. `sequence` is the position in the registry's audit log of that slot."""

    event: ReleaseEventKind
    slot: str
    release: str | None
    previous: str | None = None
    champion: str | None = None
    actor: str
    reason: str
    at: str
    sequence: int
    evidence: dict[str, Any] = {}
    traffic: Traffic | None = None
    """Who serves what after this event. Null in events of treadle 0.1: then the champion serves everything."""


def row_content(row: GradedRow) -> dict[str, Any]:
    """What a version's content_hash covers of a row: no workspace, offsets, revisions or paths."""
    return {
        "episode_id": row.episode_id,
        "interaction_id": row.interaction_id,
        "task_id": row.interaction.get("task_id"),
        "messages": row.interaction["messages"],
        "tools": row.interaction.get("tools"),
        "metrics": {name: list(state) for name, state in row.grade.metrics.items()},
        "reward": row.grade.reward,
        "split": row.split,
    }
