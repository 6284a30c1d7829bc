"""What the trainer's commands share: where the registry lies, which release is meant, telling `.releases`, ending in order."""

from __future__ import annotations

import logging
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
from treadle.cli.support import workspace_of
from treadle.errors import LogError
from treadle.settings import Settings
from treadle_schemas import ReleaseId, SettingError

from treadle_trainer.registry import Outbox, Registry

__all__ = [
    "SIZE",
    "changes_of",
    "deploy",
    "jobs_root",
    "log_to_stderr",
    "registry_root",
    "release_of",
    "slot_option",
    "stop_requested",
    "tell",
]


class Size(click.ParamType):
    """Bytes, written as 5000, 300MB, 20GB or 1TB (powers of 1,000)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(value).strip().upper())
        if found is None:
            self.fail(f"{value!r} is no size; write for example 300MB or 20GB", param, ctx)
        return int(float(found[1]) * 1000 ** " KMGT".index(found[2] or " "))


SIZE: Final = Size()

slot_option = click.option("--slot", default="main", show_default=True, help="Which model of the agent.")


def registry_root(settings: Settings) -> Path:
    """Where releases lie."""
    return settings.home / "registry"


def jobs_root(settings: Settings) -> Path:
    """Where job folders lie. One lock there keeps two jobs off one device."""
    return settings.home / "jobs"


def release_of(settings: Settings, text: str, slot: str = "main") -> ReleaseId:
    """The release that `workspace/slot/rN` names, or `rN` in the default workspace. Raises HandleError or SettingError."""
    return ReleaseId.parse(text if "/" in text else f"{workspace_of(settings, None)}/{slot}/{text}")


def changes_of(texts: Iterable[str]) -> dict[str, str]:
    """Settings written as `--set NAME=VALUE`. Raises SettingError."""
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set {text!r}: expected NAME=VALUE")
        changes[name.strip()] = value
    return changes


def deploy(settings: Settings, release: ReleaseId) -> None:
    """Have the proxies of the slot's policy load a release before its alias moves. Raises DeployFailed."""
    from treadle_trainer.policy import TrainingPolicy

    policy = TrainingPolicy.load(registry_root(settings), release.workspace, release.slot)
    if policy is not None and policy.deploy:
        from treadle_trainer.serving.targets import prepare

        for target, seconds in prepare(policy.deploy, release).items():
            click.echo(f"{target} has loaded {release} in {seconds:.1f} s", err=True)


def tell(settings: Settings, registry: Registry) -> None:
    """Publish what the registry decided. Without Kafka it stays decided, and the next service or command that has one tells it."""
    try:
        Outbox(registry, settings.bootstrap_servers).publish()
    except (LogError, SettingError) as err:
        click.echo(f"decided, but agents have not been told yet: {err}", err=True)


def log_to_stderr() -> None:
    """Log lines of a service."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """A question that turns true at SIGTERM or the first Ctrl-C, so that a service ends between two steps. The second one interrupts."""
    stopped = False

    def note(number: int, _: FrameType | None) -> None:
        nonlocal stopped
        if stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
