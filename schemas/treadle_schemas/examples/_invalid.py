"""Examples of mistakes, each with the reason and the field that a check names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from treadle_schemas import codec
from treadle_schemas.examples._build import MINIMAL, Json, became, record, said
from treadle_schemas.partitioner import partition_of


def _wrong(record: Json, reason: str, field: str) -> list[Json]:
    return [record | {"expected": {"reason": reason, "field": field}}]


def _without(name: str) -> Json:
    return record(codec.INTERACTION, {k: v for k, v in MINIMAL.items() if k != name}, key="i-1")


def _headed(**changed: str | None) -> Json:
    headers = {name.replace("_", "-") if name == "content_type" else name: item for name, item in changed.items()}
    return record(codec.INTERACTION, MINIMAL, headers=headers)


def _raw(text: str) -> Json:
    return record(codec.INTERACTION, MINIMAL, key="i-1", value_text=text)


INVALID: Final[dict[str, tuple[str, Callable[[], list[Json]]]]] = {
    "no-agent": ("A required field is missing.", lambda: _wrong(_without("agent"), "malformed", "$")),
    "no-messages": ("An interaction has at least one.", lambda: _wrong(said(messages=[]), "malformed", "$.messages")),
    "message-without-role": (
        "Each message has a role.",
        lambda: _wrong(said(messages=[{"content": "hi"}]), "malformed", "$.messages[0].role"),
    ),
    "response-out-of-range": (
        "response names indices of messages.",
        lambda: _wrong(said(response=[2]), "malformed", "$.response[0]"),
    ),
    "time-without-zone": (
        "A local time means nothing elsewhere.",
        lambda: _wrong(said(ended_at="2026-01-31T09:30:04"), "malformed", "$.ended_at"),
    ),
    "time-in-milliseconds": (
        "Times are text.",
        lambda: _wrong(said(ended_at=1769851804000), "malformed", "$.ended_at"),
    ),
    "ends-before-it-starts": (
        "A clock went back, or the two are exchanged.",
        lambda: _wrong(said(ended_at="2026-01-31T09:29:59Z"), "malformed", "$.ended_at"),
    ),
    "long-id": (
        "An id has at most 256 bytes of UTF-8.",
        lambda: _wrong(said(interaction_id="é" * 129), "malformed", "$.interaction_id"),
    ),
    "wrong-key": (
        "The key is the episode, not the interaction.",
        lambda: _wrong(
            record(codec.INTERACTION, {**MINIMAL, "episode_id": "s-1"}, key="i-1"),
            "malformed",
            "key",
        ),
    ),
    "quoted-key": (
        "The key is the id's own bytes, not JSON.",
        lambda: _wrong(record(codec.INTERACTION, MINIMAL, key='"i-1"'), "malformed", "key"),
    ),
    "wrong-partition": (
        "Another partitioner than Kafka's murmur2; counted for 8 partitions.",
        lambda: _wrong(
            said() | {"partition": (partition_of(b"i-1", 8) + 1) % 8},
            "wrong_partition",
            "partition",
        ),
    ),
    "no-type": (
        "Not a CloudEvent in binary mode.",
        lambda: _wrong(_headed(ce_type=None), "malformed", "headers.ce_type"),
    ),
    "unknown-major-version": (
        "A reader refuses what it does not know.",
        lambda: _wrong(_headed(ce_type="dev.treadle.interaction.v2"), "unknown_type", "headers.ce_type"),
    ),
    "wrong-workspace": (
        "ce_workspace is the topic's.",
        lambda: _wrong(_headed(ce_workspace="other"), "wrong_workspace", "headers.ce_workspace"),
    ),
    "no-pii": (
        "A producer says which privacy policy it carried out.",
        lambda: _wrong(_headed(ce_pii=None), "missing_header", "headers.ce_pii"),
    ),
    "wrong-content-type": (
        "The value is JSON.",
        lambda: _wrong(_headed(content_type="avro/binary"), "bad_header", "headers.content-type"),
    ),
    "structured-mode": (
        "Kafka takes the binary mode only; HTTP takes both.",
        lambda: _wrong(
            record(
                codec.INTERACTION,
                {
                    "specversion": "1.0",
                    "type": codec.INTERACTION,
                    "source": "/agents/desk",
                    "id": "1",
                    "data": MINIMAL,
                },
                key="i-1",
                headers={"content-type": "application/cloudevents+json"},
            ),
            "malformed",
            "$",
        ),
    ),
    "nan": ("JSON has no NaN.", lambda: _wrong(_raw('{"interaction_id":"i-1","cost":NaN}'), "malformed", "$")),
    "not-utf-8": (
        "The value is UTF-8.",
        lambda: _wrong(
            record(codec.INTERACTION, MINIMAL, key="i-1", value_base64="eyJhIjoi/yJ9"),
            "malformed",
            "$",
        ),
    ),
    "outcome-without-id": (
        "A repeated report could not be told from a second one.",
        lambda: _wrong(became(outcome_id=...), "malformed", "$.outcome_id"),
    ),
    "outcome-without-target": (
        "An outcome is of something.",
        lambda: _wrong(became(interaction_id=...), "malformed", "$.interaction_id"),
    ),
    "outcome-without-value": (
        "null says that there is none; silence is a mistake.",
        lambda: _wrong(became(value=...), "malformed", "$.value"),
    ),
    "value-of-another-type": (
        "reward is declared as a float.",
        lambda: _wrong(became(value="good"), "bad_value", "$.value"),
    ),
    "interaction-on-outcomes": (
        "Each type has its topic.",
        lambda: _wrong(
            record(codec.INTERACTION, MINIMAL, topic="outcomes"),
            "malformed",
            "headers.ce_type",
        ),
    ),
    "part-of-another-hash": (
        "A part is named by its content.",
        lambda: _wrong(
            record(codec.PART, {"episode_id": "s-2", "part": "0" * 32, "value": "x"}),
            "bad_value",
            "$.part",
        ),
    ),
    "same-id-other-content": (
        "One id, two contents: one of them is kept, the other is a dead letter.",
        lambda: [became(), *_wrong(became(value=0.0), "conflict", "$.outcome_id")],
    ),
}
