"""GitHub's webhooks as outcomes. Pure.

| event | action | outcome |
|---|---|---|
| `pull_request` | `closed` | `pr_merged`: true or false |
| `pull_request_review` | `submitted` | `pr_review`: `approved` or `changes_requested` |

An outcome is about each handle of the workspace that stands behind `treadle:` in the pull request's body, and about `pr:org/repo#N` where
there is none. Its id is that of the delivery, which GitHub keeps when it delivers again; of several handles the second has `DELIVERY/2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from treadle.errors import TargetError
from treadle.targets import reference_of
from treadle_schemas.canonical import loads
from treadle_schemas.codec import OUTCOME
from treadle_schemas.errors import FieldError
from treadle_schemas.ids import Handle
from treadle_schemas.moments import now

from treadle_streams.ingest._events import Given, media_type
from treadle_streams.ingest.errors import Invalid, Malformed, UnsupportedType

__all__ = ["Ignored", "outcomes_of", "payload_of"]

MERGED: Final = "pr_merged"
REVIEW: Final = "pr_review"
_VERDICTS: Final = ("approved", "changes_requested")
_SOURCE: Final = "github"


class Ignored(Exception):
    """The delivery is in order and says nothing that is an outcome; the message is the reason."""


def payload_of(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """The payload of a delivery in either of GitHub's content types. Raises Malformed, UnsupportedType."""
    media = media_type(headers)
    try:
        if media == "application/x-www-form-urlencoded":
            value = loads(parse_qs(body.decode("ascii"), strict_parsing=True)["payload"][0])
        elif media == "application/json":
            value = loads(body)
        else:
            raise UnsupportedType(
                f"content type {media[:80]} is not read here", hint="choose application/json in GitHub"
            )
    except FieldError as err:
        raise Malformed(err.problem, field=err.field) from None
    except (ValueError, KeyError):
        raise Malformed("is no form with a payload", field="$") from None
    if not isinstance(value, dict):
        raise Malformed(f"is a {type(value).__name__}, not an object", field="$")
    return value


def outcomes_of(payload: dict[str, Any], headers: Mapping[str, str], workspace: str) -> list[Given]:
    """The outcome events of a delivery. Raises Ignored, Invalid."""
    event, action = headers.get("x-github-event", ""), payload.get("action")
    delivery = headers.get("x-github-delivery", "")
    if not event or not delivery:
        raise Invalid("is missing: this is no delivery of GitHub", field="X-GitHub-Event and X-GitHub-Delivery")
    pull = payload.get("pull_request")
    if event == "pull_request" and action == "closed":
        pull = _object(pull, "$.pull_request")
        name, value = MERGED, pull.get("merged")
        if not isinstance(value, bool):
            raise Invalid("is neither true nor false", field="$.pull_request.merged")
        moment = pull.get("closed_at")
    elif event == "pull_request_review" and action == "submitted":
        pull, review = _object(pull, "$.pull_request"), _object(payload.get("review"), "$.review")
        name, value, moment = REVIEW, str(review.get("state")).lower(), review.get("submitted_at")
        if value not in _VERDICTS:
            raise Ignored(f"a review that is {value[:40]} is no verdict")
    else:
        raise Ignored(f"{event[:60]} {str(action)[:60]} is no outcome")
    said = {"name": name, "value": value, "observed_at": moment or now(), "source": _SOURCE}
    return [
        Given(kind=OUTCOME, value={**said, **target, "outcome_id": delivery if not n else f"{delivery}/{n + 1}"})
        for n, target in enumerate(_targets(payload, pull, workspace))
    ]


def _targets(payload: dict[str, Any], pull: dict[str, Any], workspace: str) -> list[dict[str, str]]:
    handles = [handle for handle in Handle.find_all(str(pull.get("body") or "")) if handle.workspace == workspace]
    if handles:
        return [{"interaction_id": h.interaction_id, "episode_id": h.episode_id} for h in handles]
    repository = _object(payload.get("repository"), "$.repository").get("full_name")
    try:
        return [{"reference": reference_of(f"pr:{repository}#{pull.get('number')}")}]
    except TargetError:
        raise Invalid("has no name", field="$.repository.full_name") from None


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Invalid("is missing", field=field)
    return value
