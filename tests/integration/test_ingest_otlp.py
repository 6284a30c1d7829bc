"""OpenTelemetry's own exporter, and its JSON, against the receiver's server; the events land in a real spool and a real Kafka."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from treadle.log import read
from treadle.policies import remember
from treadle_schemas import WorkspaceSettings
from treadle_schemas.codec import decode
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.ingest import Access

pytest.importorskip("opentelemetry.sdk")
exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")

from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: E402
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: E402
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource  # noqa: E402
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

PARTITIONS = 2
DEADLINE_S = 60.0
SECRET_KEY = "sk-proj-" + "Ab3dEf6hIj9lMn2pQr5tUv8xYz1" * 2
FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "exports" / "otlp" / "traces.jsonl"


class World(NamedTuple):
    port: int
    workspace: str
    token: str
    interactions: Callable[[], list[dict[str, Any]]]

    def post(self, path: str, raw: bytes, **headers: str) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", path, raw, given)
            answer = connection.getresponse()
            return answer.status, answer.getheader("content-type") or "", answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def world(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, name = tmp_path_factory.mktemp("otlp"), f"t-otlp-{os.urandom(4).hex()}"
    settings = WorkspaceSettings(workspace=name, partitions=PARTITIONS)
    workspaces.create(broker, settings)
    remember(folder, settings)
    _, token = Access(folder / "ingest" / "access.json").add_token(name)
    env = {**os.environ, "TREADLE_HOME": str(folder), "TREADLE_BOOTSTRAP_SERVERS": broker}
    env |= {"TREADLE_SPOOL": str(folder / "spool"), "TREADLE_INGEST_PORT": "0"}
    process = subprocess.Popen([sys.executable, "-m", "treadle", "ingest"], env=env, stdout=subprocess.PIPE, text=True)

    def interactions() -> list[dict[str, Any]]:
        found = [decode(r.value, r.headers) for r in read(broker, topic(name, "interactions"), PARTITIONS)]
        return [event.data for event in found if event.type == "dev.treadle.interaction.v1"]

    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        yield World(port, name, token, interactions)
    finally:
        process.kill()
        process.communicate()


def spans(*, content: bool = True) -> list[ReadableSpan]:
    """An agent's span and the model's call inside it, as an instrumentation makes them."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "desk"}))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("invoke_agent helper") as agent:
        agent.set_attributes({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper"})
        with tracer.start_as_current_span("chat m") as call:
            call.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"})
            if content:
                asked = [{"role": "user", "parts": [{"type": "text", "content": f"my key is {SECRET_KEY}"}]}]
                said = [{"role": "assistant", "parts": [{"type": "text", "content": "ho"}], "finish_reason": "stop"}]
                call.set_attribute("gen_ai.input.messages", json.dumps(asked))
                call.set_attribute("gen_ai.output.messages", json.dumps(said))
    provider.shutdown()
    return list(kept.get_finished_spans())


def call_id(made: list[ReadableSpan]) -> str:
    (found,) = [span.context.span_id for span in made if span.name == "chat m" and span.context]
    return f"{found:016x}"


def arrived(world: World, identity: str) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = [value for value in world.interactions() if value["interaction_id"] == identity]
        if found:
            assert all(value == found[0] for value in found)
            return found[0]
        assert time.monotonic() < deadline, f"{identity} did not arrive"


@pytest.mark.parametrize("compression", ["NoCompression", "Gzip", "Deflate"])
def test_what_opentelemetry_exports_arrives_redacted(world: World, compression: str) -> None:
    exporter = exporters.OTLPSpanExporter(
        endpoint=f"http://127.0.0.1:{world.port}/v1/traces",
        headers={"authorization": f"Bearer {world.token}"},
        compression=Compression[compression],
    )
    made = spans()
    assert exporter.export(made) is SpanExportResult.SUCCESS
    assert exporter.export(made) is SpanExportResult.SUCCESS, "sent again, it is the same interaction"
    exporter.shutdown()
    value = arrived(world, call_id(made))
    assert [m["content"] for m in value["messages"]] == ["my key is [API_KEY_1]", "ho"]
    assert (value["agent"], value["slot"], value["model"]) == ("desk", "helper", "m")
    assert made[0].context is not None
    assert value["episode_id"] == f"{made[0].context.trace_id:032x}"


def test_json_of_a_collector_arrives(world: World) -> None:
    raw = gzip.compress(FIXTURE.read_bytes().splitlines()[0])
    status, kind, said = world.post(
        f"/v1/{world.workspace}/traces",
        raw,
        Content_Type="application/json",
        Content_Encoding="gzip",
        Authorization=f"Bearer {world.token}",
    )
    assert (status, kind, json.loads(said)) == (200, "application/json", {})
    assert arrived(world, "00f067aa0ba90202")["model"] == "gpt-4o-2024-08-06"


def test_calls_without_content_are_a_partial_success(world: World) -> None:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    raw = encode_spans([*spans(), *spans(content=False)]).SerializeToString()
    status, kind, said = world.post(
        "/v1/traces", raw, Content_Type="application/x-protobuf", Authorization=f"Bearer {world.token}"
    )
    answer = ExportTraceServiceResponse.FromString(said)
    assert (status, kind) == (200, "application/x-protobuf")
    assert answer.partial_success.rejected_spans == 1
    assert "no messages" in answer.partial_success.error_message


@pytest.mark.parametrize(
    ("body", "kind", "token", "path", "status", "code"),
    [
        (b"\xff\xff", "application/x-protobuf", True, "/v1/traces", 400, 3),
        (b'{"resourceLogs": []}', "application/json", True, "/v1/traces", 400, 3),
        (b"", "application/x-protobuf", False, "/v1/traces", 401, 16),
        (b"", "application/x-protobuf", True, "/v1/another/traces", 403, 7),
        (b"", "text/plain", True, "/v1/traces", 415, 3),
    ],
)
def test_errors_have_the_protocols_form(
    world: World, body: bytes, kind: str, token: bool, path: str, status: int, code: int
) -> None:
    given = {"Authorization": f"Bearer {world.token}"} if token else {}
    got, form, said = world.post(path, body, Content_Type=kind, **given)
    assert got == status
    if form == "application/json":
        assert json.loads(said)["code"] == code
    else:
        assert form == "application/x-protobuf"
        # google.rpc.Status: field 1, a number; field 2, text of the length that follows
        assert said[:3] == bytes((0x08, code, 0x12))
        assert said[4:].decode().isprintable()
        assert said[3] == len(said[4:])


def test_a_request_without_spans_is_a_success(world: World) -> None:
    raw = ExportTraceServiceRequest().SerializeToString()
    token = f"Bearer {world.token}"
    assert world.post("/v1/traces", raw, Content_Type="application/x-protobuf", Authorization=token)[::2] == (200, b"")
