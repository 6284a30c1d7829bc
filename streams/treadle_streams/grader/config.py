"""What a grader is: declared once, read from a TOML file, each field an option of the command as well."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from treadle_schemas.errors import FieldError, SettingError, shown
from treadle_schemas.ids import check_slot

__all__ = ["GraderConfig", "load_config"]

_VERSION: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=0.0)]
Count = Annotated[int, Meta(ge=0)]


class GraderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One grader: who it is, how it judges (`python`, `command` or `url`), what it judges, and what it may spend."""

    name: Annotated[str, Meta(description="Its name: a-z, 0-9, _ and -.")]
    metric: Annotated[str, Meta(description="The metric that its verdicts are outcomes of.")]
    version: Annotated[str, Meta(description="Part of each outcome's id: a new version grades anew.")] = "1"

    python: Annotated[str | None, Meta(description="Judge by a Python function, MODULE:FUNCTION.")] = None
    command: Annotated[str | None, Meta(description="Judge by a command: JSON on stdin, JSON on stdout. No shell.")] = (
        None
    )
    url: Annotated[str | None, Meta(description="Judge by a model: base URL of an OpenAI-compatible endpoint.")] = None
    model: Annotated[str | None, Meta(description="The model at that endpoint.")] = None
    prompt: Annotated[Path | None, Meta(description="File with the judge's prompt.")] = None
    api_key_env: Annotated[str | None, Meta(description="Environment variable that holds the endpoint's key.")] = None
    temperature: Annotated[Amount, Meta(description="Sampling temperature of the model.")] = 0.0
    max_tokens: Annotated[Count, Meta(description="Longest answer of the model, in tokens.")] = 512
    json_mode: Annotated[bool, Meta(description="Ask the endpoint for a JSON object.")] = True

    rate: Annotated[
        Share, Meta(description="Share of the interactions that is graded, by hash: the same ones each time.")
    ] = 1.0
    sample_by: Annotated[
        Literal["interaction", "episode", "task"],
        Meta(description="What the share is drawn of: it is graded whole or not at all."),
    ] = "interaction"
    filter: Annotated[str | None, Meta(description="SQL condition on columns and tags of the interaction.")] = None

    calls_per_day: Annotated[
        Count | None, Meta(description="Most calls of the judge in a day (UTC), retries included.")
    ] = None
    calls_total: Annotated[Count | None, Meta(description="Most calls ever.")] = None
    tokens_per_day: Annotated[Count | None, Meta(description="Most tokens in a day, in and out.")] = None
    tokens_total: Annotated[Count | None, Meta(description="Most tokens ever.")] = None
    usd_per_day: Annotated[Amount | None, Meta(description="Most US dollars in a day.")] = None
    usd_total: Annotated[Amount | None, Meta(description="Most US dollars ever.")] = None
    usd_per_million_input: Annotated[Amount | None, Meta(description="Price of a million tokens in.")] = None
    usd_per_million_output: Annotated[Amount | None, Meta(description="Price of a million tokens out.")] = None

    timeout_s: Annotated[Amount, Meta(description="Longest time of one call, in seconds.")] = 60.0
    retries: Annotated[Count, Meta(description="How often a call that failed for a passing reason is repeated.")] = 2
    concurrency: Annotated[int, Meta(ge=1, le=256, description="Calls at the same time.")] = 4
    give_up_after: Annotated[
        int, Meta(ge=1, description="End after so many gradings in a row that found no working endpoint.")
    ] = 10
    reasons: Annotated[bool, Meta(description="Publish the judge's reason as a comment.")] = True

    def checked(self) -> GraderConfig:
        """Itself, if it makes sense. Raises SettingError naming the field."""
        try:
            check_slot(self.name)
        except FieldError as err:
            raise SettingError(f"name: {err.problem.replace('slot', 'grader')}") from None
        if not _VERSION.fullmatch(self.version):
            raise SettingError(f"version: {shown(self.version)} is none: a-z, 0-9, '.', _ and -, at most 32 characters")
        ways = [name for name in ("python", "command", "url") if getattr(self, name) is not None]
        if len(ways) != 1:
            raise SettingError(
                f"a grader judges by exactly one of python, command and url, this one by {ways or 'none'}"
            )
        if self.python is not None and not re.fullmatch(r"[\w.]+:\w+", self.python):
            raise SettingError(f"python: {shown(self.python)} is not MODULE:FUNCTION")
        if self.url is not None:
            missing = [name for name in ("model", "prompt") if getattr(self, name) is None]
            if missing:
                raise SettingError(f"url: a model that judges needs {' and '.join(missing)} as well")
            if not re.match(r"https?://[^/]+", self.url):
                raise SettingError(f"url: {shown(self.url)} is no http or https address")
            prices = self.usd_per_million_input is None or self.usd_per_million_output is None
            if prices and (self.usd_per_day is not None or self.usd_total is not None):
                raise SettingError("a budget in dollars needs usd_per_million_input and usd_per_million_output")
        if self.timeout_s <= 0:
            raise SettingError(f"timeout_s: {self.timeout_s} is not a number of seconds above 0")
        return self


def load_config(path: Path | None, changes: dict[str, Any]) -> GraderConfig:
    """The grader of a TOML file with `changes` on top; relative paths in the file are relative to it. Raises SettingError."""
    said: dict[str, Any] = {}
    if path is not None:
        try:
            said = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as err:
            raise SettingError(f"{path}: {err.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
            raise SettingError(f"{path}: is no TOML: {err}") from None
        if isinstance(said.get("prompt"), str):
            said["prompt"] = str(path.parent / said["prompt"])
    try:
        return msgspec.convert({**said, **changes}, GraderConfig, strict=True, dec_hook=_path).checked()
    except msgspec.ValidationError as err:
        where = "" if path is None else f"{path}: "
        raise SettingError(f"{where}{err}".replace("`$.", "`")) from None


def _path(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError(kind)
