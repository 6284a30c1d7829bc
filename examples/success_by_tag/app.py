"""The app: `treadle worker --workspace WS --app success_by_tag.app`.

It counts rows and successes by tag in windows of an hour, one of which begins each quarter of an hour.
Every change can be repeated, which is what makes it right after kill -9:

- `rows` keeps of each row what it counted for, by the offset of the event that said so. A correction takes back what the row counted for
  before, also when an event comes again after later ones have been seen.
- `counts` keeps [sequence, counts] by window, and takes a change once (`once`). Its keys begin with the partition, so the sequences of a
  key come from one partition and rise.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from datetime import datetime
from typing import Any

from treadle_schemas import GradedRow
from treadle_streams.apps import App, once, read

SIZE_S, STEP_S = 3600.0, 900.0
Said = list[
    Any
]  # [time of the row in seconds, 1 for a success else 0, ["tag=value", ...]], or empty: it counts for nothing


def build(app: App) -> None:
    """Declare two tables and the agent on `.graded`."""
    rows = app.Table("rows", default=list)
    counts: Any = app.Table("counts", default=lambda: [-1, [0, 0]]).hopping(SIZE_S, STEP_S)

    @app.agent(app.workspace_topic("graded"))
    async def count(stream: Any) -> None:
        async for event in stream.events():
            row = read(event)
            if not isinstance(row, GradedRow):
                continue
            partition, offset = event.message.partition, event.message.offset
            name, now = f"{len(row.episode_id)}/{row.episode_id}/{row.interaction_id}", said_of(row)
            history: list[tuple[int, Said]] = rows[name]
            before: Said = next((said for at, said in reversed(history) if at < offset), [])
            if all(at != offset for at, _ in history):
                rows[name] = sorted([*history, [offset, now]], key=lambda entry: entry[0])
            for sequence, sign, said in ((2 * offset, -1, before), (2 * offset + 1, 1, now)):
                if not said:
                    continue
                moment, success, tags = said
                for tag in tags:
                    window = counts.relative_to(moment)[f"{partition}/{tag}"]
                    window.apply(once(added), (sequence, [sign, sign * success]), event)


def added(value: list[int], change: list[int]) -> list[int]:
    """[rows, successes] after a change of both."""
    return [value[0] + change[0], value[1] + change[1]]


def said_of(row: GradedRow) -> Said:
    """What a row counts for, once it has settled with a reward."""
    if not row.grade.settled or row.grade.reward is None:
        return []
    ended = datetime.fromisoformat(row.interaction["ended_at"]).timestamp()
    tags = row.interaction.get("tags") or {}
    return [ended, int(row.grade.reward > 0), sorted(f"{name}={value}" for name, value in tags.items())]
