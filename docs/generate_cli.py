"""Write docs/cli.md: the help of every command, taken from the command tree itself.

python docs/generate_cli.py            # writes the page
python docs/generate_cli.py --check    # exits with 1 where the page is not what it should be
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from treadle.cli import main as tree

PAGE: Final = Path(__file__).with_name("cli.md")
WIDTH: Final = 100
"""Columns of the help texts: what the page shows must not depend on anybody's terminal."""

HEAD: Final = """\
# Command line

Made by `python docs/generate_cli.py` from the commands themselves. Exit codes and environment variables are explained in
[operations](operations.md#exit-codes).
"""


def generate() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_sections(tree, _root())])


def commands() -> dict[tuple[str, ...], click.Command]:
    """Every command by its words: ("workspace", "create")."""
    return dict(_walk(tree, _root(), ()))


def _root() -> click.Context:
    return click.Context(tree, info_name="treadle", **{**tree.context_settings, "terminal_width": WIDTH})


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    level = "##" if context.parent is None else "###"
    yield f"{level} {context.command_path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    for child, child_context in _children(command, context):
        yield from _sections(child, child_context)


def _walk(
    command: click.Command, context: click.Context, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    for child, child_context in _children(command, context):
        yield from _walk(child, child_context, (*words, child_context.info_name or ""))


def _children(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        if child is not None and not child.hidden:
            inherited = {**child.context_settings, "terminal_width": WIDTH}
            yield child, click.Context(child, info_name=name, parent=context, **inherited)


if __name__ == "__main__":
    text = generate()
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else f"{PAGE} is out of date")
    PAGE.write_text(text, encoding="utf-8")
