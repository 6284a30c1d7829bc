"""The options by which a policy is said on the command line, and the policy that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast, get_args

import click
from treadle.cli.support import DURATION
from treadle_schemas.snapshot_policy import (
    DEFAULT_EVERY_S,
    DEFAULT_MIN_NEW_ROWS,
    DEFAULT_THRESHOLD,
    MIN_THRESHOLD,
    Dedupe,
    SnapshotPolicy,
    Use,
)

__all__ = ["SELECTION", "cadence_options", "chosen", "policy_from", "selection_options"]

C = TypeVar("C", bound=Callable[..., Any])

SELECTION: Final = ("filter_", "dedupe", "require", "rights", "retention_s", "target")
"""Parameters of the options of `selection_options`."""
_USES: Final = get_args(Use)


class _Dedupe(click.ParamType):
    """id (or none), exact, near, near:0.9 as (level, threshold)."""

    name = "level"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Dedupe, float]:
        if isinstance(value, tuple):
            return cast("tuple[Dedupe, float]", value)
        level, _, text = str(value).partition(":")
        if level in ("id", "none", "exact") and not text:
            return ("exact" if level == "exact" else "id", DEFAULT_THRESHOLD)
        try:
            threshold = float(text) if text else DEFAULT_THRESHOLD
        except ValueError:
            threshold = -1.0
        if level != "near" or not MIN_THRESHOLD <= threshold <= 1.0:
            self.fail(f"{value!r}: expected id, exact, near or near:THRESHOLD of {MIN_THRESHOLD} to 1", param, ctx)
        return ("near", threshold)


class _Names(click.ParamType):
    """Names with commas between them, without repetitions."""

    name = "names"

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = tuple(known)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return cast("tuple[str, ...]", value)
        found = tuple(dict.fromkeys(name.strip() for name in str(value).split(",") if name.strip()))
        unknown = [name for name in found if self._known and name not in self._known]
        if unknown or not found:
            self.fail(f"{value!r}: expected {' , '.join(self._known) or 'names'} with commas between them", param, ctx)
        return found


_OPTIONS: Final = (
    click.option(
        "--filter",
        "filter_",
        metavar="EXPR",
        help="SQL condition over columns, metrics, tags.NAME, state(METRIC), now; only true selects. Default: every settled row.",
    ),
    click.option(
        "--dedupe",
        type=_Dedupe(),
        metavar="LEVEL",
        default="id",
        show_default=True,
        help="exact: of rows with equal normalised messages keep the best, inside each side of the split. near[:0.85]: also of nearly "
        "equal ones.",
    ),
    click.option(
        "--require", type=_Names(), metavar="METRIC,...", help="Only rows on which each of these metrics is observed."
    ),
    click.option(
        "--rights",
        type=_Names(_USES),
        metavar="USE,...",
        help=f"Only rows that allow each of these uses ({', '.join(_USES)}), beside that of their side of the split.",
    ),
    click.option(
        "--retention",
        "retention_s",
        type=DURATION,
        help="Rows leave when their interaction came so long before the newest graded row.",
    ),
    click.option(
        "--to",
        "target",
        metavar="TARGET",
        help="A folder, deeplake://ORG/NAME or s3://BUCKET/PREFIX. Default: TREADLE_HOME/corpora/WORKSPACE/POLICY.",
    ),
)


def selection_options(command: C) -> C:
    """--filter, --dedupe, --require, --rights, --retention and --to."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def cadence_options(makes: str, note: str = "") -> Callable[[C], C]:
    """--min-new-rows and --every; `makes` says what they bring about, `note` when they do not count."""
    rows = click.option(
        "--min-new-rows",
        type=click.IntRange(1),
        default=DEFAULT_MIN_NEW_ROWS,
        show_default=True,
        help=f"{makes} as soon as so many new rows have settled.{note}",
    )
    every = click.option(
        "--every",
        "every_s",
        type=DURATION,
        default=DEFAULT_EVERY_S,
        show_default="10m",
        help=f"{makes} so long after the run before, if anything was graded since.{note}",
    )
    return lambda command: rows(every(command))


def chosen(parameters: Iterable[str]) -> bool:
    """Whether any of these parameters of the running command was said on the command line."""
    context = click.get_current_context()
    return any(context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE for name in parameters)


def policy_from(name: str, said: Mapping[str, Any], **cadence: Any) -> SnapshotPolicy:
    """The policy that the options say. Raises SettingError."""
    dedupe, threshold = said["dedupe"]
    text, target = said["filter_"], said["target"]
    if target is not None and "://" not in target:
        target = str(Path(target).expanduser().absolute())  # whoever runs it works in another folder
    return SnapshotPolicy(
        name=name,
        filter=text.strip() if text is not None else None,
        dedupe=dedupe,
        threshold=threshold,
        require=said["require"] or (),
        rights=said["rights"] or (),
        retention_s=said["retention_s"],
        target=target,
        **cadence,
    ).checked()
