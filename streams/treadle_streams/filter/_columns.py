"""What a filter can name: the columns of a row, its metrics and tags, and how each is read from a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from treadle_schemas.canonical import canonical_json
from treadle_schemas.moments import to_micros
from treadle_schemas.records import GradedRow, Progress, Provenance
from treadle_schemas.workspace import WorkspaceSettings

__all__ = [
    "COLUMNS",
    "PROGRESS_COLUMNS",
    "Column",
    "SqlType",
    "metric_column",
    "metric_types",
    "progress_row",
    "state_column",
    "tag_column",
]

SqlType = Literal["VARCHAR", "DOUBLE", "BIGINT", "BOOLEAN", "TIMESTAMPTZ"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Column(NamedTuple):
    """A value of each row. `metric` is the metric it depends on, `*` all of them (the reward), None none."""

    sql_type: SqlType
    read: Callable[[GradedRow], Any]
    metric: str | None = None


def _field(name: str, default: Any = None) -> Callable[[GradedRow], Any]:
    return lambda row: row.interaction.get(name, default)


def _int64(name: str, default: int) -> Callable[[GradedRow], int | None]:
    def read(row: GradedRow) -> int | None:
        value: int = row.interaction.get(name, default)
        return value if -(2**63) <= value < 2**63 else None

    return read


def _time(name: str) -> Callable[[GradedRow], Any]:
    return lambda row: _EPOCH + timedelta(microseconds=to_micros(row.interaction[name], f"$.interaction.{name}"))


COLUMNS: Final[Mapping[str, Column]] = {
    "episode_id": Column("VARCHAR", lambda row: row.episode_id),
    "interaction_id": Column("VARCHAR", lambda row: row.interaction_id),
    "task_id": Column("VARCHAR", _field("task_id")),
    "agent": Column("VARCHAR", _field("agent")),
    "model": Column("VARCHAR", _field("model")),
    "slot": Column("VARCHAR", _field("slot", "main")),
    "release": Column("VARCHAR", _field("release")),
    "step": Column("BIGINT", _int64("step", 0)),
    "status": Column("VARCHAR", _field("status", "ok")),
    "started_at": Column("TIMESTAMPTZ", _time("started_at")),
    "ended_at": Column("TIMESTAMPTZ", _time("ended_at")),
    "reward": Column("DOUBLE", lambda row: row.grade.reward, "*"),
    "completeness": Column("DOUBLE", lambda row: row.grade.completeness, "*"),
    "split": Column("VARCHAR", lambda row: row.split),
    "subject": Column("VARCHAR", _field("subject")),
}
"""Columns of every row. They win over metrics of the same name, which `metrics.NAME` still reaches."""


PROGRESS_COLUMNS: Final = frozenset(
    {
        *("episode_id", "interaction_id", "task_id", "agent", "slot", "release"),
        *("ended_at", "reward", "completeness", "split"),
    }
)
"""What `.progress` says of a row. A filter that names another column is refused there: NULL would mean something else."""


def progress_row(change: Progress) -> GradedRow:
    """A change of a row as a filter over PROGRESS_COLUMNS takes it."""
    said = {name: getattr(change, name) for name in ("task_id", "agent", "slot", "release", "ended_at")}
    return GradedRow(
        episode_id=change.episode_id,
        interaction_id=change.interaction_id,
        interaction=said,
        grade=change.grade,
        split=change.split,
        split_group="",
        provenance=Provenance(
            revision=change.revision,
            graded_at="",
            append_ms=change.append_ms,
            interaction_offset=0,
            partition=0,
            outcome_ids=[],
        ),
    )


def metric_types(settings: WorkspaceSettings, seen: Mapping[str, frozenset[str]]) -> dict[str, SqlType]:
    """The SQL type of each metric that is declared or was seen.

    A declared metric has its declared type. Another one is a number as soon as any of its values is (then its texts are NULL), else text,
    else boolean: one stray value must not stop a snapshot.
    """
    declared: dict[str, SqlType] = {"float": "DOUBLE", "bool": "BOOLEAN", "category": "VARCHAR"}
    found: dict[str, SqlType] = {}
    for name, kinds in seen.items():
        if "number" in kinds or not kinds:
            found[name] = "DOUBLE"
        else:
            found[name] = "VARCHAR" if "text" in kinds else "BOOLEAN"
    found.update({metric.name: declared[metric.type] for metric in settings.metrics})
    return found


def metric_column(name: str, sql_type: SqlType) -> Column:
    """The value of a metric: NULL while pending and when absent."""

    def read(row: GradedRow) -> Any:
        value = row.grade.metrics.get(name, ("absent", None))[1]
        match sql_type:
            case "DOUBLE":
                return _number(value)
            case "BOOLEAN":
                return value if isinstance(value, bool) else None
            case _:
                return value if isinstance(value, str) else None

    return Column(sql_type, read, name)


def state_column(name: str) -> Column:
    """`state(NAME)`: pending, observed or absent; never NULL."""
    return Column("VARCHAR", lambda row: row.grade.metrics.get(name, ("absent", None))[0])


def tag_column(name: str, sql_type: SqlType) -> Column:
    """The value of `tags.NAME` as what it is compared with: a number, a boolean, or text.

    As text, strings are as they are and other values are JSON. A value of another type than asked for is NULL.
    """

    def read(row: GradedRow) -> Any:
        value = (row.interaction.get("tags") or {}).get(name)
        match sql_type:
            case "DOUBLE":
                return None if isinstance(value, bool) else _number(value)
            case "BOOLEAN":
                return value if isinstance(value, bool) else None
            case _:
                return value if value is None or isinstance(value, str) else canonical_json(value).decode()

    return Column(sql_type, read)


def _number(value: object) -> float | None:
    if not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
