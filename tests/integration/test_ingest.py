"""The receiver as a process, on a real Kafka: what it acknowledges arrives, redacted, and nobody writes where he may not."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from treadle.log import read
from treadle.policies import remember
from treadle_schemas import WorkspaceSettings
from treadle_schemas.codec import INTERACTION, OUTCOME, decode
from treadle_schemas.ids import Handle
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.ingest import Access

PARTITIONS = 2
DEADLINE_S = 60.0
NO_KAFKA = "127.0.0.1:1"
SECRET_KEY = "sk-proj-" + "Ab3dEf6hIj9lMn2pQr5tUv8xYz1" * 2
MESSAGES = [{"role": "user", "content": f"my key is {SECRET_KEY}"}, {"role": "assistant", "content": "ho"}]
JSON_TYPE = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])


class Receiver:
    """A `treadle ingest` process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def post(self, path: str, body: Any, *, token: str | None = None, headers: dict[str, str] | None = None) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {**JSON_TYPE, **(headers or {})}
        if token is not None:
            given["Authorization"] = f"Bearer {token}"
        return self.ask("POST", path, raw, given)

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@contextmanager
def receiver(servers: str, folder: Path, **environment: str) -> Iterator[Receiver]:
    env = {
        **os.environ,
        "TREADLE_HOME": str(folder / "home"),
        "TREADLE_SPOOL": str(folder / "spool"),
        "TREADLE_BOOTSTRAP_SERVERS": servers,
        **environment,
    }
    command = [sys.executable, "-m", "treadle", "ingest", "--port", "0"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        yield Receiver(process, int(line.rpartition(":")[2]))
    finally:
        process.kill()
        process.communicate()


def access(folder: Path) -> Access:
    return Access(folder / "home" / "ingest" / "access.json")


class World(NamedTuple):
    """One receiver and two workspaces, for all tests that break nothing."""

    receiver: Receiver
    shop: str
    token: str
    secret: str
    other: str
    other_token: str
    folder: Path
    arrived: Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def world(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("ingest")
    names = [f"t-ingest-{os.urandom(4).hex()}" for _ in range(2)]
    for name in names:
        settings = WorkspaceSettings(workspace=name, partitions=PARTITIONS)
        workspaces.create(broker, settings)
        remember(folder / "home", settings)
    shop, other = names
    tokens = access(folder)
    token, other_token, secret = tokens.add_token(shop)[1], tokens.add_token(other)[1], tokens.add_secret(shop)[1]
    with receiver(broker, folder) as running:
        yield World(running, shop, token, secret, other, other_token, folder, lambda *a: arrived(broker, *a))


def arrived(servers: str, workspace: str, kind: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The events on a topic with one of these ids, when each of them is there."""
    name, deadline = "interaction_id" if kind == "interactions" else "outcome_id", time.monotonic() + DEADLINE_S
    while True:
        values = [decode(r.value, r.headers).data for r in read(servers, topic(workspace, kind), PARTITIONS)]
        found = [value for value in values if value.get(name) in wanted]
        if {value[name] for value in found} == set(wanted):
            return found
        assert time.monotonic() < deadline, f"{set(wanted) - {value[name] for value in found}} did not arrive"


def interaction(name: str, **more: Any) -> dict[str, Any]:
    return {"interaction_id": name, "agent": "desk", "messages": MESSAGES, **more}


# --- events --------------------------------------------------------------------------------------------------------------------


def test_an_interaction_arrives_redacted_and_its_handle_takes_an_outcome(world: World) -> None:
    said = world.receiver.post(
        f"/v1/{world.shop}/interactions", {"agent": "desk", "messages": MESSAGES, "x-new": 1}, token=world.token
    )
    assert said.status == 202
    (result,) = said.body["results"]
    handle = Handle.parse(result["handle"])
    assert (handle.workspace, handle.interaction_id) == (world.shop, result["interaction_id"])
    (value,) = world.arrived(world.shop, "interactions", [result["interaction_id"]])
    assert value["messages"][0]["content"] == "my key is [API_KEY_1]"
    assert value["redaction"]["counts"] == {"api_key": 1}
    assert value["x-new"] == 1, "fields of later versions survive"

    outcome = {"target": str(handle), "name": "reward", "value": 1.0}
    said = world.receiver.post(f"/v1/{world.shop}/outcomes", outcome, token=world.token)
    assert said.status == 202
    (value,) = world.arrived(world.shop, "outcomes", [said.body["results"][0]["outcome_id"]])
    assert (value["interaction_id"], value["value"]) == (handle.interaction_id, 1.0)
    assert "target" not in value


def test_nothing_that_was_private_is_in_the_spool(world: World) -> None:
    done = world.receiver.post(f"/v1/{world.shop}/interactions", interaction("spooled"), token=world.token)
    assert done.status == 202
    files = [path for path in (world.folder / "spool").rglob("*") if path.is_file()]
    assert not any(SECRET_KEY.encode() in path.read_bytes() for path in files)


CLOUD = {"specversion": "1.0", "source": "/test"}
FORMS: dict[str, tuple[str, str, dict[str, str], Callable[[str], bytes], list[str]]] = {
    "an array": (
        "interactions",
        "interactions",
        {},
        lambda n: json.dumps([interaction(f"{n}-{i}") for i in range(3)]).encode(),
        ["-0", "-1", "-2"],
    ),
    "JSON lines, compressed": (
        "interactions",
        "interactions",
        {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"},
        lambda n: gzip.compress(b"\n\n".join(json.dumps(interaction(f"{n}-{i}")).encode() for i in range(2)) + b"\n"),
        ["-0", "-1"],
    ),
    "a structured CloudEvent": (
        "events",
        "interactions",
        {"Content-Type": "application/cloudevents+json; charset=utf-8"},
        lambda n: json.dumps({**CLOUD, "type": INTERACTION, "id": "x", "data": interaction(n)}).encode(),
        [""],
    ),
    "a batch of CloudEvents, whose ids become theirs": (
        "events",
        "outcomes",
        {"Content-Type": "application/cloudevents-batch+json"},
        lambda n: json.dumps(
            [
                {**CLOUD, "type": OUTCOME, "id": f"{n}-{i}", "data": {"reference": "pr:a/b#1", "name": "m", "value": i}}
                for i in range(2)
            ]
        ).encode(),
        ["-0", "-1"],
    ),
    "a binary CloudEvent": (
        "outcomes",
        "outcomes",
        {"ce-specversion": "1.0", "ce-type": OUTCOME, "ce-id": "e", "ce-source": "/test"},
        lambda n: json.dumps({"outcome_id": n, "reference": "pr:a/b#1", "name": "m", "value": None}).encode(),
        [""],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_events_arrive_in_each_form(world: World, form: str) -> None:
    path, kind, headers, body, suffixes = FORMS[form]
    name = os.urandom(4).hex()
    said = world.receiver.post(f"/v1/{world.shop}/{path}", body(name), token=world.token, headers=headers)
    assert said.status == 202, said.raw
    assert said.body["accepted"] == len(suffixes)
    world.arrived(world.shop, kind, [name + suffix for suffix in suffixes])


def test_of_a_batch_what_is_right_is_taken_and_what_is_wrong_is_named(world: World) -> None:
    batch = [interaction("good-1"), {"agent": "desk", "messages": []}, 7, interaction("good-2")]
    said = world.receiver.post(f"/v1/{world.shop}/interactions", batch, token=world.token)
    assert said.status == 207
    assert [r["status"] for r in said.body["results"]] == ["accepted", "refused", "refused", "accepted"]
    assert said.body["results"][1]["error"]["field"] == "$.messages"
    world.arrived(world.shop, "interactions", ["good-1", "good-2"])


LONG = [{"role": "user", "content": "x" * (9 * 1024 * 1024)}]
WRONG: dict[str, tuple[str, bytes, dict[str, str], int, str]] = {
    "no JSON": ("interactions", b'{"agent": ', {}, 400, "malformed"),
    "NaN": ("outcomes", b'{"name": "m", "reference": "pr:a/b#1", "value": NaN}', {}, 400, "malformed"),
    "nothing": ("interactions", b"[]", {}, 400, "malformed"),
    "no event": ("interactions", b'"text"', {}, 400, "malformed"),
    "a field missing": ("interactions", b'{"messages": [{"role": "user"}]}', {}, 422, "invalid"),
    "no target": ("outcomes", b'{"name": "m", "value": 1}', {}, 422, "invalid"),
    "a target that is none": ("outcomes", b'{"name": "m", "value": 1, "target": "a b"}', {}, 422, "bad_target"),
    "parts": ("interactions", json.dumps(interaction("p", claims={"/tools": "x"})).encode(), {}, 422, "invalid"),
    "a form": ("interactions", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_type"),
    "an unknown encoding": ("interactions", b"x", {"Content-Encoding": "br"}, 415, "unsupported_type"),
    "no gzip": ("interactions", b"{}", {"Content-Encoding": "gzip"}, 400, "malformed"),
    "half a gzip": ("interactions", gzip.compress(b"{}" * 99)[:-9], {"Content-Encoding": "gzip"}, 400, "malformed"),
    "a bomb": ("interactions", gzip.compress(bytes(300_000_000)), {"Content-Encoding": "gzip"}, 413, "too_large"),
    "a long event": ("interactions", json.dumps(interaction("l", messages=LONG)).encode(), {}, 413, "too_large"),
    "many events": ("interactions", b"[" + b"1," * 10_000 + b"1]", {}, 413, "too_large"),
    "an outcome among interactions": ("interactions", b"{}", {"ce-type": OUTCOME}, 422, "wrong_type"),
    "a type that only treadle writes": ("events", b"{}", {"ce-type": "dev.treadle.graded.v1"}, 422, "wrong_type"),
    "a bare object among CloudEvents": ("events", b"{}", {}, 400, "malformed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_with_its_reason(world: World, case: str) -> None:
    path, body, headers, status, code = WRONG[case]
    said = world.receiver.post(f"/v1/{world.shop}/{path}", body, token=world.token, headers=headers)
    assert (said.status, said.code) == (status, code), said.raw


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_beyond_the_limit_is_not_read_to_its_end(world: World, declared: bool) -> None:
    head = f"POST /v1/{world.shop}/interactions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.token}\r\n"
    with socket.create_connection(("127.0.0.1", world.receiver.port), timeout=DEADLINE_S) as line:
        if declared:
            line.sendall(f"{head}Content-Length: {33 * 1024 * 1024}\r\n\r\n".encode())
        else:
            line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            piece = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
            for _ in range(32):
                line.sendall(piece)
            line.sendall(b"1\r\nx\r\n")  # there is no last chunk: the answer does not wait for one
        assert line.recv(100).startswith(b"HTTP/1.1 413 ")


def test_unknown_addresses_and_methods_are_answered_as_errors_are(world: World) -> None:
    assert world.receiver.ask("GET", "/nothing").code == "not_found"
    assert world.receiver.ask("GET", f"/v1/{world.shop}/interactions").code == "method_not_allowed"
    assert world.receiver.ask("GET", "/healthz").body == {"status": "ok"}
    assert world.receiver.ask("GET", "/readyz").body == {"ready": True}


# --- who may ---------------------------------------------------------------------------------------------------------------------


def test_a_token_says_nothing_of_other_workspaces_and_writes_nothing_there(world: World, broker: str) -> None:
    body = interaction("intruder", episode_id="one")
    foreign = world.receiver.post(f"/v1/{world.other}/interactions", body, token=world.token)
    absent = world.receiver.post("/v1/no-such-workspace/interactions", body, token=world.token)
    assert foreign.status == absent.status == 403
    assert (foreign.raw, foreign.headers.keys()) == (absent.raw, absent.headers.keys())
    said = {**CLOUD, "type": INTERACTION, "id": "x", "workspace": world.other, "data": body}
    cloud = {"Content-Type": "application/cloudevents+json"}
    assert world.receiver.post(f"/v1/{world.shop}/events", said, token=world.token, headers=cloud).status == 422
    target = {"target": str(Handle(world.other, "e", "i")), "name": "m", "value": 1}
    assert world.receiver.post(f"/v1/{world.shop}/outcomes", target, token=world.token).status == 422
    # a later event of the same episode is there, and nothing before it
    own = interaction("own", episode_id="one")
    assert world.receiver.post(f"/v1/{world.other}/interactions", own, token=world.other_token).status == 202
    world.arrived(world.other, "interactions", ["own"])
    records = read(broker, topic(world.other, "interactions"), PARTITIONS)
    assert "intruder" not in {decode(r.value, r.headers).data.get("interaction_id") for r in records}


@pytest.mark.parametrize("token", [None, "", "treadle_wrong", "\u00e9"])
def test_without_a_token_that_counts_nothing_is_taken(world: World, token: str | None) -> None:
    said = world.receiver.post(f"/v1/{world.shop}/interactions", interaction("nobody"), token=token)
    assert (said.status, said.code) == (401, "not_authorised")
    assert said.headers["www-authenticate"] == "Bearer"


def test_tokens_are_made_rotated_and_revoked_while_it_runs(world: World, broker: str) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "TREADLE_HOME": str(world.folder / "home"), "TREADLE_BOOTSTRAP_SERVERS": broker}
        return subprocess.run(
            [sys.executable, "-m", "treadle", "ingest", *words], env=env, capture_output=True, text=True, check=False
        )

    def status(token: str) -> int:
        return world.receiver.post(f"/v1/{world.other}/interactions", interaction("r"), token=token).status

    first = json.loads(command("token", world.other, "--json").stdout)
    assert status(first["token"]) == 202
    second = json.loads(command("token", world.other, "--rotate", "--grace", "1h", "--json").stdout)
    assert (status(first["token"]), status(second["token"])) == (202, 202)
    third = command("token", world.other, "--rotate")
    assert (status(second["token"]), status(third.stdout.strip())) == (401, 202)
    listed = command("list")
    assert first["id"] in listed.stdout
    assert third.stdout.strip() not in listed.stdout + listed.stderr + third.stderr
    (made,) = [e for e in access(world.folder).checked() if e.workspace == world.other and e.ends_at is None]
    assert command("revoke", made.id, "--yes").returncode == 0
    assert status(third.stdout.strip()) == 401
    unknown = command("token", "no-such-workspace")
    assert unknown.returncode != 0
    assert "does not exist" in unknown.stderr


def test_the_lines_of_the_page_work(world: World) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on this machine")
    page = (Path(__file__).resolve().parents[2] / "docs" / "ingest.md").read_text(encoding="utf-8")
    first, second = re.findall(r"<!-- ingest-example -->\n```sh\n(.*?)```", page, re.DOTALL)

    def run(line: str, **variables: str) -> dict[str, Any]:
        line = line.replace("127.0.0.1:8484", f"127.0.0.1:{world.receiver.port}").replace(
            "/v1/shop/", f"/v1/{world.shop}/"
        )
        env = {**os.environ, "TOKEN": world.token, **variables}
        done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout)["results"][0])

    handle = run(first)["handle"]
    outcome = run(second, HANDLE=handle)["outcome_id"]
    (value,) = world.arrived(world.shop, "outcomes", [outcome])
    assert (value["interaction_id"], value["value"]) == (Handle.parse(handle).interaction_id, 1.0)


# --- GitHub ----------------------------------------------------------------------------------------------------------------------


def delivery(
    world: World, event: str, payload: dict[str, Any], name: str, *, secret: str | None = None, to: str | None = None
) -> Answer:
    raw = json.dumps(payload).encode()
    signed = hmac.new((secret or world.secret).encode(), raw, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": event, "X-GitHub-Delivery": name, "X-Hub-Signature-256": f"sha256={signed}"}
    return world.receiver.post(f"/v1/{to or world.shop}/github", raw, headers=headers)


def closed(body: str, *, merged: bool) -> dict[str, Any]:
    pull = {"number": 12, "merged": merged, "closed_at": "2026-01-31T09:30:00Z", "body": body}
    return {"action": "closed", "number": 12, "pull_request": pull, "repository": {"full_name": "acme/tools"}}


def test_a_merged_pull_request_is_an_outcome_of_the_handles_in_its_body_once(world: World) -> None:
    name, handles = os.urandom(4).hex(), [Handle(world.shop, "e", f"i{n}") for n in range(2)]
    foreign = Handle(world.other, "e", "i9")
    body = "Fixes it.\n\n" + "\n".join(handle.mark for handle in (handles[0], foreign, handles[1], handles[0]))
    answers = [delivery(world, "pull_request", closed(body, merged=True), name) for _ in range(2)]
    assert [a.status for a in answers] == [202, 202]
    assert answers[0].raw == answers[1].raw
    values = world.arrived(world.shop, "outcomes", [name, f"{name}/2"])
    # delivered twice: the same events, which the join takes as one
    assert len({json.dumps(value, sort_keys=True) for value in values}) == 2
    assert {(v["outcome_id"], v["interaction_id"], v["name"], v["value"]) for v in values} == {
        (name, "i0", "pr_merged", True),
        (f"{name}/2", "i1", "pr_merged", True),
    }
    assert {v["observed_at"] for v in values} == {"2026-01-31T09:30:00Z"}


def test_without_a_handle_the_outcome_is_about_the_pull_request(world: World) -> None:
    names = [os.urandom(4).hex() for _ in range(2)]
    review = {"state": "changes_requested", "submitted_at": "2026-01-30T09:30:00Z"}
    payload = {**closed("", merged=False), "action": "submitted", "review": review}
    assert delivery(world, "pull_request", closed("", merged=False), names[0]).status == 202
    assert delivery(world, "pull_request_review", payload, names[1]).status == 202
    values = {v["outcome_id"]: v for v in world.arrived(world.shop, "outcomes", names)}
    assert {v["reference"] for v in values.values()} == {"pr:acme/tools#12"}
    assert (values[names[0]]["name"], values[names[0]]["value"]) == ("pr_merged", False)
    assert (values[names[1]]["name"], values[names[1]]["value"]) == ("pr_review", "changes_requested")


def test_a_delivery_without_the_right_signature_is_refused(world: World) -> None:
    payload = closed("", merged=True)
    for said in (
        delivery(world, "pull_request", payload, "forged", secret="guess"),
        delivery(world, "pull_request", payload, "forged", to=world.other),
        delivery(world, "pull_request", payload, "forged", to="no-such-workspace"),
        world.receiver.post(f"/v1/{world.shop}/github", payload, headers={"X-GitHub-Event": "pull_request"}),
        world.receiver.post(f"/v1/{world.shop}/github", payload, token=world.token),
    ):
        assert (said.status, said.code) == (401, "bad_signature")


def test_pings_and_other_deliveries_are_answered_and_kept_nowhere(world: World) -> None:
    assert delivery(world, "ping", {"zen": "."}, "d").body == {"status": "pong"}
    said = delivery(world, "issues", {"action": "opened"}, "d")
    assert (said.status, said.body["status"]) == (202, "ignored")
    assert "issues opened" in said.body["reason"]
    review = {**closed("", merged=False), "action": "submitted", "review": {"state": "commented"}}
    assert delivery(world, "pull_request_review", review, "d").body["status"] == "ignored"


# --- the end of a process ----------------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_without_kafka_arrives_after_a_kill(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    settings = WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS)
    workspaces.create(broker, settings)
    remember(tmp_path / "home", settings)
    _, token = access(tmp_path).add_token(workspace_name)
    path = f"/v1/{workspace_name}/interactions"
    with receiver(NO_KAFKA, tmp_path, TREADLE_SPOOL_BYTES="200000") as first:
        assert first.ask("GET", "/readyz").status == 200
        batches = [[interaction(f"{n}-{i}") for i in range(10)] for n in range(5)]
        assert {first.post(path, batch, token=token).status for batch in batches} == {202}
        too_much = first.post(path, interaction("much", task_id="t", tags={"x": "y" * 190_000}), token=token)
        assert (too_much.status, too_much.code) == (503, "spool_full")
        assert int(too_much.headers["retry-after"]) > 0
        part = [interaction("4-9"), interaction("much", tags={"x": "y" * 190_000}), interaction("behind")]
        some = first.post(path, part, token=token)
        assert (some.status, [r["status"] for r in some.body["results"]]) == (207, ["accepted", "refused", "refused"])
        assert some.body["results"][2]["error"]["code"] == "spool_full", "what is behind it keeps its place"
        assert int(some.headers["retry-after"]) > 0
        first.process.kill()
        first.process.wait()
    wanted = [f"{n}-{i}" for n in range(5) for i in range(10)]
    with receiver(broker, tmp_path):  # no event comes: it sends what the first one left
        values = arrived(broker, workspace_name, "interactions", wanted)
    assert {value["messages"][0]["content"] for value in values} == {"my key is [API_KEY_1]"}


def test_a_spool_that_cannot_be_written_is_refused_not_acknowledged(tmp_path: Path) -> None:
    _, token = access(tmp_path).add_token("shop")
    (tmp_path / "spool").write_text("a file where the folder should be")
    with receiver(NO_KAFKA, tmp_path) as running:
        said = running.post("/v1/shop/interactions", interaction("x"), token=token)
        assert (said.status, said.code) == (503, "spool_unwritable")
        assert said.body["error"]["retriable"] is True
        assert running.ask("GET", "/readyz").status == 503


def test_sigterm_finishes_what_has_begun_and_ends_in_order(broker: str, workspace_name: str, tmp_path: Path) -> None:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    _, token = access(tmp_path).add_token(workspace_name)
    raw = json.dumps(interaction("begun")).encode()
    with receiver(broker, tmp_path) as running:
        head = (
            f"POST /v1/{workspace_name}/interactions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Expect: 100-continue\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", running.port), timeout=DEADLINE_S) as line:
            line.sendall(head.encode())
            assert line.recv(100).startswith(b"HTTP/1.1 100 "), "the request has begun"
            running.process.send_signal(signal.SIGTERM)
            until_refused(running.port)
            line.sendall(raw)
            assert line.recv(100).startswith(b"HTTP/1.1 202 ")
        assert running.process.wait(DEADLINE_S) == 0
    arrived(broker, workspace_name, "interactions", ["begun"])
    assert not list((tmp_path / "spool").rglob("*.seg")), "Kafka has everything"


def until_refused(port: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return
    raise AssertionError("it still listens")


def test_many_clients_at_once_lose_nothing(world: World) -> None:
    prefix, statuses = os.urandom(4).hex(), []

    def send(client: int) -> None:
        for n in range(10):
            batch = [interaction(f"{prefix}-{client}-{n}-{i}") for i in range(5)]
            statuses.append(world.receiver.post(f"/v1/{world.shop}/interactions", batch, token=world.token).status)

    threads = [threading.Thread(target=send, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [202] * 80
    wanted = [f"{prefix}-{c}-{n}-{i}" for c in range(8) for n in range(10) for i in range(5)]
    assert len(world.arrived(world.shop, "interactions", wanted)) == len(wanted)
