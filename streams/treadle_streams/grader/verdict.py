"""What a judge says, and how it is named in outcomes."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import msgspec
from treadle_schemas.errors import ContractError, FieldError
from treadle_schemas.events import Interaction, OutcomeValue
from treadle_schemas.verdicts import find_verdict
from treadle_schemas.workspace import Metric

from treadle_streams.grader.errors import JudgeFailed

__all__ = ["Usage", "Verdict", "id_prefix", "outcome_id", "read_verdict", "source_of", "source_prefix"]

MAX_REASON: Final = 4_000
"""Characters kept of a reason."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a call used. A judge that is no model may say it as well."""

    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            usd=self.usd + other.usd,
        )


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A judge's answer. `value` None: the judge abstains, and no outcome is published."""

    value: OutcomeValue = None
    reason: str | None = None
    usage: Usage = msgspec.field(default_factory=Usage)


def read_verdict(said: Any, metric: Metric | None) -> Verdict:
    """The verdict in what a judge returned: a bare value, or an object with `value`, `reason` and `usage`.

    Raises JudgeFailed (which can be retried: models vary) for anything else, and for a value that the metric does not take.
    """
    if not isinstance(said, dict):
        said = {"value": said}
    if "value" not in said:
        raise JudgeFailed(f"the answer has no value: {_short(said)}", retriable=True)
    try:
        verdict = msgspec.convert({k: said[k] for k in ("value", "reason", "usage") if k in said}, Verdict)
        if metric is not None:
            verdict = msgspec.structs.replace(verdict, value=metric.check(verdict.value))
    except (msgspec.ValidationError, FieldError) as err:
        raise JudgeFailed(f"the answer {_short(said)} is no verdict: {err}", retriable=True) from None
    if verdict.reason is not None and len(verdict.reason) > MAX_REASON:
        verdict = msgspec.structs.replace(verdict, reason=verdict.reason[:MAX_REASON])
    return verdict


def find_object(text: str) -> dict[str, Any]:
    """The first JSON object in what a model wrote, which may say more around it. Raises JudgeFailed."""
    found = find_verdict(text)
    if found is not None:
        return found
    raise JudgeFailed(f"the model's answer holds no JSON object with a value: {_short(text)}", retriable=True)


def id_prefix(name: str, version: str) -> str:
    """How the outcome ids of a grader's version begin."""
    return f"grader/{name}/{version}/"


def outcome_id(name: str, version: str, interaction: Interaction) -> str:
    """The id of the one outcome that a grader's version has of an interaction."""
    row = f"{len(interaction.episode)}\0{interaction.episode}\0{interaction.interaction_id}"
    return id_prefix(name, version) + hashlib.sha256(row.encode(errors="surrogatepass")).hexdigest()[:32]


def source_prefix(name: str) -> str:
    """How the source of every outcome of a grader begins, whatever its version."""
    return f"grader:{name}@"


def source_of(name: str, version: str, fingerprint: str) -> str:
    """The source of a grader's outcomes: grader, version, and the hash of prompt, model or program."""
    return f"{source_prefix(name)}{version}/{fingerprint}"


def fingerprint_of(parts: Any) -> str:
    """The short hash that stands for whatever decides a judge's answers."""
    try:
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError) as err:
        raise ContractError(f"a judge cannot be named: {err}") from err
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def _short(said: Any) -> str:
    text = said if isinstance(said, str) else repr(said)
    return repr(text[:200] + ("..." if len(text) > 200 else ""))
