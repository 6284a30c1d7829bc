"""The root of the command tree."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from treadle_schemas.errors import TreadleError

from treadle.cli._table import COMMANDS
from treadle.cli.support import SuggestingGroup, override_settings
from treadle.errors import MissingExtra

OWN_PACKAGES: Final = (
    "treadle",
    "treadle_schemas",
    "treadle_corpus",
    "treadle_streams",
    "treadle_trainer",
    "treadle_demo",
)
INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Entry:
    """One command of a table: where it is, what it is for, and the extra that brings what it imports."""

    target: str
    help: str
    extra: str | None


# where the commands come from, in the order in which help lists them
_SOURCES = (("treadle_demo.cli", "all"), ("treadle_streams.cli", "streams"), ("treadle_trainer.cli", "train"))


class RootGroup(SuggestingGroup):
    """Lists the commands of all tables, imports one when it runs, and turns what it raises into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, table by table."""
        return list(self._entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command. Raises MissingExtra where a dependency is not installed."""
        entry = self._entries().get(cmd_name)
        if entry is None:
            return None
        module_name, _, attribute = entry.target.partition(":")
        try:
            command = getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as err:
            _raise_missing(err, cmd_name, entry.extra)
        assert isinstance(command, click.Command), f"{entry.target} is no click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands with the tables' one-line helps: nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._entries().items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line. In standalone mode this ends the process with the exit code."""
        name = prog_name or "treadle"
        if not standalone_mode:
            return super().main(args, name, complete_var, standalone_mode=False, **extra)
        try:
            result = super().main(args, name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as err:
            err.show()
            raise SystemExit(err.exit_code) from None
        except click.Abort:
            click.echo("interrupted", err=True)
            raise SystemExit(INTERRUPTED) from None
        except TreadleError as err:
            click.echo(f"error: {err}", err=True)
            raise SystemExit(err.exit_code) from None
        # click gives back the code of ctx.exit() here; a command may also return one
        raise SystemExit(result if isinstance(result, int) and not isinstance(result, bool) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a dependency that it imports while running and that is missing becomes MissingExtra."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as err:
            name = ctx.invoked_subcommand or ""
            entry = self._entries().get(name)
            _raise_missing(err, name, entry.extra if entry else None)

    def _entries(self) -> dict[str, Entry]:
        return dict(_all_entries())


def _all_entries() -> Iterator[tuple[str, Entry]]:
    for module_name, extra in _SOURCES:
        try:
            table = importlib.import_module(module_name).COMMANDS
        except ModuleNotFoundError as err:
            if err.name not in (module_name, module_name.partition(".")[0]):
                raise
            continue  # that package is not part of this installation
        for name, (target, text) in table.items():
            yield name, Entry(target, text, extra)
    for name, (target, text) in COMMANDS.items():
        yield name, Entry(target, text, None)


def _raise_missing(err: ModuleNotFoundError, command: str, extra: str | None) -> NoReturn:
    top = (err.name or "").partition(".")[0]
    if extra is None or not top or top in OWN_PACKAGES:
        raise err  # a broken installation, not a missing extra
    raise MissingExtra(command, top, extra) from err


@click.group(
    cls=RootGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by a gate, 4 not authorised, "
    "5 a dependency cannot be reached, 130 interrupted.",
)
@click.option("--home", type=click.Path(path_type=Path), help="Folder of all local state (TREADLE_HOME).")
@click.option("--bootstrap-servers", metavar="HOST:PORT", help="Kafka to use (TREADLE_BOOTSTRAP_SERVERS).")
@click.pass_context
def main(ctx: click.Context, home: Path | None, bootstrap_servers: str | None) -> None:
    """The agent data flywheel: capture every interaction, grade it late, train on versions, promote what is better."""
    override_settings(ctx, TREADLE_HOME=home, TREADLE_BOOTSTRAP_SERVERS=bootstrap_servers)
