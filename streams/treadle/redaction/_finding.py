"""What a detector reports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

PLACEHOLDER: Final = re.compile(r"\[[A-Z][A-Z0-9_]{0,31}(?:_[1-9][0-9]{0,8}|:[0-9a-f]{32}|)\]")
"""What redaction writes: [EMAIL_1], [EMAIL:9f...], [EMAIL]. Detectors leave it alone, so redacting twice changes nothing."""


class Finding(NamedTuple):
    """`text[start:end]` is of kind `kind`."""

    start: int
    end: int
    kind: str


def disjoint(found: Iterable[Finding]) -> list[Finding]:
    """The findings without overlaps, in order: what overlaps becomes one, of the kind of the longest."""
    merged: list[Finding] = []
    for finding in sorted(found):
        if not merged or finding.start >= merged[-1].end:
            merged.append(finding)
            continue
        last = merged[-1]
        kind = last.kind if last.end - last.start >= finding.end - finding.start else finding.kind
        merged[-1] = Finding(last.start, max(last.end, finding.end), kind)
    return merged
