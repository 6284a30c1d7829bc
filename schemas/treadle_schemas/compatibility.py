"""Whether one JSON Schema of the contract is a minor evolution of an earlier one.

Breaking: what was valid is valid no longer, or means something else: a field removed, a new required one, a narrower type, an enum member
gone, another default. Widened: what is valid now was not. Readers ignore fields they do not know, but refuse an unknown enum member or
another type; so an older reader sends such an event to the dead letter until it is upgraded. New optional fields are neither.

For the schemas that `golden` generates: `type`, `enum`, `anyOf`, `$ref`, `properties`, `required`, `items`, `prefixItems`,
`additionalProperties`, `default`, and numeric or length bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

__all__ = ["Change", "changes"]

_BOUNDS: Final = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
    "multipleOf",
)
_MAX_DEPTH: Final = 32
"""Levels that are compared. Types of the contract do not contain themselves."""
Schema = dict[str, Any]


class Change(NamedTuple):
    """One difference that matters to a reader."""

    kind: Literal["breaking", "widened"]
    where: str
    """JSON path of the field."""
    what: str


def changes(old: Schema, new: Schema) -> list[Change]:
    """What changed from `old` to `new`, both whole schemas with their `$defs`."""
    return list(_Comparison(old, new).compare(old, new, "$", 0))


class _Comparison:
    def __init__(self, old: Schema, new: Schema) -> None:
        self._old = old
        self._new = new

    def compare(self, old: Schema, new: Schema, where: str, depth: int) -> Iterator[Change]:
        if depth > _MAX_DEPTH:
            raise ValueError(f"{where}: nested deeper than {_MAX_DEPTH}")
        before, after = _by_type(self._old, old), _by_type(self._new, new)
        if "any" in after:
            if "any" not in before:
                yield Change("widened", where, "takes any type")
            return
        if "any" in before:
            yield Change("breaking", where, f"took any type, now {', '.join(sorted(after))}")
            return
        for kind, earlier in before.items():
            later = after.get(kind) or (after.get("number") if kind == "integer" else None)
            if later is None:
                yield Change("breaking", where, f"no longer takes {kind}")
            else:
                yield from self._same_type(kind, earlier, later, where, depth)
        for kind in sorted(after.keys() - before.keys()):
            if not (kind == "integer" and "number" in before):
                yield Change("widened", where, f"takes {kind}")

    def _same_type(self, kind: str, old: Schema, new: Schema, where: str, depth: int) -> Iterator[Change]:
        yield from _enums(old, new, where)
        for bound in _BOUNDS:
            if old.get(bound) != new.get(bound):
                yield Change(
                    "breaking" if bound in new else "widened",
                    where,
                    f"{bound} {old.get(bound)} became {new.get(bound)}",
                )
        if kind == "array":
            yield from self._arrays(old, new, where, depth)
        elif kind == "object":
            yield from self._objects(old, new, where, depth)

    def _arrays(self, old: Schema, new: Schema, where: str, depth: int) -> Iterator[Change]:
        first, second = old.get("prefixItems", []), new.get("prefixItems", [])
        if len(first) != len(second):
            yield Change("breaking", where, f"has {len(second)} fixed items instead of {len(first)}")
        for n, (earlier, later) in enumerate(zip(first, second, strict=False)):
            yield from self.compare(earlier, later, f"{where}[{n}]", depth + 1)
        if "items" in old or "items" in new:
            yield from self.compare(_schema(old.get("items")), _schema(new.get("items")), f"{where}[]", depth + 1)

    def _objects(self, old: Schema, new: Schema, where: str, depth: int) -> Iterator[Change]:
        earlier, later = old.get("properties", {}), new.get("properties", {})
        required, needed = set(old.get("required", ())), set(new.get("required", ()))
        for name in sorted(needed - required):
            yield Change("breaking", f"{where}.{name}", "is required now")
        for name in sorted((required - needed) & later.keys()):
            yield Change("widened", f"{where}.{name}", "is no longer required")
        for name, schema in earlier.items():
            if name not in later:
                yield Change("breaking", f"{where}.{name}", "is gone")
                continue
            if "default" in schema and schema["default"] != later[name].get("default", ...):
                yield Change("breaking", f"{where}.{name}", f"its default was {schema['default']!r}")
            yield from self.compare(schema, later[name], f"{where}.{name}", depth + 1)
        if "additionalProperties" in old or "additionalProperties" in new:
            yield from self.compare(
                _schema(old.get("additionalProperties")),
                _schema(new.get("additionalProperties")),
                f"{where}.*",
                depth + 1,
            )


def _enums(old: Schema, new: Schema, where: str) -> Iterator[Change]:
    before, after = old.get("enum"), new.get("enum")
    if before is None and after is not None:
        yield Change("breaking", where, f"takes only {', '.join(map(repr, after))}")
    elif before is not None and after is None:
        yield Change("widened", where, "takes any value of its type")
    elif before is not None and after is not None:
        for member in sorted(set(before) - set(after)):
            yield Change("breaking", where, f"no longer takes {member!r}")
        for member in sorted(set(after) - set(before)):
            yield Change("widened", where, f"takes {member!r}")


def _by_type(root: Schema, schema: Schema) -> dict[str, Schema]:
    """The alternatives of a schema by JSON type; `any` where it takes everything."""
    if "$ref" in schema:
        return _by_type(root, root["$defs"][schema["$ref"].rpartition("/")[2]])
    found: dict[str, Schema] = {}
    if "anyOf" in schema:
        for part in schema["anyOf"]:
            found |= _by_type(root, part)
        return found
    kinds = schema.get("type")
    if kinds is None and "enum" in schema:
        kinds = sorted({_type_of(member) for member in schema["enum"]})
    if kinds is None:
        return {"any": schema}
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        found[kind] = schema
    return found


def _type_of(member: Any) -> str:
    match member:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case _:
            return "number"


def _schema(given: Any) -> Schema:
    # true and what is absent take everything, false takes nothing
    if given is False:
        return {"enum": []}
    return given if isinstance(given, dict) else {}
