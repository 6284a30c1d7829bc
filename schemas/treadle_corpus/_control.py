"""The control row: row 0 of the dataset. It commits with the rows, so offsets and rows can never disagree."""

from __future__ import annotations

import msgspec

from treadle_corpus.manifest import Manifest
from treadle_corpus.policy import Policy

__all__ = ["CONTROL_KEY", "Control", "decode_control", "encode_control"]

CONTROL_KEY = b"__ctl__"
"""No row has this key: theirs are JSON lists."""


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a corpus beside its rows."""

    workspace: str
    workspace_created_at: str
    """Tells a workspace from a later one of the same name, whose offsets mean other records."""
    offsets: dict[str, int] = {}
    """Next offset of `.graded` by partition."""
    finished_offsets: dict[str, int] = {}
    """`offsets` when a run last finished, with or without a new version."""
    watermark_ms: int = 0
    metric_kinds: dict[str, list[str]] = {}
    """Kinds of value (bool, number, text) seen by metric, among all revisions folded."""
    fingerprint: str = ""
    """Of all rows, see `_rows.fingerprint`: tells a torn state from a whole one."""
    version: int = 0
    """Newest finished version. Its tag may still be missing, and is then set at the next start."""
    policy: Policy | None = None
    """Policy of the newest run that finished."""
    selector: str = ""
    """Identity of the filter that made the decisions stored with the rows."""
    rows_at_version: int = 0
    """Rows seen, selected or not, when `version` was finished."""
    manifest: Manifest | None = None
    """Manifest of `version`."""


def encode_control(control: Control) -> bytes:
    """JSON, for people who look into the dataset."""
    return msgspec.json.encode(control)


def decode_control(data: bytes) -> Control:
    """Raises msgspec.DecodeError or ValidationError for anything else."""
    return msgspec.json.decode(data, type=Control)
