"""Golden vectors: partitions, canonical JSON, hashes, handles, times."""

from __future__ import annotations

import json

from treadle_schemas.canonical import canonical_json, content_hash, loads
from treadle_schemas.events import default_outcome_id, read_outcome
from treadle_schemas.examples._build import OUTCOME_VALUE, PARTITIONS, STEP_OUTCOME, Json
from treadle_schemas.ids import Handle
from treadle_schemas.moments import to_micros
from treadle_schemas.partitioner import murmur2, partition_of


def vectors() -> Json:
    keys = [
        "",
        "21",
        "foobar",
        "a-little-bit-long-string",
        "i-1",
        "s-1",
        "ticket/4711",
        "pr:acme/shop#12",
        "épisode 🙂",
    ]
    texts = [
        '{"b": 1, "a": [1.0, -0.0, 1e22, 1e-7, 0.1, null, true]}',
        "18446744073709551617",
        "[1E16, 123456789012345.6, 5e-324, 0.0001, 0.00001, 100000000000000000000.0]",
        '{"\\uD83D\\uDE00": 1, "\\uFFFF": 2, "z": 3, "\\u00e9": 4}',
        '"\\u2028\\u007f\\u0000\\n\\"\\\\\\/\\u00fc"',
        '"\\ud83d"',
        json.dumps(OUTCOME_VALUE),
    ]
    handles = [
        ("shop", "i-1", "i-1"),
        ("shop", "ticket/4711", "0194bb70-8d1c-7c3a-9a55-3f1f0f6b2c11"),
        ("shop", "é 🙂", "100%"),
    ]
    return {
        "partitions": [
            {
                "key": key,
                "murmur2": murmur2(key.encode()),
                "partitions": {str(count): partition_of(key.encode(), count) for count in PARTITIONS},
            }
            for key in keys
        ],
        "canonical": [
            {"json": text, "canonical": canonical_json(loads(text)).decode(), "content_hash": content_hash(loads(text))}
            for text in texts
        ],
        "handles": [
            {"workspace": ws, "episode_id": episode, "interaction_id": name, "handle": str(Handle(ws, episode, name))}
            for ws, episode, name in handles
        ],
        "imported_outcome_ids": [
            {"outcome": value, "outcome_id": default_outcome_id(read_outcome({**value, "outcome_id": "-"}))}
            for value in (OUTCOME_VALUE, STEP_OUTCOME)
            for value in ({k: v for k, v in value.items() if k != "outcome_id"},)
        ],
        "times": [
            {"text": text, "microseconds": to_micros(text, "$.text")}
            for text in (
                "1970-01-01T00:00:00Z",
                "2024-05-15T20:33:23.490Z",
                "2024-05-15T22:33:23.490+02:00",
                "2024-05-15T20:33:23.4900009Z",
            )
        ],
    }
