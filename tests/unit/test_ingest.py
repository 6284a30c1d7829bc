"""The receiver's parts: access, bodies, events, webhooks, settings."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import logging
import socket
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.requests import Request
from treadle.cli import main
from treadle.cli.web import listening
from treadle.settings import Settings
from treadle_schemas.codec import INTERACTION, OUTCOME
from treadle_schemas.errors import SettingError
from treadle_schemas.ids import Handle
from treadle_streams.ingest import Access, IngestSettings
from treadle_streams.ingest._body import Bodies
from treadle_streams.ingest._events import Given, given, prepared
from treadle_streams.ingest._github import Ignored, outcomes_of, payload_of
from treadle_streams.ingest.errors import (
    AccessFileUnusable,
    Invalid,
    Malformed,
    NotNow,
    Refused,
    TooLarge,
    TooSlow,
    UnsupportedType,
)

# --- access ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(tmp_path / "ingest" / "access.json")


def test_a_token_is_kept_as_a_hash_in_a_file_of_its_owner(access: Access) -> None:
    entry, token = access.add_token("shop")
    text = access.path.read_text()
    assert token not in text
    assert hashlib.sha256(token.encode()).hexdigest() in text
    assert stat.S_IMODE(access.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(access.path.parent.stat().st_mode) == 0o700
    assert access.workspace_of(token) == "shop"
    assert access.workspace_of(token[:-1]) is None
    assert access.workspace_of(entry.digest or "") is None, "the hash is no token"


def test_a_change_by_another_process_counts_at_once(access: Access) -> None:
    running = Access(access.path)
    assert running.entries() == ()
    entry, token = access.add_token("shop")
    assert running.workspace_of(token) == "shop"
    access.revoke(entry.id)
    assert running.workspace_of(token) is None


def test_a_rotation_ends_the_workspaces_older_ones_and_no_others(access: Access) -> None:
    _, old = access.add_token("shop")
    _, other = access.add_token("desk")
    _, secret = access.add_secret("shop")
    _, new = access.add_token("shop", rotate=True)
    assert [access.workspace_of(token) for token in (old, other, new)] == [None, "desk", "shop"]
    assert len(access.checked()) == 4, "the old one is forgotten with the next change"
    access.add_token("shop")
    assert len(access.checked()) == 4
    body = b"{}"
    assert access.signed("shop", body, signature(secret, body))


@pytest.mark.parametrize("damage", ["readable", "torn", "other"])
def test_a_file_that_cannot_be_used_lets_nobody_in(
    access: Access, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, token = access.add_token("shop")
    _, secret = access.add_secret("shop")
    if damage == "readable":
        access.path.chmod(0o644)
    else:
        access.path.write_text(access.path.read_text()[:-20] if damage == "torn" else '{"entries": [{"id": 7}]}')
    with caplog.at_level(logging.ERROR):
        assert access.workspace_of(token) is None
        assert not access.signed("shop", b"", signature(secret, b""))
    assert len(caplog.records) == 1
    assert secret not in caplog.text
    with pytest.raises(AccessFileUnusable) as caught:
        access.checked()
    assert secret not in str(caught.value)


def signature(secret: str, body: bytes) -> str:
    import hmac

    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def test_a_webhooks_secret_may_come_from_the_environment(tmp_path: Path) -> None:
    env = {"TREADLE_HOME": str(tmp_path), "TREADLE_WORKSPACE": "shop", "TREADLE_INGEST_GITHUB_SECRET": "from-outside"}
    own = IngestSettings.load(Settings.load(env), env)
    assert "from-outside" not in repr(own)
    access = Access(own.access_file, github_secret=own.github_secret, workspace=own.workspace)
    assert access.signed("shop", b"x", signature("from-outside", b"x"))
    assert not access.signed("desk", b"x", signature("from-outside", b"x"))
    assert access.workspaces() == {"shop"}
    env.pop("TREADLE_WORKSPACE")
    with pytest.raises(SettingError, match="TREADLE_WORKSPACE"):
        IngestSettings.load(Settings.load(env), env)


def test_entries_do_not_show_what_they_are(access: Access) -> None:
    entry, secret = access.add_secret("shop")
    assert secret not in repr(entry)


# --- bodies ----------------------------------------------------------------------------------------------------------------------


def limits(tmp_path: Path, **given: Any) -> IngestSettings:
    return IngestSettings(access_file=tmp_path / "access.json", **given)


def request(chunks: list[bytes], *, complete: bool = True, **headers: str) -> Request:
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        if waiting:
            chunk = waiting.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(waiting) or not complete}
        await asyncio.Event().wait()  # a client that says no more
        raise AssertionError

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


def read(bodies: Bodies, given: Request) -> bytes:
    async def reading() -> bytes:
        async with bodies.read(given) as body:
            return body

    return asyncio.run(reading())


TEXT = b"some text, " * 100_000


@pytest.mark.parametrize(
    ("encoding", "raw"),
    [
        ("identity", TEXT),
        ("gzip", gzip.compress(TEXT)),
        ("GZIP", gzip.compress(TEXT[:700_000]) + gzip.compress(TEXT[700_000:])),
        ("deflate", zlib.compress(TEXT)),
        ("gzip", b""),
    ],
    ids=["plain", "gzip", "two gzip members", "deflate", "empty"],
)
@pytest.mark.parametrize("size", [1000, 10**9])
def test_a_body_comes_whole_however_it_is_cut(tmp_path: Path, encoding: str, raw: bytes, size: int) -> None:
    chunks = [raw[at : at + size] for at in range(0, len(raw), size)] or [b""]
    got = read(Bodies(limits(tmp_path)), request(chunks, content_encoding=encoding))
    assert got == (TEXT if raw else b"")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    raw = gzip.compress(bytes(200_000_000))
    bodies = Bodies(limits(tmp_path, body_bytes=1_000_000, held_bytes=1_300_000))  # unpacked it would not be held
    with pytest.raises(TooLarge):
        read(bodies, request([raw], content_encoding="gzip"))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (lambda: request([b"x" * 41]), TooLarge),
        (lambda: request([b"x"], content_length="41"), TooLarge),
        (lambda: request([b"x"], content_encoding="br"), UnsupportedType),
        (lambda: request([b"no gzip"], content_encoding="gzip"), Malformed),
        (lambda: request([gzip.compress(b"x")[:-1]], content_encoding="gzip"), Malformed),
        (lambda: request([b"x"], complete=False), TooSlow),
    ],
    ids=["too long", "declared too long", "encoding", "no gzip", "cut off", "never ends"],
)
def test_a_body_that_is_none_is_refused(tmp_path: Path, given: Callable[[], Request], problem: type[Exception]) -> None:
    with pytest.raises(problem):
        read(Bodies(limits(tmp_path, body_bytes=40, body_s=0.05 if problem is TooSlow else 60.0)), given())


def test_bodies_together_are_bounded_and_give_back_what_they_held(tmp_path: Path) -> None:
    bodies = Bodies(limits(tmp_path, held_bytes=10))

    async def both() -> None:
        async with bodies.read(request([b"x" * 6])):
            with pytest.raises(NotNow):
                async with bodies.read(request([b"x" * 6])):
                    raise AssertionError
        async with bodies.read(request([b"x" * 10])) as body:
            assert body == b"x" * 10

    asyncio.run(both())


# --- events ----------------------------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}]
MOMENT = "2026-01-31T09:30:00Z"


def outcome(**value: Any) -> Given:
    return Given(kind=OUTCOME, value={"name": "m", "value": 1, **value})


def test_what_an_event_lacks_is_filled_in() -> None:
    made = prepared(Given(kind=INTERACTION, value={"agent": "a", "messages": MESSAGES}), "shop", INTERACTION)
    assert made.value["started_at"] == made.value["ended_at"]
    assert made.answer["handle"] == str(Handle("shop", made.key, made.value["interaction_id"]))
    named = prepared(Given(kind=INTERACTION, value={"agent": "a", "messages": MESSAGES}, event_id="e7"), "shop", None)
    assert named.value["interaction_id"] == "e7"


def test_an_outcome_that_says_when_is_the_same_when_it_is_sent_again() -> None:
    timed = [prepared(outcome(reference="pr:a/b#1", observed_at=MOMENT), "shop", None) for _ in range(2)]
    assert timed[0].value == timed[1].value
    untimed = [prepared(outcome(reference="pr:a/b#1"), "shop", None) for _ in range(2)]
    assert untimed[0].value["outcome_id"] != untimed[1].value["outcome_id"]


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("shop/e/i", {"interaction_id": "i", "episode_id": "e"}),
        ("pr:acme/tools#12", {"reference": "pr:acme/tools#12"}),
        ("https://github.com/acme/tools/pull/12", {"reference": "pr:acme/tools#12"}),
        ("chatcmpl-7", {"reference": "response:chatcmpl-7"}),
    ],
)
def test_a_target_is_a_handle_or_a_reference(target: str, named: dict[str, str]) -> None:
    value = prepared(outcome(target=target), "shop", OUTCOME).value
    assert named.items() <= value.items()
    assert "target" not in value


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (outcome(target="desk/e/i"), "$.target"),
        (outcome(target=7), "$.target"),
        (outcome(target=" "), "$.target"),
        (outcome(), "$.interaction_id"),
        (outcome(reference="pr:a/b#1", observed_at="yesterday"), "$.observed_at"),
        (Given(kind=INTERACTION, value={"agent": "a", "messages": MESSAGES, "transcript": {}}), "$.transcript"),
        (Given(kind="dev.treadle.part.v1", value={}), "type"),
        (Given(kind=None, value={}), "type"),
        (Given(kind=OUTCOME, value={"name": "m"}, workspace="desk"), "workspace"),
    ],
)
def test_a_wrong_event_is_refused_at_its_field(event: Given, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        prepared(event, "shop", None)
    assert caught.value.field == field


def test_a_value_that_is_refused_stays_as_it_was() -> None:
    value = {"name": "m", "value": 1, "target": "shop/e/i"}
    prepared(Given(kind=OUTCOME, value=value), "shop", None)
    assert value == {"name": "m", "value": 1, "target": "shop/e/i"}


def test_attributes_of_a_binary_event_are_percent_decoded() -> None:
    headers = {"ce-specversion": "1.0", "ce-type": OUTCOME, "ce-id": "caf%C3%A9%201"}
    (event,), many = given(b"{}", headers, None)
    assert isinstance(event, Given)
    assert (event.event_id, many) == ("caf\u00e9 1", False)


@pytest.mark.parametrize(
    "cloud",
    [
        {"type": OUTCOME, "data": {}},
        {"specversion": "0.3", "type": OUTCOME, "data": {}},
        {"specversion": "1.0", "data": {}},
        {"specversion": "1.0", "type": OUTCOME, "data_base64": "#"},
        {"specversion": "1.0", "type": OUTCOME, "data_base64": 7},
        {"specversion": "1.0", "type": OUTCOME, "data_base64": "e30="[:-2]},
    ],
)
def test_what_is_no_cloud_event_is_refused(cloud: dict[str, Any]) -> None:
    headers = {"content-type": "application/cloudevents+json"}
    (event,), _ = given(json.dumps(cloud).encode(), headers, None)
    assert isinstance(event, Refused)


def test_data_in_base64_is_the_data() -> None:
    cloud = {"specversion": "1.0", "type": OUTCOME, "data_base64": "eyJhIjogMX0="}
    (event,), _ = given(json.dumps(cloud).encode(), {"content-type": "application/cloudevents+json"}, None)
    assert isinstance(event, Given)
    assert event.value == {"a": 1}


# --- GitHub ----------------------------------------------------------------------------------------------------------------------


def hook(event: str = "pull_request") -> dict[str, str]:
    return {"x-github-event": event, "x-github-delivery": "d1", "content-type": "application/json"}


def test_github_may_send_a_form() -> None:
    headers = hook() | {"content-type": "application/x-www-form-urlencoded"}
    assert payload_of(b"payload=%7B%22a%22%3A+1%7D", headers) == {"a": 1}
    for wrong in (b"other=1", b"payload=%7B", b"\xff"):
        with pytest.raises(Malformed):
            payload_of(wrong, headers)


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("pull_request", {"action": "opened"}),
        ("push", {}),
        ("pull_request_review", {"action": "dismissed"}),
        ("pull_request_review", {"action": "submitted", "pull_request": {}, "review": {"state": "commented"}}),
    ],
)
def test_other_deliveries_are_ignored(event: str, payload: dict[str, Any]) -> None:
    with pytest.raises(Ignored):
        outcomes_of(payload, hook(event), "shop")


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"action": "closed"}, "$.pull_request"),
        ({"action": "closed", "pull_request": {"merged": None}}, "$.pull_request.merged"),
        ({"action": "closed", "pull_request": {"merged": True}}, "$.repository"),
        ({"action": "closed", "pull_request": {"merged": True}, "repository": {"full_name": "a b"}}, "$.repository"),
    ],
)
def test_a_delivery_that_lacks_something_is_refused_at_its_field(payload: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        outcomes_of(payload, hook(), "shop")
    assert (caught.value.field or "").startswith(field)


def test_all_handles_of_a_text_are_found_once() -> None:
    text = "treadle: a/b/c. And treadle: a/b/d, treadle: a/b/c, treadle: nothing, treadle: a/b/%FF"
    assert [str(handle) for handle in Handle.find_all(text)] == ["a/b/c", "a/b/d"]
    assert Handle.find(text) == Handle.find_all(text)[0]


# --- the command -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"TREADLE_INGEST_PORT": "http"}, "TREADLE_INGEST_PORT"),
        ({"TREADLE_DISABLED": "1"}, "TREADLE_DISABLED"),
        ({"TREADLE_INGEST_HOST": "256.0.0.1"}, "--host"),
    ],
)
def test_a_setting_that_makes_no_sense_ends_it_with_2(
    environment: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(main, ["ingest"])
    assert done.exit_code == 2
    assert says in done.output


def test_an_address_in_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    with listening("127.0.0.1", 0) as taken:
        assert taken.proto == socket.IPPROTO_TCP, "what asyncio needs to send answers without delay"
        port = taken.getsockname()[1]
        done = CliRunner().invoke(main, ["ingest", "--port", str(port)])
    assert done.exit_code == 2
    assert f"127.0.0.1:{port} cannot be listened on" in done.output


def test_it_needs_only_its_own_extra() -> None:
    """No package of the other extras, as an installation of treadle[ingest] has none."""
    code = """
import sys
for name in ("faust", "aiokafka", "rocksdict", "duckdb", "pyarrow", "sqlglot", "deeplake", "numpy", "torch"):
    sys.modules[name] = None
import treadle_streams.ingest._server, treadle_streams.ingest.commands
sys.modules["uvicorn"] = None
del sys.modules["treadle_streams.ingest._server"], sys.modules["treadle.cli.web"]
from treadle.cli import main
main(["ingest"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'treadle[ingest]'" in done.stderr
