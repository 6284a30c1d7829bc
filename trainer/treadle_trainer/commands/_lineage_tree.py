"""What `treadle lineage` found, as a tree for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from treadle_schemas.moments import from_micros

__all__ = ["tree"]


class _Node(NamedTuple):
    text: str
    below: Sequence[_Node] = ()


def tree(found: dict[str, Any], limit: int) -> list[str]:
    """Lines of the tree, at most `limit` rows at each place."""
    match found["kind"]:
        case "release":
            root = _release(found, limit)
        case "version":
            below = [_Node(_trained(r)) for r in found["releases"]] or [_Node("no release was trained on it")]
            root = _Node(_version_text(found), [*below, *_rows(found["row_list"], limit)])
        case "row":
            root = _row(found, found["corpora"])
        case _:
            root = _subject(found, limit)
    lines = [root.text, *_drawn(root.below, "")]
    return [*lines, *(f"cannot be read: {each['problem']}" for each in found["unreadable"])]


def _drawn(nodes: Sequence[_Node], indent: str) -> Iterator[str]:
    for n, node in enumerate(nodes):
        last = n == len(nodes) - 1
        yield f"{indent}{'└─ ' if last else '├─ '}{node.text}"
        yield from _drawn(node.below, indent + ("   " if last else "│  "))


def _release(found: dict[str, Any], limit: int) -> _Node:
    said = [found["release"], "champion" if found["champion"] else "", found["method"] or "", found["created_at"][:19]]
    below = list(_all_learnt(found, limit))
    for one in found["ancestors"]:
        below.append(_Node(f"trained from {one['release']}", list(_all_learnt(one, limit))))
    return _Node("release " + "  ".join(word for word in said if word), below)


def _all_learnt(found: dict[str, Any], limit: int) -> Iterator[_Node]:
    yield _learnt(found["version"], limit)
    for one in found.get("mixture", []):
        if "anchor" in one:
            yield _Node(f"{one['weight']:.1%} from the anchor set {one['anchor']}  sha256 {one['sha256']}")
        else:
            learnt = _learnt(one["version"], limit)
            yield learnt._replace(text=f"{one['weight']:.1%} from {learnt.text}")


def _learnt(version: dict[str, Any] | None, limit: int) -> _Node:
    if version is None:
        return _Node("no corpus version: it was registered as it is")
    if "problem" in version:
        return _Node(
            f"{version['corpus']}@v{version['version']}  content hash {version['content_hash']}  cannot be read"
        )
    text = f"{_version_text(version)}  {_state(version)}"
    return _Node(text, list(_rows(version.get("row_list", []), limit)))


def _state(version: dict[str, Any]) -> str:
    if version["as_registered"]:
        return "as registered"
    if version["erased_since"]:
        return "as registered, but for what was erased since"
    return "NOT the content that the release was trained on"


def _version_text(version: dict[str, Any]) -> str:
    return (
        f"{version['corpus']}@v{version['version']}  {version['rows']:,} rows  content hash {version['content_hash']}"
    )


def _rows(rows: Sequence[dict[str, Any]], limit: int) -> Iterator[_Node]:
    for row in rows[:limit]:
        yield _Node(f"row {row['row']}  {_revision_text(row)}", list(_sources(row)))
    if len(rows) > limit:
        yield _Node(f"and {len(rows) - limit:,} more rows; --json has all")


def _revision_text(row: dict[str, Any]) -> str:
    reward = "none" if row["reward"] is None else f"{row['reward']:g}"
    return f"revision {row['revision']}  {row['split']}  reward {reward}"


def _sources(row: dict[str, Any]) -> Iterator[_Node]:
    at, came = row["interaction"], from_micros(row["append_ms"] * 1000)[:19]
    imported = f"  import {row['import_id']}" if row["import_id"] else ""
    yield _Node(f"{at['topic']}[{at['partition']}] offset {at['offset']}  appended {came}{imported}")
    if "graded" in row:
        yield _Node(_place(row["graded"]) if row["graded"] else "not on .graded any more")
        for outcome in row["outcomes"]:
            places = ", ".join(_place(place) for place in outcome["places"]) or "not on .outcomes any more"
            yield _Node(f"outcome {outcome['outcome_id']}  {places}")
    else:
        yield _Node("outcomes " + ", ".join(row["outcome_ids"]) if row["outcome_ids"] else "no outcomes")


def _place(place: dict[str, Any]) -> str:
    return f"{place['topic']}[{place['partition']}] offset {place['offset']}"


def _row(row: dict[str, Any], corpora: Sequence[dict[str, Any]]) -> _Node:
    return _Node(f"row {row['row']}", [_corpus(c) for c in corpora] or [_Node("no corpus has seen it")])


def _corpus(corpus: dict[str, Any]) -> _Node:
    now = "in the newest version" if corpus["status"] == "member" else f"not in the newest version: {corpus['status']}"
    below: list[_Node] = []
    for one in corpus["revisions"]:
        released = [_Node(_trained(r)) for r in one["releases"]] or [_Node("no release was trained on it")]
        below.append(_Node(f"{_runs(one['versions'])}  {_revision_text(one)}", [*_sources(one), *released]))
    return _Node(f"{corpus['corpus']}  {now}", below or [_Node("in no version")])


def _subject(found: dict[str, Any], limit: int) -> _Node:
    rows = found["rows"]
    below = [_row(row, row["corpora"]) for row in rows[:limit]]
    if len(rows) > limit:
        below.append(_Node(f"and {len(rows) - limit:,} more rows; --json has all"))
    below.append(
        _Node("releases " + ", ".join(found["releases"]) if found["releases"] else "no release learnt from it")
    )
    return _Node(f"subject {found['subject']} in workspace {found['workspace']}  {len(rows):,} rows", below)


def _trained(release: dict[str, Any]) -> str:
    serves = "  champion" if release["champion"] else ""
    through = f"  (trained from {release['through']})" if release["through"] else ""
    return f"release {release['release']}{serves}  on v{release['version']}{through}"


def _runs(versions: Sequence[int]) -> str:
    """`v1, v3 to v7`."""
    runs: list[list[int]] = []
    for version in versions:
        if runs and version == runs[-1][-1] + 1:
            runs[-1][1:] = [version]
        else:
            runs.append([version])
    return ", ".join(" to ".join(f"v{n}" for n in run) for run in runs)
