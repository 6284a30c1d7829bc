"""What an outcome is about: whatever the caller kept of an interaction, resolved to a handle, an episode or a reference.

| given | meant |
|---|---|
| a Handle, or its text `workspace/episode/interaction` | that interaction |
| an interaction or episode that is open | that interaction, or the whole episode |
| a client library's answer (OpenAI, Anthropic, LangChain; object or dict) that this process recorded | that interaction |
| the same elsewhere, or its id (`chatcmpl-7`, `msg_1`, `resp_2`) | the reference `response:<id>` |
| a reference `kind:name`, for example `pr:org/repo#12`; the address of a GitHub pull request | what was recorded with it |

A reference says nothing of its workspace. Whoever reports on one names the workspace, or sets TREADLE_WORKSPACE.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from treadle_schemas.errors import FieldError, HandleError, TreadleError, shown
from treadle_schemas.ids import Handle, check_id

from treadle.errors import TargetError

__all__ = [
    "MAX_REMEMBERED",
    "Target",
    "WholeEpisode",
    "forget",
    "handle_of",
    "reference_of",
    "remember",
    "resolve",
    "response_id",
]

MAX_REMEMBERED: Final = 10_000
"""Answers that a process remembers the handle of; about 3 MB. The oldest go first, and are found by reference then."""

_REFERENCE: Final = re.compile(r"[a-z][a-z0-9+._-]{0,31}:\S+")
_GITHUB_PULL: Final = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)/pull/(\d+)(?:[/?#].*)?", re.ASCII)
_PROVIDER_ID: Final = re.compile(r"[^\s/:]+")

# no locks: a fork could inherit one held. Operations of a dict are atomic, and the worst of a race is one entry more or less
_by_id: dict[str, Handle] = {}
_by_object: dict[int, tuple[weakref.ref[Any], Handle]] = {}


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an outcome is about. One of interaction, episode and reference is there; a handle gives the first two."""

    workspace: str | None = None
    """None where only the caller can know."""
    interaction_id: str | None = None
    episode_id: str | None = None
    reference: str | None = None

    @classmethod
    def of_handle(cls, handle: Handle) -> Target:
        """The interaction that a handle names."""
        return cls(workspace=handle.workspace, interaction_id=handle.interaction_id, episode_id=handle.episode_id)

    def __str__(self) -> str:
        if self.reference is not None:
            return self.reference
        if self.interaction_id is None:
            return f"episode {self.episode_id}"
        return str(Handle(self.workspace or "-", self.episode_id or self.interaction_id, self.interaction_id))


def resolve(x: Any, workspace: str | None = None) -> Target:
    """What `x` means (see the module). `workspace` is the caller's: an answer remembered in another one is then not meant.

    Raises TargetError when it means nothing, HandleError for a text that is nearly a handle.
    """
    if isinstance(x, Target):
        return x
    if isinstance(x, Handle):
        return Target.of_handle(x)
    if isinstance(x, str):
        return _of_text(x, workspace)
    own = getattr(x, "treadle_target", None)
    if isinstance(own, Target):
        return own
    entry = _by_object.get(id(x))
    if entry is not None and entry[0]() is x and workspace in (None, entry[1].workspace):
        return Target.of_handle(entry[1])
    name = response_id(x)
    if name is None:
        raise TargetError(
            f"{shown(x)} names no interaction: it has no id, and this process recorded no such answer. Keep the handle that "
            "record() returned (str(handle)), and give that"
        )
    return _of_response(name, workspace)


def handle_of(answer: Any, workspace: str | None = None) -> Handle | None:
    """The handle of what this process recorded an answer as: to be kept where the outcome will be known.

    `answer` is a client library's object or dict, its id, an open interaction, or a handle. None where this process recorded no such
    answer: `treadle.outcome` still finds it by its id then. Raises TargetError when it names nothing at all.
    """
    found = resolve(answer, workspace)
    if found.workspace is None or found.episode_id is None or found.interaction_id is None:
        return None
    return Handle(found.workspace, found.episode_id, found.interaction_id)


class WholeEpisode:
    """A whole episode as a target: its id, its open scope, or a handle (or its text) of any of its interactions.

    An id that reads like a handle is taken for one; say Target(episode_id=...) then.
    """

    def __init__(self, named: Any, workspace: str | None = None) -> None:
        self._named = named
        self._workspace = workspace

    @property
    def treadle_target(self) -> Target:
        """What it means. Raises TargetError when it names no episode."""
        try:
            found = resolve(self._named, self._workspace)
        except TreadleError:  # no target at all, but any text can be an episode's id
            found = Target()
        if found.episode_id is not None:
            return Target(workspace=found.workspace or self._workspace, episode_id=found.episode_id)
        if isinstance(self._named, str) and self._named:
            return Target(workspace=self._workspace, episode_id=self._named)
        raise TargetError(f"{shown(self._named)} names no episode; give its id, or a handle")


def remember(answer: Any, handle: Handle | str) -> None:
    """Note which interaction an answer (a client library's object, or its id) was recorded as. Never raises."""
    try:
        known = Handle.parse(handle) if isinstance(handle, str) else handle
        name = answer if isinstance(answer, str) else response_id(answer)
        if name is not None:
            _put(_by_id, name, known)
        if not isinstance(answer, str):
            key = id(answer)
            _put(_by_object, key, (weakref.ref(answer, lambda _: _by_object.pop(key, None)), known))
    except (TypeError, TreadleError):
        pass  # a dict takes no weak reference: its id has to do


def forget() -> None:
    """Forget every answer, as a new process does."""
    _by_id.clear()
    _by_object.clear()


def response_id(answer: Any) -> str | None:
    """The id that the provider gave to an answer (object or dict), None where there is none."""
    # langchain's own `id` is that of its run; the provider's stands in the metadata
    metadata = _get(answer, "response_metadata")
    for found in (_get(metadata, "id"), _get(answer, "id")):
        if isinstance(found, str) and found:
            return found
    return None


def reference_of(text: str) -> str:
    """A reference in its one form: `kind:name`, at most 256 bytes. Raises TargetError.

    The address of a GitHub pull request becomes `pr:org/repo#12`.
    """
    pull = _GITHUB_PULL.fullmatch(text)
    if pull is not None:
        text = f"pr:{pull[1]}/{pull[2]}#{pull[3]}"
    if not _REFERENCE.fullmatch(text):
        raise TargetError(f"{shown(text)} is no reference; write kind:name, for example pr:org/repo#12")
    try:
        return check_id(text, "reference")
    except FieldError as err:
        raise TargetError(f"{shown(text)} is no reference: {err}") from None


def _of_text(text: str, workspace: str | None) -> Target:
    try:
        return Target.of_handle(Handle.parse(text))
    except HandleError:
        if _REFERENCE.fullmatch(text):
            return Target(workspace=workspace, reference=reference_of(text))
        if _PROVIDER_ID.fullmatch(text):
            return _of_response(text, workspace)
        raise


def _of_response(name: str, workspace: str | None) -> Target:
    handle = _by_id.get(name)
    if handle is not None and workspace in (None, handle.workspace):
        return Target.of_handle(handle)
    return Target(workspace=workspace, reference=reference_of(f"response:{name}"))


def _get(holder: Any, name: str) -> Any:
    if isinstance(holder, Mapping):
        return holder.get(name)
    return None if holder is None else getattr(holder, name, None)


def _put(memory: dict[Any, Any], key: Any, entry: Any) -> None:
    memory.pop(key, None)
    memory[key] = entry
    while len(memory) > MAX_REMEMBERED:
        try:
            memory.pop(next(iter(memory)), None)
        except (RuntimeError, StopIteration):  # another thread changed it meanwhile, and will look after its size
            return
