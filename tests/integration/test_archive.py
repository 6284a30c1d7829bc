"""Archives on a real Kafka: what was moved is read as one with what is left, and nobody loses what he has still to read."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer
from treadle.cli import main
from treadle.log import Admin, Record, Sender, begin_group, producer_settings, read
from treadle_corpus import Corpus, Policy
from treadle_corpus.testing import graded
from treadle_schemas.canonical import canonical_json
from treadle_schemas.codec import GRADED, make_headers
from treadle_schemas.topics import group, topic
from treadle_schemas.workspace import WorkspaceSettings
from treadle_streams import archive as archives
from treadle_streams import workspaces
from treadle_streams.archive import Archive, ArchiveBusy, ArchiveDamaged, ArchiveGap, History, StillNeeded, writing
from treadle_streams.snapshot import LogGone, prove, run_snapshot

Command = Callable[..., Result]


class World:
    """A workspace with one partition, whose log is written by hand, and its home."""

    def __init__(self, servers: str, home: Path, *, retention_s: float = 0.001) -> None:
        self.servers, self.home = servers, home
        self.name = f"t-{secrets.token_hex(6)}"
        self.settings = workspaces.create(
            servers, WorkspaceSettings(workspace=self.name, partitions=1, retention_s=retention_s)
        )
        self.corpus = home / "corpora" / self.name / "main"
        self.target = home / "cold"

    def graded(self, *names: str, transaction: bool = False, abort: bool = False) -> None:
        settings = producer_settings(self.servers)
        if transaction:
            settings["transactional.id"] = f"treadle.{self.name}.test-{secrets.token_hex(3)}"
        producer = Producer(settings)
        if transaction:
            producer.init_transactions(30)
            producer.begin_transaction()
        for name in names:
            record = graded(name)
            headers: Any = [
                *make_headers(GRADED, self.name, source="test"),
                ("row_id", canonical_json(list(record.key))),
            ]
            producer.produce(topic(self.name, "graded"), record.body, record.key[0].encode(), headers=headers)
        if transaction:
            producer.flush()
            (producer.abort_transaction if abort else producer.commit_transaction)(30)
        producer.flush()

    def snapshot(self) -> None:
        assert run_snapshot(self.servers, self.name, self.corpus, Policy(name="main")).new

    def log(self, kind: str) -> list[Record]:
        return list(read(self.servers, topic(self.name, kind), 1))

    def history(self, **options: Any) -> list[Record]:
        return list(History(self.servers, self.now(), **options).read("graded"))

    def now(self) -> WorkspaceSettings:
        return workspaces.get(self.servers, self.name)

    def start(self, kind: str = "graded") -> int:
        place = (topic(self.name, kind), 0)
        return Admin(self.servers).start_offsets([place])[place]


@pytest.fixture
def world(broker: str, tmp_path: Path) -> World:
    return World(broker, tmp_path / "home")


@pytest.fixture
def command(broker: str, world: World, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", broker)
    monkeypatch.setenv("TREADLE_HOME", str(world.home))
    return lambda *words: CliRunner().invoke(main, [str(w) for w in words])


def plain(records: list[Record]) -> list[Any]:
    return [(r.offset, r.timestamp_ms, r.key, r.value, r.headers) for r in records]


def test_archive_and_log_are_read_as_one_and_what_is_needed_is_not_deleted(
    world: World, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "RANGE_RECORDS", 3)
    # offsets with gaps: markers, an aborted batch, plain records; odd keys and headers on another topic
    world.graded("a", "b", "c", "d", transaction=True)
    world.graded("lost", transaction=True, abort=True)
    world.graded("e", "f", transaction=True)
    sender = Sender(world.servers)
    odd: Any = [("x", b"\xfe"), ("x", None), ("y", b"")]
    sender.send(topic(world.name, "dead-letter"), None, b"\xff\x00not json", odd)
    sender.send(topic(world.name, "dead-letter"), b"key", None, [])
    sender.flush()
    world.snapshot()
    world.graded("g", transaction=True)
    before = {kind: plain(world.log(kind)) for kind in ("graded", "dead-letter")}
    hashes = [made.content_hash for made in Corpus.open(world.corpus).log()]
    # a killed run left a file without a manifest
    stray = world.target / Archive(str(world.target), world.settings).top / "graded" / "0000"
    stray.mkdir(parents=True)
    (stray / "00000000000000000000-00000000000000000002-0.parquet").write_bytes(b"cut")

    done = command("archive", world.name, "--to", world.target, "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)["archived"]
    bounds = [(r["first"], r["next"], r["records"]) for r in made if r["kind"] == "graded"]
    ends = Admin(world.servers).end_offsets([(topic(world.name, "graded"), 0)])
    assert bounds[0][:2] == (0, 3)
    assert bounds[-1][1] == next(iter(ends.values()))
    assert [b for _, b, _ in bounds[:-1]] == [a for a, _, _ in bounds[1:]]
    assert sum(n for _, _, n in bounds) == 7
    assert not list(stray.glob("*-0.parquet"))
    place = Archive(str(world.target), world.settings)
    for kind, told in before.items():
        assert plain([r for found in place.ranges(kind, 0) for r in place.records(found)]) == told
    assert world.now().archives == (str(world.target),)
    assert list(archives.archive(world.servers, world.now(), place)) == []  # all is archived
    assert command("archive", "verify", world.name).exit_code == 0
    assert "offsets 0 to 2  3 records" in command("archive", "list", world.name).stdout

    # who has not read it is named: the corpus of the policy, a consumer group
    refused = command("archive", world.name, "--delete", "--yes")
    assert refused.exit_code == 1
    assert f"the corpus {world.corpus} of policy main needs them from offset" in refused.stderr
    assert plain(world.log("graded")) == before["graded"]
    world.snapshot()
    name = topic(world.name, "graded")
    begin_group(world.servers, group(world.name, "app"), {(name, 0): 2})
    refused = command("archive", world.name, "--delete", "--yes")
    assert f"consumer group {group(world.name, 'app')} needs them from offset 2" in refused.stderr
    begin_group(world.servers, group(world.name, "app"), {(name, 0): 1000}, anew=True)
    deleted = command("archive", world.name, "--delete", "--yes", "--json")
    assert deleted.exit_code == 0, deleted.output
    assert world.log("graded") == []
    assert world.start() == bounds[-1][1]

    # read as one: history, proof, a corpus made again, a new one, restore
    world.graded("h", transaction=True)
    assert plain(world.history()) == before["graded"] + plain(world.log("graded"))
    assert plain(list(History(world.servers, world.now()).read("graded", start={0: 5}, until={0: 9}))) == [
        r for r in before["graded"] if 5 <= r[0] < 9
    ]
    assert [m.content_hash for m in prove(world.servers, world.corpus, [1, 2])] == [hashes[-1], *_hashes(world)[1:2]]
    world.snapshot()
    fresh = run_snapshot(world.servers, world.name, tmp_path / "fresh", Policy())
    assert fresh.manifest is not None
    assert fresh.manifest.content_hash == _hashes(world)[-1]
    restored = command("restore", world.name, "--from-log", "--yes", "--json")
    assert json.loads(restored.stdout)["rows"] == 8

    # a gap between both, and a file that is not what it was, are errors that name them
    cold = world.target.rename(world.home / "elsewhere")
    workspaces.update(world.servers, world.name, lambda s: msgspec.structs.replace(s, archives=()))
    with pytest.raises(
        LogGone, match=r"offsets 0 to \d+ are\s+gone: the log begins at offset \d+, and they are archived nowhere"
    ):
        list(prove(world.servers, world.corpus, [1]))
    assert [m.version for m in prove(world.servers, world.corpus, [1], archives=[str(cold)])] == [1]
    place = Archive(str(cold), world.settings)
    second = place.ranges("graded", 0)[1]
    (cold / place.top / "graded" / "0000" / f"{second.first:020d}.json").rename(tmp_path / "manifest")
    with pytest.raises(ArchiveGap) as gap:
        world.history(archives=[str(cold)])
    assert gap.value.missing == (second.first, second.next - 1)
    broken = command("archive", "verify", world.name, "--from", cold)
    assert broken.exit_code == 1
    assert f"offsets {second.first} to {second.next - 1} are missing" in broken.stdout
    (tmp_path / "manifest").rename(cold / place.top / "graded" / "0000" / f"{second.first:020d}.json")
    file = cold / place.top / "graded" / "0000" / second.file
    data = bytearray(file.read_bytes())
    data[random.randrange(len(data))] ^= 1
    file.write_bytes(data)
    assert command("archive", "verify", world.name, "--from", cold).exit_code == 1
    with pytest.raises(ArchiveDamaged, match="SHA-256"):
        world.history(archives=[str(cold)])


def test_inputs_stay_as_long_as_lost_state_is_rebuilt_from_them(broker: str, tmp_path: Path) -> None:
    world = World(broker, tmp_path, retention_s=3600.0)
    sender = Sender(broker)
    for kind in ("interactions", "dead-letter"):
        sender.send(topic(world.name, kind), b"k", b"v", [])
    sender.flush()
    place = Archive(str(world.target), world.settings)
    assert len(list(archives.archive(broker, world.settings, place))) == 2
    admin = Admin(broker)
    ends = {k: archives.closed_ends(admin, world.settings, k, None) for k in ("interactions", "dead-letter")}
    deleted = archives.delete_archived(admin, world.settings, place, ends, [])
    assert list(deleted) == [(topic(world.name, "dead-letter"), 0)]
    short = msgspec.structs.replace(world.settings, retention_s=0.001)
    needs = archives.group_needs(admin, short, ["interactions"])
    with pytest.raises(StillNeeded, match="the join"):
        archives.delete_archived(admin, short, place, ends, needs)
    with (
        writing.alone(place.store, place.top),
        pytest.raises(ArchiveBusy, match="archives there just now"),
        writing.alone(place.store, place.top),
    ):
        pass


def test_an_archive_in_an_object_store_is_the_same(bucket: str) -> None:
    settings = WorkspaceSettings(workspace="shop", created_at="2026-11-30T12:00:00Z")
    place = Archive(f"{bucket}/cold", settings)
    name = topic("shop", "graded")
    told = [
        Record(name, 3, offset, 1000 + offset, b"k", None if offset == 7 else b"v", [("h", b"x")])
        for offset in (5, 7, 8)
    ]
    made = place.put("graded", 3, (4, 10), told, archived_at="2026-11-30T12:00:00Z")
    place.put("graded", 3, (10, 11), [], archived_at="2026-11-30T12:00:00Z")
    again = Archive(f"{bucket}/cold", settings)
    assert [(r.first, r.next, r.first_record, r.last_record) for r in again.every()] == [
        (4, 10, 5, 8),
        (10, 11, None, None),
    ]
    assert list(again.records(made)) == told
    assert (again.covered("graded", 3, 4), again.covered("graded", 3, 0), again.strays()) == (11, 0, [])
    anew = msgspec.structs.replace(settings, created_at="2026-12-01T00:00:00Z")
    assert (
        list(Archive(f"{bucket}/cold", anew).every()) == []
    )  # the offsets of a later workspace of that name mean other records
    again.store.delete(f"{again.top}/graded/0003/{made.file}")
    with pytest.raises(ArchiveDamaged, match="the file is gone"):
        list(again.records(made))


def _hashes(world: World) -> list[str]:
    return [made.content_hash for made in Corpus.open(world.corpus).log()][::-1]
