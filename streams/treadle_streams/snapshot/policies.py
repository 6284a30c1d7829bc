"""Stored policies: objects of a workspace, kept in its settings, so that everybody of the workspace can read them."""

from __future__ import annotations

import difflib
from pathlib import Path

import msgspec
from treadle.settings import Settings
from treadle_corpus import Policy, resolve_target
from treadle_schemas.ids import check_workspace
from treadle_schemas.snapshot_policy import MAIN, SnapshotPolicy
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import filter as filters
from treadle_streams import workspaces
from treadle_streams.snapshot.errors import PolicyExists, PolicyMissing, TargetTaken

__all__ = ["delete_policy", "find_policy", "is_built_in", "policies_of", "selection", "store_policy", "target_of"]


def policies_of(workspace: WorkspaceSettings) -> dict[str, SnapshotPolicy]:
    """All policies of a workspace by name, the built-in `main` first unless a stored one took its place."""
    stored = {policy.name: policy for policy in workspace.policies}
    return {MAIN: SnapshotPolicy(name=MAIN), **stored}


def is_built_in(workspace: WorkspaceSettings, name: str) -> bool:
    """Whether the policy of that name is the one that every workspace has."""
    return name == MAIN and all(policy.name != MAIN for policy in workspace.policies)


def find_policy(workspace: WorkspaceSettings, name: str) -> SnapshotPolicy:
    """The policy of that name. Raises PolicyMissing with the nearest one."""
    known = policies_of(workspace)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        raise PolicyMissing(workspace.workspace, name, near[0] if near else None, list(known))
    return known[name]


def store_policy(servers: str, workspace: str, policy: SnapshotPolicy, *, replace: bool = False) -> WorkspaceSettings:
    """Store a policy and return the settings with it. With `replace` one of that name changes, from its next version on.

    Raises SettingError, FilterSyntaxError, TargetError, PolicyExists, TargetTaken for another policy's corpus, WorkspaceMissing, LogError.
    """
    policy.checked()
    if policy.filter is not None:
        filters.check_syntax(policy.filter)
    if policy.target is not None:
        resolve_target(policy.target, Path("/"))

    def change(present: WorkspaceSettings) -> WorkspaceSettings:
        if not replace and not is_built_in(present, policy.name) and policy.name in policies_of(present):
            raise PolicyExists(workspace, policy.name)
        others = [p for p in present.policies if p.name != policy.name]
        for other in others:
            if policy.target is not None and other.target == policy.target:
                raise TargetTaken(workspace, policy.name, other.name, policy.target)
        kept = tuple(sorted([*others, policy], key=lambda p: p.name))
        return msgspec.structs.replace(present, policies=kept)

    return workspaces.update(servers, workspace, change)


def delete_policy(servers: str, workspace: str, name: str) -> WorkspaceSettings:
    """Forget a stored policy; its corpus stays. The built-in one comes back where `main` is deleted.

    Raises PolicyMissing, also for the built-in one, WorkspaceMissing, LogError.
    """

    def change(present: WorkspaceSettings) -> WorkspaceSettings:
        find_policy(present, name)
        if is_built_in(present, name):
            raise PolicyMissing(workspace, name, None, [p.name for p in present.policies], built_in=True)
        return msgspec.structs.replace(present, policies=tuple(p for p in present.policies if p.name != name))

    return workspaces.update(servers, workspace, change)


def selection(policy: SnapshotPolicy) -> Policy:
    """What its corpus selects."""
    return Policy(
        name=policy.name,
        filter=policy.filter,
        dedupe=policy.dedupe,
        threshold=policy.threshold,
        require=policy.require,
        rights=policy.rights,
        retention_s=policy.retention_s,
    )


def target_of(settings: Settings, workspace: str, policy: SnapshotPolicy) -> tuple[str, Path]:
    """How its corpus is called in messages, and where it lies on this machine. Raises TargetError."""
    if policy.target is None:
        path = settings.home / "corpora" / check_workspace(workspace) / policy.name
        return str(path), path
    return policy.target, resolve_target(policy.target, settings.corpus_root)
