"""What a policy says of an external trainer, and how its command is made. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

import msgspec
from treadle_corpus.forms import FORMS
from treadle_corpus.views import VIEWS
from treadle_schemas import SettingError

__all__ = ["PLACES", "VIEW_OF", "Backend", "fill_command", "fill_text"]

VIEW_OF: Final[Mapping[str, str]] = MappingProxyType(
    {"sft": "sft", "rwsft": "sft", "dpo": "dpo", "kto": "kto", "reward": "reward", "rl": "rl", "grpo": "rl"}
)
"""The view that is written for a method."""

PLACES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "rows": "the JSON lines to train on",
        "out": "the folder in which the model is expected",
        "base": "the model folder to start from",
        "work": "a folder for everything else; it stays for the next try of the same job",
        "config": "the filled copy of the backend's `config` file",
        "method": "the policy's method",
        "steps": "the policy's steps",
        "lr": "the policy's learning rate",
        "batch": "the policy's batch",
        "accumulate": "the policy's accumulate",
        "max_length": "the policy's max_length",
        "seed": "the policy's seed",
    }
)
"""What may stand in braces in a command, and in the config file."""

_PLACE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_KNOWN: Final = re.compile(r"\{(" + "|".join(PLACES) + r")\}")


class Backend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trainer behind a command."""

    command: str
    """The command with places in braces, `axolotl train {config}`. It is cut into words first and filled then, and no shell sees it."""
    form: Literal["axolotl", "openai", "treadle", "trl", "verl"] = "treadle"
    """The form of the rows, as in `treadle corpus export --form`."""
    config: str | None = None
    """A text file, for example YAML, whose places are filled as well; the copy is {config}. Braces around other words stay."""
    loose: bool = False
    """Also write what the form can only say by training on more than was marked."""

    def checked(self, method: str) -> Backend:
        """Itself, if it makes sense for a training method. Raises SettingError naming the setting."""
        view = VIEW_OF.get(method)
        if view is None:
            known = ", ".join(VIEW_OF)
            raise SettingError(f"method {method!r}: no view is written for it; a backend trains with one of {known}")
        has = VIEWS if self.form == "treadle" else FORMS[self.form]
        if view not in has:
            raise SettingError(
                f"backend form={self.form!r} has no form of the {view} view, which method {method!r} needs; it has {', '.join(sorted(has))}"
            )
        if self.loose and self.form == "treadle":
            raise SettingError("backend loose=True: treadle's own form says exactly what is trained on")
        words = fill_command(self.command, dict.fromkeys(PLACES, ""))
        if not words or not words[0]:
            raise SettingError(f"backend command={self.command!r}: names no program")
        for place in ("rows", "out"):
            if self.config is None and f"{{{place}}}" not in self.command:
                raise SettingError(f"backend command={self.command!r}: lacks {{{place}}}, {PLACES[place]}")
        if self.config is None and "{config}" in self.command:
            raise SettingError(
                f"backend command={self.command!r}: has {{config}}, but no file is named by backend.config"
            )
        return self


def fill_command(command: str, values: Mapping[str, object]) -> list[str]:
    """The words of a command with its places filled. A value never becomes two words, whatever is in it. `{{` and `}}` are braces.

    Raises SettingError for quotes that do not close and for places that do not exist.
    """
    try:
        words = shlex.split(command)
    except ValueError as err:
        raise SettingError(f"backend command={command!r}: {err}") from None

    def filled(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0]
        if found[1] not in values:
            known = ", ".join(f"{{{name}}}" for name in values)
            raise SettingError(f"backend command={command!r}: {found[0]} is no place; there are {known}")
        return str(values[found[1]])

    return [_PLACE.sub(filled, word) for word in words]


def fill_text(text: str, values: Mapping[str, object]) -> str:
    """A config file with its places filled; every other brace stays, since YAML and JSON have their own."""
    return _KNOWN.sub(lambda found: str(values[found[1]]), text)
