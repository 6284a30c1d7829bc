"""What must hold of one record, whatever its bytes: it becomes an event or a typed error with a reason, and nothing of it changes silently.

Shared by the Hypothesis test and the atheris harness; needs neither. `judge` returns the class of the input and raises AssertionError, or
whatever the code under test raised, where something is wrong.
"""

from __future__ import annotations

import json
import math
from typing import Any, get_args

from treadle_schemas import WorkspaceSettings
from treadle_schemas.canonical import MAX_DEPTH, MAX_DIGITS, canonical_json, dumps, loads
from treadle_schemas.codec import CLOCK, INTERACTION, OUTCOME, PART, decode, encode, to_json
from treadle_schemas.errors import ContractError, FieldError, UnknownType
from treadle_schemas.events import read_interaction, read_outcome
from treadle_schemas.partitioner import partition_of
from treadle_streams.join.arrivals import Arrival, Reason, Refused, understand
from treadle_streams.join.grading import Grading

SETTINGS = WorkspaceSettings(workspace="w", partitions=1).checked()
GRADING = Grading(SETTINGS)
LONGEST_REASON = 2_000
Headers = list[tuple[str, bytes | str | None]]


def judge(value: bytes | None, headers: Headers, key: bytes | None) -> str:
    """`accepted TYPE`, or `refused ERROR` with what the join makes of it."""
    try:
        event = decode(value, headers)
    except (FieldError, UnknownType) as err:
        _check_error(err)
        kind = type(err).__name__
        assert isinstance(_joined(value, headers, key), Refused), "the join takes what the decoder refuses"
        if isinstance(err, FieldError) and err.problem.startswith("not JSON") and value is not None:
            assert _reference(value) is None, "JSON that treadle may carry was refused as none"
        return f"refused {kind}"
    if event.type == CLOCK:
        return f"accepted {CLOCK}"
    assert value is not None
    _check_unchanged(value, event.data)
    before = canonical_json(event.data)
    found = "data"
    for wanted, read in ((INTERACTION, read_interaction), (OUTCOME, read_outcome)):
        try:
            struct = read(event.data)
        except FieldError as err:
            _check_error(err)
            if event.type == wanted:
                found = "refused"
        else:
            found = "read" if event.type == wanted else found
            # a struct leaves out what is at its default, but an outcome has to say that it has no value
            again = ({"value": None} if wanted == OUTCOME else {}) | to_json(struct)
            assert read(loads(encode(again))) == struct, "what was read is not what is read again"
            for name, said in again.items():
                assert _says(event.data.get(name), said), f"{name} was {event.data.get(name)!r}, is read as {said!r}"
    joined = _joined(value, headers, key)
    assert canonical_json(event.data) == before, "reading changed the data"
    if found == "refused":
        assert isinstance(joined, Refused), "the join takes what the reader refuses"
        return f"refused {event.type}: {joined.reason}"
    if isinstance(joined, Refused):
        return f"refused by the join: {joined.reason}"
    return f"accepted {event.type}"


def judge_value(value: Any) -> str:
    """The same of a Python value that an agent hands in: it is written and read back equal, or refused by name."""
    written: list[bytes] = []
    for write in (dumps, canonical_json):
        try:
            written.append(write(value))
        except FieldError as err:
            _check_error(err)
    if not written:
        return "refused FieldError"
    assert len(written) == 2, "one way of writing refuses what the other takes"
    back = loads(written[0])
    assert canonical_json(back) == written[1]
    assert canonical_json(loads(written[1])) == written[1]
    assert written[1] == _canonical(_plain(back)), "not the canonical bytes"
    return "accepted value"


def _joined(value: bytes | None, headers: Headers, key: bytes | None) -> Any:
    kind = "outcomes" if ("ce_type", OUTCOME.encode()) in headers else "interactions"
    partition = partition_of(key, SETTINGS.partitions) if key is not None else 0
    found = understand(Arrival(kind, partition, 0, 1, key, value, headers), GRADING)  # type: ignore[arg-type]
    if isinstance(found, Refused):
        assert found.reason in get_args(Reason)
        assert 0 < len(found.detail) <= LONGEST_REASON
    return found


def _check_error(err: ContractError) -> None:
    text = str(err)
    assert 0 < len(text) <= LONGEST_REASON, f"a reason of {len(text)} characters"
    if isinstance(err, FieldError):
        assert err.field, "no field"
        assert err.problem, "no problem"


def _check_unchanged(value: bytes, data: Any) -> None:
    """Against the standard library's decoder, number by number."""
    expected = _reference(value)
    assert expected is not None, "what JSON does not have, or treadle may not carry, was accepted"
    assert _canonical(_plain(expected[0])) == canonical_json(data), "decoding changed the value"
    assert canonical_json(loads(dumps(data))) == canonical_json(data), "writing changed the value"


def _reference(value: bytes) -> tuple[Any] | None:
    """The value by the standard library, in a tuple; None where it has none that an event may hold."""
    try:
        found = json.loads(value.decode(), parse_constant=_refuse, parse_float=_finite, parse_int=_bounded)
    except (ValueError, RecursionError):
        return None
    return (found,) if _depth(found) <= MAX_DEPTH else None


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def _bounded(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("too long")
    return int(text)


def _depth(value: Any) -> int:
    level, deep = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        deep += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return deep


def _plain(value: Any) -> Any:
    # a surrogate pair written as two escapes is one character
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _canonical(value: Any) -> bytes:
    """Canonical JSON, written a second time from its definition."""
    if isinstance(value, dict):
        inner = b",".join(_canonical(key) + b":" + _canonical(value[key]) for key in sorted(value))
        return b"{" + inner + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(_canonical, value)) + b"]"
    if isinstance(value, float):
        return repr(value).encode() if value else b"0.0"
    if isinstance(value, str):
        escaped = json.dumps(value, ensure_ascii=False)
        return "".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) < 0xE000 else c for c in escaped).encode()
    return json.dumps(value).encode()


def _says(given: Any, read: Any) -> bool:
    """Whether a typed view says what the JSON said; it may fill in defaults, and read an integer as a float."""
    if isinstance(read, dict) and isinstance(given, dict):
        return all(_says(given.get(name), item) for name, item in read.items() if name in given)
    if isinstance(read, list) and isinstance(given, list):
        return len(read) == len(given) and all(map(_says, given, read))
    if isinstance(read, float) and isinstance(given, int) and not isinstance(given, bool):
        return read == float(given)
    return given is None or canonical_json(given) == canonical_json(read)


__all__ = ["PART", "judge", "judge_value"]
