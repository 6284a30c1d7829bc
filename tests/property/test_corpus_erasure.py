"""A corpus from which episodes were erased is the one that never saw them: its versions, what no version has yet, what comes later."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_corpus import Corpus, CorpusWriter, Decision, GradedRecord, Policy, _bodies, _journal, erase, versions
from treadle_corpus._bodies import _Tail
from treadle_corpus._moments import moments
from treadle_corpus.testing import graded
from treadle_schemas.codec import to_json
from treadle_schemas.records import GradedRow

WORDS = ["the red one please", "the blue one please", "a table for two at eight"]
POLICIES = [
    Policy(),
    Policy(dedupe="exact"),
    Policy(filter="reward > 0", dedupe="exact"),
    Policy(dedupe="near", threshold=0.7),
    Policy(retention_s=5.0),
]


class Decide:
    """The selector of a policy: its filter, where it has one, is reward > 0."""

    def __init__(self, policy: Policy) -> None:
        self.identity = str(policy.filter)
        self._all = policy.filter is None

    def select(self, rows: Sequence[GradedRow]) -> list[Decision]:
        return ["selected" if self._all or (row.grade.reward or 0) > 0 else "rejected" for row in rows]


REVISION = st.tuples(
    st.integers(0, 4),  # episode
    st.integers(0, 1),  # interaction in it
    st.sampled_from([None, 0.0, 1.0, 2.0]),
    st.sampled_from(["train", "train", "heldout"]),
    st.sampled_from([True, True, False]),
    st.sampled_from(WORDS),
)
STEPS = st.lists(st.one_of(REVISION, st.sampled_from(range(len(POLICIES)))), min_size=4, max_size=24)
"""Revisions, and runs by policy."""


def act(
    path: Path, steps: list[Any], without: frozenset[str] = frozenset(), start: int = 0, until: int = 10**6
) -> None:
    """Fold the revisions of steps `start` to `until`, and finish a version at each run."""
    revisions: dict[tuple[int, int], int] = {}
    with CorpusWriter.open(path, workspace="w", policy=Policy(), replace_policy=True) as corpus:
        runs = 0
        for n, step in enumerate(steps[:until]):
            if isinstance(step, int):
                runs += 1
                if n >= start:
                    corpus.policy = POLICIES[step]
                    corpus.finish(Decide(corpus.policy), number=runs, pending=n)
                continue
            episode, interaction, reward, side, settled, text = step
            revision = revisions[episode, interaction] = revisions.get((episode, interaction), 0) + 1
            record = row(f"e{episode}", interaction, revision, reward, side, settled, text, n)
            if n >= start:
                taken: list[GradedRecord] = [] if record.row.episode_id in without else [record]
                corpus.apply(taken, {0: n + 1}, 1_700_000_000_000 + n * 1000)


def row(
    episode: str, interaction: int, revision: int, reward: Any, side: Any, settled: bool, text: str, n: int
) -> GradedRecord:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    return graded(
        f"{episode}-i{interaction}",
        episode_id=episode,
        revision=revision,
        reward=reward,
        split=side,
        settled=settled,
        messages=messages,
        append_ms=1_700_000_000_000 + n * 1000,
        note=f"secret of {episode} no {interaction}",
    )


def seen(path: Path) -> list[Any]:
    """All that readers see: manifests and rows of each version."""
    found: list[Any] = []
    for number in versions(path):
        with Corpus.open(f"{path}@v{number}") as corpus:
            corpus.verify()
            rows = [(r.interaction_id, r.grade.reward, r.revision, r.interaction) for r in corpus.rows("all")]
            found.append((to_json(corpus.manifest), rows))
    return found


def every_text(path: Path) -> str:
    """Everything that the files of a corpus say, unpacked: other bytes are in none."""
    said: list[str] = []
    for moment in moments(path, head=True):
        said += [repr(moment.state.rows), repr(moment.state.parts), repr(moment.state.control)]
    bodies = _bodies.Bodies(path)
    bodies.refresh()
    ends = [seal.first + seal.bodies for seal in bodies._seals.values()]
    tails = list((path / "bodies").glob("tail-*.log"))
    for tail in tails:
        opened = _Tail(path, tail, int(tail.stem.removeprefix("tail-")))
        said += [repr(opened.entry(n)) for n in range(opened.first, opened.end)]
        ends.append(opened.end)
    said += [repr(body) for body in bodies.read(range(max(ends, default=0)))]
    said += [file.read_text() for folder in ("versions", "tags", "erasures") for file in (path / folder).glob("*.json")]
    return "\n".join(said)


def names(path: Path, episode: str) -> bool:
    """Whether any file of the corpus says anything of an episode."""
    said = every_text(path)
    return f"secret of {episode} " in said or f"{episode}-i" in said or f"'{episode}'" in said


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bodies, "SEGMENT_BODIES", 6)
    monkeypatch.setattr(_journal, "ROTATE_BYTES", 1500)
    monkeypatch.setattr(_journal, "ROTATE_FACTOR", 0)


@given(STEPS, st.sets(st.integers(0, 4), min_size=1, max_size=3), st.integers(0, 24))
@settings(max_examples=15, deadline=None)
def test_an_erased_corpus_is_the_one_that_never_saw_the_episodes(steps: list[Any], gone: set[int], cut: int) -> None:
    erased = frozenset(f"e{n}" for n in gone)
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one"), Path(folder, "two")
        act(one, steps, until=cut)
        known = {e for e in erased if names(one, e)}
        assert known == {
            e for e in erased if any(f"e{step[0]}" == e for step in steps[:cut] if not isinstance(step, int))
        }
        record = erase(one, erased, reason="asked", erased_at="2026-11-30T00:00:00Z")
        assert record is not None
        assert bool(record.rows) == bool(known)
        act(one, steps, start=cut)  # a replay, or what comes later, brings nothing back
        act(two, steps, without=erased)
        assert seen(one) == seen(two)
        assert not any(names(one, episode) for episode in erased)
        for number, change in record.versions.items():
            with Corpus.open(f"{one}@v{number}") as corpus:
                assert (change.after, change.rows_after) == (corpus.manifest.content_hash, corpus.manifest.rows)
