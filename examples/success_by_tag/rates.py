"""The reader: `python -m success_by_tag.rates WS` prints the rates that the app keeps. Its table's changelog is all that is needed."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from datetime import UTC, datetime

import treadle
from treadle.log import Admin, read

CHANGELOG = "treadle.{}.app-success_by_tag-app-counts-changelog"


def rates(servers: str, workspace: str) -> dict[tuple[str, float], tuple[int, int]]:
    """(rows, successes) by tag and start of the hour in seconds: the last value of each key, summed over partitions."""
    name = CHANGELOG.format(workspace)
    last: dict[bytes, list[int]] = {}
    for record in read(servers, name, Admin(servers).partitions()[name]):
        last[record.key or b""] = json.loads(record.value or b"[-1, [0, 0]]")[1]
    found: dict[tuple[str, float], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for key, (count, successes) in last.items():
        tag, (start, _) = json.loads(key)
        window = (tag.partition("/")[2], start)
        found[window] = (found[window][0] + count, found[window][1] + successes)
    return {window: sums for window, sums in sorted(found.items()) if sums[0]}


if __name__ == "__main__":
    for (tag, start), (count, successes) in rates(treadle.Settings.load().bootstrap_servers, sys.argv[1]).items():
        print(f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M}  {tag:24} {successes / count:6.1%} of {count}")
