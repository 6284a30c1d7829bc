"""The contracts of treadle: events, records, identity, canonical JSON, topics, the split.

Everything else imports this package; it imports none of the others.
"""

from treadle_schemas.canonical import canonical_json, content_hash
from treadle_schemas.errors import (
    ContractError,
    FieldError,
    HandleError,
    NotYetSupported,
    SettingError,
    TreadleError,
    UnknownType,
)
from treadle_schemas.events import Interaction, Outcome
from treadle_schemas.ids import Handle, ReleaseId, new_id
from treadle_schemas.records import (
    Grade,
    GradedRow,
    Progress,
    Provenance,
    ReleaseEvent,
    ReleaseManifest,
    SnapshotRecord,
)
from treadle_schemas.split import Split, split_group
from treadle_schemas.workspace import Credit, Metric, WorkspaceSettings

__all__ = [
    "ContractError",
    "Credit",
    "FieldError",
    "Grade",
    "GradedRow",
    "Handle",
    "HandleError",
    "Interaction",
    "Metric",
    "NotYetSupported",
    "Outcome",
    "Progress",
    "Provenance",
    "ReleaseEvent",
    "ReleaseId",
    "ReleaseManifest",
    "SettingError",
    "SnapshotRecord",
    "Split",
    "TreadleError",
    "UnknownType",
    "WorkspaceSettings",
    "canonical_json",
    "content_hash",
    "new_id",
    "split_group",
]
