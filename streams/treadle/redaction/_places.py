"""Field rules: what stands at a path is private whatever it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treadle_schemas.canonical import dumps, loads
from treadle_schemas.errors import ContractError
from treadle_schemas.pii import Action

from treadle.redaction._walk import DROP, Walk


def apply(walk: Walk, value: Any, steps: Sequence[str | int], action: Action, key: str = "") -> Any:
    """`value` with everything at the path `steps` below it replaced; the same object where the path leads nowhere."""
    if not steps:
        if action == "drop":
            walk.count("field")
            return DROP
        done = walk.everything(value, action, key)
        return value if done == value else done
    step, rest = steps[0], steps[1:]
    if isinstance(value, str):
        return _inside(walk, value, steps, action)
    if isinstance(value, dict):
        names = [name for name in value if step in ("*", name)]
        changed: dict[Any, Any] | None = None
        for name in names:
            done = apply(walk, value[name], rest, action, name)
            if done is not value[name]:
                changed = dict(value) if changed is None else changed
                if done is not DROP:
                    changed[name] = done
                elif name == "content":
                    changed[name] = None
                elif name in ("role", "messages"):
                    pass  # without it there would be no message
                else:
                    del changed[name]
        return value if changed is None else changed
    if isinstance(value, list):
        made = [apply(walk, item, rest, action) if step in ("*", i) else item for i, item in enumerate(value)]
        if all(a is b for a, b in zip(made, value, strict=True)):
            return value
        return [item for item in made if item is not DROP]
    return value


def _inside(walk: Walk, text: str, steps: Sequence[str | int], action: Action) -> str:
    if text[:64].lstrip()[:1] not in ("{", "["):
        return text
    try:
        data = loads(text)
    except ContractError:
        return text
    done = apply(walk, data, steps, action)
    return text if done is data else dumps(done).decode()
