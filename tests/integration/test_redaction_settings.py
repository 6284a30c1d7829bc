"""How a recorder learns what is private: settings on a real Kafka, the file on this machine, the strictest policy before both."""

from __future__ import annotations

import json
import logging
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from treadle import Recorder
from treadle.cli import main
from treadle.log import read
from treadle.policies import PolicySource, cache_file, remember
from treadle.settings import Settings
from treadle_corpus import CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas.canonical import loads
from treadle_schemas.codec import OUTCOME, header_map
from treadle_schemas.errors import SettingError
from treadle_schemas.pii import RightsRule, built_in
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings
from treadle_streams import workspaces
from treadle_trainer.registry import Registry

MAIL = "write to jane@acme.io"


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def treadle(home: Path, broker: str, *args: object) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), "--bootstrap-servers", broker, *map(str, args)])


def settings_of(home: Path, broker: str) -> Settings:
    return Settings.load({"TREADLE_HOME": str(home), "TREADLE_BOOTSTRAP_SERVERS": broker})


def masked(source: PolicySource) -> str:
    value = {"interaction_id": "i", "messages": [{"role": "user", "content": MAIL}]}
    return str(source.current().redactor.redact(value)["messages"][0]["content"])


def test_a_process_starts_strict_follows_kafka_and_the_next_one_knows_from_the_file(
    broker: str, workspace_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1, pii=built_in("off")), home=here)
    source = PolicySource(workspace_name, settings_of(elsewhere, broker))
    with caplog.at_level(logging.WARNING, "treadle"):
        assert masked(source) == "write to [EMAIL_1]"
        assert masked(source) == "write to [EMAIL_1]"
    assert caplog.text.count("strictest") == 1
    assert (source.current().name, source.current().version) == ("strict", 0)
    source.refresh()
    until(lambda: source.current().name == "off")
    source.close()
    assert masked(source) == MAIL
    path = cache_file(elsewhere, workspace_name)
    until(path.exists)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    nobody = Settings.load({"TREADLE_HOME": str(elsewhere), "TREADLE_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    assert PolicySource(workspace_name, nobody).current().name == "off"
    assert PolicySource(workspace_name, settings_of(here, broker)).current().name == "off"


def test_a_damaged_cache_file_makes_it_strict_and_is_not_fatal(tmp_path: Path) -> None:
    settings = Settings.load({"TREADLE_HOME": str(tmp_path)})
    remember(tmp_path, WorkspaceSettings(workspace="shop", pii=built_in("off", 4)))
    assert PolicySource("shop", settings).current().version == 4
    for text in (
        b"{",
        b'{"workspace":"other","pii":{"name":"off"}}',
        b'{"workspace":"shop","pii":{"name":"none"}}',
        b"\xff",
    ):
        cache_file(tmp_path, "shop").write_bytes(text)
        assert PolicySource("shop", settings).current().name == "strict"


def test_the_key_of_the_hash_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    from treadle.policies import hash_key

    assert hash_key(Settings.load({"TREADLE_HOME": str(tmp_path)})) is None
    (tmp_path / "pii.key").write_text("0123456789abcdef\n")
    assert hash_key(Settings.load({"TREADLE_HOME": str(tmp_path)})) == b"0123456789abcdef"
    named = Settings.load({"TREADLE_HOME": str(tmp_path), "TREADLE_PII_KEY": "secret-of-the-environment"})
    assert hash_key(named) == b"secret-of-the-environment"
    assert "secret-of" not in repr(named)
    with pytest.raises(SettingError, match="no such file"):
        hash_key(Settings.load({"TREADLE_HOME": str(tmp_path), "TREADLE_PII_KEY_FILE": str(tmp_path / "no")}))


def test_the_command_line_sets_policy_and_rights_and_each_change_is_one_version(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    made = treadle(tmp_path, broker, "workspace", "create", workspace_name, "--partitions", 1, "--pii", "standard")
    assert made.exit_code == 0, made.output
    before = workspaces.get(broker, workspace_name)
    assert (before.pii.name, before.pii.version) == ("standard", 1)
    changed = treadle(
        tmp_path, broker, "workspace", "set", workspace_name, "--pii", "strict", "--right", "subject=alice,train=deny",
        "--pii-action", "email=hash", "--pii-pattern", "employee:drop=EMP-[0-9]{4}", "--pii-field", "$.tags.customer",
    )  # fmt: skip
    assert changed.exit_code == 0, changed.output
    now = workspaces.get(broker, workspace_name)
    assert (now.pii.name, now.pii.version, now.pii.actions) == ("strict", 2, {"email": "hash"})
    assert now.rights == (RightsRule(subject="alice", train="deny"),)
    assert now.grading_version == before.grading_version
    assert msgspec.structs.replace(now, pii=before.pii, rights=()) == before
    again = treadle(
        tmp_path, broker, "workspace", "set", workspace_name, "--right", "subject=alice,train=deny", "--json"
    )
    assert json.loads(again.stdout)["pii"]["version"] == 2
    shown = treadle(tmp_path, broker, "workspace", "show", workspace_name).stdout
    assert "strict version 2" in shown
    assert "subject alice: no train" in shown
    assert "EMP-[0-9]{4}" in shown
    assert PolicySource(workspace_name, settings_of(tmp_path, broker)).current().version == 2
    for wrong in (
        ("--right", "subject=alice"),
        ("--right", "train=deny"),
        ("--pii-action", "shoes=mask"),
        ("--pii-pattern", "x=(a+)+b"),
        ("--pii-field", "$.interaction_id"),
        (),
    ):
        refused = treadle(tmp_path, broker, "workspace", "set", workspace_name, *wrong)
        assert refused.exit_code == 2, refused.output
    file = tmp_path / "log.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": MAIL}]}) + "\nplain 185.22.3.9\nnothing\n")
    dry = treadle(tmp_path, broker, "redact", "--dry-run", file, "--workspace", workspace_name, "--json")
    assert dry.exit_code == 0, dry.output
    assert [json.loads(line)["line"] for line in dry.stdout.splitlines()] == [1, 2]
    assert "jane" not in dry.stdout


def test_a_revocation_is_sent_for_everything_of_a_subject_and_names_the_releases(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    rules = (RightsRule(subject="bob", eval="deny"),)
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=2, rights=rules), home=tmp_path)
    settings = settings_of(tmp_path, broker)
    with Recorder(workspace_name, settings=settings, raise_errors=True) as recorder:
        handles = [
            recorder.record(
                messages=[{"role": "assistant", "content": "hi"}],
                subject=who,
                interaction_id=f"{who}-{n}",
                episode_id=f"ep-{who}",
            )
            for who in ("alice", "bob")
            for n in range(2)
        ]
        assert recorder.flush(30) == 0
    rights = {}
    for record in read(broker, topic(workspace_name, "interactions"), 2):
        value = loads(record.value or b"{}")
        rights[value["interaction_id"]] = value.get("rights")
        assert value["redaction"] == {"policy": "secrets", "version": 1}
    assert rights == {"alice-0": None, "alice-1": None, "bob-0": {"eval": "deny"}, "bob-1": {"eval": "deny"}}

    corpus = tmp_path / "corpus"
    with CorpusWriter.open(corpus, workspace=workspace_name, policy=Policy()) as writer:
        writer.apply(
            [graded("alice-0", episode_id="ep-alice", subject="alice"), graded("x", subject="bob")], {0: 2}, 1000
        )
        writer.finish(SelectAll())
    registry = Registry(tmp_path / "registry", workspace_name)
    first = registry.register(prompt="p", corpus=str(corpus), corpus_version=1)
    child = registry.register(prompt="q", parent=str(first))
    registry.register(prompt="other")
    result = treadle(
        tmp_path,
        broker,
        "rights",
        "revoke",
        "--workspace",
        workspace_name,
        "--subject",
        "alice",
        "--train",
        "deny",
        "--yes",
        "--json",
    )
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["interactions"] == sorted(str(h) for h in handles[:2])
    assert [(e["release"], e["rows"]) for e in said["releases"]] == [(str(first), 1), (str(child), 1)]
    events = [
        loads(record.value or b"{}")
        for record in read(broker, topic(workspace_name, "outcomes"), 2)
        if header_map(record.headers).get("ce_type") == OUTCOME.encode()
    ]
    assert sorted((e["interaction_id"], e["kind"], e["name"], e["value"]) for e in events) == [
        ("alice-0", "rights", "train", "deny"),
        ("alice-1", "rights", "train", "deny"),
    ]
    nobody = treadle(tmp_path, broker, "rights", "revoke", "--workspace", workspace_name, "--subject", "carol", "--yes")
    assert nobody.exit_code == 1


@pytest.mark.parametrize("buffered", [False, True])
def test_no_file_of_the_spool_holds_a_secret_while_kafka_is_away(tmp_path: Path, buffered: bool) -> None:
    key = "sk" + "-proj-aB3dE5gH7jK9mN1pQ2rS4tU6"
    nobody = Settings.load({"TREADLE_HOME": str(tmp_path), "TREADLE_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    recorder = Recorder("shop", settings=nobody, buffered=buffered, raise_errors=False)
    history = [{"role": "user", "content": f"{'long ' * 400} my key is {key}"}]
    tools = [{"type": "function", "function": {"name": key}}]
    handle = recorder.record(messages=history, episode_id=tmp_path.name, tools=tools)
    recorder.comment(handle, f"should not repeat {key}")
    recorder.close(0.1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files)
    assert b"[API_KEY_" in written  # numbered through the process's life
    assert key.encode() not in written
