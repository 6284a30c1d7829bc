"""The settings of a workspace, read from its own topic: any principal of the workspace may, so the trainer needs nothing else."""

from __future__ import annotations

import msgspec
from treadle.errors import TopicMissing
from treadle.log import Admin, read
from treadle_schemas import SettingError, WorkspaceSettings
from treadle_schemas.codec import SETTINGS, decode
from treadle_schemas.topics import topic

__all__ = ["workspace_settings"]


def workspace_settings(bootstrap_servers: str, workspace: str) -> WorkspaceSettings:
    """The newest settings record. Raises TopicMissing where the workspace does not exist, SettingError where it cannot be read."""
    name = topic(workspace, "settings")
    if name not in Admin(bootstrap_servers).partitions():
        raise TopicMissing(f"workspace {workspace} does not exist. `treadle workspace list` shows which do")
    found: WorkspaceSettings | None = None
    for record in read(bootstrap_servers, name, 1):
        if record.value is None:
            continue
        event = decode(record.value, record.headers)
        if event.type == SETTINGS:
            try:
                found = msgspec.convert(event.data, WorkspaceSettings)
            except msgspec.ValidationError as err:
                raise SettingError(f"{name} offset {record.offset}: {err}") from err
    if found is None:
        raise SettingError(f"workspace {workspace} has no settings record yet; `treadle workspace create` completes it")
    return found
