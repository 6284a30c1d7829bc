"""Erasing episodes from a corpus in an object store, against a real S3 server on this machine."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from treadle_corpus import (
    Corpus,
    CorpusInUse,
    CorpusLocked,
    CorpusMissing,
    CorpusWriter,
    Erasure,
    GradedRecord,
    Manifest,
    Policy,
    VersionChanged,
    _bodies,
    _journal,
    erase,
    erasures,
    name_of,
    prune_versions,
    read_tags,
    resolve_target,
    set_tag,
    trace_subject,
    versions,
    workspace_of,
)
from treadle_corpus.erasers import erase_corpora
from treadle_corpus.exports import exports
from treadle_corpus.objects import ObjectStore, history, lease, store
from treadle_corpus.objects.published import generation_of
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas.erasing import ErasureRequest, StoreReport

from tests.integration.object_world import in_folder, in_store, said
from tests.property.test_corpus_erasure import POLICIES, WORDS, act
from tests.property.test_corpus_erasure import seen as all_of

AT = "2026-11-30T12:00:00Z"
SECRETS = {name: f"a-word-that-only-{name}-says" for name in ("ann", "bob", "carol", "cid", "dora")}


@pytest.fixture(autouse=True)
def _a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bodies, "SEGMENT_BODIES", 6)
    monkeypatch.setattr(_journal, "ROTATE_BYTES", 1500)
    monkeypatch.setattr(_journal, "ROTATE_FACTOR", 0)


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/corpora/shop"


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "other") -> Path:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / name))
    return tmp_path / name


def row(name: str, n: int, *, revision: int = 1, reward: float = 1.0) -> GradedRecord:
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": SECRETS[name]}]
    return graded(f"{name}-{n}", episode_id=name, messages=messages, revision=revision, reward=reward)


BATCHES = [
    [row("ann", 0), row("bob", 0)],
    [row("carol", 0), row("bob", 0, revision=2, reward=2.0), row("bob", 1)],
    [row("ann", 1), row("carol", 1), row("bob", 1, revision=2, reward=0.0), row("ann", 0, revision=2, reward=3.0)],
    [row("bob", 2), row("carol", 1, revision=2, reward=4.0)],
]


def writer(target: str) -> CorpusWriter:
    return CorpusWriter.open(resolve_target(target), workspace="w", policy=Policy())


def run(target: str, n: int) -> Manifest | None:
    with writer(target) as corpus:
        corpus.apply(BATCHES[n], {0: 100 * n + 100}, 1000 * n)
        return corpus.finish(SelectAll(), created_at=AT)


def more(target: str, name: str, n: int) -> Manifest | None:
    with writer(target) as corpus:
        corpus.apply([row(name, n)], {0: 1000 + n}, 9000)
        return corpus.finish(SelectAll(), created_at=AT)


def filled(target: str) -> None:
    """Four versions, the second tagged, and cid, who is folded and in none."""
    for n in range(len(BATCHES)):
        run(target, n)
    set_tag(resolve_target(target), "golden", 2)
    with writer(target) as corpus:
        corpus.apply([row("cid", 0)], {0: 450}, 5000)


def erased(target: str, *episodes: str) -> Erasure | None:
    return erase(resolve_target(target), episodes, reason="asked", erased_at=AT)


def seen(target: str) -> dict[int, tuple[str, list[str]]]:
    found = {}
    for number in versions(resolve_target(target)):
        with Corpus.open(f"{target}@v{number}") as corpus:
            corpus.verify()
            found[number] = (corpus.manifest.content_hash, [r.interaction_id for r in corpus.rows("all")])
    return found


def words_in(texts: Iterator[bytes], *names: str) -> set[str]:
    return said(texts, [SECRETS[name] for name in names])


def test_what_is_erased_is_in_no_object_and_no_file_and_the_versions_are_those_of_a_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, home, other = str(tmp_path / "folder"), tmp_path / "home", tmp_path / "other"
    filled(url)
    filled(folder)
    before = seen(url)
    path = resolve_target(url)
    (path / "tokens" / "t").mkdir(parents=True)
    (path / "tokens" / "t" / "ids").write_text(SECRETS["ann"])
    another_machine(monkeypatch, tmp_path)
    assert seen(url) == before  # all of it is fetched there, too
    monkeypatch.setenv("TREADLE_HOME", str(home))
    everyone = {SECRETS[name] for name in ("ann", "bob", "carol", "cid")}
    assert words_in(in_store(url), *SECRETS) == everyone - {SECRETS["cid"]}
    assert words_in(in_folder(home), *SECRETS) == everyone

    record, local = erased(url, "ann", "cid", "nobody"), erased(folder, "ann", "cid", "nobody")
    assert record is not None
    assert local is not None
    assert (record.number, len(record.episodes), len(record.rows)) == (1, 3, 3)
    assert record.versions == local.versions
    assert sorted(record.versions) == [1, 2, 3, 4]
    assert words_in(in_store(url), "ann", "cid") == set()
    assert words_in(in_folder(home), "ann", "cid") == set()
    assert seen(url) == seen(folder)
    assert words_in(in_store(url), *SECRETS) == {SECRETS["bob"], SECRETS["carol"]}
    assert words_in(in_folder(home), *SECRETS) == {SECRETS["bob"], SECRETS["carol"]}
    assert read_tags(path) == {"golden": 2}
    assert erasures(path) == [record]
    assert not [file for file in (home / "corpora-objects").iterdir() if file.name.startswith(".")]
    # a machine that has copies of before forgets them when it comes by
    another_machine(monkeypatch, tmp_path)
    assert words_in(in_folder(other), "ann") == {SECRETS["ann"]}
    assert trace_subject(resolve_target(url), ["nobody"]) == trace_subject(Path(folder), ["nobody"])
    assert words_in(in_folder(other), "ann") == set()
    assert seen(url) == seen(folder)
    assert erasures(resolve_target(url)) == [record]
    # nothing of it comes back, here or there, and what comes is what comes to a folder
    for home_of in ("other", "home"):
        another_machine(monkeypatch, tmp_path, home_of)
        for target in (url, folder):
            with writer(target) as corpus:
                at = 500 if home_of == "other" else 600  # what was in no version is folded again
                corpus.apply([row("ann", at), row("cid", 0), row("bob", at)], {0: at}, 6000)
                assert corpus.finish(SelectAll(), created_at=AT) is not None
    assert seen(url) == seen(folder)
    assert list(seen(url)) == [1, 2, 3, 4, 5, 6]
    assert words_in(in_store(url), "ann", "cid") == set()


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 12))])
def test_a_published_corpus_that_is_erased_is_the_folder_that_is_erased(url: str, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    steps: list[Any] = []
    for _ in range(chance.randint(12, 24)):
        if chance.random() < 0.3:
            steps.append(chance.randrange(len(POLICIES)))
        else:
            chosen = (chance.choice([None, 0.0, 1.0, 2.0]), chance.choice(["train", "heldout"]), chance.random() < 0.7)
            steps.append((chance.randrange(5), chance.randrange(2), *chosen, chance.choice(WORDS)))
    steps.append(0)  # a version at the end
    cut = chance.randint(len(steps) // 2, len(steps))
    gone = [f"e{n}" for n in chance.sample(range(5), chance.randint(1, 3))]
    published, folder = resolve_target(url), tmp_path / "folder"
    for path in (published, folder):
        act(path, steps, until=cut)
        erase(path, gone, reason="asked", erased_at=AT)
        made = [n for n, step in enumerate(steps[:cut]) if isinstance(step, int)]
        begin = cut if path == folder else made[-1] + 1 if made else 0  # what was in no version is folded again
        act(path, steps, start=begin)
    assert all_of(published) == all_of(folder)
    mine, its = erasures(published), erasures(folder)
    assert [(one.versions, len(one.episodes), len(one.rows)) for one in mine] == [
        (one.versions, len(one.episodes), len(one.rows)) for one in its
    ]
    assert said([*in_store(url), *in_folder(tmp_path / "home")], [f"secret of {one} " for one in gone]) == set()


def test_erasing_again_and_others(url: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "folder")
    for target in (url, folder):
        filled(target)
        for names in (["ann"], ["ann"], ["carol", "ann"], ["nobody"], ["bob", "cid"]):
            erased(target, *names)
    assert [len(one.episodes) for one in erasures(resolve_target(url))] == [1, 1, 1, 2]
    assert seen(url) == seen(folder)
    assert list(seen(url).values())[-1][1] == []
    assert words_in(in_store(url), *SECRETS) == set()
    assert words_in(in_folder(tmp_path / "home"), *SECRETS) == set()
    held = generation_of(ObjectStore(url))
    assert (held.number, held.done) == (4, True)
    names = ObjectStore(url).names()
    assert sum(name.startswith("versions/") for name in names) == 1  # the seal
    assert more(url, "carol", 9) is None  # who is erased does not come back
    assert more(url, "dora", 9) is not None
    # old versions are removed as before
    assert prune_versions(resolve_target(url), keep=1).removed == [1, 3, 4]
    assert list(seen(url)) == [2, 5]
    assert erased(url, "a new one") is not None
    assert list(seen(url)) == [2, 5]


# --- who is there meanwhile ---------------------------------------------------------------------------------------------------


def test_readers_and_writers_are_named_and_nothing_is_changed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(url)
    before = seen(url)
    names = ObjectStore(url).names("versions")
    with writer(url) as held:
        with pytest.raises(CorpusLocked):
            erased(url, "ann")
        another_machine(monkeypatch, tmp_path)
        with pytest.raises(CorpusLocked, match=f"{url} is being written by process "):
            erased(url, "ann")
        monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
        assert held.manifest is not None
    code = "import sys; from treadle_corpus import Corpus; c = Corpus.open(sys.argv[1]); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, f"{url}@v2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        with pytest.raises(CorpusInUse, match=f"@v2 cannot be replaced: process {reader.pid} .*Nothing was replaced"):
            erased(url, "ann")
        reader.communicate("\n")
    assert seen(url) == before
    assert ObjectStore(url).names("versions") == names
    assert erased(url, "ann") is not None
    with pytest.raises(CorpusMissing):
        erased(f"{url}-that-is-not-there", "ann")
    assert ObjectStore(f"{url}-that-is-not-there").names() == []


def test_a_reader_elsewhere_keeps_what_it_fetched_until_it_is_closed_and_is_told_where_it_fetched_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(url)
    other = another_machine(monkeypatch, tmp_path)
    reading, opened = Corpus.open(f"{url}@v4"), Corpus.open(f"{url}@v3")
    rows = list(reading.rows("all"))
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    assert erased(url, "ann") is not None
    another_machine(monkeypatch, tmp_path)
    assert list(reading.rows("all")) == rows
    with pytest.raises(VersionChanged, match="made again by an erasure"):
        list(opened.rows("all"))
    with pytest.raises(CorpusInUse, match="is reading it on this machine"):
        Corpus.open(f"{url}@v1")
    assert versions(resolve_target(url)) == [1, 2, 3, 4]
    reading.close()
    opened.close()
    assert words_in(in_folder(other), "ann") == {SECRETS["ann"]}
    with Corpus.open(f"{url}@v1") as corpus:
        assert [r.interaction_id for r in corpus.rows("all")] == ["bob-0"]
        assert len(corpus.erasures()) == 1
    assert words_in(in_folder(other), "ann") == set()


def test_a_writer_that_slept_through_an_erasure_publishes_nothing_of_before(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its check of the lease and its put of v5."""
    filled(url)
    monkeypatch.setattr(lease, "EXPIRE_S", -1.0)
    with writer(url) as late:
        late.apply([row("ann", 7), row("bob", 7)], {0: 500}, 6000)
        create = ObjectStore.create

        def slow(there: ObjectStore, name: str, data: bytes) -> bool:
            if name == "versions/v5.json":
                monkeypatch.setattr(ObjectStore, "create", create)
                with monkeypatch.context() as elsewhere:
                    elsewhere.setenv("TREADLE_HOME", str(tmp_path / "other"))
                    assert erased(url, "ann", "cid") is not None
                    assert more(url, "bob", 3) is not None  # and another writer goes on
            return create(there, name, data)

        monkeypatch.setattr(ObjectStore, "create", slow)
        with pytest.raises(CorpusLocked, match="erased episodes from it meanwhile"):
            late.finish(SelectAll())
        assert [ids for _, ids in seen(url).values()][-1] == ["bob-0", "bob-1", "bob-2", "bob-3", "carol-0", "carol-1"]
        with pytest.raises(CorpusLocked, match="this one has what that made"):
            late.apply([row("ann", 8)], {0: 501}, 6000)
        late.apply([row("ann", 7), row("ann", 8), row("bob", 7)], {0: 502}, 6000)
        made = late.finish(SelectAll())
        assert made is not None
        assert made.version == 6
    assert "bob-7" in seen(url)[6][1]
    assert not [one for _, ids in seen(url).values() for one in ids if one.startswith(("ann", "cid"))]
    assert words_in(in_folder(tmp_path / "home"), "ann", "cid") == set()
    # what it had put before that is needed by none, and goes a day later
    monkeypatch.setattr(history, "SWEEP_AFTER_S", -60.0)
    assert erased(url, "ann") is None
    assert words_in(in_store(url), "ann", "cid") == set()


def test_an_erasure_that_slept_while_another_writer_published_starts_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(url)
    monkeypatch.setattr(lease, "EXPIRE_S", -1.0)
    create = ObjectStore.create

    def slow(there: ObjectStore, name: str, data: bytes) -> bool:
        if name == "versions/v5.json":
            monkeypatch.setattr(ObjectStore, "create", create)
            with monkeypatch.context() as elsewhere:
                elsewhere.setenv("TREADLE_HOME", str(tmp_path / "other"))
                with writer(url) as corpus:
                    corpus.apply([row("ann", 9), row("bob", 9)], {0: 500}, 6000)
                    assert corpus.finish(SelectAll()) is not None
        return create(there, name, data)

    monkeypatch.setattr(ObjectStore, "create", slow)
    with pytest.raises(CorpusLocked, match="went on from v4 meanwhile"):
        erased(url, "ann")
    assert "ann-9" in seen(url)[5][1]
    assert erasures(resolve_target(url)) == []
    record = erased(url, "ann")
    assert record is not None
    assert sorted(record.versions) == [1, 2, 3, 4, 5]
    assert seen(url)[5][1] == ["bob-0", "bob-1", "bob-2", "bob-9", "carol-0", "carol-1"]
    assert words_in(in_store(url), "ann") == set()


def test_an_erasure_that_slept_while_it_deleted_takes_nothing_from_those_that_followed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(url)
    monkeypatch.setattr(lease, "EXPIRE_S", -1.0)
    delete = ObjectStore.delete

    def slow(there: ObjectStore, name: str) -> None:
        if name.startswith("objects/"):
            monkeypatch.setattr(ObjectStore, "delete", delete)
            with monkeypatch.context() as elsewhere:
                elsewhere.setenv("TREADLE_HOME", str(tmp_path / "other"))
                assert more(url, "bob", 3) is not None
                assert erased(url, "carol") is not None
                assert more(url, "bob", 4) is not None
        delete(there, name)

    monkeypatch.setattr(ObjectStore, "delete", slow)
    with pytest.raises(CorpusLocked):
        erased(url, "ann")
    assert list(seen(url)) == [1, 2, 3, 4, 5, 6]
    assert words_in(in_store(url), *SECRETS) == {SECRETS["bob"]}
    assert erased(url, "ann") is None
    assert [sorted(one.versions) for one in erasures(resolve_target(url))] == [[1, 2, 3, 4], [2, 3, 4, 5]]
    assert words_in(in_folder(tmp_path / "home"), *SECRETS) <= {SECRETS["bob"]}


def test_who_is_forbidden_before_the_first_version_is_forbidden_on_every_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writer(url) as corpus:
        corpus.forbid(["ann", "cid"], reason="erased before", erased_at=AT)
        corpus.forbid(["cid"], reason="erased before", erased_at=AT)
        corpus.apply(BATCHES[0], {0: 2}, 1000)
        assert corpus.finish(SelectAll()) is not None
    another_machine(monkeypatch, tmp_path)
    assert [len(one.episodes) for one in erasures(resolve_target(url))] == []
    run(url, 2)
    assert [ids for _, ids in seen(url).values()] == [["bob-0"], ["bob-0", "bob-1", "carol-1"]]
    assert [len(one.episodes) for one in erasures(resolve_target(url))] == [2]
    assert words_in(in_store(url), "ann") == set()


# --- what `treadle erase` says ------------------------------------------------------------------------------------------------


def request(home: Path, url: str, **fields: Any) -> ErasureRequest:
    said: dict[str, Any] = {
        "home": home,
        "corpus_root": None,
        "workspace": "w",
        "subjects": frozenset({"s"}),
        "episodes": frozenset({"ann", "cid"}),
        "rows": frozenset(),
        "corpora": frozenset({resolve_target(url)}),
        "reason": "asked",
        "erased_at": AT,
    }
    return ErasureRequest(**(said | fields))


def test_the_eraser_counts_before_and_says_what_it_did_as_often_as_it_is_asked(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(url)
    home = tmp_path / "home"
    before = ObjectStore(url).names("objects")
    (planned,) = erase_corpora(request(home, url, dry_run=True))
    counts = ("v1 has 1 of them", "v2 has 1 of them", "v3 has 2 of them", "v4 has 2 of them")
    assert planned == StoreReport(store="corpus", place=url, rows=3, notes=counts)
    assert ObjectStore(url).names("objects") == before
    assert list(erase_corpora(request(home, url, workspace="another"))) == []
    (done,) = erase_corpora(request(home, url))
    assert (done.store, done.place, done.rows, done.remains) == ("corpus", url, 3, ())
    assert done.notes == ("v1, v2, v3, v4 have other content now, as erasure 1 records",)
    assert done.bytes > 0
    (again,) = erase_corpora(request(home, url))
    assert again == done
    assert list(erase_corpora(request(home, url, dry_run=True))) == []
    assert list(erase_corpora(request(home, f"{url}-that-is-not-there"))) == [done]
    # one that nobody names, and this machine knows
    filled(f"{url}2")
    seen(f"{url}2")
    assert [(one.place, one.rows) for one in erase_corpora(request(home, url))] == [(url, 3), (f"{url}2", 3)]
    assert workspace_of(resolve_target(url)) == "w"
    assert name_of(resolve_target(url)) == url
    # a store that does not answer
    with monkeypatch.context() as broken:
        broken.setitem(store._S3_OPTIONS, "config_kwargs", {"retries": {"max_attempts": 1}})
        broken.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        told = list(erase_corpora(request(home, url)))
    assert [one.place for one in told] == [url, f"{url}-that-is-not-there", f"{url}2"]
    assert all("then erase again" in one.remains[0] for one in told)
    # one that was deleted, of which a copy is here
    seen(f"{url}2")
    for name in ObjectStore(f"{url}2").names():
        ObjectStore(f"{url}2").delete(name)
    (_, gone) = erase_corpora(request(home, url))
    assert gone.place == f"{url}2"
    assert "what was fetched or made of it here is in" in gone.remains[0]
    shutil.rmtree(resolve_target(f"{url}2"))
    shutil.rmtree(resolve_target(f"{url}2").with_name(resolve_target(f"{url}2").name + ".work"))
    # one that another machine writes
    another_machine(monkeypatch, tmp_path)
    with writer(url):
        monkeypatch.setenv("TREADLE_HOME", str(home))
        (held,) = erase_corpora(request(home, url, episodes=frozenset({"bob"})))
        assert "is being written by process" in held.remains[0]


def test_a_store_that_goes_away_while_it_is_erased_is_said_to_keep_text_and_erased_by_the_next_call(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(url)
    home = tmp_path / "home"
    with monkeypatch.context() as broken:
        broken.setitem(store._S3_OPTIONS, "config_kwargs", {"retries": {"max_attempts": 1}})
        delete = ObjectStore.delete

        def away(there: ObjectStore, name: str) -> None:
            if name.startswith("objects/"):
                broken.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            delete(there, name)

        broken.setattr(ObjectStore, "delete", away)
        (told,) = erase_corpora(request(home, url))
    assert "then erase again" in told.remains[0]
    assert words_in(in_store(url), "ann") == {SECRETS["ann"]}
    (done,) = erase_corpora(request(home, url))
    assert (done.rows, done.remains) == (3, ())
    assert words_in(in_store(url), "ann", "cid") == set()
    assert words_in(in_folder(home), "ann", "cid") == set()


def test_a_writer_finishes_what_a_killed_erasure_left(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(url)
    with monkeypatch.context() as broken:
        delete = ObjectStore.delete

        def killed(there: ObjectStore, name: str) -> None:
            if name.startswith("objects/"):
                raise KeyboardInterrupt
            delete(there, name)

        broken.setattr(ObjectStore, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            erased(url, "ann")
    assert seen(url)[1][1] == ["bob-0"]  # readers see it as soon as it is sealed
    another_machine(monkeypatch, tmp_path)
    monkeypatch.setattr(lease, "EXPIRE_S", -1.0)
    writer(url).close()
    assert words_in(in_store(url), "ann") == set()
    assert generation_of(ObjectStore(url)).done
    assert exports(resolve_target(url)) == []
