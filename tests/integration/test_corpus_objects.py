"""Corpora in an object store, against a real S3 server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from treadle_corpus import (
    BucketMissing,
    Corpus,
    CorpusLocked,
    CorpusMissing,
    CorpusNewer,
    CorpusWriter,
    GradedRecord,
    Manifest,
    ObjectDamaged,
    Policy,
    StoreError,
    StoreRefused,
    StoreUnfit,
    StoreUnreachable,
    TagMissing,
    TagTaken,
    TargetError,
    VersionMissing,
    _bodies,
    _journal,
    parse_ref,
    prune_versions,
    resolve_target,
    set_tag,
    untag,
    versions,
)
from treadle_corpus.lineage import trace_rows, trace_subject
from treadle_corpus.objects import ObjectStore, fetch_folder, history, lease, place_at, publish_folder, store
from treadle_corpus.objects.cache import evict
from treadle_corpus.objects.layout import object_name, read_piece
from treadle_corpus.objects.published import FORMAT_VERSION, published_version, published_versions
from treadle_corpus.testing import SelectAll, graded


@pytest.fixture(autouse=True)
def _a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments and journals of a size that tests reach."""
    monkeypatch.setattr(_bodies, "SEGMENT_BODIES", 8)
    monkeypatch.setattr(_journal, "ROTATE_BYTES", 2500)
    monkeypatch.setattr(_journal, "ROTATE_FACTOR", 0)


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/corpora/shop"


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "other") -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / name))


def writer(url: str) -> CorpusWriter:
    return CorpusWriter.open(resolve_target(url), workspace="w", policy=Policy())


def run(url: str, records: Sequence[GradedRecord]) -> Manifest | None:
    with writer(url) as corpus:
        corpus.apply(records, {0: corpus.offsets.get(0, 0) + len(records)}, 1000)
        return corpus.finish(SelectAll())


def batch(n: int) -> list[GradedRecord]:
    return [*(graded(f"r{3 * n + k}") for k in range(3)), graded(f"r{n // 2}", revision=2 + n % 2, reward=float(n))]


def seen(url: str) -> dict[int, tuple[str, int]]:
    """What readers see: every version, read as a whole and compared."""
    found = {}
    for number in versions(resolve_target(url)):
        with Corpus.open(f"{url}@v{number}") as corpus:
            corpus.verify()
            found[number] = (corpus.manifest.content_hash, len(list(corpus.rows("all"))))
    return found


def test_what_is_read_from_the_store_is_what_a_folder_would_hold(url: str, tmp_path: Path, small: None) -> None:
    folder = tmp_path / "folder"
    for n in range(6):
        run(url, batch(n))
        run(str(folder), batch(n))
    assert seen(url) == seen(str(folder))
    assert list(seen(url)) == list(range(1, 7))
    names = ObjectStore(url).names()
    assert len([name for name in names if name.startswith("versions/")]) == 6
    with Corpus.open(url) as newest:
        assert str(newest) == f"{url}@v6"
        assert [made.version for made in newest.log()] == list(range(6, 0, -1))
        with Corpus.open(f"{folder}@v6") as local:
            assert not newest.diff(local).updated
            assert list(newest.rows("all")) == list(local.rows("all"))


def test_the_history_is_walked_where_nobody_opened_a_version(
    url: str, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    for n in range(6):
        run(url, batch(n))
        run(str(folder), batch(n))
    assert len(list((folder / "index").glob("*.log"))) > 1
    another_machine(monkeypatch, tmp_path)
    keys = [("r0", "r0"), ("r5", "r5")]
    assert trace_rows(resolve_target(url), keys) == trace_rows(folder, keys)
    another_machine(monkeypatch, tmp_path, "third")
    assert trace_subject(resolve_target(url), ["alice"]) == trace_subject(folder, ["alice"])


def test_a_machine_with_an_empty_home_reads_and_goes_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    for n in range(3):
        run(url, batch(n))
    before = seen(url)
    another_machine(monkeypatch, tmp_path)
    assert seen(url) == before
    for n in range(3, 5):
        run(url, batch(n))
    folder = tmp_path / "folder"
    for n in range(5):
        run(str(folder), batch(n))
    assert seen(url) == seen(str(folder))
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))  # whose work folder is behind by now
    made = run(url, batch(5))
    assert made is not None
    assert made.version == 6
    run(str(folder), batch(5))
    assert seen(url) == seen(str(folder))


# --- one writer ---------------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_told_who_writes(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writer(url) as corpus:
        with pytest.raises(CorpusLocked, match=str(os.getpid())):
            writer(url)
        another_machine(monkeypatch, tmp_path)
        with pytest.raises(CorpusLocked, match=f"{url} is being written by process {os.getpid()} on "):
            writer(url)
        corpus.apply(batch(0), {0: 4}, 1000)
        assert corpus.finish(SelectAll()) is not None
    assert run(url, batch(1)) is not None


def test_a_writer_that_was_taken_for_dead_publishes_nothing_and_goes_on_from_what_the_other_one_made(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(url, batch(0))
    with writer(url) as first:
        first.apply(batch(1), {0: 8}, 1000)
        monkeypatch.setattr(lease, "EXPIRE_S", -1.0)
        another_machine(monkeypatch, tmp_path)
        second = writer(url)
        with pytest.raises(CorpusLocked):
            first.finish(SelectAll())
        assert versions(resolve_target(url)) == [1]
        second.apply([*batch(1), *batch(2)], {0: 12}, 1000)
        made = second.finish(SelectAll())
        second.close()
        with pytest.raises(CorpusLocked, match="this one has what that made"):
            first.apply(batch(2), {0: 12}, 1000)
        assert first.manifest == made
        first.apply(batch(3), {0: 16}, 1000)
        third = first.finish(SelectAll())
    assert third is not None
    assert third.version == 3
    folder = tmp_path / "folder"
    for records in (batch(0), [*batch(1), *batch(2)], batch(3)):
        run(str(folder), records)
    assert seen(url) == seen(str(folder))


def test_of_two_that_publish_the_same_number_one_wins_and_the_other_one_says_so(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the lease and the put of vN are two requests: what comes between them is what If-None-Match is for."""
    run(url, batch(0))
    with writer(url) as first:
        first.apply(batch(1), {0: 8}, 1000)
        monkeypatch.setattr(lease.WriterLease, "check", lambda _: None)
        monkeypatch.setattr(lease, "EXPIRE_S", -1.0)
        another_machine(monkeypatch, tmp_path)
        with writer(url) as second:
            second.apply([graded("other")], {0: 5}, 1000)
            made = second.finish(SelectAll())
        with pytest.raises(CorpusLocked, match="published v2 meanwhile"):
            first.finish(SelectAll())
    with Corpus.open(f"{url}@v2") as corpus:
        corpus.verify()
        assert corpus.manifest == made


def test_an_object_store_without_conditional_puts_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(store: ObjectStore, name: str, data: bytes) -> bool:
        store.put(name, data)
        return True

    monkeypatch.setattr(ObjectStore, "create", put)
    with pytest.raises(StoreUnfit, match="keep two writers apart"):
        writer(url)


def test_what_could_not_be_published_is_published_by_the_next_call(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(url, batch(0))
    with writer(url) as corpus:
        corpus.apply(batch(1), {0: 8}, 1000)
        with monkeypatch.context() as broken:
            broken.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            broken.setitem(store._S3_OPTIONS, "config_kwargs", {"retries": {"max_attempts": 1}})
            with pytest.raises(StoreUnreachable, match="AWS_ENDPOINT_URL"):
                corpus.finish(SelectAll())
        assert versions(resolve_target(url)) == [1]
        corpus.publish()
        assert versions(resolve_target(url)) == [1, 2]
        corpus.apply(batch(2), {0: 12}, 1000)
        assert corpus.finish(SelectAll()) is not None
    assert list(seen(url)) == [1, 2, 3]


# --- damage and refusals ------------------------------------------------------------------------------------------------------


def object_of(url: str, which: str) -> str:
    """The name of an object that the newest version needs."""
    there = ObjectStore(url)
    _, _, contents = published_version(there, published_versions(there)[-1])
    if which == "segment":
        seal = msgspec.json.decode(read_piece(there, next(iter(contents.seals.values()))), type=_bodies.Seal)
        return object_name(max(seal.files.values())[1])
    pieces = {"journal": contents.journal, "tail": contents.tail, "seal": list(contents.seals.values())}[which]
    return object_name(pieces[0].sha256)


def test_a_damaged_object_is_named_before_anything_is_read(
    url: str, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(4):
        run(url, batch(n))
    there = ObjectStore(url)
    for which in ("journal", "tail", "seal", "segment", "version"):
        name = "versions/v4.json" if which == "version" else object_of(url, which)
        data = there.read(name)
        assert data
        for how in ("cut", "changed", "gone"):
            another_machine(monkeypatch, tmp_path, f"{which}-{how}")
            if how == "gone":
                there.delete(name)
            else:
                there.put(name, data[:-9] if how == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
            expected = VersionMissing if (which, how) == ("version", "gone") else ObjectDamaged
            with pytest.raises(expected) as caught:
                with Corpus.open(f"{url}@v4") as corpus:
                    list(corpus.rows("all"))
            assert expected is VersionMissing or name in str(caught.value)
        there.put(name, data)
    another_machine(monkeypatch, tmp_path, "whole")
    assert len(seen(url)) == 4


def test_refusals_of_the_store_are_typed_and_hold_no_credentials(
    url: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(url, batch(0))
    texts: list[str] = [repr(ObjectStore(url)), repr(place_at(resolve_target(url)))]

    def refused(kind: type[StoreError], target: str) -> None:
        with pytest.raises(kind) as caught:
            Corpus.open(target)
        texts.append(str(caught.value) + repr(caught.value))

    refused(BucketMissing, "s3://there-is-no-such-bucket/c")
    with pytest.raises(CorpusMissing, match="no corpus is there"):
        Corpus.open(url + "x")
    moto_requires_keys(s3_server, of_whom="nobody")
    try:
        refused(StoreRefused, url)
    finally:
        moto_requires_keys(s3_server, of_whom="all")
    monkeypatch.setitem(store._S3_OPTIONS, "config_kwargs", {"retries": {"max_attempts": 1}})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    refused(StoreUnreachable, url)
    assert not [text for text in texts if "a-secret-for-tests" in text]


def moto_requires_keys(server: str, *, of_whom: str) -> None:
    """From now on the server knows nobody's keys, or asks for none."""
    request = urllib.request.Request(
        f"{server}/moto-api/reset-auth",
        data=b"0" if of_whom == "nobody" else b"inf",
        headers={"Content-Type": "text/plain"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def test_a_corpus_of_a_newer_treadle_is_refused(url: str) -> None:
    run(url, batch(0))
    marker = f'{{"format":"treadle-corpus-objects","format_version":{FORMAT_VERSION + 1}}}'
    ObjectStore(url).put("corpus.json", marker.encode())
    with pytest.raises(CorpusNewer, match="use the treadle that wrote it"):
        Corpus.open(url)
    with pytest.raises(CorpusNewer, match="use the treadle that wrote it"):
        writer(url)


# --- tags, cache --------------------------------------------------------------------------------------------------------------


def test_tags_are_published(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(2):
        run(url, batch(n))
    set_tag(resolve_target(url), "golden", 1)
    another_machine(monkeypatch, tmp_path)
    assert parse_ref(f"{url}@golden").version == 1
    with Corpus.open(f"{url}@golden") as corpus:
        assert corpus.tags() == ["golden"]
        with pytest.raises(TargetError, match="tag 'v'"):
            parse_ref(f"{url}@v")
    with pytest.raises(TagTaken):
        set_tag(resolve_target(url), "golden", 2)
    set_tag(resolve_target(url), "golden", 2, force=True)
    assert parse_ref(f"{url}@golden").version == 2
    assert untag(resolve_target(url), "golden") == 2
    with pytest.raises(TagMissing):
        parse_ref(f"{url}@golden")


def test_the_cache_forgets_what_was_not_opened_for_longest_and_never_what_is_read(url: str, small: None) -> None:
    for n in range(6):
        run(url, batch(n))
    path = resolve_target(url)
    with Corpus.open(f"{url}@v2") as held:
        rows = list(held.rows("all"))
        for number in (3, 6):
            with Corpus.open(f"{url}@v{number}") as corpus:
                corpus.verify()
        evict(path.parent, 1)
        assert [file.name for file in (path / "versions").iterdir()] == ["v2.json"]
        assert list(held.rows("all")) == rows
    evict(path.parent, 1)
    assert not list((path / "versions").iterdir())
    assert not [file for name in ("index", "bodies") for file in (path / name).iterdir()]
    assert len(seen(url)) == 6


def test_readers_of_many_processes_share_one_cache(url: str, small: None) -> None:
    for n in range(6):
        run(url, batch(n))
    code = "import sys; from treadle_corpus import Corpus; c = Corpus.open(sys.argv[1]); c.verify(); print(len(list(c.rows('all'))))"
    readers = [
        subprocess.Popen([sys.executable, "-c", code, f"{url}@v{n}"], stdout=subprocess.PIPE, text=True)
        for n in (6, 6, 5)
    ]
    assert [reader.communicate(timeout=60)[0].strip() for reader in readers] == ["18", "18", "15"]


def test_a_removed_version_is_gone_for_everybody_and_its_number_is_not_used_again(
    url: str, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(6):
        run(url, batch(n))
    there, path = ObjectStore(url), resolve_target(url)
    with Corpus.open(f"{url}@v2") as fetched:
        fetched.verify()
    set_tag(path, "golden", 3)
    made = prune_versions(path, keep=2)
    assert (made.removed, [(one.version, one.reason) for one in made.kept]) == ([1, 2, 4], [(3, "tag golden")])
    with pytest.raises(VersionMissing, match="there are v3, v5, v6"):
        Corpus.open(f"{url}@v2")
    objects = len(there.names("objects"))
    monkeypatch.setattr(history, "SWEEP_AFTER_S", -60.0)
    prune_versions(path, keep=1)
    assert len(there.names("objects")) < objects
    another_machine(monkeypatch, tmp_path)
    assert list(seen(url)) == [3, 6]
    assert not there.create("versions/v5.json", b"a writer that lost its right")
    assert run(url, batch(6)) is not None
    assert list(seen(url)) == [3, 6, 7]


# --- folders ------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_published_once_and_fetched_as_it_was(bucket: str, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    (folder / "model").mkdir(parents=True)
    (folder / "release.json").write_text("{}")
    (folder / "model" / "weights").write_bytes(bytes(range(256)) * 100)
    url = f"{bucket}/releases/r1"
    publish_folder(folder, url, kind="release")
    publish_folder(folder, url, kind="release")
    fetch_folder(url, tmp_path / "copy", kind="release")
    assert (tmp_path / "copy" / "model" / "weights").read_bytes() == (folder / "model" / "weights").read_bytes()
    with pytest.raises(TargetError, match="is there already"):
        fetch_folder(url, tmp_path / "copy", kind="release")
    with pytest.raises(TargetError, match="no archive"):
        fetch_folder(url, tmp_path / "other", kind="archive")
    (folder / "release.json").write_text('{"other": 1}')
    with pytest.raises(TargetError, match="something else is published there"):
        publish_folder(folder, url, kind="release")
    ObjectStore(url).put("files/model/weights", b"torn")
    with pytest.raises(ObjectDamaged, match="files/model/weights"):
        fetch_folder(url, tmp_path / "third", kind="release")
    assert not (tmp_path / "third").exists()
