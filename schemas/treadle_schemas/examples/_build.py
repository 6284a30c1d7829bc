"""What the examples are made of, and how a value becomes a record."""

from __future__ import annotations

from typing import Any, Final

from treadle_schemas import codec
from treadle_schemas.canonical import content_hash
from treadle_schemas.conformance import expected_key
from treadle_schemas.partitioner import partition_of

PARTITIONS: Final = (1, 3, 8, 12)
WORKSPACE: Final = "shop"
_SENT_AT: Final = "2026-01-31T14:02:00.000000Z"
_TOPICS: Final = {
    codec.INTERACTION: "interactions",
    codec.PART: "interactions",
    codec.EPISODE_END: "interactions",
    codec.ERASURE: "interactions",
    codec.OUTCOME: "outcomes",
}
Json = dict[str, Any]

USER: Final[Json] = {"role": "user", "content": "Where is order 17?"}
TOOLS: Final[list[Json]] = [
    {
        "type": "function",
        "function": {
            "name": "get_order",
            "parameters": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
        },
    }
]
CALL: Final[Json] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_order", "arguments": '{"id": 17}'}}],
}
RESULT: Final[Json] = {"role": "tool", "tool_call_id": "c1", "content": '{"state": "shipped"}'}
ANSWER: Final[Json] = {"role": "assistant", "content": "It is on its way."}
MINIMAL: Final[Json] = {
    "interaction_id": "i-1",
    "agent": "desk",
    "messages": [USER, ANSWER],
    "started_at": "2026-01-31T09:30:00Z",
    "ended_at": "2026-01-31T09:30:04Z",
}
OUTCOME_VALUE: Final[Json] = {
    "interaction_id": "i-1",
    "name": "reward",
    "value": 1.0,
    "observed_at": "2026-01-31T14:01:58Z",
    "outcome_id": "csat-8817",
    "source": "csat",
}
STEP_OUTCOME: Final[Json] = {**OUTCOME_VALUE, "episode_id": "s-1", "interaction_id": "i-2"}


def record(
    event_type: str, value: Any, *, topic: str | None = None, import_id: str | None = None, **changed: Any
) -> Json:
    """One record. `changed` replaces headers (None: left out), `key` and the form of the value."""
    keyed = expected_key(event_type, value) if isinstance(value, dict) else None
    headers = {
        name: raw.decode()
        for name, raw in codec.make_headers(
            event_type, WORKSPACE, source="/agents/desk", event_id="0194c2d4", import_id=import_id, pii="secrets/1"
        )
    }
    headers |= {"ce_time": _SENT_AT, **changed.pop("headers", {})}
    key = changed.pop("key", keyed)
    record: Json = {
        "topic": f"treadle.{WORKSPACE}.{topic or _TOPICS[event_type]}",
        "key": key,
        "headers": {name: item for name, item in headers.items() if item is not None},
    }
    if not {"value_text", "value_base64"} & changed.keys():
        record["value"] = value
        record["content_hash"] = content_hash(value)
    if key is not None:
        record["partitions"] = {str(count): partition_of(key.encode(), count) for count in PARTITIONS}
    return record | changed


def said(**changed: Any) -> Json:
    return record(codec.INTERACTION, {**MINIMAL, **changed})


def became(base: Json = OUTCOME_VALUE, **changed: Any) -> Json:
    return record(codec.OUTCOME, {k: v for k, v in {**base, **changed}.items() if v is not ...})
