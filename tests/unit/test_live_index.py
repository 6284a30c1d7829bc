"""The live index without Kafka: records in, answers out. What Kafka adds is in tests/integration/test_recall.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import treadle
from treadle import MemorySink
from treadle.log import Record
from treadle.recall import Hit
from treadle_schemas import Grade, Handle, Progress, WorkspaceSettings
from treadle_schemas.codec import INTERACTION, PART, PROGRESS, encode, make_headers, to_json
from treadle_schemas.parts import read_part
from treadle_schemas.topics import topic
from treadle_schemas.workspace import Metric
from treadle_streams.filter import FilterNameError
from treadle_streams.live import IndexDamaged, IndexInUse, IndexMissing, Recall, erase, load_embedder
from treadle_streams.live.fold import Fold
from treadle_streams.live.folder import IndexFolder
from treadle_streams.live.index import LiveIndex
from treadle_streams.live.text import TextIndex

WORKSPACE = "shop"
SETTINGS = WorkspaceSettings(
    workspace=WORKSPACE,
    partitions=1,
    created_at="2026-01-01T00:00:00Z",
    metrics=(Metric(name="reward", required=True), Metric(name="kind", type="category")),
)


class World:
    """A recorder whose records go into an index."""

    def __init__(self, home: Path, embedder: str | None = None) -> None:
        self.home = home
        self.sink = MemorySink()
        self.recorder = treadle.Recorder(WORKSPACE, sink=self.sink, agent="desk", raise_errors=True)
        self.folder = IndexFolder(home, WORKSPACE)
        self.offset = 0
        self.embedder = None if embedder is None else load_embedder(embedder)
        self.open()

    def open(self, **options: bool) -> None:
        self.index = LiveIndex(self.folder, SETTINGS, self.embedder, **options)
        self.fold = Fold(self.index.rows, SETTINGS, self.index.erased)

    def open_again(self) -> None:
        self.index.close()
        self.open()

    def take(self, *records: Record) -> None:
        self.index.rows.begin()
        for record in records:
            self.fold.take(record)
        self.index.commit(self.fold.changed, {(topic(WORKSPACE, "interactions"), 0): self.offset})
        self.fold.changed.clear()
        if self.fold.uncovered or self.fold.parts_erased:
            self.index.erase(self.fold.uncovered)
            self.fold.uncovered.clear()

    def record(self, kind: str, key: bytes, value: bytes, event: str) -> Record:
        self.offset += 1
        headers: list[Any] = list(make_headers(event, WORKSPACE, source="test"))
        return Record(topic(WORKSPACE, kind), 0, self.offset - 1, 1_000 + self.offset, key, value, headers)

    def sent(self) -> list[Record]:
        """What the recorder sent since the last call, as records."""
        out = [self.record(s.topic.rpartition(".")[2], s.key, s.value, s.event.type) for s in self.sink.sent]
        self.sink.sent.clear()
        return out

    def tell(self) -> None:
        self.take(*self.sent())

    def say(self, asked: str, answered: str = "done", **options: Any) -> Handle:
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        handle = self.recorder.record(messages=messages, response=[1], **options)
        self.tell()
        return handle

    def grade(self, handle: Handle, reward: float | None, settled: bool = True, revision: int = 1) -> None:
        state = ("pending", None) if reward is None else ("observed", reward)
        said = Progress(
            episode_id=handle.episode_id,
            interaction_id=handle.interaction_id,
            task_id=None,
            agent="desk",
            slot="main",
            release=None,
            grade=Grade(
                metrics={"reward": state, "kind": ("absent", None), "seen": ("observed", "x")},  # type: ignore[dict-item]
                reward=reward,
                completeness=1.0,
                settled=settled,
                grading_version=1,
            ),
            split="train",
            revision=revision,
            append_ms=1,
            ended_at="2026-01-01T00:00:00Z",
        )
        self.take(self.record("progress", handle.episode_id.encode(), encode(to_json(said)), PROGRESS))

    def find(self, query: str, n: int = 10, filter: str | None = None, **options: Any) -> list[Hit]:
        searching = Recall(self.home, WORKSPACE, **options)
        try:
            return searching.search(query, n, filter)
        finally:
            searching.close()

    def names(self, query: str, **options: Any) -> list[str]:
        return [Handle.parse(hit.handle).interaction_id for hit in self.find(query, **options)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.index.close()
    made.recorder.close()


def test_an_interaction_is_found_by_its_words_with_its_present_grade(world: World) -> None:
    handle = world.say("My lamp arrived broken", "I refunded the lamp", task_id="t1", tags={"tier": "gold"})
    world.say("Where is my parcel?", "In Bremen")
    (hit,) = world.find("broken lamps")
    assert (hit.handle, hit.agent, hit.task_id, hit.tags) == (str(handle), "desk", "t1", {"tier": "gold"})
    assert (hit.request, hit.response) == ("My lamp arrived broken", "I refunded the lamp")
    assert (hit.state, hit.reward) == ("unknown", None)
    world.grade(handle, None, settled=False)
    assert world.find("broken lamps")[0].state == "pending"
    world.grade(handle, 0.5, revision=2)
    (hit,) = world.find("broken lamps")
    assert (hit.state, hit.reward, hit.metrics["reward"]) == ("settled", 0.5, ("observed", 0.5))


def test_a_grade_that_comes_before_its_interaction_is_kept(world: World) -> None:
    handle = Handle(WORKSPACE, "e", "i")
    world.grade(handle, 1.0)
    assert world.find("lamp") == []
    world.say("lamp", episode_id="e", interaction_id="i")
    assert world.find("lamp")[0].reward == 1.0


def test_filters_select_as_in_snapshots(world: World) -> None:
    for n in range(30):
        name = f"i{n:02}"
        world.say(f"lamp number {n}", interaction_id=name, task_id=f"t{n % 3}", tags={"n": n})
        if n % 2:
            world.grade(Handle(WORKSPACE, name, name), n / 30)
    assert world.names("lamp", filter="reward > 0.9") == ["i29"]
    assert set(world.names("lamp", filter="task_id = 't1' AND tags.n >= 20 AND reward IS NULL")) == {"i22", "i28"}
    assert set(world.names("lamp", n=20, filter="state(reward) = 'pending'")) == {f"i{n:02}" for n in range(0, 30, 2)}
    assert world.names("lamp", filter="metrics.seen = 'x' AND tags.n = 3") == ["i03"]
    assert world.names("lamp", filter="ended_at > now") == []
    assert world.names("lamp", filter="task_id = 't1' AND task_id = 't2'") == []
    with pytest.raises(FilterNameError, match="rewart"):
        world.find("lamp", filter="rewart > 1")


def test_a_filter_that_selects_little_is_satisfied_from_far_down_the_ranking(world: World) -> None:
    records = []
    for n in range(300):
        world.recorder.record(messages=[{"role": "user", "content": "lamp " * (1 + n % 7)}], tags={"n": n})
        records += world.sent()
    world.take(*records)
    assert len(world.find("lamp", filter="tags.n % 100 = 1")) == 3


def test_what_may_not_be_recalled_is_not_in_it(world: World) -> None:
    world.sink.sent.clear()
    handle = world.say("secret lamp")
    text = world.folder.rows.read_bytes() + Path(f"{world.folder.rows}-wal").read_bytes()
    assert b"secret lamp" in text
    world.recorder.rights(handle, recall="deny")
    world.tell()
    assert world.find("lamp") == []
    row = world.index.rows.row(handle.episode_id, handle.interaction_id)
    assert (row.hidden, row.captured, row.request, row.response) == ("denied", None, None, None)
    world.recorder.rights(handle, train="deny")  # another right changes nothing
    world.tell()
    assert world.index.rows.row(handle.episode_id, handle.interaction_id).hidden == "denied"


def test_a_denial_that_comes_before_its_interaction_holds_and_the_later_word_counts(world: World) -> None:
    world.recorder.rights(Handle(WORKSPACE, "e", "i"), recall="deny", observed_at="2026-01-01T00:00:00Z")
    world.recorder.rights(Handle(WORKSPACE, "e", "j"), recall="deny", observed_at="2026-01-01T00:00:00Z")
    world.recorder.rights(Handle(WORKSPACE, "e", "j"), recall="allow", observed_at="2026-01-02T00:00:00Z")
    world.tell()
    world.say("lamp", episode_id="e", interaction_id="i")
    world.say("lamp", episode_id="e", interaction_id="j")
    assert world.names("lamp") == ["j"]


def test_an_interaction_that_denies_itself_is_not_in_it(world: World) -> None:
    value = {
        "interaction_id": "i",
        "agent": "a",
        "messages": [{"role": "user", "content": "lamp"}],
        "started_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:00:00Z",
    }
    denied = {**value, "rights": {"recall": "deny"}}
    world.take(world.record("interactions", b"i", json.dumps(denied).encode(), INTERACTION))
    assert world.find("lamp") == []
    redacted = {**value, "interaction_id": "j", "redaction": {"policy": "p", "error": "ValueError"}}
    world.take(world.record("interactions", b"j", json.dumps(redacted).encode(), INTERACTION))
    assert world.find("lamp") == []
    world.take(
        world.record("interactions", b"other key", json.dumps({**value, "interaction_id": "k"}).encode(), INTERACTION)
    )
    assert world.find("lamp") == []  # the join makes it a dead letter
    assert world.index.rows.count() == {"denied": 1, "redacted": 1}


def test_of_two_interactions_of_one_id_the_same_wins_in_any_order(tmp_path: Path) -> None:
    found = []
    for number, order in enumerate([(0, 1), (1, 0), (0, 1, 0), (1, 1, 0)]):
        world = World(tmp_path / str(number))
        for n in order:
            world.say(
                f"lamp {n}",
                interaction_id="i",
                started_at="2026-01-01T00:00:00Z",
                ended_at=f"2026-01-0{2 - n}T00:00:00Z",
            )
        found.append([hit.request for hit in world.find("lamp")])
        world.index.close()
    assert found == [["lamp 1"]] * 4


def test_long_contexts_are_put_together_from_their_parts(world: World) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "x" * 3000},
        {"role": "user", "content": "repair my zeppelin"},
    ]
    for n in range(40):
        messages += [
            {"role": "assistant", "content": f"try {n} " + "y" * 800},
            {"role": "tool", "content": f"result{n} " + "z" * 900},
        ]
        world.recorder.record(
            messages=[*messages, {"role": "assistant", "content": f"answer{n}"}],
            episode_id="e",
            interaction_id=f"i{n}",
            step=n,
            response=[len(messages)],
        )
    assert any(sent.event.type == PART for sent in world.sink.sent)
    world.tell()
    (hit,) = world.find("answer39")
    assert hit.request.startswith("repair my zeppelin\n")
    assert "result39" in hit.request
    assert hit.response == "answer39"
    assert len(world.names("zeppelin", n=50)) == 40


def long_message(word: str) -> dict[str, Any]:
    return {"role": "user", "content": f"{word} " + "x" * 2000}


def test_a_row_whose_parts_are_not_there_waits_and_one_of_an_erased_part_leaves(world: World) -> None:
    world.recorder.record(messages=[long_message("zeppelin")], episode_id="e", interaction_id="i")
    part, interaction = world.sent()
    world.take(interaction)
    assert world.find("zeppelin") == []
    assert list(world.fold.waiting) == [("e", "i")]
    world.open_again()
    assert list(world.fold.waiting) == [("e", "i")]
    world.take(part, interaction)  # as the indexer reads it again
    assert world.names("zeppelin") == ["i"]
    (name,) = [p.hash for p in read_part(json.loads(part.value or b""))[1]]
    gone = {"episode_id": "e", "part": name, "erased": "asked for"}
    world.take(world.record("interactions", b"e", json.dumps(gone).encode(), PART))
    assert world.find("zeppelin") == []
    world.take(part, interaction)
    assert world.find("zeppelin") == []
    assert b"zeppelin" not in everything(world)


def everything(world: World) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(world.folder.path.rglob("*")) if path.is_file())


def test_an_erased_subject_leaves_no_byte_and_does_not_come_back(world: World) -> None:
    world.say("plain lamp", "kept")
    log = []
    for n in range(3):
        world.recorder.record(
            messages=[long_message(f"zeppelin{n}")],
            episode_id="ep-graf",
            interaction_id=f"graf-{n}",
            subject="graf@example.org",
            tags={"name": "Ferdinand"},
        )
        log += world.sent()
    world.take(*log)
    world.grade(Handle(WORKSPACE, "ep-graf", "graf-1"), 1.0)
    traces = [b"zeppelin1", b"graf@example.org", b"Ferdinand", b"graf-1", b"ep-graf"]
    before = everything(world)
    assert all(trace in before for trace in traces)
    searching = Recall(world.home, WORKSPACE)  # a reader that stays open does not keep it
    assert len(searching.search("zeppelin1")) == 1
    world.index.erased.add(subjects=["graf@example.org"])
    assert world.index.erasures_due
    assert world.index.erase() == 3
    assert not world.index.erasures_due
    after = everything(world)
    assert not [trace for trace in traces if trace in after]
    assert searching.search("zeppelin1") == []
    assert [hit.request for hit in searching.search("lamp")] == ["plain lamp"]
    searching.close()
    world.take(*log)
    world.grade(Handle(WORKSPACE, "ep-graf", "graf-1"), 1.0)
    assert not [trace for trace in traces if trace in everything(world)]
    world.index.close()
    world.open(rebuild=True)
    world.take(*log)
    assert not [trace for trace in traces if trace in everything(world)]


def test_what_came_before_an_erased_subject_was_known_in_an_episode_leaves_too(world: World) -> None:
    world.index.erased.add(subjects=["graf"])
    world.say("zeppelin one", episode_id="e", interaction_id="i")
    assert world.names("zeppelin") == ["i"]
    world.say("zeppelin two", episode_id="e", interaction_id="j", subject="graf")
    assert world.find("zeppelin") == []
    assert b"zeppelin" not in everything(world)


def test_erase_works_where_no_indexer_runs_and_without_an_index(world: World, tmp_path: Path) -> None:
    world.say("zeppelin", subject="graf")
    world.say("lamp", subject="other")
    world.index.close()
    assert erase(world.home, WORKSPACE, ["graf", "nobody"]).rows == 1
    assert b"zeppelin" not in everything(world)
    world.open()
    assert world.names("lamp zeppelin") != []
    assert erase(tmp_path / "empty", WORKSPACE, ["graf"]).rows == 0
    fresh = World(tmp_path / "empty")
    fresh.say("zeppelin", subject="graf")
    assert fresh.find("zeppelin") == []
    fresh.index.close()


def test_an_index_has_one_writer_and_says_who(world: World) -> None:
    with world.folder.locked():
        code = (
            "import sys; from pathlib import Path; from treadle_streams.live.folder import IndexFolder\n"
            f"with IndexFolder(Path({str(world.home)!r}), 'shop').locked(): pass"
        )
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"IndexInUse: process {os.getpid()} writes the live index" in child.stderr
        with pytest.raises(IndexInUse), world.folder.locked():
            pass
    with world.folder.locked():
        pass


def test_what_is_no_index_is_said_and_what_is_of_another_workspace_is_made_anew(world: World, tmp_path: Path) -> None:
    with pytest.raises(IndexMissing, match="treadle indexer --workspace other"):
        Recall(world.home, "other")
    world.say("lamp")
    world.index.close()
    changed = WorkspaceSettings(workspace=WORKSPACE, partitions=1, created_at="2026-02-02T00:00:00Z")
    index = LiveIndex(world.folder, changed)
    assert index.rows.count() == {}
    index.close()
    world.folder.rows.write_bytes(b"no database" * 500)
    with pytest.raises(IndexDamaged, match="--rebuild"):
        Recall(world.home, WORKSPACE)
    world.open()
    assert world.index.rows.count() == {}


def test_the_text_index_holds_a_row_once_however_often_it_is_written(world: World) -> None:
    handle = world.say("lamp")
    for n in range(3):
        world.say(
            "lamp",
            interaction_id=handle.interaction_id,
            ended_at=f"2026-01-0{3 - n}T00:00:00Z",
            started_at="2026-01-01T00:00:00Z",
        )
    other = world.say("lamp")
    assert len(TextIndex(world.folder.text(1))) == 2
    world.recorder.rights(other, recall="deny")
    world.tell()
    assert len(TextIndex(world.folder.text(1))) == 1


def test_a_batch_that_is_forgotten_leaves_no_trace(world: World) -> None:
    world.say("lamp one")
    world.recorder.record(messages=[{"role": "user", "content": "lamp two"}])
    world.index.rows.begin()
    for record in world.sent():
        world.fold.take(record)
    world.index.rollback()
    world.fold.changed.clear()
    assert [hit.request for hit in world.find("lamp")] == ["lamp one"]


def letters(texts: list[str]) -> np.ndarray[Any, Any]:
    """Vectors that count letters: enough to be alike without sharing a word."""
    return np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], dtype=np.float64)


def test_an_embedder_finds_what_shares_no_word_and_its_vectors_follow_the_rows(tmp_path: Path) -> None:
    world = World(tmp_path, f"{__name__}:letters")
    embedder = load_embedder(f"{__name__}:letters")
    world.say("zzzz", "zz", interaction_id="z", subject="graf")
    world.say("qqqq", "qq", interaction_id="q")
    world.say("aaaa", "aa", interaction_id="a")
    assert world.names("qqqqq", n=1, embedder=embedder) == ["q"]
    assert world.names("qqqqq", n=1, embedder=embedder, hybrid=False) == []
    world.recorder.rights(Handle(WORKSPACE, "q", "q"), recall="deny")
    world.tell()
    assert "q" not in world.names("qqqqq", embedder=embedder)
    world.index.erased.add(subjects=["graf"])
    world.index.erase()
    assert world.names("a", n=5, embedder=embedder) == ["a"]
    assert world.folder.vectors(2).stat().st_size == 4 * 26
    world.index.close()
    world.embedder = None  # without it the vectors go
    world.open()
    assert world.index.rows.meta("embedder") == ""
    assert world.names("aaaa") == ["a"]
    world.index.close()
    world.embedder = embedder  # with it again they are made for what is there
    world.open()
    assert world.names("aaa", n=1, embedder=embedder) == ["a"]
    world.index.close()


def test_an_embedder_that_is_not_here_leaves_the_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World(tmp_path, f"{__name__}:letters")
    world.say("lamp", interaction_id="i")
    world.index.rows.set_meta("embedder", "no.such.module:f")
    assert world.names("lamp") == ["i"]
    assert "ranks by words alone" in caplog.text
    world.index.close()
