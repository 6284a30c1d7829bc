"""What policies select, on real Deeplake: rows enter, change and leave in both directions, and old versions stay bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from treadle_corpus import Corpus, CorpusWriter, Decision, GradedRecord, Manifest, Policy, PolicyMismatch, Selector
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas.canonical import dumps
from treadle_schemas.codec import to_json
from treadle_schemas.records import GradedRow

NEAR = Policy(dedupe="near", name="wins")


class Rewarded:
    """reward > 0."""

    identity = "reward > 0"

    def select(self, rows: Sequence[GradedRow]) -> list[Decision]:
        return ["absent" if r.grade.reward is None else "selected" if r.grade.reward > 0 else "rejected" for r in rows]


def run(
    path: Path, records: Sequence[GradedRecord], policy: Policy, watermark_ms: int = 0, selector: Selector | None = None
) -> Manifest | None:
    with CorpusWriter.open(path, workspace="w", policy=policy) as corpus:
        corpus.apply(records, {0: corpus.offsets.get(0, 0) + len(records)}, watermark_ms)
        return corpus.finish(selector or Rewarded())


def made(manifest: Manifest | None) -> Manifest:
    assert manifest is not None
    return manifest


def ids(path: Path, ref: str = "") -> list[str]:
    return [r.interaction_id for r in Corpus.open(f"{path}{ref}").rows("all")]


def everything(path: Path, ref: str) -> list[str]:
    """All that a reader of a version sees."""
    corpus = Corpus.open(f"{path}{ref}")
    corpus.verify()
    rows = [
        dumps([to_json(r.interaction), to_json(r.grade), r.split, r.split_group, to_json(r.provenance)])
        for r in corpus.rows("all")
    ]
    return [dumps(to_json(corpus.manifest)), *rows]


def about(changed: int, answers: int = 1, loud: bool = False) -> list[dict[str, Any]]:
    """A conversation of 60 words, of which the first few are `changed`."""
    words = [f"new{n}" if n < changed else f"word{n * n % 71}" for n in range(60)]
    text = " ".join(words)
    answer = {"role": "assistant", "content": "done"}
    return [{"role": "user", "content": text.upper() if loud else text}, *[answer] * answers]


def dropped(manifest: Manifest) -> dict[str, int]:
    return {reason: count for reason, count in manifest.dropped.items() if count}


def test_three_levels_of_dedupe_are_counted_apart_and_losers_return(tmp_path: Path) -> None:
    path = tmp_path / "c"
    rows = [
        graded("best", messages=about(0), reward=3.0),
        graded("equal", messages=about(0, loud=True), reward=2.0),
        graded("close", messages=about(1), reward=2.5),
        graded("step", messages=about(0, answers=2), reward=1.0),
        graded("far", messages=about(40), reward=1.0),
        graded("same-id", messages=about(50), reward=1.0),
        graded("same-id", messages=about(50), reward=1.0),
    ]
    first = made(run(path, rows, NEAR))
    assert ids(path) == ["best", "far", "same-id", "step"]
    assert dropped(first) == {"duplicate": 1, "near_duplicate": 1}
    kept = everything(path, "@v1")
    # the winner leaves: the next best of its group comes back, the other stays out
    second = made(run(path, [graded("best", messages=about(0), reward=-1.0, revision=2)], NEAR))
    assert (second.added, second.updated, second.removed) == (1, 0, 1)
    assert ids(path) == ["close", "far", "same-id", "step"]
    assert dropped(second) == {"rejected": 1, "near_duplicate": 1}
    # and returns, better than before
    third = made(run(path, [graded("best", messages=about(0), reward=9.0, revision=3)], NEAR))
    assert (third.added, third.removed) == (1, 1)
    assert ids(path) == ["best", "far", "same-id", "step"]
    assert everything(path, "@v1") == kept


def test_a_train_row_near_a_held_out_row_is_a_leak_while_that_is_in(tmp_path: Path) -> None:
    path = tmp_path / "c"
    rows = [
        graded("held", messages=about(0), split="heldout"),
        graded("close", messages=about(1)),
        graded("longer", messages=about(1, answers=2)),
        graded("chained", messages=about(6)),
    ]
    first = made(run(path, rows, NEAR))
    assert dropped(first) == {"leak": 2}
    assert ids(path) == ["chained", "held"]
    second = made(run(path, [graded("held", messages=about(0), split="heldout", reward=0.0, revision=2)], NEAR))
    assert dropped(second) == {"rejected": 1}
    assert ids(path) == ["chained", "close", "longer"]


def test_a_row_is_sketched_once_for_each_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import treadle_corpus._sketch as module

    path = tmp_path / "c"
    sketched: list[str] = []
    real = module.sketch

    def counted(messages: Sequence[dict[str, Any]]) -> bytes:
        sketched.append(messages[0]["content"][:4])
        return real(messages)

    monkeypatch.setattr(module, "sketch", counted)
    plain = Policy(name="wins")
    run(path, [graded(str(n), messages=about(n * 20)) for n in range(3)], plain)
    assert sketched == []
    run(path, [], NEAR)  # a corpus that never needed sketches gets them all
    assert len(sketched) == 3
    more = [graded("4", messages=about(50)), graded("1", messages=about(20), reward=5.0, revision=2)]
    made(run(path, more, NEAR))
    assert len(sketched) == 4
    made(run(path, [graded("1", messages=about(55), revision=3)], NEAR))
    assert len(sketched) == 5


def test_rows_enter_change_and_leave_and_every_old_version_stays(tmp_path: Path) -> None:
    path = tmp_path / "c"
    steps: list[tuple[list[GradedRecord], tuple[int, int, int], list[str]]] = [
        ([graded("a"), graded("b", reward=0.0), graded("c", reward=None)], (1, 0, 0), ["a"]),
        ([graded("b", reward=1.0, revision=2), graded("d")], (2, 0, 0), ["a", "b", "d"]),
        ([graded("a", reward=2.0, revision=2)], (0, 1, 0), ["a", "b", "d"]),
        ([graded("b", reward=0.0, revision=3), graded("d", settled=False, reward=None, revision=2)], (0, 0, 2), ["a"]),
        ([graded("c", reward=1.0, revision=2), graded("a", reward=0.0, revision=3)], (1, 0, 1), ["c"]),
        ([graded("d", revision=3), graded("a", reward=2.0, revision=4)], (2, 0, 0), ["a", "c", "d"]),
        ([graded("a", split="heldout", reward=2.0, revision=5)], (0, 0, 1), ["c", "d"]),
    ]
    kept: list[list[str]] = []
    for number, (records, counts, members) in enumerate(steps, 1):
        manifest = made(run(path, records, Policy(filter="reward > 0")))
        assert (manifest.added, manifest.updated, manifest.removed) == counts
        assert ids(path) == members
        kept.append(everything(path, f"@v{number}"))
        assert [everything(path, f"@v{n + 1}") for n in range(number)] == kept
    assert dropped(manifest) == {"rejected": 1, "split_moved": 1}


def test_rows_leave_when_their_time_is_over(tmp_path: Path) -> None:
    path = tmp_path / "c"
    policy = Policy(retention_s=100.0)
    rows = [graded(f"r{n}", append_ms=n * 50_000) for n in range(4)]
    assert made(run(path, rows, policy, 150_000, SelectAll())).rows == 3
    assert ids(path) == ["r1", "r2", "r3"]
    later = made(run(path, [graded("r9", append_ms=240_000)], policy, 250_000, SelectAll()))
    assert (later.added, later.removed, dropped(later)) == (1, 2, {"expired": 3})
    assert ids(path) == ["r3", "r9"]
    assert ids(path, "@v1") == ["r1", "r2", "r3"]


def test_a_stored_policy_that_changed_goes_on_in_its_corpus_and_no_other_one_does(tmp_path: Path) -> None:
    path = tmp_path / "c"
    made(run(path, [graded("a"), graded("b", messages=about(0)), graded("c", messages=about(0))], Policy(name="wins")))
    changed = made(run(path, [], NEAR))
    assert (changed.removed, changed.policy) == (1, NEAR)
    for other in (Policy(dedupe="exact"), Policy(dedupe="near", threshold=0.9), Policy(name="more", dedupe="exact")):
        with pytest.raises(PolicyMismatch, match="policy wins"):
            run(path, [], other)
    assert run(path, [], Policy(dedupe="near")) is None  # it selects the same, whatever it is called
