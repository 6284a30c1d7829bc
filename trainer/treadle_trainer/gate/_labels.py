"""Whose labels the gate believes. Pure.

A grader that breaks would praise what learnt from its mistakes. So whatever the gate decides on logged rows, it decides on rows whose
labels come from what was pinned: the workspace's grading version (metrics, credit, reward), and of each grader the versions that somebody
trusts. A row says both: the grading version stands in its grade, and a grader's verdicts are outcomes whose ids begin with
`grader/NAME/VERSION/`. One verdict of a version that is not pinned is enough to leave a row out, since with any aggregate it may have
moved the value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
from treadle_corpus import CorpusRow
from treadle_schemas import SettingError

__all__ = ["LabelPin", "grader_versions", "read_grader"]


class LabelPin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is trusted. `graders` has of each grader its versions, the one trusted last at the end."""

    grading: int
    graders: dict[str, list[str]] = {}

    @classmethod
    def of(cls, rows: Iterable[CorpusRow]) -> LabelPin | None:
        """What rows have now: their newest grading version, and every grader's version among the rows of that. None without rows."""
        grading, found = -1, dict[str, dict[str, None]]()
        for row in rows:
            if row.grade.grading_version < grading:
                continue
            if row.grade.grading_version > grading:
                grading, found = row.grade.grading_version, {}
            for name, version in grader_versions(row.provenance.outcome_ids):
                found.setdefault(name, {})[version] = None
        return None if grading < 0 else cls(grading=grading, graders={name: list(v) for name, v in found.items()})

    def strangers(self, row: CorpusRow) -> list[str]:
        """What labelled the row and is not pinned: `grading version 3`, `grader judge@2`. Empty: its labels are believed."""
        out = []
        if row.grade.grading_version != self.grading:
            out.append(f"grading version {row.grade.grading_version}")
        for name, version in grader_versions(row.provenance.outcome_ids):
            if version not in self.graders.get(name, ()):
                out.append(f"grader {name}@{version}")
        return out

    def believes(self, row: CorpusRow, refused: Counter[str] | None = None) -> bool:
        """Whether the row's labels are those that are pinned. `refused` counts what stood in the way."""
        strangers = self.strangers(row)
        if refused is not None:
            refused.update(strangers)
        return not strangers

    def trusting(self, *, grading: int | None, graders: Sequence[tuple[str, str]], dropped: Sequence[str]) -> LabelPin:
        """With another grading version, further versions of graders, and without the `dropped` graders.

        A version that is trusted already ends the trust in those that came after it: that is how one goes back from a broken one.
        Raises SettingError for a grader to drop that is not there.
        """
        kept = {name: list(versions) for name, versions in self.graders.items()}
        for name in dropped:
            if name not in kept:
                raise SettingError(
                    f"grader {name!r} is not trusted now; those that are: {', '.join(sorted(kept)) or 'none'}"
                )
            del kept[name]
        for name, version in graders:
            versions = kept.setdefault(name, [])
            kept[name] = versions[: versions.index(version) + 1] if version in versions else [*versions, version]
        return LabelPin(grading=self.grading if grading is None else grading, graders=kept)

    def __str__(self) -> str:
        named = [f"grader {name}@{version}" for name, versions in sorted(self.graders.items()) for version in versions]
        return ", ".join([f"grading version {self.grading}", *named])


def grader_versions(outcome_ids: Iterable[str]) -> list[tuple[str, str]]:
    """(name, version) of the graders that made these outcomes, in the order in which they first spoke."""
    found: dict[tuple[str, str], None] = {}
    for outcome_id in outcome_ids:
        parts = outcome_id.split("/")
        if len(parts) >= 4 and parts[0] == "grader":
            found[parts[1], parts[2]] = None
    return list(found)


def read_grader(text: str) -> tuple[str, str]:
    """`NAME@VERSION`. Raises SettingError."""
    name, at, version = text.rpartition("@")
    if not at or not name or not version:
        raise SettingError(f"--grader {text!r}: expected NAME@VERSION, as `treadle grader status` shows them")
    return name, version
