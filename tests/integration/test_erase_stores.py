"""Erasing a subject from corpora, exports and archives: everything in them is unpacked and searched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from treadle.settings import Settings
from treadle_corpus import Corpus, Policy, erasures, resolve_target
from treadle_corpus._bodies import Bodies, _Tail, unpack
from treadle_corpus._moments import moments
from treadle_streams import workspaces
from treadle_streams.archive import Archive
from treadle_streams.snapshot import prove, run_snapshot

from tests.integration.erase_world import Person, in_files, running, settings_of
from tests.integration.object_world import in_folder, in_store, said
from tests.integration.test_erase import command, erase, speak


def every_text(corpus: Path) -> bytes:
    """All that the files of a corpus say, unpacked."""
    said: list[Any] = [file.read_bytes() for file in corpus.rglob("*.json")]
    for moment in moments(corpus, head=True):
        said += [moment.state.rows, moment.state.parts, moment.state.control]
    bodies = Bodies(corpus)
    bodies.refresh()
    said += [bodies.read(range(s.first, s.first + s.bodies)) for s in bodies._seals.values()]
    for file in (corpus / "bodies").glob("tail-*.log"):
        tail = _Tail(corpus, file, int(file.stem.removeprefix("tail-")))
        said += [unpack(tail.packed(n)) for n in range(tail.first, tail.end)]
    return repr(said).encode()


def archived(settings: Settings) -> Iterator[bytes]:
    found = workspaces.get(settings.bootstrap_servers, str(settings.workspace))
    for target in found.archives:
        place = Archive(target, found)
        for one in place.every():
            yield from (repr(record).encode() for record in place.records(one))


def exported(file: Path) -> bytes:
    return repr(pq.read_table(file).to_pylist()).encode()


@pytest.mark.long
def test_corpora_exports_and_archives_forget_a_subject_and_still_prove_the_others(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    settings = settings_of(broker, workspace_name, tmp_path / "home")
    ann, bob = Person("ann"), Person("bob")
    speak(settings, ann, bob)
    corpus = settings.corpus_root / workspace_name / "main"
    out = tmp_path / "train.parquet"
    with running(settings, "worker"):
        run_snapshot(broker, workspace_name, corpus, Policy())
        options = ("--view", "sft", "--rows", "all", "--split", "all", "--out", str(out))
        told = command(settings, "corpus", "export", str(corpus), *options)
        assert told.exit_code == 0, told.output
        assert command(settings, "archive", workspace_name, "--to", str(tmp_path / "cold")).exit_code == 0
        words = {place: mark for place, mark in ann.needles.items() if place not in ("tag", "name", "image")}
        assert all(any(mark in text for text in archived(settings)) for mark in words.values())
        assert words["prompt"] in every_text(corpus)
        assert words["answer"] in exported(out)
        _, report = erase(settings, ann)
    stores = {s["store"]: s for s in report["stores"]}
    assert (stores["corpus"]["rows"], stores["corpus"]["remains"]) == (2, [])  # the two that had settled
    assert (stores["export"]["place"], stores["export"]["remains"]) == (str(out), [])
    assert stores["archive"]["remains"] == []
    assert not any(mark in text for text in archived(settings) for mark in ann.needles.values())
    assert not any(mark in every_text(corpus) for mark in ann.needles.values())
    assert not any(mark in exported(out) for mark in ann.needles.values())
    assert in_files(tmp_path, ann.needles, of=("train.parquet", "cold")) == {}
    # the others are there, and proven by what is left
    assert bob.needles["answer"] in every_text(corpus)
    assert bob.needles["answer"] in exported(out)
    assert any(bob.needles["comment"] in text for text in archived(settings))
    (record,) = erasures(corpus)
    with Corpus.open(corpus) as left:
        left.verify()
        assert record.versions[1].after == left.manifest.content_hash
    assert [m.content_hash for m in prove(broker, corpus, [1])] == [record.versions[1].after]
    assert command(settings, "archive", "verify", workspace_name).exit_code == 0
    again = {s["store"]: s for s in json.loads(json.dumps(erase(settings, ann)[1]))["stores"]}
    assert (again["corpus"], again["archive"]) == (stores["corpus"], stores["archive"])


@pytest.mark.long
def test_a_corpus_in_an_object_store_forgets_a_subject_and_still_proves_the_others(
    broker: str, workspace_name: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("TREADLE_HOME", str(home))
    settings, url = settings_of(broker, workspace_name, home), f"{bucket}/main"
    ann, bob = Person("ann"), Person("bob")
    speak(settings, ann, bob)
    corpus, out = resolve_target(url), tmp_path / "train.parquet"
    words = [ann.marks[place] for place in ("prompt", "answer", "argument", "comment", "part")]
    with running(settings, "worker"):
        run_snapshot(broker, workspace_name, corpus, Policy())
        options = ("--view", "sft", "--rows", "all", "--split", "all", "--out", str(out))
        assert command(settings, "corpus", "export", url, *options).exit_code == 0
        assert said([*in_store(url), *in_folder(home / "corpora-objects")], words)
        with Corpus.open(corpus) as before:
            hashed = before.manifest.content_hash
        _, report = erase(settings, ann, "--corpus", url)
    stores = {s["store"]: s for s in report["stores"]}
    assert (stores["corpus"]["place"], stores["corpus"]["rows"], stores["corpus"]["remains"]) == (url, 2, [])
    assert stores["corpus"]["bytes"] > 0
    assert (stores["export"]["place"], stores["export"]["remains"]) == (str(out), [])
    assert said([*in_store(url), *in_folder(home / "corpora-objects")], words) == set()
    assert ann.needles["answer"] not in exported(out)
    assert bob.needles["answer"] in exported(out)
    (record,) = erasures(corpus)
    with Corpus.open(corpus) as left:
        left.verify()
        assert (record.versions[1].before, record.versions[1].after) == (hashed, left.manifest.content_hash)
    assert [m.content_hash for m in prove(broker, corpus, [1])] == [record.versions[1].after]
    assert run_snapshot(broker, workspace_name, corpus, Policy()).rows == left.manifest.rows
    again = {s["store"]: s for s in erase(settings, ann, "--corpus", url)[1]["stores"]}
    assert again["corpus"] == stores["corpus"]
    assert said(in_store(url), words) == set()
