"""What the `treadle release` commands share: which registry, what is said of a release, how a decision is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
from treadle.cli.support import echo_json
from treadle.settings import Settings
from treadle_schemas import HandleError, ReleaseEvent, ReleaseId, ReleaseManifest, SettingError
from treadle_schemas.codec import to_json

from treadle_trainer.commands._common import registry_root
from treadle_trainer.registry import Registry, slots

__all__ = [
    "base_of",
    "decision",
    "echo_event",
    "force_option",
    "json_object",
    "mark_of",
    "reason_option",
    "refusal",
    "registry_of",
    "summary",
]

reason_option = click.option("--reason", "-r", required=True, help="Why; kept in the audit log.")
force_option = click.option("--force", is_flag=True, help="Overrule the gate and quarantine.")
DECISIONS = ("promoted", "rejected", "not_enough_evidence", "failed", "admitted", "withdrawn", "awaiting_approval")


def registry_of(settings: Settings, workspace: str, slot: str) -> Registry:
    root = registry_root(settings)
    if (workspace, slot) not in slots(root, workspace):
        known = ", ".join("/".join(s) for s in slots(root)) or "none"
        raise SettingError(f"{workspace}/{slot} has no releases below {root}; slots with releases: {known}")
    return Registry(root, workspace, slot)


def summary(registry: Registry, manifest: ReleaseManifest, events: list[ReleaseEvent]) -> dict[str, Any]:
    aliases = registry.aliases
    number = manifest.release.rpartition("/r")[2]
    decided = next((e for e in reversed(events) if e.release == manifest.release and e.event in DECISIONS), None)
    return {
        "release": manifest.release,
        "kind": manifest.kind,
        "champion": str(aliases.champion) == number,
        "canary": str(aliases.canary) == number,
        "control": str(aliases.control) == number,
        "pinned": aliases.pins.get(number),
        "collected": registry.collected(registry.id(int(number))),
        "quarantined": aliases.quarantined.get(number),
        "decision": decided.event if decided else None,
        "reason": decided.reason if decided else None,
        "corpus": manifest.corpus,
        "corpus_version": manifest.corpus_version,
        "parent": manifest.parent,
        "created_at": manifest.created_at,
    }


def refusal(registry: Registry, name: str, accepted: tuple[str, ...] = ("promote",)) -> ReleaseEvent | None:
    """The gate's last word on a release, where that was none of `accepted`."""
    event = decision(registry, name)
    if event is None or event.event in ("promoted", "awaiting_approval", "admitted"):
        return None
    # a turn aside is recorded as rejected although the gate would have promoted
    return None if event.evidence.get("gate", {}).get("decision") in accepted else event


def decision(registry: Registry, name: str) -> ReleaseEvent | None:
    """The last decision on a release."""
    return next((e for e in reversed(registry.events()) if e.release == name and e.event in DECISIONS), None)


def mark_of(entry: dict[str, Any]) -> str:
    for role, mark in (("champion", "*"), ("canary", "~"), ("control", "="), ("quarantined", "!"), ("collected", "-")):
        if entry[role]:
            return mark
    return " "


def json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as err:
        raise SettingError(f"--sampling {text!r}: expected a JSON object: {err}") from err


def base_of(settings: Settings, text: str) -> str:
    """Where the base of an adapter lies: the folder of a release, a folder, or the id of a model that lies elsewhere."""
    try:
        base = ReleaseId.parse(text)
    except HandleError:
        path = Path(text).expanduser()
        return str(path.absolute()) if path.is_dir() else text
    return str(Registry(registry_root(settings), base.workspace, base.slot).folder(base))


def echo_event(event: ReleaseEvent, as_json: bool) -> None:
    if as_json:
        echo_json(to_json(event))
    elif event.event in ("promoted", "rolled_back"):
        click.echo(f"{event.champion} is champion (was {event.previous or 'nobody'}): {event.reason}")
    else:
        click.echo(f"{event.release} {event.event}: {event.reason}")
