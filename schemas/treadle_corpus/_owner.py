"""Whose corpus it is, and whose policy made it."""

from __future__ import annotations

from treadle_corpus._control import Control
from treadle_corpus.errors import PolicyMismatch
from treadle_corpus.policy import Policy

__all__ = ["check_owner"]


def check_owner(
    path: str, held: Control, policy: Policy, workspace: str, created_at: str, *, replace_policy: bool
) -> None:
    """May a run of this workspace and policy go on with what the corpus holds? Raises PolicyMismatch."""
    if held.workspace != workspace:
        raise PolicyMismatch(
            f"{path} is a corpus of workspace {held.workspace!r}, not {workspace!r}; a corpus has one workspace: "
            "use another path"
        )
    if held.workspace_created_at != created_at:
        raise PolicyMismatch(
            f"{path} belongs to a workspace {workspace!r} created at {held.workspace_created_at or '?'}; this one was "
            f"created at {created_at or '?'} and has another log: use another path"
        )
    if held.version and not policy.follows(held.policy) and not replace_policy:
        raise PolicyMismatch(
            f"{path} follows another policy ({held.policy}) than asked for ({policy}). "
            "To change it for all rows from the next version on use --replace-policy, or write to another path"
        )
