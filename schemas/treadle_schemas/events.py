"""The events that travel on the input topics: interactions and outcomes.

These structs say what a reader may rely on. Readers keep the verbatim JSON beside them, so that fields of later minor versions
survive; see `codec`.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Literal, TypeVar, get_args

import msgspec

from treadle_schemas.canonical import content_hash
from treadle_schemas.errors import FieldError, shown
from treadle_schemas.ids import check_id, check_slot
from treadle_schemas.moments import to_micros

__all__ = [
    "MAX_EVENT_BYTES",
    "MAX_MESSAGES",
    "MAX_METRIC_NAME",
    "EpisodeEnd",
    "Erasure",
    "Interaction",
    "Outcome",
    "OutcomeValue",
    "Redaction",
    "Right",
    "Rights",
    "Transcript",
    "default_outcome_id",
    "read_episode_end",
    "read_erasure",
    "read_interaction",
    "read_outcome",
    "view",
]

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""Largest value of one event. Brokers made by treadle accept 16 MiB, which leaves room for a graded row around it."""
MAX_MESSAGES = 10_000
MAX_METRIC_NAME = 128

_T = TypeVar("_T", bound=msgspec.Struct)
_ROLE = itemgetter("role")
OutcomeValue = bool | int | float | str | None


Right = Literal["allow", "deny"]


class Rights(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the workspace may do with a row. Deny wins over allow, whichever came first."""

    train: Right = "allow"
    eval: Right = "allow"
    recall: Right = "allow"


class Redaction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the PII policy did to an interaction before it was written anywhere.

    `policy` and `version` name the policy in force, `counts` how often each kind was found. With `error` the redaction failed, and the
    text was dropped: the interaction is a tombstone, without messages worth training on.
    """

    policy: str
    version: int = 0
    counts: dict[str, int] = {}
    error: str | None = None


class Transcript(msgspec.Struct, frozen=True, kw_only=True):
    """Messages that are stored once as parts of the episode: the first `count` messages, addressed by the chain hash `head`."""

    head: str
    count: int


class Interaction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One recorded unit of agent work: the request and the response, verbatim.

    Times are RFC 3339. `messages` are OpenAI chat messages with tool arguments as JSON strings; `response` lists the indices of those
    that this interaction produced (absent: every assistant turn). Only those are trained on.

    Long contexts are stored once: `transcript` stands for the messages before `messages`, and `claims` names the part that belongs at a
    JSON pointer of this value. See treadle_schemas.parts, which puts both back.
    """

    interaction_id: str
    episode_id: str | None = None
    task_id: str | None = None
    agent: str
    slot: str = "main"
    model: str | None = None
    release: str | None = None
    step: int = 0
    messages: list[dict[str, Any]]
    response: list[int] | None = None
    tools: list[dict[str, Any]] | None = None
    started_at: str
    ended_at: str
    status: Literal["ok", "error"] = "ok"
    error: str | None = None
    subject: str | None = None
    tags: dict[str, str | int | float | bool | None] = {}
    sampling: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    token_ids: list[list[int]] | None = None
    logprobs: list[list[float]] | None = None
    finish_reason: str | None = None
    cost: float | None = None
    """US dollars."""
    first_token_ms: float | None = None
    attempts: list[dict[str, Any]] | None = None
    """Earlier tries of the same request that failed: status, error, started_at, ended_at of each."""
    parent_id: str | None = None
    """The interaction that called this sub-agent."""
    references: list[str] | None = None
    """External names of this interaction (`response:chatcmpl-7`, `pr:org/repo#12`), by which an outcome may find it."""
    rights: Rights | None = None
    redaction: Redaction | None = None
    transcript: Transcript | None = None
    claims: dict[str, str] | None = None

    @property
    def episode(self) -> str:
        """The episode, by default the interaction itself. This is the partition key of everything."""
        return self.interaction_id if self.episode_id is None else self.episode_id


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One observation of success.

    The target is an interaction (with the episode, where its maker knows it), a whole episode, or an external reference such as
    `pr:org/repo#12`. With `op` retract, `outcome_id` names the one outcome to take back; without it every outcome of that name and
    target observed at or before `observed_at` is.
    """

    name: str
    value: OutcomeValue = None
    observed_at: str
    op: Literal["set", "retract"] = "set"
    outcome_id: str | None = None
    interaction_id: str | None = None
    episode_id: str | None = None
    reference: str | None = None
    kind: Literal["metric", "comment", "preference", "demonstration", "rights"] = "metric"
    over: str | None = None
    """Of a preference: the interaction id that the target is preferred over."""
    messages: list[dict[str, Any]] | None = None
    """Of a demonstration: what should have been said. Of a preference without `over`: what the target is preferred over."""
    source: str | None = None
    usage: dict[str, Any] | None = None
    """What a judge used to say it: `calls`, `prompt_tokens`, `completion_tokens`, `seconds`, `usd`. `treadle cycle` adds it up."""
    subject: str | None = None
    """Whose it is: the subject of what it is about, where its maker knows it. A workspace that encrypts seals it with that one's key."""

    @property
    def key(self) -> str:
        """What the event is keyed by: what its maker knows best, the episode, else the interaction, else the reference."""
        return self.episode_id or self.interaction_id or self.reference or ""


class EpisodeEnd(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An episode is over: nothing that belongs to it has started after `ended_at`. What does so all the same opens it again."""

    episode_id: str
    ended_at: str
    source: str | None = None


class Erasure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An episode is erased, for good: everything recorded in it, and said of it, before this event or after.

    The episode is the unit because what one interaction of it said stands in the messages of the next. An interaction without `episode_id`
    is an episode by itself. Nothing here may say whose it was: `reason` is kept and shown.
    """

    episode_id: str
    erased_at: str
    reason: str | None = None
    source: str | None = None


def read_erasure(value: dict[str, Any]) -> Erasure:
    """The typed view of a decoded erasure. Raises FieldError naming the field."""
    event = view(value, Erasure)
    check_id(event.episode_id, "$.episode_id")
    to_micros(event.erased_at, "$.erased_at")
    return event


def read_episode_end(value: dict[str, Any]) -> EpisodeEnd:
    """The typed view of a decoded end of an episode. Raises FieldError naming the field."""
    event = view(value, EpisodeEnd)
    check_id(event.episode_id, "$.episode_id")
    to_micros(event.ended_at, "$.ended_at")
    return event


def read_interaction(value: dict[str, Any]) -> Interaction:
    """The typed view of a decoded interaction. Raises FieldError naming the field."""
    event = view(value, Interaction)
    check_id(event.interaction_id, "$.interaction_id")
    if event.episode_id is not None:
        check_id(event.episode_id, "$.episode_id")
    if event.task_id is not None:
        check_id(event.task_id, "$.task_id")
    check_slot(event.slot)
    before = 0 if event.transcript is None else event.transcript.count
    count = before + len(event.messages)
    if before < 0 or not count:
        raise FieldError("$.messages", "is empty; an interaction has at least one message")
    if count > MAX_MESSAGES:
        raise FieldError("$.messages", f"has {count} messages; at most {MAX_MESSAGES}")
    _check_roles(event.messages)
    for n, index in enumerate(event.response or ()):
        if not 0 <= index < count:
            raise FieldError(f"$.response[{n}]", f"{index} is no index into {count} messages")
    ended = to_micros(event.ended_at, "$.ended_at")
    if event.started_at != event.ended_at and ended < to_micros(event.started_at, "$.started_at"):
        raise FieldError("$.ended_at", f"{event.ended_at} is before started_at {event.started_at}")
    return event


def _check_roles(messages: list[dict[str, Any]]) -> None:
    try:
        if {str}.issuperset(map(type, map(_ROLE, messages))):
            return
    except KeyError:
        pass
    at = next(i for i, message in enumerate(messages) if not isinstance(message.get("role"), str))
    raise FieldError(f"$.messages[{at}].role", "is missing or not a string")


def read_outcome(value: dict[str, Any]) -> Outcome:
    """The typed view of a decoded outcome. Raises FieldError naming the field."""
    event = view(value, Outcome)
    if not 1 <= len(event.name.encode(errors="replace")) <= MAX_METRIC_NAME:
        raise FieldError("$.name", f"is not 1 to {MAX_METRIC_NAME} bytes long")
    targets = (event.interaction_id, event.episode_id, event.reference)
    if not any(targets):
        raise FieldError("$.interaction_id", "is missing: an outcome names an interaction, an episode or a reference")
    for field, target in zip(("interaction_id", "episode_id", "reference"), targets, strict=True):
        if target is not None:
            check_id(target, f"$.{field}")
    if event.op == "set" and "value" not in value:
        raise FieldError("$.value", "is missing; write null where the source has no value")
    if event.op == "set" and event.outcome_id is None:
        raise FieldError("$.outcome_id", "is missing: without it a repeated event cannot be told from a second outcome")
    if event.outcome_id is not None:
        check_id(event.outcome_id, "$.outcome_id")
    to_micros(event.observed_at, "$.observed_at")
    _check_kind(event)
    return event


def _check_kind(event: Outcome) -> None:
    """What each kind of outcome must say, and what none but it may. A retract says nothing but what it takes back."""
    kind, value = event.kind, event.value
    for field, given, kinds in (
        ("over", event.over, ("preference",)),
        ("messages", event.messages, ("preference", "demonstration")),
    ):
        if given is not None and kind not in kinds:
            raise FieldError(f"$.{field}", f"does not belong to a {kind}, only to a {' or '.join(kinds)}")
    if event.over is not None:
        check_id(event.over, "$.over")
        if event.over == event.interaction_id:
            raise FieldError("$.over", "is the target itself; a preference is over another interaction")
    if kind == "rights" and event.name not in ("train", "eval", "recall"):
        raise FieldError("$.name", f"{shown(event.name)} is no right; rights are train, eval and recall")
    if event.op == "retract":
        return
    if kind == "comment" and not (isinstance(value, str) and value):
        raise FieldError("$.value", "is no text; a comment says something")
    if kind == "rights" and value not in ("allow", "deny"):
        raise FieldError("$.value", f"{shown(value)} is neither allow nor deny")
    if kind in ("preference", "demonstration") and value is not None:
        raise FieldError("$.value", f"is {shown(value)}; a {kind} has no value, write null")
    if kind == "preference" and (event.over is None) == (event.messages is None):
        raise FieldError(
            "$.over", "a preference is over an interaction (over) or over an answer (messages): give one of the two"
        )
    if kind == "demonstration" and event.messages is None:
        raise FieldError("$.messages", "is missing: a demonstration says what should have been said")
    if event.messages is not None:
        if not 1 <= len(event.messages) <= MAX_MESSAGES:
            raise FieldError("$.messages", f"has {len(event.messages)} messages; it has 1 to {MAX_MESSAGES}")
        for i, message in enumerate(event.messages):
            if not isinstance(message.get("role"), str):
                raise FieldError(f"$.messages[{i}].role", "is missing or not a string")


def default_outcome_id(outcome: Outcome) -> str:
    """The id of an imported outcome that has none, so that importing twice changes nothing.

    The first 32 hex digits of sha256 over the canonical JSON of `[[episode_id, interaction_id, reference], name, value, observed_at]`,
    each as the imported line says it (null where it says nothing). Of other kinds than metrics the list goes on with kind, over and
    messages: two demonstrations of one moment are two.
    """
    target = [outcome.episode_id, outcome.interaction_id, outcome.reference]
    said: list[Any] = [target, outcome.name, outcome.value, outcome.observed_at]
    if outcome.kind != "metric":
        said += [outcome.kind, outcome.over, outcome.messages]
    return content_hash(said)[:32]


def view(value: Any, kind: type[_T]) -> _T:
    """A decoded JSON value as a struct. Raises FieldError naming the field; lone surrogates in it raise nothing else."""
    try:
        try:
            return msgspec.convert(value, kind)
        except UnicodeEncodeError:
            return _view_slowly(value, kind)
    except msgspec.ValidationError as err:
        problem, _, path = str(err).rpartition(" - at `") if " - at `" in str(err) else (str(err), "", "")
        # the message of a wrong literal quotes the whole value
        raise FieldError(path.rstrip("`") or "$", problem if len(problem) <= 200 else f"{problem[:200]}...") from None


def _view_slowly(value: Any, kind: type[_T]) -> _T:
    """msgspec encodes names and literals as UTF-8, which a lone surrogate has not.

    In the name of an unknown field it does no harm: known fields are ASCII, and the reader keeps `value` itself. Anywhere else it is wrong.
    """
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    known = {name: item for name, item in value.items() if name in fields}
    for name, item in known.items():
        if isinstance(item, dict) and _holds_struct(fields[name]):
            known[name] = {inner: part for inner, part in item.items() if inner.isascii()}
    for name, item in known.items():
        try:
            msgspec.convert(item, fields[name])
        except UnicodeEncodeError:
            raise FieldError(f"$.{name}", "holds a lone surrogate, which none of its values can") from None
        except msgspec.ValidationError:
            pass  # the conversion of the whole says where
    return msgspec.convert(known, kind)


def _holds_struct(kind: Any) -> bool:
    return any(isinstance(part, type) and issubclass(part, msgspec.Struct) for part in (kind, *get_args(kind)))
