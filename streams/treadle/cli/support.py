"""What every command of the tree shares: settings, JSON output, progress, durations, questions.

stdout carries data, stderr everything else. A command that reports takes `--json`; one that destroys asks, or takes `--yes`.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import click
from treadle_schemas.canonical import dumps
from treadle_schemas.errors import FieldError, SettingError
from treadle_schemas.home import home_is
from treadle_schemas.moments import parse_duration_s

from treadle.keys import keys_in
from treadle.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "DURATION",
    "Duration",
    "SuggestingGroup",
    "confirmed",
    "console",
    "echo_json",
    "json_option",
    "override_settings",
    "pass_settings",
    "workspace_of",
    "yes_option",
]

P = ParamSpec("P")
T = TypeVar("T")

_OVERRIDES: Final = "treadle.settings.overrides"


class SuggestingGroup(click.Group):
    """A group that answers an unknown command with the nearest known ones. Groups made below it do the same."""

    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` names. Raises UsageError with suggestions."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as err:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=3, cutoff=0.5)
            if not near or args[0].startswith("-"):
                raise
            meant = " or ".join(repr(name) for name in near)
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {meant}?", ctx) from err


class Duration(click.ParamType):
    """Seconds, written as 90, 30s, 10m, 2h or 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of seconds."""
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration_s(str(value), "duration")
        except FieldError as err:
            self.fail(err.problem, param, ctx)


DURATION: Final = Duration()

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def override_settings(ctx: click.Context, **environment: object) -> None:
    """Let flags win over the environment variables of the same meaning; None overrides nothing."""
    ctx.meta[_OVERRIDES] = {name: str(value) for name, value in environment.items() if value is not None}


def pass_settings(command: Callable[Concatenate[Settings, P], T]) -> Callable[P, T]:
    """Give the command the process's `Settings` (environment, flags of the root on top) as its first argument."""

    @functools.wraps(command)
    def with_settings(*args: P.args, **kwargs: P.kwargs) -> T:
        overrides = click.get_current_context().meta.get(_OVERRIDES, {})
        settings = Settings.load({**os.environ, **overrides})
        with home_is(settings.home), keys_in(settings.keys_folder):
            return command(settings, *args, **kwargs)

    return with_settings


def workspace_of(settings: Settings, named: str | None) -> str:
    """The workspace a command is about: the one named, else TREADLE_WORKSPACE. Raises SettingError where there is neither."""
    workspace = named or settings.workspace
    if workspace is None:
        raise SettingError("no workspace: name one, or set TREADLE_WORKSPACE")
    return workspace


def echo_json(data: Any) -> None:
    """Print `data` as one line of JSON on stdout."""
    click.echo(dumps(data))


def console() -> Console:
    """A rich console on stderr: progress, tables for people, warnings."""
    from rich.console import Console

    return Console(stderr=True)


def confirmed(question: str, yes: bool) -> bool:
    """Whether to go on: true with `--yes`, else what the user answers. An input that ends without an answer says no."""
    if yes:
        return True
    # not click.confirm, which writes to stdout, where only data belongs
    click.echo(f"{question} [y/N] ", nl=False, err=True)
    agreed = click.get_text_stream("stdin").readline().strip().lower() in ("y", "yes")
    if not agreed:
        click.echo("nothing was changed", err=True)
    return agreed
