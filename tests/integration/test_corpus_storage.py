"""What a corpus has on disk: sealed bodies, a journal that begins anew, versions that are one file each. Damage, full disks, readers."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from treadle_corpus import (
    Corpus,
    CorpusDamaged,
    CorpusError,
    CorpusFull,
    CorpusInUse,
    CorpusWriter,
    GradedRecord,
    Manifest,
    Policy,
    VersionMissing,
    _bodies,
    _journal,
    pass_hat,
    prune_versions,
    set_tag,
    untag,
    versions,
)
from treadle_corpus._frames import frames
from treadle_corpus._store import write_segment
from treadle_corpus.testing import SelectAll, graded


def writer(path: Path, policy: Policy | None = None) -> CorpusWriter:
    return CorpusWriter.open(path, workspace="w", policy=policy or Policy())


def run(path: Path, records: Sequence[GradedRecord]) -> Manifest | None:
    with writer(path) as corpus:
        corpus.apply(records, {0: corpus.offsets.get(0, 0) + len(records)}, 1000)
        return corpus.finish(SelectAll())


def files(path: Path) -> list[Path]:
    """Files that versions need."""
    found = [f for name in ("bodies", "index", "versions") for f in (path / name).rglob("*")]
    return sorted(f for f in found if f.is_file() and f.suffix != ".lock" and f.name != "next_base")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "corpus"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments and journals of a size that tests reach."""
    monkeypatch.setattr(_bodies, "SEGMENT_BODIES", 8)
    monkeypatch.setattr(_journal, "ROTATE_BYTES", 2500)
    monkeypatch.setattr(_journal, "ROTATE_FACTOR", 0)


@pytest.fixture
def many(path: Path, small: None) -> Path:
    """Twelve versions over several segments and journals."""
    for n in range(12):
        rows = [graded(f"r{3 * n + k}") for k in range(3)]
        run(path, [*rows, graded(f"r{n // 2}", revision=2 + n % 2, reward=float(n))])
    assert len(list((path / "index").iterdir())) > 2
    assert len(list((path / "bodies").glob("*.json"))) > 2
    return path


# --- growth -------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_every_version_stays_bit_identical_through_rotation_and_sealing(path: Path) -> None:
    expected: list[tuple[str, list[tuple[str, float | None]]]] = []
    files_then: dict[Path, bytes] = {}
    for n in range(30):
        made = run(path, [graded(f"r{n}"), graded("r0", revision=n + 2, reward=float(n))])
        assert made is not None
        rows = Corpus.open(path).rows("all")
        expected.append((made.content_hash, [(r.interaction_id, r.grade.reward) for r in rows]))
        for file, content in files_then.items():
            assert not file.exists() or file.read_bytes()[: len(content)] == content, f"{file} was rewritten"
        files_then = {f: f.read_bytes() for f in files(path)}
    assert len(list((path / "index").iterdir())) > 2
    assert len(list((path / "bodies").glob("*.json"))) > 2
    for n, (content_hash, rows_then) in enumerate(expected, 1):
        with Corpus.open(f"{path}@v{n}") as corpus:
            assert corpus.manifest.content_hash == content_hash
            assert [(r.interaction_id, r.grade.reward) for r in corpus.rows("all")] == rows_then
            corpus.verify()


def test_a_correction_of_a_grade_stores_no_message_again(path: Path) -> None:
    long = [{"role": "user", "content": os.urandom(50_000).hex()}]
    run(path, [graded("a", messages=long)])
    before = sum(f.stat().st_size for f in files(path))
    made = run(path, [graded("a", messages=long, revision=2, reward=0.25)])
    assert made is not None
    assert made.updated == 1
    assert sum(f.stat().st_size for f in files(path)) - before < 4_000
    assert [r.grade.reward for r in Corpus.open(path).rows("all")] == [0.25]
    assert [r.grade.reward for r in Corpus.open(f"{path}@v1").rows("all")] == [1.0]


def test_a_version_hashes_from_the_first_change_on_and_says_what_a_count_of_all_says(
    path: Path, tmp_path: Path
) -> None:
    records = [graded(f"r{n:04d}", reward=float(n % 3), task_id=f"t{n % 200}", append_ms=n) for n in range(900)]
    changes = [
        [graded("r0899", revision=2, reward=7.0)],
        [graded("r0300", revision=2, reward=7.0), graded("r1000")],
        [graded("a"), graded("z")],
        [graded("r0256", revision=2, settled=False), graded("r0512", revision=2, split="heldout")],
        [graded("r0256", revision=3, reward=1.0), graded("a", revision=2, settled=False)],
    ]
    with writer(path) as corpus:
        offset = 0
        for batch in [records, *changes]:
            offset += len(batch)
            corpus.apply(batch, {0: offset}, 0)
            made = corpus.finish(SelectAll())
            assert made is not None
            Corpus.open(path).verify()
            # a writer that remembers nothing counts all of it anew
            with writer(_copy(path, tmp_path / str(offset))) as other:
                other.apply([graded("one more")], {0: offset + 1}, 0)
                fresh = other.finish(SelectAll())
            assert fresh is not None
            assert (fresh.split["train"], fresh.completeness["reward"]["observed"]) == (
                made.split["train"] + 1,
                made.completeness["reward"]["observed"] + 1,
            )
            assert fresh.dropped == made.dropped
            rows = list(Corpus.open(path).rows("all"))
            assert made.last_append_ms == max(row.provenance.append_ms for row in rows)
            passed = pass_hat((row.split_group, row.grade.reward) for row in rows)
            assert made.pass_at_all == {str(k): value for k, value in passed.items()}


def _copy(path: Path, to: Path) -> Path:
    shutil.copytree(path, to)
    return to


# --- damage -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["empty", "half", "gone", "changed"])
def test_damage_is_found_before_deeplake_meets_it_and_named(many: Path, tmp_path: Path, how: str) -> None:
    newest = Corpus.open(many)
    journal = f"index/{newest._found.journal:06d}.log"
    assert max(_journal.journals(many)) > newest._found.journal, "the newest journal is in no version yet"
    for n, file in enumerate(f for f in files(many) if f.stat().st_size):
        copy = _copy(many, tmp_path / f"copy{n}")
        victim = copy / file.relative_to(many)
        size = victim.stat().st_size
        if how == "gone":
            victim.unlink()
        elif how == "changed":
            data = bytearray(victim.read_bytes())
            data[size // 2] ^= 1
            victim.write_bytes(data)
        else:
            os.truncate(victim, 0 if how == "empty" else size // 2)
        found = []
        for number in versions(many):
            try:
                with Corpus.open(f"{copy}@v{number}") as corpus:
                    corpus.verify()
            except (CorpusDamaged, VersionMissing) as err:
                found.append(str(err))
        name = str(file.relative_to(many))
        if name.startswith("index") and name > journal:
            assert not found
            with writer(copy) as corpus:  # goes on from the newest version
                assert corpus.manifest == newest.manifest
                assert corpus.offsets == {0: 48}
            shutil.rmtree(copy)
            continue
        assert found, f"nobody noticed that {name} is {how}"
        stem = "bod" if name.startswith("bodies") else name if how != "gone" or "index" in name else file.stem
        assert all(stem in message for message in found), (name, found)
        if name == journal or (name == "versions/v12.json" and how != "gone"):
            with pytest.raises(CorpusDamaged):
                writer(copy)
        shutil.rmtree(copy)


def test_a_commit_torn_by_a_power_loss_is_folded_again(path: Path) -> None:
    first = run(path, [graded(str(n)) for n in range(30)])
    assert first is not None
    with writer(path) as corpus:
        corpus.apply([graded(f"x{n}") for n in range(10)], {0: 40}, 0)
        corpus.apply([graded(f"y{n}") for n in range(10)], {0: 50}, 0)
    journal = path / "index" / "000001.log"
    os.truncate(journal, journal.stat().st_size - 3)
    with writer(path) as corpus:
        assert corpus.offsets == {0: 40}
        assert corpus.knows(("x0", "x0"))
        assert not corpus.knows(("y0", "y0"))
        corpus.apply([graded(f"y{n}") for n in range(10)], {0: 50}, 0)
        second = corpus.finish(SelectAll())
    assert second is not None
    assert (second.version, second.rows) == (2, 50)
    Corpus.open(path).verify()
    assert Corpus.open(f"{path}@v1").manifest.content_hash == first.content_hash


def test_a_commit_without_its_bodies_goes_back_to_the_newest_version(path: Path) -> None:
    run(path, [graded(str(n)) for n in range(30)])
    with writer(path) as corpus:
        corpus.apply([graded(f"x{n}") for n in range(30)], {0: 60}, 0)
    (tail,) = (path / "bodies").glob("tail-*.log")
    os.truncate(tail, tail.stat().st_size - 1)
    with writer(path) as corpus:
        assert corpus.offsets == {0: 30}
        corpus.apply([graded(f"x{n}") for n in range(30)], {0: 60}, 0)
        second = corpus.finish(SelectAll())
    assert second is not None
    assert (second.version, second.rows, second.added) == (2, 60, 30)
    for ref in ("@v1", "@v2"):
        Corpus.open(f"{path}{ref}").verify()


def test_a_torn_corpus_without_any_version_starts_anew(path: Path) -> None:
    with writer(path) as corpus:
        corpus.apply([graded(f"x{n}") for n in range(30)], {0: 30}, 0)
    (tail,) = (path / "bodies").glob("tail-*.log")
    os.truncate(tail, 10)
    with writer(path) as corpus:
        assert corpus.offsets == {}
        corpus.apply([graded(f"x{n}") for n in range(30)], {0: 30}, 0)
        assert corpus.finish(SelectAll()) is not None
    assert sum(1 for _ in Corpus.open(path).rows("all")) == 30


def test_the_newest_version_cannot_be_taken_away_in_silence(path: Path) -> None:
    run(path, [graded("a")])
    run(path, [graded("b")])
    run(path, [graded("c", settled=False)])
    (path / "versions" / "v2.json").unlink()
    with pytest.raises(CorpusDamaged, match=r"versions/v2\.json is gone"):
        writer(path)


# --- full disks ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_a_typed_error_at_every_step_and_the_same_writer_goes_on_when_there_is_room(
    tiny_disk: Path,
) -> None:
    path, ballast = tiny_disk / "corpus", tiny_disk / "ballast"
    refusals = 0
    with writer(path) as corpus:
        for n in range(60):
            record = graded(f"r{n}", messages=[{"role": "user", "content": os.urandom(500).hex()}])
            # as much room as makes it fail a little later each time
            _fill(ballast, leave=(n % 12) * 4096)
            done = False
            while not done:
                try:
                    if corpus.offsets.get(0, 0) <= n:
                        corpus.apply([record], {0: n + 1}, 0)
                    corpus.finish(SelectAll())
                    done = True
                except CorpusFull:
                    refusals += 1
                    for number in versions(path):
                        Corpus.open(f"{path}@v{number}").manifest  # noqa: B018 - it can be opened
                    ballast.unlink()
            assert corpus.offsets == {0: n + 1}
            ballast.unlink(missing_ok=True)
    assert refusals >= 20
    made = versions(path)
    assert made == list(range(1, 61))
    for number in made:
        with Corpus.open(f"{path}@v{number}") as found:
            found.verify()
            assert found.manifest.rows == number


def _fill(ballast: Path, leave: int) -> None:
    stat = os.statvfs(ballast.parent)
    with ballast.open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, max(1, stat.f_bavail * stat.f_frsize - leave))


def test_a_limit_on_the_size_of_files_is_a_typed_error_and_the_next_process_goes_on(path: Path) -> None:
    run(path, [graded("a")])
    script = """
    import os, resource, sys
    from pathlib import Path
    from treadle_corpus import CorpusFull, CorpusWriter, Policy
    from treadle_corpus.testing import SelectAll, graded
    with CorpusWriter.open(Path(sys.argv[1]), workspace="w", policy=Policy()) as corpus:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            corpus.apply([graded("b", messages=[{"role": "user", "content": os.urandom(50000).hex()}])], {0: 2}, 0)
        except CorpusFull as err:
            print(err)
        assert corpus.offsets == {0: 1}
        corpus.apply([graded("c")], {0: 2}, 0)
        corpus.finish(SelectAll())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    ended = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert "Nothing is lost" in ended.stdout
    assert run(path, [graded("b")]) is not None
    assert [r.interaction_id for r in Corpus.open(path).rows("all")] == ["a", "b", "c"]
    Corpus.open(path).verify()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20000


# --- readers ------------------------------------------------------------------------------------------------------------------


def _until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


READER = """
import sys
from treadle_corpus import Corpus
corpus = Corpus.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
corpus.verify()
print(corpus.manifest.content_hash, sum(1 for _ in corpus.rows("all")))
"""


def test_a_version_that_a_process_reads_is_not_removed_and_the_refusal_names_the_process(many: Path) -> None:
    expected = Corpus.open(f"{many}@v3").manifest
    process = subprocess.Popen(
        [sys.executable, "-c", READER, f"{many}@v3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    _until_ready(process)
    with writer(many) as corpus:
        with pytest.raises(CorpusInUse, match=rf"v3 cannot be removed: process {process.pid} \(.*python"):
            corpus.remove_versions(range(1, 12))
        assert versions(many) == list(range(3, 13))
        for n in range(40, 50):  # commits, rotations and sealings beside the reader
            corpus.apply([graded(f"r{n}"), graded("r0", revision=n, reward=float(n))], {0: 1000 + n}, 0)
            corpus.finish(SelectAll())
        out, _ = process.communicate("go\n", timeout=60)
        assert out.split() == [expected.content_hash, str(expected.rows)]
        corpus.remove_versions(range(3, 20))
    assert versions(many) == [20, 21, 22]
    assert min(int(f.stem) for f in (many / "index").iterdir()) > 1
    with pytest.raises(VersionMissing):
        Corpus.open(f"{many}@v3")
    for number in versions(many):
        Corpus.open(f"{many}@v{number}").verify()


def test_pruning_keeps_what_is_wanted_and_says_why(many: Path) -> None:
    set_tag(many, "golden", 4)
    process = subprocess.Popen(
        [sys.executable, "-c", READER, f"{many}@v6"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    _until_ready(process)
    journals = len(list((many / "index").iterdir()))
    with pytest.raises(ValueError, match="how many versions"):
        prune_versions(many)
    would = prune_versions(many, keep=3, held={8: "release shop/main/r1 was trained on it"}, dry_run=True)
    assert versions(many) == list(range(1, 13))
    with writer(many) as corpus:  # a snapshotter goes on meanwhile
        corpus.apply([graded("new")], {0: 1000}, 0)
        made = prune_versions(many, keep=3, held={8: "release shop/main/r1 was trained on it"})
        corpus.finish(SelectAll())
    assert made == would
    assert made.removed == [1, 2, 3, 5, 7, 9]
    assert [(one.version, one.reason.partition(" (")[0]) for one in made.kept] == [
        (4, "tag golden"),
        (6, f"process {process.pid}"),
        (8, "release shop/main/r1 was trained on it"),
    ]
    process.communicate("go\n", timeout=60)
    assert versions(many) == [4, 6, 8, 10, 11, 12, 13]
    assert prune_versions(many, before="2100-01-01T00:00:00Z", keep=2).removed == [6, 8, 10, 11]
    assert [(one.version, one.reason) for one in prune_versions(many, before="2100-01-01T00:00:00Z").kept] == [
        (4, "tag golden"),
        (13, "it is the newest one"),
    ]
    assert len(list((many / "index").iterdir())) < journals
    for number in (4, 13):
        Corpus.open(f"{many}@v{number}").verify()


def test_a_reader_that_was_killed_holds_nothing_up(many: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", READER, f"{many}@v1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    _until_ready(process)
    process.kill()
    process.communicate()
    with writer(many) as corpus:
        corpus.remove_versions([1])
    assert 1 not in versions(many)


def test_the_newest_version_and_one_with_a_tag_are_not_removed(many: Path) -> None:
    set_tag(many, "keep", 2)
    with writer(many) as corpus:
        with pytest.raises(CorpusInUse, match="newest"):
            corpus.remove_versions([12])
        with pytest.raises(CorpusInUse, match="tag 'keep'"):
            corpus.remove_versions([2])
        assert untag(many, "keep") == 2
        corpus.remove_versions([2])


def test_a_reader_that_looked_before_a_sealing_and_reads_after_it_gets_the_bodies_that_it_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.mkdir()
    bodies = [_bodies.Packed(b"", b"", b"body %d" % n) for n in range(30)]
    writing = _bodies.BodyWriter(path, 0, 0)
    writing.add(_bodies.Entry(b"name", _bodies.pack(body)) for body in bodies[:20])
    reader = _bodies.Bodies(path)
    looked = [reader._segment_of(5)]
    writing.seal_tail(write_segment)
    writing.add(_bodies.Entry(b"name", _bodies.pack(body)) for body in bodies[20:])
    find = reader._segment_of
    monkeypatch.setattr(reader, "_segment_of", lambda number: looked.pop() if looked else find(number))
    assert reader.read([5, 22, 19]) == [bodies[5], bodies[22], bodies[19]]
    assert not looked
    writing.close()


def test_a_body_in_the_place_of_another_is_found(path: Path) -> None:
    run(path, [graded("a"), graded("b")])
    (tail,) = (path / "bodies").glob("tail-*.log")
    data = tail.read_bytes()
    places = [data[begin:end] for begin, end in frames(data)]
    tail.write_bytes(places[1] + places[0])
    with pytest.raises(CorpusDamaged, match="not the one that was written for it"):
        list(Corpus.open(path).rows("all"))


@pytest.mark.usefixtures("small")
def test_readers_see_whole_versions_while_a_writer_commits_rotates_and_seals(path: Path) -> None:
    run(path, [graded("r0")])
    stop = threading.Event()
    seen: dict[int, str] = {}
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                with Corpus.open(path) as corpus:
                    corpus.verify()
                    seen[corpus.version] = corpus.manifest.content_hash
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    with writer(path) as corpus:
        for n in range(1, 60):
            corpus.apply([graded(f"r{n}"), graded("r0", revision=n + 1, reward=float(n))], {0: n * 2}, 0)
            corpus.finish(SelectAll())
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(seen) > 3
    for number, content_hash in seen.items():
        assert Corpus.open(f"{path}@v{number}").manifest.content_hash == content_hash


def test_a_corpus_can_be_moved_and_read_where_nobody_may_write(many: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "c"
    moved.parent.mkdir()
    many.rename(moved)
    run(moved, [graded("new")])
    read_only = tmp_path / "ro"
    read_only.mkdir()
    bind: Callable[..., int] = lambda *c: subprocess.run(c, check=False, capture_output=True).returncode  # noqa: E731
    if bind("mount", "--bind", str(moved), str(read_only)) == 0:
        try:
            assert bind("mount", "-o", "remount,bind,ro", str(read_only)) == 0
            _check_read_only(read_only)
        finally:
            subprocess.run(["umount", "-l", str(read_only)], check=True)
    else:
        for file in [moved, *moved.rglob("*")]:
            file.chmod(0o555 if file.is_dir() else 0o444)
        _check_read_only(moved)


def _check_read_only(path: Path) -> None:
    for number in versions(path):
        with Corpus.open(f"{path}@v{number}") as corpus:
            corpus.verify()
    with pytest.raises(CorpusError, match="cannot be written"):
        writer(path)
    with pytest.raises(CorpusError, match="cannot be written"):
        set_tag(path, "t", 1)


# --- the public record --------------------------------------------------------------------------------------------------------


def test_the_files_say_what_they_are(path: Path) -> None:
    made = run(path, [graded("a")])
    assert made is not None
    assert json.loads((path / "corpus.json").read_bytes()) == {
        "format": "treadle-corpus",
        "format_version": 2,
        "state": "ready",
    }
    version = json.loads((path / "versions" / "v1.json").read_bytes())
    assert version["v"]["manifest"]["content_hash"] == made.content_hash
