"""Creating, finding and deleting workspaces on a real Kafka."""

from __future__ import annotations

import difflib
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from treadle.errors import LogError
from treadle.log import Admin
from treadle.policies import remember
from treadle.settings import Settings
from treadle_schemas.ids import check_workspace
from treadle_schemas.moments import now
from treadle_schemas.topics import prefix, topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.errors import WorkspaceDamaged, WorkspaceExists, WorkspaceInUse, WorkspaceMissing
from treadle_streams.workspaces import _records as records
from treadle_streams.workspaces._topics import control_plan, topic_plan

_GRADING: Final = ("metrics", "reward", "credit", "grace_s")
"""What rows are graded by."""
_LOG: Final = logging.getLogger("treadle.workspaces")


def create(
    servers: str,
    settings: WorkspaceSettings,
    *,
    if_missing: bool = False,
    timeout_s: float = 60.0,
    home: Path | None = None,
) -> WorkspaceSettings:
    """Create a workspace and return its settings, with `created_at`, once every topic can be used.

    Recorders of this machine learn its PII policy at once, from a file below `home` (default: TREADLE_HOME).

    With `if_missing`, one that exists is completed where an earlier creation was cut off, and its own settings are returned.
    Raises SettingError for settings that make no sense, WorkspaceExists, WorkspaceDamaged, LogError.
    """
    settings = checked(settings)
    if not settings.created_at:
        settings = msgspec.structs.replace(settings, created_at=now())
    admin = Admin(servers)
    present = admin.partitions()
    if topic(settings.workspace, "settings") in present:
        existing = records.read_settings(servers, settings.workspace)
        if existing is not None:
            if not if_missing:
                raise _exists(settings.workspace)
            settings = existing
    _make_topics(admin, settings, present, timeout_s)
    made = settings

    def decide() -> list[records.Write]:
        nonlocal made
        existing = records.read_settings(servers, settings.workspace)
        if existing is None:
            return [records.settings_write(settings), records.control_write(settings)]
        if not if_missing:
            raise _exists(settings.workspace)
        made = existing
        return [] if settings.workspace in records.read_control(servers) else [records.control_write(existing)]

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            records.write_once(servers, settings.workspace, decide)
            _tell_recorders(made, home)
            return made
        except WorkspaceExists:
            if not if_missing or time.monotonic() > deadline:
                raise
            # a later creator took over: see what came of it. Different waits, so that two do not take over for ever
            time.sleep(random.uniform(0.05, 0.5))


def update(
    servers: str,
    workspace: str,
    change: Callable[[WorkspaceSettings], WorkspaceSettings],
    *,
    home: Path | None = None,
) -> WorkspaceSettings:
    """Change what is private in a workspace, whose rights are denied, how rows are graded, what is snapshot; the settings as they are now.

    `change` gets the present settings. The PII version rises by one where `pii` or `rights` changed, the grading version where metrics,
    reward, credit or grace did; beside those only `strict`, `policies`, `archives` and `erased` may change here. Workers follow within
    seconds and grade kept rows anew. Running recorders follow within treadle.policies.REFRESH_S, those of this machine at their next start
    at the latest. Raises WorkspaceMissing, SettingError, and WorkspaceExists when somebody else changed them at the same time.
    """
    check_workspace(workspace)
    made = get(servers, workspace)

    def decide() -> list[records.Write]:
        nonlocal made
        present = records.read_settings(servers, workspace)
        if present is None:
            raise WorkspaceMissing(workspace, servers, None)
        wanted = change(present)
        private = (wanted.pii, wanted.rights) != (present.pii, present.rights)
        graded = any(getattr(wanted, name) != getattr(present, name) for name in _GRADING)
        made = present
        if private:
            pii = msgspec.structs.replace(wanted.pii, version=present.pii.version + 1)
            made = msgspec.structs.replace(made, pii=pii, rights=wanted.rights)
        if graded:
            said = {name: getattr(wanted, name) for name in _GRADING}
            made = msgspec.structs.replace(made, grading_version=present.grading_version + 1, **said)
        made = checked(
            msgspec.structs.replace(
                made,
                strict=wanted.strict,
                policies=wanted.policies,
                archives=wanted.archives,
                erased=wanted.erased,
            )
        )
        return [] if made == present else [records.settings_write(made)]

    records.write_once(servers, workspace, decide)
    _tell_recorders(made, home)
    return made


def get(servers: str, workspace: str) -> WorkspaceSettings:
    """The settings of a workspace. Raises WorkspaceMissing with the nearest known name."""
    check_workspace(workspace)
    found = None
    if topic(workspace, "settings") in Admin(servers).partitions():
        found = records.read_settings(servers, workspace)
    if found is None:
        raise WorkspaceMissing(workspace, servers, _nearest(servers, workspace))
    return found


def names(servers: str) -> list[str]:
    """The workspaces on this Kafka, sorted. Reads the operators' topic."""
    return sorted(records.read_control(servers))


def listing(servers: str) -> list[dict[str, Any]]:
    """What the operators' topic says of each workspace: workspace, partitions, created_at."""
    return [entry for _, entry in sorted(records.read_control(servers).items())]


def delete(servers: str, workspace: str, *, timeout_s: float = 30.0) -> list[str]:
    """Delete a workspace's topics (changelogs included) and consumer groups; the names of the topics. Corpora and releases stay.

    1. Its end is announced on the operators' topic, so that workers which follow it stop. 2. Waits up to `timeout_s` until no consumer
    group of it has a member, else raises WorkspaceInUse: stop those processes and call again. 3. Deletes groups, then topics.
    Cut off at any point, it can be repeated. Raises WorkspaceMissing when nothing of it is left.
    """
    check_workspace(workspace)
    admin = Admin(servers)
    own = prefix(workspace)
    deadline = time.monotonic() + timeout_s
    topics = [name for name in admin.partitions() if name.startswith(own)]
    announced = workspace in records.read_control(servers)
    if not topics and not announced:
        raise WorkspaceMissing(workspace, servers, _nearest(servers, workspace))
    if announced:
        records.write_once(servers, workspace, lambda: [records.control_tombstone(workspace)])
    while busy := sorted(name for name, members in admin.groups(own).items() if members):
        if time.monotonic() > deadline:
            raise WorkspaceInUse(
                workspace,
                f"consumers are still running ({', '.join(busy)}). It is announced as deleted; its data is still there. "
                "Stop them, for example with `treadle down`, and delete again",
            )
        time.sleep(0.2)
    admin.delete_groups(sorted(admin.groups(own)))
    admin.delete(topics)
    while any(name.startswith(own) for name in admin.partitions()):
        if time.monotonic() > deadline + timeout_s:
            raise LogError(f"workspace {workspace}: Kafka has not yet removed its topics", retriable=True)
        time.sleep(0.05)
    return sorted(topics)


def checked(settings: WorkspaceSettings) -> WorkspaceSettings:
    """Settings that make sense, reward expression included. Raises SettingError naming the setting."""
    from treadle_streams.join import reward

    settings.checked()
    reward.compile(settings.reward, {metric.name: metric.type for metric in settings.metrics})
    return settings


def _tell_recorders(settings: WorkspaceSettings, home: Path | None) -> None:
    try:
        remember(home or Settings.load().home, settings)
    except OSError as err:
        # recorders then read it from Kafka, and are stricter until they have
        _LOG.warning("the PII policy of workspace %s could not be kept on this machine: %s", settings.workspace, err)


def _make_topics(admin: Admin, settings: WorkspaceSettings, present: dict[str, int], timeout_s: float) -> None:
    plan = topic_plan(settings)
    wanted = {**plan, **control_plan()}
    admin.create_all({name: spec for name, spec in wanted.items() if name not in present})
    have = admin.partitions()
    for name, (count, _) in plan.items():
        if have.get(name, count) != count:
            raise WorkspaceDamaged(
                settings.workspace,
                f"topic {name} has {have[name]} partitions, not {count}: what is keyed alike would not meet. "
                f"Create it with --partitions {have[name]}, or delete the workspace first",
            )
    admin.wait_usable({name: count for name, (count, _) in wanted.items()}, timeout_s)


def _exists(workspace: str) -> WorkspaceExists:
    return WorkspaceExists(workspace, "exists already; `treadle workspace show` prints it, --if-missing accepts it")


def _nearest(servers: str, workspace: str) -> str | None:
    try:
        known = names(servers)
    except LogError:
        return None  # a principal of one workspace may not read the operators' topic
    near = difflib.get_close_matches(workspace, known, n=1)
    return near[0] if near else None
