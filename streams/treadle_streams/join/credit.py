"""What falls to one row of what was said of its whole episode, and when an episode is over. Pure, with the clock passed in.

An outcome of an episode is credited to rows by the workspace's rule: to the last step, to all, or to all with numbers discounted,

    value * gamma ** (steps after it)

A credited outcome is one of the row's outcomes of that metric, and is aggregated with them. What is no metric (comments, preferences,
demonstrations) falls to the last step whatever the rule says; rights hold for every row, the later word of row and episode counting.

An episode is over while its latest end event is not before the start of its latest interaction, and when the clock passes

    append of its latest interaction + IDLE_MS

An interaction that starts after both reopens it. Times of agents count as the append time where they lie behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from treadle_schemas.workspace import Credit

from treadle_streams.join.episode_state import EpisodeState
from treadle_streams.join.kept import surviving
from treadle_streams.join.state import NEVER_MS, RowState, Seen

__all__ = ["IDLE_MS", "Share", "credited", "ended_by_word", "idle_ms", "is_over", "share"]

IDLE_MS: Final = 24 * 3_600_000
"""Without an end event an episode is over after this much clock since its latest interaction."""


@dataclass(frozen=True, slots=True)
class Share:
    """What an episode means for one of its rows."""

    ended: bool
    """Did somebody say that it ended, and did nothing start since?"""
    idle_ms: int
    """The clock after which it is over, whatever was said."""
    outcomes: list[Seen] = field(default_factory=list)
    """Outcomes credited to the row, as they count for it."""
    elsewhere: frozenset[str] = frozenset()
    """Names of metrics that were observed of the episode and fall to other rows."""
    rights: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    imports: frozenset[str] = frozenset()

    def over(self, clock_ms: int) -> bool:
        """Is the episode over at this clock?"""
        return self.ended or clock_ms > self.idle_ms


def share(row: RowState, episode: EpisodeState | None, credit: Credit) -> Share:
    """What falls to a captured row. Without `episode` the row is alone and nothing was said of it as a whole."""
    if episode is None:
        return Share(False, row.append_ms + IDLE_MS)
    ended, idle = ended_by_word(episode), idle_ms(episode)
    rights, imports = episode.rights, frozenset(episode.imports)
    if not episode.outcomes:
        return Share(ended, idle, rights=rights, imports=imports)
    last = episode.last is not None and episode.last.interaction_id == row.interaction_id
    mine, elsewhere = credited(surviving(episode), credit, last, row.after)
    return Share(ended, idle, mine, elsewhere, rights, imports)


def credited(said: list[Seen], credit: Credit, last: bool, after: int) -> tuple[list[Seen], frozenset[str]]:
    """What of `said` falls to a row with `after` steps behind it, and the names of the metrics that fall to others only."""
    if last:
        return said, frozenset()
    metrics = [seen for seen in said if seen.kind == "metric"]
    match credit.rule:
        case "last":
            return [], frozenset(seen.name for seen in metrics)
        case "all":
            return metrics, frozenset()
        case "discounted":
            return [_discounted(seen, credit.gamma**after) for seen in metrics], frozenset()


def ended_by_word(episode: EpisodeState) -> bool:
    """Did it end by its latest end event, and did no interaction start after that?"""
    return episode.end_us >= episode.started_us and episode.end_us > -NEVER_MS


def idle_ms(episode: EpisodeState) -> int:
    """The clock after which it is over without a word."""
    return episode.appended_ms + IDLE_MS


def is_over(episode: EpisodeState, clock_ms: int) -> bool:
    """Is it over at this clock?"""
    return ended_by_word(episode) or clock_ms > idle_ms(episode)


def _discounted(seen: Seen, weight: float) -> Seen:
    if isinstance(seen.value, bool) or not isinstance(seen.value, int | float):
        return seen
    return msgspec.structs.replace(seen, value=float(seen.value) * weight)
