"""`treadle mirror` into a real MLflow store (tracking and registry in SQLite): what it says, again, after a kill, after an outage."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from treadle.cli import main
from treadle_schemas import ReleaseId
from treadle_trainer.errors import MirrorFailed
from treadle_trainer.mirror import Mirror, Passed, follow
from treadle_trainer.mirror._mlflow import MlflowStore
from treadle_trainer.registry import Registry

# MLflow keeps its connections until it ends, which Python 3.13 calls a leak
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning"),
]
DEADLINE_S = 60.0
GATE = {"gate": {"decision": "promote", "effect": 0.25, "reason": "better"}}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with MLflow's tables: making them takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{file}", registry_uri=f"sqlite:///{file}").search_experiments()
    with sqlite3.connect(file) as db:
        db.execute("pragma wal_checkpoint(truncate)")
    db.close()
    return file.read_bytes()


@pytest.fixture
def uri(tmp_path: Path, empty: bytes) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty)
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", "shop")


@pytest.fixture
def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def released(registry: Registry, n: int) -> list[ReleaseId]:
    """`n` releases, each promoted over the one before."""
    out = []
    for number in range(n):
        made = registry.register(
            hosted=f"model-{number}",
            method="sft",
            corpus="tickets",
            corpus_version=number,
            corpus_hash="c0ffee",
            config={"lr": 0.002, "training": {"last_loss": 1.0 / (number + 1)}},
        )
        registry.promote(made, expect=registry.champion, reason=f"move {number}", evidence=GATE)
        out.append(made)
    return out


def said(client: Any) -> dict[str, Any]:
    """Everything that MLflow says, without the names that it made up itself."""
    experiment = client.get_experiment_by_name("treadle/shop/main")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    versions = client.search_model_versions("name='shop.main'")
    release_of = {str(v.version): v.tags["treadle.release"] for v in versions}
    history = {
        (run.data.tags["treadle.release"], name): [
            (point.value, point.step, point.timestamp) for point in client.get_metric_history(run.info.run_id, name)
        ]
        for run in runs.values()
        for name in run.data.metrics
    }
    return {
        "runs": sorted(
            (
                run.data.tags["treadle.release"],
                run.info.status,
                sorted(run.data.params.items()),
                sorted(run.data.tags.items()),
            )
            for run in runs.values()
        ),
        "history": history,
        "versions": sorted(
            (v.tags["treadle.release"], v.source, runs[v.run_id].data.tags["treadle.release"]) for v in versions
        ),
        "aliases": {name: release_of[str(v)] for name, v in client.get_registered_model("shop.main").aliases.items()},
    }


def test_a_release_is_a_run_and_a_version_and_roles_are_aliases(registry: Registry, uri: str, client: Any) -> None:
    released(registry, 2)
    trial = registry.register(hosted="model-2")
    registry.admit(trial, share=0.1, expect=registry.champion, reason="try")
    assert Mirror(registry, uri).catch_up() == Passed(runs=3, versions=3, aliases=3)
    found = said(client)
    assert found["aliases"] == {"champion": "shop/main/r1", "previous": "shop/main/r0", "canary": "shop/main/r2"}
    assert [v[:2] for v in found["versions"]] == [(f"shop/main/r{n}", f"treadle://shop/main/r{n}") for n in range(3)]
    name, status, params, tags = found["runs"][1]
    assert (name, status) == ("shop/main/r1", "FINISHED")
    assert {"method": "sft", "lr": "0.002", "hosted_model": "model-1"}.items() <= dict(params).items()
    assert {"treadle.corpus": "tickets@v1", "treadle.decision": "promoted", "treadle.reason": "move 1"}.items() <= dict(
        tags
    ).items()
    assert [value for value, _, _ in found["history"]["shop/main/r1", "training.last_loss"]] == [0.5]
    assert [value for value, _, _ in found["history"]["shop/main/r1", "gate.effect"]] == [0.25]

    registry.rollback("complaints")
    registry.withdraw("no use")
    Mirror(registry, uri).catch_up()
    found = said(client)
    assert found["aliases"] == {"champion": "shop/main/r0"}
    assert dict(found["runs"][1][3])["treadle.quarantined"] == "complaints"


def test_a_second_pass_changes_nothing_and_a_third_mirror_neither(registry: Registry, uri: str, client: Any) -> None:
    released(registry, 2)
    mirror = Mirror(registry, uri)
    mirror.catch_up()
    before = said(client)
    assert mirror.catch_up() == Passed()
    assert Mirror(registry, uri).catch_up() == Passed()
    assert said(client) == before


@pytest.mark.parametrize("after", range(1, 8))
def test_whatever_call_of_mlflow_is_the_last_the_next_pass_completes_it(
    registry: Registry, uri: str, client: Any, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after so many writes of a real store."""
    from mlflow import MlflowClient

    released(registry, 2)
    left = after

    def breaking(name: str) -> Any:
        real = getattr(MlflowClient, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                raise ConnectionError("gone")
            left -= 1
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("create_run", "log_batch", "set_terminated", "set_tag", "create_model_version"):
            patch.setattr(MlflowClient, name, breaking(name))
        with pytest.raises(MirrorFailed, match="ConnectionError: gone"):
            Mirror(registry, uri).catch_up()
    Mirror(registry, uri).catch_up()
    found = said(client)
    assert [run[:2] for run in found["runs"]] == [("shop/main/r0", "FINISHED"), ("shop/main/r1", "FINISHED")]
    assert [v[0] for v in found["versions"]] == ["shop/main/r0", "shop/main/r1"]
    assert all(len(points) == 1 for points in found["history"].values())
    assert found["aliases"] == {"champion": "shop/main/r1", "previous": "shop/main/r0"}


def test_a_mirror_killed_in_the_middle_is_caught_up_with(
    registry: Registry, uri: str, client: Any, tmp_path: Path
) -> None:
    released(registry, 40)
    command = [sys.executable, "-m", "treadle", "--home", str(tmp_path), "mirror", "shop", "--to", uri]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ})
    try:
        wait_until(lambda: runs_of(client) >= 3)
    finally:
        running.kill()
        running.wait()
    done = CliRunner().invoke(main, ["--home", str(tmp_path), "mirror", "shop", "--to", uri, "--once"])
    assert done.exit_code == 0, done.output
    assert len(said(client)["runs"]) == len(said(client)["versions"]) == 40
    assert said(client)["aliases"]["champion"] == "shop/main/r39"


def test_decisions_do_not_wait_for_mlflow_and_it_catches_up_after_an_outage(
    registry: Registry, uri: str, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database, away = tmp_path / "mlflow.db", tmp_path / "away.db"
    database.rename(away)
    database.mkdir()  # nothing can be opened there
    stopped = threading.Event()
    root = registry.root
    with caplog.at_level("WARNING"):
        thread = threading.Thread(target=follow, args=(root, "shop", uri, stopped.is_set), kwargs={"pause": quick})
        thread.start()
        try:
            released(registry, 3)
            registry.rollback("complaints")
            wait_until(lambda: "it is tried again" in caplog.text)
            assert str(registry.champion) == "shop/main/r1"
            database.rmdir()
            away.rename(database)
            wait_until(lambda: client.get_experiment_by_name("treadle/shop/main") is not None and aliases(client))
            assert said(client)["aliases"]["champion"] == "shop/main/r1"
            registry.promote(ReleaseId("shop", "main", 0), expect=registry.champion, reason="followed")
            wait_until(lambda: aliases(client).get("champion") == "shop/main/r0")
        finally:
            stopped.set()
            thread.join()


def test_a_workspace_made_again_under_its_old_name_is_not_taken_for_the_old_one(
    registry: Registry, uri: str, client: Any, tmp_path: Path
) -> None:
    released(registry, 1)
    Mirror(registry, uri).catch_up()
    again = Registry(tmp_path / "registry-2", "shop")
    again.register(hosted="another")
    Mirror(again, uri).catch_up()
    found = said(client)
    assert [run[0] for run in found["runs"]] == ["shop/main/r0", "shop/main/r0"]
    assert found["aliases"] == {}


def test_a_store_that_cannot_hold_aliases_is_refused_before_anything_is_done(
    registry: Registry, tmp_path: Path
) -> None:
    released(registry, 1)
    done = CliRunner().invoke(
        main, ["--home", str(tmp_path), "mirror", "shop", "--to", str(tmp_path / "mlruns"), "--once"]
    )
    assert done.exit_code == 2
    assert "Plain folders have no aliases" in done.output
    assert not (tmp_path / "mlruns").exists()


def test_a_deleted_experiment_is_told_with_the_way_out(uri: str, client: Any) -> None:
    client.delete_experiment(client.create_experiment("treadle/shop/main"))
    with pytest.raises(MirrorFailed, match="was deleted there; restore it"):
        MlflowStore(uri, "treadle/shop/main", "shop.main", "treadle://shop/main")


def runs_of(client: Any) -> int:
    found = client.get_experiment_by_name("treadle/shop/main")
    return 0 if found is None else len(client.search_runs([found.experiment_id]))


def aliases(client: Any) -> dict[str, str]:
    found: dict[str, str] = said(client)["aliases"]
    return found


def quick(seconds: float) -> None:
    time.sleep(min(0.05, seconds))


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
