"""`treadle version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import click

from treadle.cli.support import echo_json, json_option

__all__ = ["version"]

# what a bug report needs first; the heavy ones are extras and may be absent
_REPORTED = (
    "confluent-kafka",
    "faust-streaming",
    "rocksdict",
    "deeplake",
    "duckdb",
    "torch",
    "transformers",
    "trl",
)


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version of treadle and of what it runs on."""
    found = {"treadle": _version_of("treadle"), "python": platform.python_version()}
    found |= {name: _version_of(name) for name in _REPORTED}
    if as_json:
        echo_json(found)
        return
    click.echo(f"treadle {found['treadle']}")
    for name, number in found.items():
        if name != "treadle":
            click.echo(f"  {name} {number or 'not installed'}")


def _version_of(distribution: str) -> str | None:
    try:
        return installed_version(distribution)
    except PackageNotFoundError:
        return None
