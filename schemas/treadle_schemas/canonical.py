"""Canonical JSON: one byte string for each JSON value, on every machine and in every language.

Keys sorted by code point, no spaces, integers as their digits, floats as Python's `repr` of the float64 with -0.0 as 0.0, lone
surrogates as `\\udXXX`, everything else as UTF-8. Hashes of content are sha256 over these bytes.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import math
import re
from typing import Any, Final

import orjson

from treadle_schemas.errors import FieldError, shown

__all__ = ["MAX_DEPTH", "MAX_DIGITS", "canonical_json", "content_hash", "dumps", "loads"]

MAX_DEPTH: Final = 64
"""Deepest nesting of lists and objects that an event may have. Deeper input comes from a bug or an attack, not from a chat."""
MAX_DIGITS: Final = 1000
"""Longest integer, in decimal digits. Python itself refuses to print or read more than 4,300."""

# datetimes and dataclasses, which orjson would turn into something else, are refused
_AS_IT_IS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_BOXES = (dict, list, tuple)
# the two high bytes of a float64 that is NaN or infinite
_NOT_FINITE = re.compile(rb"[\xf0-\xff][\x7f\xff]")
_MAX_BITS = int(MAX_DIGITS * math.log2(10))
_SURROGATE = re.compile("[\ud800-\udfff]")
# An integer beyond 64 bits has at least 19 digits; orjson would read it as a float, silently. Every event is searched for one: with all
# digits made alike this is a plain search for bytes, some 18 times cheaper than a regular expression.
_ALIKE = bytes.maketrans(b"123456789", b"000000000")
_LONG_DIGITS = b"0" * 19
# Where orjson may write a float in another way than `repr`: exponents, what is below 1e-4, minus zero. Two plain searches find all that
# could be one; only in their rare hits does a regular expression look closer. What it finds inside a string merely costs the slow way.
_EXPONENT = re.compile(rb"(?:^|[:\[,])-?[0-9]+(?:\.[0-9]+)?[eE]")


def canonical_json(value: Any) -> bytes:
    """The canonical bytes of a JSON value.

    Raises FieldError for what JSON cannot carry (NaN, infinities, non-string keys, other types), for nesting beyond MAX_DEPTH and for
    integers beyond MAX_DIGITS.
    """
    fast = _canonical_fast(value)
    if fast is not None:
        return fast
    text = _text(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Two surrogates that make a pair are one character to every JSON reader: join them first, so that the bytes of a value and
        # those of its decoded JSON agree. A lone one has no UTF-8; the JSON escape says the same and survives.
        text = _text(_joined(value))
        return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def _canonical_fast(value: Any) -> bytes | None:
    """What `canonical_json` gives, by orjson, where the two cannot differ; None elsewhere, some 20 times slower."""
    try:
        data = orjson.dumps(value, option=_AS_IT_IS | orjson.OPT_SORT_KEYS)
    except (TypeError, orjson.JSONEncodeError):
        return None
    if b"0.0000" in data or b"-0.0" in data:
        return None
    if b"0e" in data.translate(_ALIKE) and _EXPONENT.search(data) is not None:
        return None
    if b"null" in data and _may_hold_nan(value):
        return None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(value, "$")
    return data


def content_hash(value: Any) -> str:
    """Lower-case hex sha256 of the canonical bytes of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def loads(data: bytes | str, where: str = "$") -> Any:
    """Decode JSON (bytes are UTF-8) without changing what it says: integers keep every digit, escaped lone surrogates survive.

    Raises FieldError naming `where` for anything that is not JSON, for NaN and infinities, for nesting beyond MAX_DEPTH and for
    integers beyond MAX_DIGITS.
    """
    raw: bytes
    try:
        raw = data.encode() if isinstance(data, str) else bytes(data)
    except UnicodeEncodeError:
        raise FieldError(where, "not JSON: holds a lone surrogate that is not escaped") from None
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as err:
        # orjson refuses escaped lone surrogates, which JSON allows: the standard decoder decides
        value = _loads_slowly(raw, where, err)
    else:
        if _LONG_DIGITS in raw.translate(_ALIKE):
            value = _loads_slowly(raw, where, None)
    # no value nests deeper than it has brackets
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check_depth(value, where)
    return value


def dumps(value: Any, where: str = "$") -> bytes:
    """Encode to compact JSON in the given key order. Raises FieldError naming the field for what JSON cannot carry."""
    try:
        text = orjson.dumps(value, option=_AS_IT_IS)
    except (TypeError, orjson.JSONEncodeError):
        _check(value, where, 0)
        # lone surrogates and integers beyond 64 bits: legal JSON that orjson does not write
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()
    # Checking each item costs many times what encoding does, so it is done only where the output leaves a doubt: orjson writes null for
    # NaN and infinities, and nests deeper.
    if b"null" in text and _may_hold_nan(value):
        _check(value, where, 0)
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        _check_depth(value, where)
    return text


def _may_hold_nan(value: Any) -> bool:
    try:
        raw = marshal.dumps(value, 2)  # the second version: every float as its eight bytes
    except ValueError:
        return True
    return (b"\x7f" in raw or b"\xff" in raw) and _NOT_FINITE.search(raw) is not None


def _loads_slowly(data: bytes, where: str, err: Exception | None) -> Any:
    try:
        # as text, since json.loads would take UTF-16 and a byte order mark from bytes
        return json.loads(
            data.decode(), parse_constant=_refuse_constant, parse_float=_finite_float, parse_int=_bounded_int
        )
    except (ValueError, RecursionError) as again:
        raise FieldError(where, f"not JSON: {err or again}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is beyond float64")
    return number


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits; at most {MAX_DIGITS}")
    return int(text)


def _check_depth(value: Any, where: str) -> None:
    # level by level, which needs no recursion and touches containers only
    level = [value] if isinstance(value, _BOXES) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            item
            for box in level
            for item in (box.values() if isinstance(box, dict) else box)
            if isinstance(item, _BOXES)
        ]
    if level:
        raise FieldError(where, f"nested deeper than {MAX_DEPTH}")


def _check(value: Any, where: str, depth: int) -> None:
    match value:
        case None | bool() | str():
            return
        case int():
            _check_int(value, where)
        case float():
            _check_float(value, where)
        case dict():
            _check_level(where, depth)
            for key, item in value.items():
                _check(item, f"{where}.{_checked_key(key, where)}", depth + 1)
        case list() | tuple():
            _check_level(where, depth)
            for i, item in enumerate(value):
                _check(item, f"{where}[{i}]", depth + 1)
        case _:
            raise FieldError(where, f"{type(value).__name__} has no JSON form")


def _text(value: Any) -> str:
    parts: list[str] = []
    _write(value, parts, "$", 0)
    return "".join(parts)


def _write(value: Any, out: list[str], where: str, depth: int) -> None:
    match value:
        case None:
            out.append("null")
        case bool():
            out.append("true" if value else "false")
        case int():
            _check_int(value, where)
            out.append(int.__repr__(value))
        case float():
            _check_float(value, where)
            out.append(float.__repr__(value) if value else "0.0")
        case str():
            out.append(json.dumps(value, ensure_ascii=False))
        case dict():
            _check_level(where, depth)
            for key in value:
                _checked_key(key, where)
            out.append("{")
            for n, key in enumerate(sorted(value)):
                out.append(("," if n else "") + json.dumps(key, ensure_ascii=False) + ":")
                _write(value[key], out, f"{where}.{key}", depth + 1)
            out.append("}")
        case list() | tuple():
            _check_level(where, depth)
            out.append("[")
            for n, item in enumerate(value):
                if n:
                    out.append(",")
                _write(item, out, f"{where}[{n}]", depth + 1)
            out.append("]")
        case _:
            raise FieldError(where, f"{type(value).__name__} has no JSON form")


def _check_level(where: str, depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise FieldError(where, f"nested deeper than {MAX_DEPTH}")


def _check_int(value: int, where: str) -> None:
    if value.bit_length() > _MAX_BITS:
        raise FieldError(where, f"an integer of more than {MAX_DIGITS} digits")


def _check_float(value: float, where: str) -> None:
    if not math.isfinite(value):
        raise FieldError(where, f"{value} has no JSON form; send null or a finite number")


def _checked_key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise FieldError(where, f"key {shown(key)} is not a string")
    return key


def _joined(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        case dict():
            return {_joined(key): _joined(item) for key, item in value.items()}
        case list() | tuple():
            return [_joined(item) for item in value]
        case _:
            return value
