"""Versions proven by the log and made again from it, and the way from a release to Kafka's offsets and back, on a real Kafka."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from treadle.cli import main
from treadle.log import Sender
from treadle_corpus import (
    Corpus,
    CorpusInUse,
    CorpusLocked,
    CorpusWriter,
    GradedRecord,
    Policy,
    Replacement,
    TargetError,
    erase,
    erasures,
    versions,
)
from treadle_corpus.testing import graded
from treadle_schemas import ReleaseId
from treadle_schemas.canonical import canonical_json, dumps
from treadle_schemas.codec import GRADED, OUTCOME, make_headers, to_json
from treadle_schemas.topics import topic
from treadle_schemas.workspace import Metric, WorkspaceSettings
from treadle_streams import filter as filters
from treadle_streams import workspaces
from treadle_streams.snapshot import (
    LogGone,
    PolicyNotReproducible,
    VersionDiffers,
    WorkspaceReplaced,
    prove,
    rebuild,
    run_snapshot,
)
from treadle_streams.snapshot.run import Snapshotter
from treadle_streams.snapshot.service import serve
from treadle_trainer.registry import Registry

WINS = Policy(filter="reward > 0 AND NOT (metrics.cost >= 9)", dedupe="exact")
Command = Callable[..., Result]


class World:
    """A workspace with a log of graded rows, and a corpus of three versions made from it."""

    def __init__(self, servers: str, name: str, home: Path) -> None:
        self.servers, self.name, self.home = servers, name, home
        self.corpus = home / "corpora" / name / "main"
        metrics = (Metric(name="reward", required=True), Metric(name="cost"))
        workspaces.create(servers, WorkspaceSettings(workspace=name, partitions=2, metrics=metrics))

    def graded(self, *records: GradedRecord) -> None:
        sender = Sender(self.servers)
        for record in records:
            headers = [*make_headers(GRADED, self.name, source="test"), ("row_id", canonical_json(list(record.key)))]
            sender.send(topic(self.name, "graded"), record.row.episode_id.encode(), record.body, headers)
        sender.flush()

    def snapshot(self, policy: Policy = WINS) -> None:
        report = run_snapshot(self.servers, self.name, self.corpus, policy, replace_policy=True)
        assert report.new

    def prove(self, *numbers: int) -> list[str]:
        return [made.content_hash for made in prove(self.servers, self.corpus, numbers)]

    def hashes(self, path: Path | None = None) -> list[str]:
        return [made.content_hash for made in Corpus.open(path or self.corpus).log()][::-1]

    def manifests(self, path: Path) -> list[Any]:
        return [to_json(made) for made in Corpus.open(path).log()]


def row(name: str, revision: int = 1, reward: float | None = 1.0, cost: float = 1.0, **fields: Any) -> GradedRecord:
    """A row whose provenance says where it comes from."""
    made = graded(name, revision=revision, reward=reward, metrics={"cost": ("observed", cost)}, **fields).row
    outcomes = [f"{name}-{n}" for n in range(revision)]
    provenance = msgspec.structs.replace(
        made.provenance, interaction_offset=100 + len(name), partition=1, outcome_ids=outcomes
    )
    made = msgspec.structs.replace(made, provenance=provenance)
    return GradedRecord(made, msgspec.json.encode(made))


SAME = [{"role": "user", "content": "the same"}, {"role": "assistant", "content": "ok"}]


def made_world(broker: str, home: Path, *, versions: int = 3) -> World:
    world = World(broker, f"t-{secrets.token_hex(6)}", home)
    world.graded(
        row("a", subject="ann"),
        row("b", messages=SAME),
        row("bb", messages=SAME, reward=2.0),
        row("c", reward=0.0, subject="ann"),
        row("held", split="heldout", subject="bob"),
        row("dear", cost=9.5),
    )
    world.snapshot()
    if versions == 1:
        return world
    world.graded(row("a", 2, reward=3.0, subject="ann"), row("bb", 2, reward=-1.0), row("new"))
    world.snapshot()
    # another policy: all rows decided anew, none dropped as equal
    world.snapshot(Policy(filter="reward >= 0"))
    return world


@pytest.fixture(scope="module")
def world(broker: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    """For tests that leave its corpus and its log as they are. What is graded later is in no version of it."""
    return made_world(broker, tmp_path_factory.mktemp("world") / "home")


@pytest.fixture
def copied(world: World, tmp_path: Path) -> World:
    """The same log, with a copy of the corpus that may be changed."""
    copy = object.__new__(World)
    copy.servers, copy.name, copy.home, copy.corpus = world.servers, world.name, world.home, tmp_path / "copy" / "main"
    shutil.copytree(world.corpus, copy.corpus)
    return copy


@pytest.fixture
def command(broker: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command in the home of a world."""
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", broker)

    def invoke(home: Path, *words: object) -> Result:
        monkeypatch.setenv("TREADLE_HOME", str(home))
        return CliRunner().invoke(main, [str(w) for w in words])

    return invoke


def members(path: Path, version: int) -> list[str]:
    with Corpus.open(f"{path}@v{version}") as found:
        return [r.interaction_id for r in found.rows("all")]


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_versions_are_proven_by_the_log_and_one_that_is_not_its_fold_is_found_out(
    world: World, command: Command, tmp_path: Path
) -> None:
    assert [members(world.corpus, n) for n in (1, 2, 3)] == [
        ["a", "bb", "held"],
        ["a", "b", "held", "new"],
        ["a", "b", "c", "dear", "held", "new"],
    ]
    before = files(world.corpus)
    hashes = world.hashes()
    assert world.prove(2) == hashes[1:2]
    shown = command(world.home, "corpus", "verify", world.corpus, "--all", "--from-log", "--json")
    assert shown.exit_code == 0, shown.stderr
    data = json.loads(shown.stdout)
    assert [entry["content_hash"] for entry in data["proven"]] == hashes
    assert data["failed"] is None
    assert files(world.corpus) == before
    assert not list(Path(world.corpus.parent).glob(".*"))
    # a corpus that says it is the fold of these offsets, and whose files are whole, but with a row that the log does not have
    settings = workspaces.get(world.servers, world.name)
    forged = tmp_path / "forged"
    with CorpusWriter.open(
        forged, workspace=world.name, workspace_created_at=settings.created_at, policy=Policy()
    ) as writer:
        made = Corpus.open(f"{world.corpus}@v1").manifest
        rows = [row("a", subject="ann"), row("b", messages=SAME), row("c", reward=0.5), row("extra")]
        writer.apply(rows, {int(p): o for p, o in made.offsets.items()}, made.watermark_ms)
        assert writer.finish(filters.compile(None, {}, 0)) is not None
    Corpus.open(forged).verify()
    with pytest.raises(VersionDiffers, match="only the version has extra/extra") as caught:
        list(prove(world.servers, forged, [1]))
    assert {"content_hash", "rows"} <= caught.value.differences.keys()
    assert caught.value.facts["rows"]["differing"] == [["c", "c"]]
    refused = command(world.home, "corpus", "verify", forged, "--from-log", "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["failed"]["error"] == "VersionDiffers"
    with pytest.raises(VersionDiffers):
        rebuild(world.servers, forged)
    Corpus.open(forged).verify()


def test_what_the_log_cannot_prove_is_told_by_its_reason(broker: str, tmp_path: Path) -> None:
    world = made_world(broker, tmp_path / "home", versions=1)
    settings = workspaces.get(world.servers, world.name)
    # 1 the filter cannot be read as then
    texts = msgspec.structs.replace(settings.metrics[1], type="category")
    changed = (settings.metrics[0], texts)
    workspaces.update(world.servers, world.name, lambda s: msgspec.structs.replace(s, metrics=changed))
    assert world.prove(1) == world.hashes()[:1]  # what was seen of the metric says how it was read
    workspaces.update(world.servers, world.name, lambda s: msgspec.structs.replace(s, metrics=settings.metrics))
    other = tmp_path / "other"
    with CorpusWriter.open(
        other, workspace=world.name, workspace_created_at=settings.created_at, policy=Policy(filter="gone > 1")
    ) as writer:
        writer.apply([row("a")], {0: 1}, 1)
        assert writer.finish(filters.compile(None, {}, 0)) is not None
    with pytest.raises(PolicyNotReproducible, match="called 'gone'"):
        list(prove(world.servers, other, [1]))
    # 2 the log ends before the offsets, or begins after them
    far = tmp_path / "far"
    with CorpusWriter.open(
        far, workspace=world.name, workspace_created_at=settings.created_at, policy=Policy()
    ) as writer:
        writer.apply([row("a")], {1: 10_000}, 1)
        assert writer.finish(filters.compile(None, {}, 0)) is not None
    with pytest.raises(LogGone, match=r"graded\[1\] below offset 10000") as gone:
        list(prove(world.servers, far, [1]))
    assert (gone.value.partition, gone.value.missing[1]) == (1, 9999)
    partition, end = next((int(p), o) for p, o in Corpus.open(world.corpus).manifest.offsets.items() if o > 2)
    name = topic(world.name, "graded")
    admin = AdminClient({"bootstrap.servers": world.servers})  # kept: its futures end with it
    for future in admin.delete_records([TopicPartition(name, partition, 2)]).values():
        future.result(30)
    before = files(world.corpus)
    for attempt in (lambda: world.prove(1), lambda: rebuild(world.servers, world.corpus)):
        with pytest.raises(LogGone, match="begins at offset 2") as gone:
            attempt()
        assert (gone.value.topic, gone.value.partition, gone.value.missing) == (name, partition, (0, 1))
    assert end > 2
    assert files(world.corpus) == before
    # 3 the workspace is another one
    workspaces.delete(world.servers, world.name)
    workspaces.create(world.servers, WorkspaceSettings(workspace=world.name, partitions=2))
    with pytest.raises(WorkspaceReplaced, match="was created at"):
        world.prove(1)


def test_a_corpus_is_made_again_beside_or_in_place_of_a_damaged_one(
    copied: World, command: Command, tmp_path: Path
) -> None:
    world = copied
    Corpus.open(f"{world.corpus}@v2").tag("golden")
    told, rows = world.manifests(world.corpus), [members(world.corpus, n) for n in (1, 2, 3)]
    beside = tmp_path / "beside"
    made = command(world.home, "corpus", "rebuild", world.corpus, "--to", beside, "--as-of", "v2", "--json")
    assert made.exit_code == 0, made.stderr
    assert [entry["version"] for entry in json.loads(made.stdout)["rebuilt"]] == [1, 2]
    assert world.manifests(beside) == told[1:]
    with pytest.raises(TargetError, match="is there already"):
        rebuild(world.servers, world.corpus, to=beside)
    assert command(world.home, "corpus", "rebuild", world.corpus, "--as-of", "v2").exit_code == 2
    # nobody may read or write the old one
    reading = Corpus.open(world.corpus)
    with pytest.raises(CorpusInUse, match="cannot be replaced"):
        rebuild(world.servers, world.corpus)
    reading.close()
    settings = workspaces.get(world.servers, world.name)
    policy = reading.manifest.policy
    writing = CorpusWriter.open(
        world.corpus, workspace=world.name, workspace_created_at=settings.created_at, policy=policy
    )
    with pytest.raises(CorpusLocked):
        rebuild(world.servers, world.corpus)
    writing.close()
    # damaged: bodies gone
    for file in (world.corpus / "bodies").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    shutil.copytree(world.corpus, world.corpus.with_name(".main.rebuild"))  # as a killed rebuild leaves it
    shown = command(world.home, "corpus", "rebuild", world.corpus)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.count("as before") == 3
    assert world.manifests(world.corpus) == told
    assert [members(world.corpus, n) for n in (1, 2, 3)] == rows
    assert Corpus.open(f"{world.corpus}@golden").version == 2
    assert not list(world.corpus.parent.glob(".*"))
    for n in (1, 2, 3):
        Corpus.open(f"{world.corpus}@v{n}").verify()
    # and it goes on, with the numbers that a corpus with a removed version has
    with CorpusWriter.open(
        world.corpus, workspace=world.name, workspace_created_at=settings.created_at, policy=policy
    ) as writer:
        (world.corpus / "tags" / "golden.json").unlink()
        writer.remove_versions([2])
    rebuild(world.servers, world.corpus)
    assert [m["version"] for m in world.manifests(world.corpus)] == [3, 1]
    world.graded(row("newest"))
    world.snapshot(policy)
    assert members(world.corpus, 4) == sorted([*rows[2], "newest"])


DYING = """
import os, shutil, sys
from pathlib import Path

from dying import Steps, child, told
from treadle_corpus import Corpus, versions
from treadle_streams.snapshot import rebuild

servers, base, root = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
path = root / "main"


def seen():
    said = []
    for number in versions(path):
        with Corpus.open(f"{path}@v{number}") as found:
            found.verify()
            said.append((number, found.manifest.content_hash))
    return repr(said)


def fresh():
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(base, path)


def measured():
    steps = Steps(0)
    rebuild(servers, path)
    return str(steps.count)


fresh()
before = told(seen)
total = int(told(measured))
assert told(seen) == before
few = (2 * total // 3, total - 1)  # while it is made, and when it has just taken the place of the old one
for last in few if sys.argv[4] == "few" else range(1, total + 1, 3):
    fresh()
    assert os.WIFSIGNALED(child(lambda: (Steps(last), rebuild(servers, path)))), last
    assert told(seen) == before, last
assert child(lambda: rebuild(servers, path)) == 0
assert told(seen) == before
assert [p.name for p in root.iterdir()] == ["main"]
"""


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.parametrize("steps", ["few", pytest.param("many", marks=pytest.mark.long)])
def test_a_rebuild_killed_between_its_steps_leaves_every_version_and_the_next_one_ends_it(
    copied: World, tmp_path: Path, steps: str
) -> None:
    here = os.pathsep.join([str(Path(__file__).parent.parent / "fault"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", DYING, copied.servers, str(copied.corpus), str(tmp_path / "killed"), steps],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": here},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_erased_version_is_proven_by_its_record_and_stays_so_when_it_is_made_again(
    copied: World, command: Command
) -> None:
    record = erase(copied.corpus, ["a", "new"], reason="asked", erased_at="2026-11-30T12:00:00Z")
    assert record is not None
    assert [(n, v.removed) for n, v in record.versions.items()] == [(1, 1), (2, 2), (3, 2)]
    shown = command(copied.home, "corpus", "verify", copied.corpus, "--all", "--from-log")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("without what was erased") == 3
    rebuild(copied.servers, copied.corpus)
    assert copied.hashes() == [change.after for change in record.versions.values()]
    assert members(copied.corpus, 2) == ["b", "held"]
    assert erasures(copied.corpus) == [record]
    # the snapshotter service lets go of a corpus for an erasure, and comes back
    settings, stop = workspaces.get(copied.servers, copied.name), threading.Event()
    policy = Corpus.open(copied.corpus).manifest.policy
    with Snapshotter(copied.servers, settings, copied.corpus, policy) as snapshotter:
        serving = threading.Thread(target=serve, args=(snapshotter, copied.servers, settings), kwargs={"stop": stop})
        serving.start()
        again = erase(copied.corpus, ["held"], reason="asked", erased_at="2026-11-30T12:00:00Z", wait_s=30)
        assert again is not None
        deadline = time.monotonic() + 30
        while True:  # until it holds the lock again
            try:
                Replacement(copied.corpus, new=False).__exit__(None, None, None)
            except CorpusLocked:
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stop.set()
        serving.join()
    assert members(copied.corpus, 2) == ["b"]


@pytest.fixture(scope="module")
def releases(world: World) -> list[ReleaseId]:
    """r0 trained on v1, r1 on v2 from r0, r2 a prompt."""
    registry = Registry(world.home / "registry", world.name)
    folder = world.home / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w")
    made: list[ReleaseId] = []
    for version in (1, 2):
        with Corpus.open(f"{world.corpus}@v{version}") as corpus:
            lineage: Any = {
                "corpus": str(corpus.path),
                "corpus_version": version,
                "corpus_hash": corpus.manifest.content_hash,
                "method": "sft",
                "parent": str(made[-1]) if made else None,
            }
        made.append(registry.register(folder, **lineage))
    made.append(registry.register(prompt="be kind"))
    registry.promote(made[1], expect=None, reason="better")
    return made


def test_pruning_leaves_the_versions_of_releases_and_names_them(
    world: World, releases: list[ReleaseId], command: Command
) -> None:
    there = versions(world.corpus)
    would = json.loads(command(world.home, "corpus", "prune", world.corpus, "--keep", 1, "--dry-run", "--json").stdout)
    kept = {one["version"]: one["reason"] for one in would["kept"]}
    assert kept == {n: f"release {releases[n - 1]} was trained on it" for n in (1, 2)}
    assert would["removed"] == [n for n in there[:-1] if n > 2]
    young = command(world.home, "corpus", "prune", world.corpus, "--keep", 1, "--older-than", "1h")
    assert young.stdout == f"{world.corpus}: 0 versions removed, {len(there)} left\n"
    assert versions(world.corpus) == there
    assert command(world.home, "corpus", "prune", world.corpus).exit_code == 2
    assert command(world.home, "corpus", "prune", f"{world.corpus}@v1", "--keep", 1).exit_code == 2


def test_lineage_goes_from_a_release_to_offsets_and_outcomes_and_back(
    world: World, releases: list[ReleaseId], command: Command
) -> None:
    def asked(*words: object) -> Any:
        shown = command(world.home, "lineage", *words, "--json")
        assert shown.exit_code == 0, shown.stderr
        return json.loads(shown.stdout)

    sender = Sender(world.servers)
    for outcome_id in ("a-0", "other", "a-0"):
        value = {"name": "reward", "value": 1.0, "observed_at": "2026-11-30T12:00:00Z", "outcome_id": outcome_id}
        headers = make_headers(OUTCOME, world.name, source="test")
        sender.send(topic(world.name, "outcomes"), b"a", dumps(value), headers, partition=1)
    sender.flush()
    handle = f"{world.name}/a/a"
    down = asked(releases[1])
    assert (down["kind"], down["release"], down["champion"]) == ("release", str(releases[1]), True)
    assert (down["version"]["version"], down["version"]["as_registered"]) == (2, True)
    rows = {r["row"]: r for r in down["version"]["row_list"]}
    assert sorted(rows) == [f"{world.name}/{n}/{n}" for n in ("a", "b", "held", "new")]
    assert rows[handle]["revision"] == 2
    assert rows[handle]["interaction"] == {"topic": f"treadle.{world.name}.interactions", "partition": 1, "offset": 101}
    assert rows[handle]["outcome_ids"] == ["a-0", "a-1"]
    assert [(p["release"], p["version"]["version"]) for p in down["ancestors"]] == [(str(releases[0]), 1)]
    # from the version to the releases, the heir of r0 among them
    up = asked(f"{world.corpus}@v1")
    assert [(r["release"], r["through"]) for r in up["releases"]] == [
        (str(releases[0]), None),
        (str(releases[1]), str(releases[0])),
    ]
    assert up["content_hash"] == world.hashes()[0]
    assert len(up["commit"]["sha256"]) == 64
    # from the row
    found = asked(handle)
    (corpus,) = found["corpora"]
    assert (corpus["corpus"], corpus["status"]) == (str(world.corpus), "member")
    assert [(r["revision"], r["versions"], r["outcome_ids"]) for r in corpus["revisions"]] == [
        (1, [1], ["a-0"]),
        (2, [2, 3], ["a-0", "a-1"]),
    ]
    trained = [[(r["release"], r["version"], r["through"]) for r in one["releases"]] for one in corpus["revisions"]]
    assert trained == [
        [(str(releases[0]), 1, None), (str(releases[1]), 1, str(releases[0]))],
        [(str(releases[1]), 2, None)],
    ]
    # rows that left, and rows that no version has
    assert asked(f"{world.name}/bb/bb")["corpora"][0]["status"] == "rejected"
    # from the subject
    ann = asked("ann", "--workspace", world.name)
    assert [r["row"] for r in ann["rows"]] == [f"{world.name}/{n}/{n}" for n in ("a", "c")]
    assert [one["versions"] for one in ann["rows"][1]["corpora"][0]["revisions"]] == [[3]]
    assert ann["releases"] == [str(releases[0]), str(releases[1])]
    # on Kafka: the revision itself, and what its outcomes came as
    placed = asked(handle, "--offsets")["corpora"][0]["revisions"]
    assert [one["graded"]["topic"] for one in placed] == [topic(world.name, "graded")] * 2
    assert placed[0]["graded"]["partition"] == placed[1]["graded"]["partition"]
    assert placed[0]["graded"]["offset"] < placed[1]["graded"]["offset"]
    told = {o["outcome_id"]: [(p["topic"], p["partition"]) for p in o["places"]] for o in placed[1]["outcomes"]}
    assert told == {"a-0": [(topic(world.name, "outcomes"), 1)] * 2, "a-1": []}
    lines = command(world.home, "lineage", handle, "--offsets").stdout
    assert "outcome a-1  not on .outcomes any more" in lines
    assert f"outcome a-0  {topic(world.name, 'outcomes')}[1] offset " in lines
    # the corpus is moved: releases are known by the content
    moved = world.home / "corpora" / world.name / "moved"
    world.corpus.rename(moved)
    try:
        assert [r["release"] for r in asked(f"{moved}@v2")["releases"]] == [str(releases[1])]
        text = command(world.home, "lineage", releases[1])
    finally:
        moved.rename(world.corpus)
    assert text.exit_code == 1  # its corpus was not where it should be
    assert "no corpus is there" in text.stdout


def test_lineage_for_people_is_a_tree_and_says_what_it_does_not_know(
    world: World, releases: list[ReleaseId], command: Command
) -> None:
    shown = command(world.home, "lineage", releases[1], "--limit", 1)
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].startswith(f"release {releases[1]}  champion")
    assert any(f"row {world.name}/a/a  revision 2  train  reward 3" in line for line in lines)
    assert any(f"treadle.{world.name}.interactions[1] offset 101" in line for line in lines)
    assert any("outcomes a-0, a-1" in line for line in lines)
    assert any("and 3 more" in line for line in lines)
    assert any(f"trained from {releases[0]}" in line for line in lines)
    row_shown = command(world.home, "lineage", f"{world.name}/a/a").stdout
    assert "v2 to v3" in row_shown
    assert f"release {releases[1]}  champion" in row_shown
    assert command(world.home, "lineage", releases[2]).stdout.count("no corpus version") == 1
    for unknown in (f"{world.name}/no/no", f"{world.name}/main/r9"):
        assert command(world.home, "lineage", unknown).exit_code == 1
    assert command(world.home, "lineage", "nobody", "--workspace", world.name).exit_code == 1
