"""Recall on a real Kafka: recorder, join and indexer as processes of their own, then `Recorder.recall` and the command."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle
from click.testing import CliRunner
from treadle.cli import main
from treadle.errors import MissingExtra
from treadle.policies import remember
from treadle.recall import Hit
from treadle.settings import Settings
from treadle_schemas import Metric, WorkspaceSettings
from treadle_streams import workspaces
from treadle_streams.filter import FilterError
from treadle_streams.live import Indexer, IndexInUse, IndexMissing, erase

PARTITIONS = 2


@pytest.fixture
def settings(broker: str, workspace_name: str, tmp_path: Path) -> Settings:
    metrics = (Metric(name="reward", required=True),)
    made = workspaces.create(
        broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS, metrics=metrics)
    )
    remember(tmp_path / "home", made)
    environment = {
        "TREADLE_HOME": str(tmp_path / "home"),
        "TREADLE_BOOTSTRAP_SERVERS": broker,
        "TREADLE_WORKSPACE": workspace_name,
    }
    return Settings.load(environment)


@pytest.fixture
def recorder(settings: Settings) -> Iterator[treadle.Recorder]:
    with treadle.Recorder(agent="desk", settings=settings, raise_errors=True) as made:
        yield made


@pytest.fixture
def run(settings: Settings) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts commands of treadle, and ends them."""
    started = []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")} | {
        "TREADLE_HOME": str(settings.home),
        "TREADLE_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TREADLE_WORKSPACE": str(settings.workspace),
    }

    def start(*argv: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-m", "treadle", *argv], env=environment))
        return started[-1]

    yield start
    for process in reversed(started):
        process.send_signal(signal.SIGTERM)
    codes = [process.wait(60) for process in reversed(started)]
    assert codes == [0] * len(codes)


def until(found: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            value = found()
        except IndexMissing:
            value = None
        if value:
            return value
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.02)


def say(recorder: treadle.Recorder, asked: str, answered: str, **options: Any) -> treadle.Handle:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return recorder.record(messages=messages, response=[1], **options)


def test_what_was_recorded_is_recalled_with_its_grade_until_it_may_not_be(
    settings: Settings, recorder: treadle.Recorder, run: Callable[..., subprocess.Popen[bytes]]
) -> None:
    run("worker")
    run("indexer")
    lamp = say(recorder, "My lamp arrived broken", "I refunded the lamp", subject="graf-99")
    say(recorder, "Where is my parcel?", "In Bremen")
    history = [{"role": "user", "content": "repair the zeppelin " + "x" * 3000}]
    recorder.record(messages=[*history, {"role": "assistant", "content": "done"}], response=[1], episode_id="long")
    (hit,) = until(lambda: recorder.recall("broken lamps"))
    assert (hit.handle, hit.agent) == (str(lamp), "desk")
    assert until(lambda: recorder.recall("zeppelin"))[0].request.startswith("repair the zeppelin")
    until(lambda: recorder.recall("lamp")[0].state == "pending")
    recorder.outcome(hit.handle, "reward", 0.75)
    until(lambda: recorder.recall("lamp", filter="reward > 0.5"))
    (hit,) = recorder.recall("lamp", filter="reward > 0.5 AND agent = 'desk'")
    assert (hit.state, hit.reward) == ("settled", 0.75)
    assert recorder.recall("lamp", filter="reward > 0.9") == []

    environment = {"TREADLE_HOME": str(settings.home)}
    name = str(settings.workspace)
    shown = CliRunner().invoke(main, ["recall", name, "broken", "lamp", "--json", "-n", "1"], env=environment)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)[0]["reward"] == 0.75
    shown = CliRunner().invoke(main, ["recall", name, "lamp", "--filter", "agent = 'desk'"], env=environment)
    assert str(lamp) in shown.stdout
    assert "settled  reward 0.75" in shown.stdout
    assert "My lamp arrived broken" in shown.stdout
    wrong = CliRunner().invoke(main, ["recall", name, "lamp", "--filter", "agnt = 'desk'"], env=environment)
    assert isinstance(wrong.exception, SystemExit)
    assert wrong.exit_code == 2
    missing = CliRunner().invoke(main, ["recall", "other", "lamp"], env=environment)
    assert "treadle indexer --workspace other" in missing.stderr

    recorder.rights(lamp, recall="deny")
    until(lambda: not recorder.recall("lamp"))
    recorder.rights(lamp, recall="allow")
    assert until(lambda: recorder.recall("lamp"))[0].reward == 0.75  # read again from the log
    with pytest.raises(IndexInUse), Indexer(settings.bootstrap_servers, settings.home, name):
        pass
    assert erase(settings.home, name, ["graf-99"]).rows == 1
    assert recorder.recall("lamp") == []
    files = [path for path in (settings.home / "index" / name).rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"graf-99" in path.read_bytes()]
    assert recorder.recall("zeppelin")


def test_parts_that_were_forgotten_are_read_again_from_the_log(settings: Settings, recorder: treadle.Recorder) -> None:
    history = [{"role": "user", "content": "repair the zeppelin " + "x" * 3000}]
    first = recorder.record(messages=[*history, {"role": "assistant", "content": "no"}], episode_id="e")
    servers, name = settings.bootstrap_servers, str(settings.workspace)
    assert recorder.flush(30) == 0
    with Indexer(servers, settings.home, name) as indexer:
        assert indexer.catch_up().shown == 1
        recorder.rights(first, recall="deny")
        assert recorder.flush(30) == 0
        assert indexer.catch_up().shown == 0
        rows = indexer._index.rows
        assert rows._db.execute("SELECT count(*) FROM parts").fetchone() == (0,)  # nothing of it is kept
        recorder.record(messages=[*history, {"role": "assistant", "content": "yes"}], episode_id="e")
        assert recorder.flush(30) == 0
        assert indexer.catch_up().shown == 1
    (hit,) = recorder.recall("zeppelin")
    assert hit.response == "yes"
    with Indexer(servers, settings.home, name) as indexer:
        assert indexer.catch_up().shown == 1
        assert indexer.step(0.0) == 0  # it went on where it was
    with Indexer(servers, settings.home, name, rebuild=True) as indexer:
        assert indexer.catch_up().shown == 1


def test_recall_never_hurts_its_host(settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with treadle.Recorder(settings=settings, raise_errors=True) as loud:
        with pytest.raises(IndexMissing, match="treadle indexer"):
            loud.recall("lamp")
    with treadle.Recorder(settings=settings, raise_errors=False) as quiet:
        assert quiet.recall("lamp") == []
        assert "recall failed, IndexMissing" in caplog.text
        with Indexer(settings.bootstrap_servers, settings.home, str(settings.workspace)) as indexer:
            indexer.catch_up()
        assert quiet.recall("lamp", filter="nonsense >") == []
    with treadle.Recorder(settings=settings, raise_errors=True) as loud:
        assert loud.recall("lamp") == []
        with pytest.raises(FilterError):
            loud.recall("lamp", filter="nonsense >")

        def absent(name: str) -> Any:
            raise ModuleNotFoundError("No module named 'tantivy'", name="tantivy")

        found: list[Hit] = []
        monkeypatch.setattr("treadle.recall.importlib.import_module", absent)
        with pytest.raises(MissingExtra, match=r"pip install 'treadle\[recall\]'"):
            found += treadle.recall.recall("lamp", settings=settings)  # type: ignore[attr-defined]
        monkeypatch.undo()
        assert importlib.import_module("treadle.recall").recall("lamp", settings=settings) == found
