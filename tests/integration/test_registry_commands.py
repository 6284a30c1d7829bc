"""`treadle release ...` and the policy of `treadle trainer`, as a person uses them. No Kafka: the registry decides, telling comes later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from treadle.cli import main
from treadle_trainer.registry import Registry


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w")
    return folder


def treadle(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def data(*args: object) -> Any:
    result = treadle(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_what_runs_today_becomes_the_first_champion(model: Path) -> None:
    result = treadle("release", "register", "shop", model, "--promote")
    assert (result.exit_code, result.stdout) == (0, "shop/main/r0 is champion\n")
    assert "not been told yet" in result.stderr
    (entry,) = data("release", "list", "shop")
    assert (entry["release"], entry["champion"], entry["decision"]) == ("shop/main/r0", True, "promoted")
    assert data("release", "register", "shop", "--hosted", "gpt-x")["release"] == "shop/main/r1"
    assert "* shop/main/r0" in treadle("release", "list").stdout


def test_promote_and_rollback_ask_and_take_a_reason(model: Path) -> None:
    treadle("release", "register", "shop", model, "--promote")
    treadle("release", "register", "shop", model)
    assert treadle("release", "promote", "shop/main/r1").exit_code == 2  # no reason
    asked = treadle("release", "promote", "shop/main/r1", "--reason", "better")
    assert (asked.exit_code, "nothing was changed" in asked.stderr) == (1, True)
    event = data("release", "promote", "shop/main/r1", "--reason", "better", "--yes")
    assert (event["champion"], event["previous"], event["reason"]) == ("shop/main/r1", "shop/main/r0", "better")
    back = treadle("release", "rollback", "shop", "--reason", "worse after all", "--yes")
    assert (back.exit_code, back.stdout) == (0, "shop/main/r0 is champion (was shop/main/r1): worse after all\n")
    assert treadle("release", "rollback", "shop", "--reason", "again", "--yes").exit_code == 1


def test_what_the_gate_or_the_guard_refused_needs_force(model: Path, home: Path) -> None:
    registry = Registry(home / "registry", "shop")
    for _ in range(3):
        registry.register(model)
    registry.promote(registry.id(0), expect=None, reason="first")
    registry.note(
        "rejected", registry.id(1), actor="trainer", reason="not better", evidence={"gate": {"decision": "reject"}}
    )
    registry.note(
        "rejected", registry.id(2), actor="trainer", reason="aside", evidence={"gate": {"decision": "promote"}}
    )
    refused = treadle("release", "promote", "shop/main/r1", "-r", "please", "--yes")
    assert (refused.exit_code, "judged rejected: not better; --force" in refused.stderr) == (3, True)
    assert treadle("release", "promote", "shop/main/r2", "-r", "the gate liked it", "--yes").exit_code == 0
    treadle("release", "rollback", "shop", "-r", "bad", "--yes")
    quarantined = treadle("release", "promote", "shop/main/r2", "-r", "again", "--yes")
    assert (quarantined.exit_code, "is quarantined (bad)" in quarantined.stderr) == (3, True)
    assert treadle("release", "promote", "shop/main/r1", "-r", "drill", "--yes", "--force").exit_code == 0


def test_show_tells_the_story_and_notices_tampering(model: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    treadle("release", "register", "shop", model, "--promote")
    shown = data("release", "show", "shop/main/r0")
    assert [e["event"] for e in shown["history"]] == ["registered", "promoted"]
    assert (shown["champion"], list(shown["files"])) == (True, ["weights"])
    monkeypatch.setenv("TREADLE_WORKSPACE", "shop")
    assert "promoted by user: what runs today" in treadle("release", "show", "r0").stdout
    (home / "registry" / "shop" / "main" / "r0" / "weights").write_bytes(b"x")
    tampered = treadle("release", "show", "r0")
    assert (tampered.exit_code, "weights: is not what the manifest says" in tampered.stderr) == (1, True)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["release", "show", "shop/main/r9"], 2, "shop/main has no releases"),
        (["release", "show", "nonsense/x"], 1, "is not a release id"),
        (["release", "promote", "r1", "-r", "x"], 2, "no workspace: name one"),
        (["release", "register", "shop"], 2, "name a FOLDER, --hosted MODEL or --prompt FILE"),
        (["release", "promot", "x"], 2, "Did you mean 'promote'"),
        (["trainer", "-w", "shop", "--set", "steps"], 2, "expected NAME=VALUE"),
        (["trainer", "-w", "shop", "--set", "steps=0"], 2, "steps=0: expected at least 1"),
        (["guard"], 2, "no Kafka is known"),
    ],
)
def test_mistakes_are_named(args: list[str], code: int, said: str) -> None:
    result = treadle(*args)
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr


def test_the_policy_of_a_slot_is_set_and_shown() -> None:
    treadle("trainer", "-w", "shop", "--set", "environment=a.b:C", "--set", "guard.age_s=5")
    result = treadle("trainer", "-w", "shop", "--set", "steps=40")
    policy = json.loads(result.stdout)
    assert (policy["environment"], policy["guard"]["age_s"], policy["steps"]) == ("a.b:C", 5.0, 40)
    assert json.loads(treadle("trainer", "-w", "shop", "--policy").stdout) == policy


@pytest.mark.parametrize("command", ["train", "trainer", "guard", "release", "release promote", "release rollback"])
def test_every_command_has_help(command: str) -> None:
    result = treadle(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Options:" in result.stdout


def test_a_person_approves_what_waits_and_rejects_what_does_not_please(model: Path, home: Path) -> None:
    treadle("release", "register", "shop", model, "--promote")
    registry = Registry(home / "registry", "shop")
    for _ in range(3):
        waiting = registry.register(model)
        evidence = {"gate": {"decision": "promote"}, "evaluation": {"against": "shop/main/r0"}}
        registry.note("awaiting_approval", waiting, actor="trainer", reason="better by +0.1", evidence=evidence)
    early = treadle("release", "approve", "shop/main/r0", "--reason", "ok")
    assert (early.exit_code, "does not wait for approval" in early.stderr) == (3, True)
    event = data("release", "approve", "shop/main/r1", "--reason", "reviewed")
    assert (event["event"], event["champion"], event["actor"]) == ("promoted", "shop/main/r1", "user")
    assert [e.event for e in registry.events()][-2:] == ["approved", "promoted"]
    stale = treadle("release", "approve", "shop/main/r2", "--reason", "this too")
    assert (stale.exit_code, "someone moved it first" in stale.stderr) == (1, True)  # it was compared with r0
    assert data("release", "reject", "shop/main/r3", "--reason", "rude", "--quarantine")["event"] == "rejected"
    assert treadle("release", "promote", "shop/main/r3", "--reason", "x", "--yes").exit_code == 3
    assert treadle("release", "reject", "shop/main/r1", "--reason", "x").exit_code == 1  # the champion


def test_canary_control_pin_export_and_gc_by_hand(model: Path, home: Path, tmp_path: Path, bucket: str) -> None:
    treadle("release", "register", "shop", model, "--promote")
    treadle("release", "register", "shop", model, "--adapter", "shop/main/r0", "--sampling", '{"temperature": 0.2}')
    manifest = data("release", "show", "shop/main/r1")
    assert (manifest["kind"], manifest["sampling"]) == ("adapter", {"temperature": 0.2})
    assert manifest["base"] == str(home / "registry" / "shop" / "main" / "r0")
    assert treadle("release", "register", "shop", model, "--sampling", "[1]").exit_code == 2
    assert data("release", "canary", "shop/main/r1", "--share", "0.2", "--reason", "try")["event"] == "admitted"
    assert data("release", "control", "shop/main/r0", "--reason", "measure")["evidence"] == {"share": 0.02}
    assert "~ shop/main/r1" in treadle("release", "list").stdout
    for _ in range(3):
        name = data("release", "register", "shop", model)["release"]
        treadle("release", "reject", name, "--reason", "no")
    treadle("release", "pin", "shop/main/r2", "--reason", "paper")
    assert data("release", "export", "shop/main/r2", tmp_path / "out")["files"] == 1
    assert treadle("release", "export", "shop/main/r2", tmp_path / "out").exit_code == 1
    url = f"{bucket}/releases/r2"
    for _ in range(2):  # the same again does nothing
        assert data("release", "export", "shop/main/r2", url)["target"] == url
    assert treadle("release", "export", "shop/main/r0", url).exit_code == 2
    assert data("release", "fetch", url, tmp_path / "fetched") == {
        "release": "shop/main/r2",
        "folder": str(tmp_path / "fetched"),
        "files": 1,
    }
    assert sorted(f.name for f in (tmp_path / "fetched").iterdir()) == sorted(
        f.name for f in (tmp_path / "out").iterdir()
    )
    plan = data("release", "gc", "shop", "--keep", 1, "--dry-run")
    assert (plan["found"], plan["deleted"]) == (["shop/main/r3"], [])
    done = treadle("release", "gc", "shop", "--keep", 1, "--yes")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "deleted 1 bytes of 1 releases")
    assert data("release", "show", "shop/main/r3")["collected"] is True
    assert data("release", "reject", "shop/main/r1", "--reason", "slow")["event"] == "withdrawn"
    assert data("release", "control", "--off", "-w", "shop", "--reason", "enough")["event"] == "controlled"
    assert treadle("release", "gc", "shop", "--budget", "lots").exit_code == 2


def test_calibration_sets_what_was_expected_beside_what_came(model: Path, home: Path, tmp_path: Path) -> None:
    treadle("release", "register", "shop", model, "--promote")
    assert "no canary was judged" in treadle("eval", "calibration", "shop").stderr
    registry = Registry(home / "registry", "shop")
    for offline, live, decision in ((0.1, 0.08, "promote"), (0.05, -0.2, "withdraw")):
        canary, champion = registry.register(model), registry.champion
        gate = {"gate": {"effect": offline, "low": offline - 0.04, "high": offline + 0.04, "decision": "canary"}}
        registry.admit(
            canary, share=0.1, expect=champion, reason="try", evidence=gate | {"evaluation": {"kind": "logged"}}
        )
        effect = {"effect": live, "low": live - 0.05, "high": live + 0.05, "n": 100, "alpha": 0.05}
        evidence = {"live": {"decision": decision, "effect": effect, "canary_units": 100, "champion": str(champion)}}
        if decision == "promote":
            registry.promote(canary, expect=champion, actor="guard", reason="better", evidence=evidence)
        else:
            registry.withdraw("worse", quarantine=True, actor="guard", evidence=evidence)
    found = data("eval", "calibration", "shop", "--html", tmp_path / "page.html")
    assert [(p["offline"], p["live"], p["decision"], p["kind"]) for p in found] == [
        (0.1, 0.08, "promote", "logged"),
        (0.05, -0.2, "withdraw", "logged"),
    ]
    assert "same sign offline and live: 1 of 2" in treadle("eval", "calibration", "shop").stdout
    page = (tmp_path / "page.html").read_text()
    assert page.count("<circle") == 2
    assert 'class="withdraw"' in page
    missing = treadle("eval", "live", "shop")
    assert (missing.exit_code, "treadle guard" in missing.stderr) == (2, True)
