"""Erasing a subject, on a real Kafka with real workers, stores and corpora: every byte that is kept is searched for what was said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import treadle
from click.testing import CliRunner, Result
from treadle.cli import main
from treadle.keys import keys_in
from treadle.log import Sender, read
from treadle.settings import Settings
from treadle_corpus import Corpus, Policy
from treadle_corpus.erasure import rows_of
from treadle_schemas.codec import ERASURE, header_map
from treadle_schemas.topics import topic
from treadle_streams.erasing import erase as run_erase
from treadle_streams.snapshot import run_snapshot

from tests.integration.erase_world import Person, in_files, in_topics, running, settings_of, until


def command(settings: Settings, *argv: str) -> Result:
    head = ["--home", str(settings.home), "--bootstrap-servers", settings.bootstrap_servers]
    return CliRunner().invoke(main, [*head, *argv])


def erase(settings: Settings, person: Person, *more: str) -> tuple[int, dict[str, Any]]:
    done = command(settings, "erase", str(settings.workspace), "--subject", person.name, "--yes", "--json", *more)
    assert done.exit_code in (0, 1), done.stderr
    return done.exit_code, json.loads(done.stdout)


def listed(report: dict[str, Any]) -> set[tuple[str, int, int]]:
    """The offsets that a report lists."""
    out = set()
    for store in report["stores"]:
        for line in store["remains"]:
            topic, partition, text = re.fullmatch(r"(\S+)\[(\d+)\]: ([\d, -]+): .*", line).groups()  # type: ignore[union-attr]
            for part in text.split(", "):
                first, _, last = part.partition("-")
                out |= {(topic, int(partition), offset) for offset in range(int(first), int(last or first) + 1)}
    return out


def speak(settings: Settings, *people: Person) -> None:
    with treadle.Recorder(agent="desk", settings=settings, raise_errors=True) as recorder:
        for person in people:
            person.speak(recorder)
        assert recorder.flush(30) == 0


def test_without_encryption_only_the_topics_keep_text_and_every_offset_is_listed(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    settings = settings_of(broker, workspace_name, tmp_path / "home")
    ann, bob = Person("ann"), Person("bob")
    speak(settings, ann, bob)
    with running(settings, "worker"):
        corpus = settings.corpus_root / workspace_name / "main"
        run_snapshot(broker, workspace_name, corpus, Policy())
        assert command(settings, "indexer", "-w", workspace_name, "--once").exit_code == 0
        before = in_topics(broker, workspace_name, ann.needles)
        assert set(before) == set(ann.needles)

        code, told = erase(settings, ann, "--dry-run")
        assert code == 1
        assert (told["episodes"], told["interactions"]) == (2, 3)
        assert in_topics(broker, workspace_name, ann.needles) == before

        code, told = erase(settings, ann)
        assert code == 1
        assert {s["store"] for s in told["stores"] if s["remains"]} == {"log"}
        # every record with her words, and others of her episodes that hold none of the marks
        places = in_topics(broker, workspace_name, ann.needles)
        assert listed(told) >= {place for found in places.values() for place in found}
        assert not listed(told) & {
            p for found in in_topics(broker, workspace_name, bob.needles).values() for p in found
        }
        for store in ("state", "index"):
            assert in_files(settings.home, ann.needles, of=(store,)) == {}, store
        # both compress older files: not each mark stands there as it is
        assert in_files(settings.home, bob.needles, of=("state",))
        assert in_files(settings.home, bob.needles, of=("index",))
        # a corpus that begins now reads the log, and takes in nothing of hers on the way
        fresh = tmp_path / "fresh"
        run_snapshot(broker, workspace_name, fresh, Policy())
        assert rows_of(fresh, ann.episodes).nothing
        assert not rows_of(fresh, bob.episodes).nothing
        again = erase(settings, ann)[1]
        assert (listed(again), again["erased_at"]) == (listed(told), told["erased_at"])
    # the next worker starts without state on this machine, and has none of it either


def test_with_encryption_no_byte_of_the_subject_is_left_anywhere_and_all_of_the_others(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    settings = settings_of(broker, workspace_name, tmp_path / "home", encrypt="subjects")
    with keys_in(settings.keys_folder):
        sealed(settings)


def sealed(settings: Settings) -> None:
    broker, workspace_name = settings.bootstrap_servers, str(settings.workspace)
    ann, bob = Person("ann"), Person("bob")
    speak(settings, ann, bob)
    # nothing is in clear on the way, for nobody
    assert in_topics(broker, workspace_name, ann.needles | bob.needles) == {}
    with running(settings, "worker"):
        corpus = settings.corpus_root / workspace_name / "main"
        run_snapshot(broker, workspace_name, corpus, Policy())
        assert command(settings, "indexer", "-w", workspace_name, "--once").exit_code == 0
        assert in_files(settings.home, ann.needles | bob.needles, of=("state",)) == {}
        assert in_topics(broker, workspace_name, ann.needles | bob.needles) == {}
        assert set(said(settings, ann)) == set(ann.needles) - {"name"}

        for last in CUT_OFF:
            with pytest.raises(KeyboardInterrupt):
                run_erase(settings, workspace_name, ann.name, step=Killed(last))
        code, told = erase(settings, ann)
        assert [s for s in told["stores"] if s["remains"]] == []
        assert code == 0
        assert said(settings, ann) == {}
        assert set(said(settings, bob)) == set(bob.needles) - {"name"}
        for store in ("state", "index", "spool", "keys"):
            assert in_files(settings.home, ann.needles, of=(store,)) == {}, store
        assert erase(settings, ann)[0] == 0

        # who comes back is somebody new, with another key
        with treadle.Recorder(agent="desk", settings=settings, raise_errors=True) as recorder:
            again = recorder.record(messages=[{"role": "user", "content": ann.marks["late"]}], subject=ann.name)
            recorder.outcome(again, "reward", 1.0)
        run_snapshot(broker, workspace_name, corpus, Policy())
        late = list(treadle.consume(workspace_name, "graded", idle_s=2, bootstrap_servers=broker))
        assert [row.erased for row in late if row.interaction_id == again.interaction_id] == [False]


CUT_OFF = ("remember", "say", "wait", "keys", "stores", "store state")
"""Steps before which a run is cut off."""


class Killed:
    """Dies before a step."""

    def __init__(self, last: str) -> None:
        self.last = last

    def __call__(self, name: str) -> None:
        if name == self.last:
            raise KeyboardInterrupt


@pytest.mark.long
@pytest.mark.parametrize("encrypt", ["nothing", "subjects"])
def test_a_restore_from_the_log_and_a_replay_bring_nobody_back(
    broker: str, workspace_name: str, tmp_path: Path, encrypt: str
) -> None:
    settings = settings_of(broker, workspace_name, tmp_path / "home", encrypt=encrypt)
    with keys_in(settings.keys_folder):
        ann, bob = Person("ann"), Person("bob")
        speak(settings, ann, bob)
        corpus = settings.corpus_root / workspace_name / "main"
        with running(settings, "worker"):
            run_snapshot(broker, workspace_name, corpus, Policy())
            assert erase(settings, ann)[0] == (encrypt == "nothing")
        restored = command(settings, "restore", workspace_name, "--from-log", "--yes")
        assert restored.exit_code == 0, restored.stderr
        replayed(broker, workspace_name, ann)
        with running(settings, "worker"):
            run_snapshot(broker, workspace_name, corpus, Policy())
            # Kafka still has the words; what the join makes of them is nothing
            until(lambda: in_files(settings.home, ann.needles, of=("state",)) == {}, "scrubbing")
            rows = list(
                treadle.consume(workspace_name, "graded", revisions="latest", idle_s=2, bootstrap_servers=broker)
            )
            assert {row.erased for row in rows if row.episode_id in ann.episodes} == {True}
            assert {row.erased for row in rows if row.episode_id in bob.episodes} == {False}
            fresh = tmp_path / "fresh"
            run_snapshot(broker, workspace_name, fresh, Policy())
            assert {row.episode_id for row in Corpus.open(fresh).rows("all")} == set(bob.episodes)


def replayed(broker: str, workspace: str, person: Person) -> None:
    """All of a person's records of the inputs once more, byte by byte, as a late spool would send them."""
    sender = Sender(broker)
    keys = {episode.encode() for episode in person.episodes}
    for kind in ("interactions", "outcomes"):
        name = topic(workspace, kind)
        for record in read(broker, name, 2, raw=True):
            if record.key in keys and header_map(record.headers)["ce_type"] != ERASURE.encode():
                sender.send(name, record.key, record.value, list(record.headers))  # type: ignore[arg-type]
    sender.flush()


def said(settings: Settings, person: Person) -> dict[str, set[str]]:
    """What of a person's words the log gives to a reader with the keys, by place."""
    found: dict[str, set[str]] = {}
    for kind in ("interactions", "outcomes", "graded"):
        name = topic(str(settings.workspace), kind)
        for record in read(settings.bootstrap_servers, name, 2):
            for place, needle in person.needles.items():
                if needle in (record.value or b"") and place != "name":
                    found.setdefault(place, set()).add(kind)
    return found
