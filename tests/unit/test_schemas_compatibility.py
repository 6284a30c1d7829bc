"""The contract against that of every earlier release: what was valid stays valid, and what was written is still read as it was meant."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from treadle_schemas import SettingError, canonical_json, codec, content_hash, golden
from treadle_schemas.canonical import loads
from treadle_schemas.codec import decode, encode, make_headers, to_json
from treadle_schemas.compatibility import Change, changes
from treadle_schemas.events import default_outcome_id, read_interaction, read_outcome
from treadle_schemas.records import GradedRow, row_content

RELEASES = golden.releases()
WIDENED: dict[str, set[Change]] = {
    # an older reader sends such an outcome to the dead letter, where it can be replayed from once it is upgraded
    codec.OUTCOME: {Change("widened", "$.kind", "takes 'rights'")},
    # an older agent stops at such an event, and keeps its model; they come only where canary, control or approval are used, or
    # where the gate judges by logged rows: upgrade agents before that
    codec.RELEASE: {
        Change("widened", "$.event", f"takes '{name}'")
        for name in (
            "admitted",
            "approved",
            "awaiting_approval",
            "collected",
            "controlled",
            "exported",
            "pinned",
            "trusted",
            "unpinned",
            "withdrawn",
        )
    },
}
"""What readers of an earlier release refuse. Each entry was decided; a new one needs that decision."""
PAIRS = [
    (release, name)
    for release in RELEASES
    for name in golden.SCHEMAS
    if (golden.HISTORY / release / f"{name}.json").exists()
]


def test_the_first_release_is_kept() -> None:
    assert RELEASES[0] == "0.1.0"
    assert len([pair for pair in PAIRS if pair[0] == "0.1.0"]) == 9


@pytest.mark.parametrize(("release", "name"), PAIRS)
def test_the_present_schema_is_a_minor_evolution_of_each_release(release: str, name: str) -> None:
    old = json.loads((golden.HISTORY / release / f"{name}.json").read_text())
    found = changes(old, golden.generate(name))
    assert [change for change in found if change.kind == "breaking"] == []
    assert {change for change in found if change.kind == "widened"} <= WIDENED.get(name, set())


@pytest.mark.parametrize("release", RELEASES)
def test_no_type_of_a_release_is_gone(release: str) -> None:
    assert {path.stem for path in (golden.HISTORY / release).glob("*.json")} <= set(golden.SCHEMAS)


def examples() -> Iterator[Any]:
    for release in RELEASES:
        for number, line in enumerate((golden.HISTORY / release / "examples.jsonl").read_bytes().splitlines(), 1):
            yield pytest.param(loads(line), id=f"{release}:{number}")


@pytest.mark.parametrize("example", [*examples()])
def test_an_event_of_an_earlier_release_is_read_as_it_was(example: dict[str, Any]) -> None:
    name, value = example["type"], example["value"]
    if name in codec.TYPES:
        event = decode(encode(value), list(make_headers(name, "shop", source="test")))
        assert canonical_json(event.data) == canonical_json(value)
    read = {codec.INTERACTION: read_interaction, codec.OUTCOME: read_outcome}.get(
        name, lambda plain: msgspec.convert(plain, golden.SCHEMAS[name])
    )(value)
    again = to_json(read)
    for field in again.keys() & value.keys():
        # settings gain fields inside; nothing that was said may change
        assert _covers(again[field], value[field]), field
    known = golden.SCHEMAS[name].__struct_fields__
    assert {field for field, said in value.items() if field in known and _is_said(read, field, said)} <= again.keys()
    if name == codec.GRADED:
        assert isinstance(read, GradedRow)
        assert content_hash(row_content(read)) == example["content_hash"]
    if name == codec.OUTCOME:
        assert default_outcome_id(read) == example["default_outcome_id"]


def _is_said(read: Any, field: str, said: Any) -> bool:
    """Whether the reader holds it; optional fields at their default are not written again."""
    defaults = {f.name: f.default for f in msgspec.structs.fields(type(read))}
    return bool(getattr(read, field) != defaults.get(field, ...) and said not in ({}, []))


def _covers(new: Any, old: Any) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return all(key in new and _covers(new[key], item) for key, item in old.items())
    if isinstance(old, list) and isinstance(new, list | tuple):
        return len(new) == len(old) and all(map(_covers, new, old))
    return canonical_json(new) == canonical_json(old)


# The comparison itself.

OLD: dict[str, Any] = {
    "$ref": "#/$defs/T",
    "$defs": {
        "T": {
            "type": "object",
            "required": ["a"],
            "properties": {
                "a": {"type": "string"},
                "n": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
                "e": {"enum": ["x", "y"], "default": "x"},
                "l": {"type": "array", "items": {"$ref": "#/$defs/U"}},
                "p": {"type": "array", "prefixItems": [{"type": "string"}], "items": False},
                "m": {"type": "object", "additionalProperties": {"type": "number"}},
                "o": {},
            },
        },
        "U": {"type": "object", "required": [], "properties": {"deep": {"type": "boolean"}}},
    },
}


def _edit(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> list[tuple[str, str]]:
    new = copy.deepcopy(OLD)
    change(new["$defs"]["T"]["properties"], new["$defs"])
    return [(found.kind, found.where) for found in changes(OLD, new)]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda p, d: None, []),
        (lambda p, d: p.update(new={"type": "string", "default": ""}), []),
        (
            lambda p, d: p.update(n={"anyOf": [{"type": "number"}, {"type": "null"}], "default": None}),
            [("widened", "$.n")],
        ),
        (lambda p, d: p.pop("a"), [("breaking", "$.a")]),
        (lambda p, d: d["T"]["required"].append("e"), [("breaking", "$.e")]),
        (lambda p, d: d["T"]["required"].remove("a"), [("widened", "$.a")]),
        (lambda p, d: p.update(a={"type": "integer"}), [("breaking", "$.a"), ("widened", "$.a")]),
        (lambda p, d: p.update(n={"type": "integer", "default": None}), [("breaking", "$.n")]),
        (lambda p, d: p["n"].update(default=1), [("breaking", "$.n")]),
        (lambda p, d: p["e"].update(enum=["x"]), [("breaking", "$.e")]),
        (lambda p, d: p["e"].update(enum=["x", "y", "z"]), [("widened", "$.e")]),
        (lambda p, d: p.update(e={"type": "string", "default": "x"}), [("widened", "$.e")]),
        (lambda p, d: p.update(a={"enum": ["x"]}), [("breaking", "$.a")]),
        (lambda p, d: p["a"].update(maxLength=3), [("breaking", "$.a")]),
        (lambda p, d: d["U"]["required"].append("deep"), [("breaking", "$.l[].deep")]),
        (lambda p, d: d["U"]["properties"].pop("deep"), [("breaking", "$.l[].deep")]),
        (lambda p, d: p["p"]["prefixItems"].append({"type": "string"}), [("breaking", "$.p")]),
        (
            lambda p, d: p["m"].update(additionalProperties={"type": "integer"}),
            [("breaking", "$.m.*")],
        ),
        (lambda p, d: p.update(o={"type": "string"}), [("breaking", "$.o")]),
        (lambda p, d: p.update(a={}), [("widened", "$.a")]),
    ],
    ids=range(20),
)
def test_each_kind_of_change_is_told_from_the_others(change: Any, found: list[tuple[str, str]]) -> None:
    assert _edit(change) == found


def test_a_release_is_kept_once_and_does_not_change(tmp_path: Path) -> None:
    assert len(golden.release("1.2.3", tmp_path)) == len(golden.SCHEMAS)
    assert golden.release("1.2.3", tmp_path) == []
    golden.release("1.10.0", tmp_path)
    assert golden.releases(tmp_path) == ["1.2.3", "1.10.0"]
    (tmp_path / "1.2.3" / f"{codec.OUTCOME}.json").write_text("{}")
    with pytest.raises(SettingError, match="does not change"):
        golden.release("1.2.3", tmp_path)
    for text in ("", "1.2", "v1.2.3", "01.2.3", "../1.2.3"):
        with pytest.raises(SettingError, match="three numbers"):
            golden.release(text, tmp_path)
