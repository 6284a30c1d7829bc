"""Exports of other products: fixtures in each product's form, checked with its own models where installed, and what they become."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle.integrations._formats._messages import as_messages
from treadle_schemas.errors import FieldError
from treadle_streams.importing import FORMATS, BadLine, Export
from treadle_streams.importing._documents import Documents
from treadle_streams.importing._lines import interaction_of, outcome_of
from treadle_streams.importing.formats import Bad, Call, Passed, Remember, Score, Span, Trace

EXPORTS = Path(__file__).parent.parent / "fixtures" / "exports"
ASKED = [
    {"role": "system", "content": "You are a support agent."},
    {"role": "user", "content": "Where is order 17? Schön 🙂"},
]
TOOL = {"role": "tool", "tool_call_id": "call_1", "content": '{"status":"shipped"}'}
ANSWER = {"role": "assistant", "content": "It was shipped yesterday."}


def called(arguments: str = '{"id": 17}') -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_order", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def documents(name: str) -> list[dict[str, Any]]:
    found = [document for _, document in Documents(EXPORTS / name)]
    assert all(isinstance(document, dict) for document in found)
    return found  # type: ignore[return-value]


class Read:
    """What an export gives: interactions by id, outcomes, bad lines, and what was passed over."""

    def __init__(self, product: str, *names: str | Path) -> None:
        files = [name if isinstance(name, Path) else EXPORTS / product / name for name in names]
        self.bad: list[BadLine] = []
        with Export(product, files) as export:
            export.learn(lambda read: None)
            self.interactions = {
                line["interaction_id"]: line for path in files for line in self._lines(export.interactions(path))
            }
            self.outcomes = [line for path in files for line in self._lines(export.outcomes(path))]
            self.passed = dict(export.passed)
        for line in self.interactions.values():
            interaction_of(line)
        for line in self.outcomes:
            outcome_of(line)

    def _lines(self, source: Any) -> Iterator[dict[str, Any]]:
        for _, line in source:
            if isinstance(line, BadLine):
                self.bad.append(line)
            else:
                yield line

    def judged(self) -> set[tuple[Any, ...]]:
        return {
            (o["name"], o["value"], o.get("kind", "metric"), o.get("interaction_id") or o.get("episode_id"))
            for o in self.outcomes
        }


# Langfuse.


def test_langfuse_spans_become_steps_of_a_session_with_agents_and_slots() -> None:
    read = Read("langfuse", "observations_v2.jsonl", "scores.jsonl")
    assert read.bad == []
    plan, answer, judge = (read.interactions[f"000000000000000{n}"] for n in (2, 4, 6))
    assert plan["messages"] == [*ASKED, called()]
    assert plan["response"] == [2]
    assert answer["messages"] == [*ASKED, called(), TOOL, ANSWER]
    assert {(i["episode_id"], i["agent"], i["slot"], i["subject"]) for i in (plan, answer)} == {
        ("chat-42", "support-desk", "main", "user-7")
    }
    assert (judge["slot"], judge["status"], judge["error"], judge["response"]) == (
        "tone-checker",
        "error",
        "429 rate limited",
        [],
    )
    assert (plan["model"], plan["cost"], plan["first_token_ms"], plan["sampling"]) == (
        "gpt-4o-2024-08-06",
        0.000315,
        410.0,
        {"temperature": 0.2, "max_tokens": 512},
    )
    assert plan["usage"]["prompt_tokens"] == 58
    assert plan["tools"][0]["function"]["name"] == "get_order"
    assert (plan["started_at"], plan["ended_at"]) == ("2026-05-29T13:46:20.000000Z", "2026-05-29T13:46:21.250000Z")
    assert plan["tags"] == {"environment": "production", "release": "2026.5", "vip": True}
    assert read.passed == {"observation AGENT": 2, "observation TOOL": 1}


def test_langfuse_scores_become_outcomes_of_the_call_that_they_judge() -> None:
    read = Read("langfuse", "scores.jsonl", "observations_v2.jsonl")
    assert read.judged() == {
        ("resolved", True, "metric", "0000000000000004"),  # of the trace: its last good answer of the main agent
        ("helpfulness", 0.75, "metric", "0000000000000002"),
        ("helpfulness", "looked the order up", "comment", "0000000000000002"),
        ("topic", "shipping", "metric", "0000000000000004"),
        ("satisfaction", 4, "metric", "chat-42"),
        ("better", None, "demonstration", "0000000000000004"),
    }
    alone = Read("langfuse", "scores.jsonl")
    assert {o["reference"] for o in alone.outcomes if "reference" in o} == {"trace:9f86d081884c7d659a2feaa0c55ad015"}


def test_langfuse_blob_table_and_api_exports_say_the_same() -> None:
    blob = Read("langfuse", "observations_v2.jsonl").interactions
    api = Read("langfuse", "api_observations.json", "ui_traces.json", "api_scores.json")
    legacy = Read("langfuse", "legacy_observations.jsonl", "ui_traces.json").interactions
    assert api.bad == []
    assert len(api.interactions) == len(legacy) == 2
    for name, found in api.interactions.items():
        wanted = blob[name]
        assert {k: v for k, v in found.items() if k not in ("started_at", "ended_at", "references")} == {
            k: v for k, v in wanted.items() if k not in ("started_at", "ended_at", "references")
        }
        assert found["started_at"].removesuffix("Z") + "000Z" == wanted["started_at"]
        assert legacy[name]["messages"] == wanted["messages"]
        assert (legacy[name]["episode_id"], legacy[name]["agent"]) == ("chat-42", "support-desk")
    assert len(api.outcomes) == 3


def test_the_langfuse_fixtures_have_the_form_of_its_models() -> None:
    commons = pytest.importorskip("langfuse.api.commons.types")
    parse = pytest.importorskip("langfuse.api.core.pydantic_utilities").parse_obj_as
    (page,), (judged,) = documents("langfuse/api_observations.json"), documents("langfuse/api_scores.json")
    for record in page["data"]:
        parsed = parse(commons.ObservationV2, record)
        assert (parsed.trace_id, parsed.model, parsed.usage_details) == (
            record["traceId"],
            record["model"],
            record["usageDetails"],
        )
        assert not parsed.__pydantic_extra__
    for record in judged["data"]:
        assert parse(commons.Score, record).data_type == record["dataType"]


# LangSmith.


def test_langsmith_runs_become_steps_of_a_thread_and_feedback_outcomes() -> None:
    read = Read("langsmith", "runs.jsonl", "feedback.jsonl")
    assert read.bad == []
    first, second, failed = read.interactions.values()
    assert first["messages"] == [
        ASKED[0],
        {"role": "user", "content": "Where is order 17?"},
        {**called('{"id":17}'), "content": ""},
    ]
    assert second["messages"][-2:] == [{**TOOL, "name": "get_order"}, ANSWER]
    assert {(i["episode_id"], i["agent"], i["slot"]) for i in read.interactions.values()} == {
        ("thread-9", "LangGraph", "main")
    }
    assert (first["cost"], first["first_token_ms"], first["finish_reason"]) == (0.000315, 500.0, "tool_calls")
    assert (failed["status"], failed["error"], failed["response"]) == ("error", "RateLimitError('429')", [])
    last = second["interaction_id"]
    assert second["references"] == ["trace:018f0000-0000-7000-8000-000000000001"]
    assert read.judged() == {
        ("user_score", 1, "metric", last),
        ("user_score", "thanks!", "comment", last),
        ("correctness", 0.5, "metric", first["interaction_id"]),
        ("label", "shipping", "metric", last),
        ("edit", None, "demonstration", last),
    }
    assert read.passed == {"feedback on a project": 1, "run chain": 2, "run tool": 1}


def test_langsmith_runs_nest(tmp_path: Path) -> None:
    root, *below = documents("langsmith/runs.jsonl")
    path = tmp_path / "nested.json"
    path.write_text(json.dumps([{**root, "child_runs": below}]))
    assert Read("langsmith", path).interactions == Read("langsmith", "runs.jsonl").interactions


def test_the_langsmith_fixtures_have_the_form_of_its_models() -> None:
    schemas = pytest.importorskip("langsmith.schemas")
    for run in documents("langsmith/runs.jsonl"):
        assert run.keys() <= set(schemas.Run.model_fields)
        assert str(schemas.Run(**run).id) == run["id"]
    for feedback in documents("langsmith/feedback.jsonl"):
        assert feedback.keys() <= set(schemas.Feedback.model_fields)
        assert schemas.Feedback(**feedback).key == feedback["key"]


def test_what_list_runs_dumps_is_read() -> None:
    schemas = pytest.importorskip("langsmith.schemas")
    for line in documents("langsmith/runs.jsonl"):
        dumped = json.loads(schemas.Run(**line).model_dump_json())
        (ours,) = [item for item in FORMATS["langsmith"](line, lambda key: None) if not isinstance(item, Passed)]
        (theirs,) = [item for item in FORMATS["langsmith"](dumped, lambda key: None) if not isinstance(item, Passed)]
        assert isinstance(ours, Span)
        assert isinstance(theirs, Span)
        assert (ours.id, ours.trace_id, ours.session) == (theirs.id, theirs.trace_id, theirs.session)
        if isinstance(ours, Call):
            assert isinstance(theirs, Call)
            assert ours.messages == theirs.messages


def test_what_langchain_really_sends_to_langsmith_is_read() -> None:
    models = pytest.importorskip("langchain_core.language_models.fake_chat_models")
    messages = pytest.importorskip("langchain_core.messages")
    runnables = pytest.importorskip("langchain_core.runnables")
    tracers = pytest.importorskip("langchain_core.tracers.langchain")
    langsmith = pytest.importorskip("langsmith")
    dumps_json = pytest.importorskip("langsmith._internal._serde").dumps_json
    kept: dict[str, dict[str, Any]] = {}

    class Kept(langsmith.Client):  # type: ignore[misc, name-defined, unused-ignore]
        """Keeps what would go to the server."""

        def create_run(self, name: str, inputs: Any, run_type: str, **more: Any) -> None:
            kept[str(more["id"])] = {"name": name, "inputs": inputs, "run_type": run_type, **more}

        def update_run(self, run_id: Any, **more: Any) -> None:
            kept[str(run_id)].update({key: given for key, given in more.items() if given is not None})

    call = {"name": "get_order", "args": {"id": 17}, "id": "call_1"}
    model = models.FakeMessagesListChatModel(
        responses=[messages.AIMessage("", tool_calls=[call]), messages.AIMessage([{"type": "text", "text": "Sent."}])]
    )

    def agent(question: str) -> Any:
        asked = [messages.SystemMessage("s"), messages.HumanMessage(question)]
        planned = model.invoke(asked)
        return model.invoke([*asked, planned, messages.ToolMessage(TOOL["content"], tool_call_id="call_1")])

    tracer = tracers.LangChainTracer(
        client=Kept(api_key="none", api_url="http://127.0.0.1:9", auto_batch_tracing=False)
    )
    config = {"callbacks": [tracer], "metadata": {"thread_id": "t"}, "run_name": "desk_agent"}
    runnables.RunnableLambda(agent).invoke("Where?", config=config)
    tracer.wait_for_futures()
    lines: list[dict[str, Any]] = []
    with Export("langsmith", []) as export:
        runs = [
            json.loads(dumps_json({k: v for k, v in run.items() if k != "dangerously_allow_filesystem"}))
            for run in kept.values()
        ]
        for run in runs:
            for item in FORMATS["langsmith"](run, lambda key: None):
                export._index.add(item)
        for run in runs:
            lines += [line for line in export.lines(run, "interactions") if isinstance(line, dict)]
    last = lines[-1]
    assert [(line["agent"], line["episode_id"]) for line in lines] == [("desk_agent", "t")] * 2
    assert last["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "Where?"},
        {**called('{"id":17}'), "content": ""},
        TOOL,
        {"role": "assistant", "content": "Sent."},
    ]


# Phoenix and OpenTelemetry.


def test_phoenix_spans_and_annotations() -> None:
    read = Read("phoenix", "spans.json", "annotations.json")
    assert read.bad == []
    plan, failed = read.interactions.values()
    assert plan["messages"] == [*ASKED, called()]
    assert (plan["episode_id"], plan["agent"], plan["subject"], plan["sampling"]) == (
        "chat-42",
        "support-desk",
        "user-7",
        {"temperature": 0.2},
    )
    assert plan["usage"] == {"prompt_tokens": 58, "completion_tokens": 17, "total_tokens": 75}
    assert (failed["messages"][-1], failed["error"]) == (TOOL, "APIConnectionError: connection lost")
    assert read.judged() == {
        ("correctness", 1.0, "metric", plan["interaction_id"]),
        ("correctness.label", "correct", "metric", plan["interaction_id"]),
        ("correctness", "It looked the order up.", "comment", plan["interaction_id"]),
        ("user_feedback", "thumbs-down", "metric", plan["interaction_id"]),
    }


def test_the_dataframe_of_phoenix_says_the_same_as_its_api() -> None:
    (frame,) = Read("phoenix", "spans_dataframe.jsonl", "annotations_dataframe.jsonl").interactions.values()
    api = Read("phoenix", "spans.json").interactions[frame["interaction_id"]]
    for name in ("messages", "episode_id", "agent", "model", "sampling", "usage"):
        assert frame[name] == api[name]
    assert frame["started_at"] == "2026-05-29T13:46:20.000000Z"


def test_opentelemetry_spans_of_each_convention() -> None:
    read = Read("otlp", "traces.jsonl")
    now, failed, indexed, events = read.interactions.values()
    assert now["messages"] == [*ASKED, called('{"id":17}')]
    assert failed["messages"] == [ASKED[1], called('{"id":17}'), TOOL]
    assert (failed["status"], failed["error"]) == ("error", "deadline exceeded")
    assert indexed["messages"] == [*ASKED, called()]
    assert events["messages"] == [ASKED[1], ANSWER]
    assert {(i["episode_id"], i["agent"]) for i in read.interactions.values()} == {("conv-1", "desk")}
    assert (now["references"], now["finish_reason"], now["usage"]["total_tokens"]) == (
        ["response:chatcmpl-1"],
        "tool_calls",
        75,
    )
    assert [(line.line, "holds no messages" in line.reason) for line in read.bad] == [(2, True)]
    assert read.bad[0].reason.startswith("$.resourceSpans[0].scopeSpans[0].spans[3].attributes")


def test_the_otlp_fixture_is_a_request_of_the_protocol() -> None:
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")
    for document in documents("otlp/traces.jsonl"):
        request = copy.deepcopy(document)
        for resource in request["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    for name in (
                        "traceId",
                        "spanId",
                        "parentSpanId",
                    ):  # hexadecimal in OTLP JSON, unlike in other protobuf JSON
                        span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
        parsed = json_format.ParseDict(request, service.ExportTraceServiceRequest())
        assert sum(len(s.spans) for r in parsed.resource_spans for s in r.scope_spans) in (3, 4)


# OpenAI.


def test_openai_stored_completions_batches_and_fine_tuning_files() -> None:
    names = [
        "stored_completions.jsonl",
        "batch_output.jsonl",
        "batch_errors.jsonl",
        "batch_input.jsonl",
        "stored_messages.json",
        "fine_tuning.jsonl",
        "preference.jsonl",
    ]
    read = Read("openai", *names)
    assert [(Path(line.file).name, line.line) for line in read.bad] == [("stored_completions.jsonl", 2)]
    assert "no messages of chatcmpl-A9" in read.bad[0].reason
    stored, chat, responses, failed, tuned, preferred = read.interactions.values()
    for found in (stored, chat):
        assert [{k: m[k] for k in ("role", "content")} for m in found["messages"][:2]] == ASKED
        assert found["messages"][2]["tool_calls"] == called()["tool_calls"]
        assert found["tools"][0]["function"]["name"] == "get_order"
        assert (found["finish_reason"], found["usage"]["total_tokens"]) == ("tool_calls", 75)
    assert (stored["tags"], stored["references"]) == ({"agent": "desk"}, ["response:chatcmpl-A1"])
    assert responses["messages"] == [ASKED[0], {"role": "user", "content": "Where is order 17?"}, ANSWER]
    assert (responses["started_at"], responses["ended_at"]) == (
        "2026-05-29T13:46:20.000000Z",
        "2026-05-29T13:46:22.000000Z",
    )
    assert (failed["status"], failed["error"], failed["response"]) == (
        "error",
        "rate_limit_exceeded: Rate limit reached",
        [],
    )
    assert (tuned["response"], tuned["messages"][4]) == ([4], ANSWER)
    assert preferred["messages"] == [*ASKED, ANSWER]
    (outcome,) = read.outcomes
    assert (outcome["kind"], outcome["interaction_id"]) == ("preference", preferred["interaction_id"])
    assert outcome["messages"] == [{"role": "assistant", "content": "No idea."}]
    assert read.passed == {"batch request": 3, "message of a stored completion": 2}


def test_the_openai_fixtures_have_the_form_of_its_models() -> None:
    chat = pytest.importorskip("openai.types.chat")
    responses = pytest.importorskip("openai.types.responses")
    for line in documents("openai/stored_completions.jsonl"):
        assert chat.ChatCompletion.model_validate(line).id == line["id"]
    for line in documents("openai/stored_messages.json")[0]["data"]:
        assert "role" in line
        assert line["id"].startswith("chatcmpl-A1-")
    for line in documents("openai/batch_output.jsonl"):
        body = line["response"]["body"]
        model = responses.Response if body["object"] == "response" else chat.ChatCompletion
        assert model.model_validate(body).id == body["id"]


def test_a_custom_id_that_stands_for_two_requests_is_refused(tmp_path: Path) -> None:
    other = documents("openai/batch_input.jsonl")[0]
    other["body"]["model"] = "another"
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps(other) + "\n")
    read = Read("openai", EXPORTS / "openai" / "batch_input.jsonl", path, EXPORTS / "openai" / "batch_output.jsonl")
    assert [("r-1" in line.reason, "two different things" in line.reason) for line in read.bad] == [(True, True)]
    assert list(read.interactions) == ["batch_req_3"]


# Files, and anything at all.


def test_a_bad_part_is_named_by_file_line_and_field_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = documents("langfuse/observations_v2.jsonl")
    path = tmp_path / "x.json"
    records = [
        good[1],
        {**good[3], "start_time": "soon"},
        {"what": 1},
        7,
        {**good[3], "id": None},
        {**good[5], "id": "\ud83d"},
    ]
    path.write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n, NaN]\n")
    read = Read("langfuse", path)
    assert list(read.interactions) == [good[1]["id"]]
    found = {line.line: line.reason for line in read.bad}
    assert found.keys() == {3, 4, 5, 6, 7, 8}
    for number, wanted in (
        (3, "$.start_time: 'soon'"),
        (4, "$: is no observation"),
        (5, "not an object"),
        (6, "$.id: is missing"),
        (7, "lone surrogate"),
        (8, "not JSON"),
    ):
        assert wanted in found[number]


@pytest.mark.parametrize(
    ("text", "count", "bad"),
    [
        ('{"a": 1}\n{"a": 2}\n', 2, []),
        ('{\n "a": 1\n}\n', 1, []),
        ("[]", 0, []),
        ("", 0, []),
        ('\n\n[{"a":1},\n{"a":2}]', 2, []),
        ('\ufeff[{"a":1}]', 1, []),
        ('[{"a":1},\n{"a":', 1, [2]),
        ('[{"a":1}\n{"a":2}]', 1, [2]),
        ('[{"a":1}] x', 1, [1]),
        ('{"a":1\n{"a":2}\n', 1, [1]),
        ("no json\n", 0, [1]),
        ('[{"a":1},]', 1, []),
    ],
)
def test_files_are_json_lines_or_one_document(tmp_path: Path, text: str, count: int, bad: list[int]) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    found = list(Documents(path))
    assert len([d for _, d in found if isinstance(d, dict)]) == count
    assert [n for n, d in found if isinstance(d, BadLine)] == bad


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(["{", '{"role":"user","content":1}', "[]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "id", "value", "message", "function", "parts"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
FIXTURES = [
    (path.parent.name, document)
    for path in sorted(EXPORTS.glob("*/*.json*"))
    for _, document in Documents(path)
    if isinstance(document, dict)
]


@st.composite
def bent(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A document of a fixture with some of its values replaced or gone, at any depth."""
    product, document = draw(st.sampled_from(FIXTURES))
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        here: Any = document
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(here[key], dict | list) and here[key] and draw(st.integers(0, 3)):
                here = here[key]
                continue
            if isinstance(here, dict) and draw(st.booleans()):
                del here[key]
            else:
                here[key] = draw(ANY)
            break
    return product, document


@given(bent() | st.tuples(st.sampled_from(sorted(FORMATS)), st.dictionaries(st.text(max_size=5), ANY, max_size=3)))
@settings(max_examples=1500, deadline=None)
def test_every_document_is_items_or_an_error_that_names_a_field(given: tuple[str, dict[str, Any]]) -> None:
    product, document = given
    before = copy.deepcopy(document)
    remembered = {
        "r-1": {"url": "/v1/chat/completions", "body": {"model": "m", "messages": [{"role": "user", "content": "x"}]}}
    }
    named: list[str] = []
    with Export(product, []) as export:
        for recall in (lambda key: None, lambda key: remembered.get(key.removeprefix("batch:"))):
            try:
                items = list(FORMATS[product](document, recall))
            except FieldError as err:
                named.append(err.field)
                continue
            assert items or document.keys() & {"data", "resourceSpans", "runs", "feedback", "feedbacks"}
            for item in items:
                assert isinstance(item, Span | Call | Trace | Score | Remember | Passed | Bad)
        for kind in ("interactions", "outcomes"):
            for line in export.lines(document, kind):  # type: ignore[arg-type]
                if isinstance(line, dict):
                    try:
                        (interaction_of if kind == "interactions" else outcome_of)(line)
                    except FieldError:
                        pass
    assert all(field.startswith("$") for field in named)
    assert document == before


@given(ANY)
@settings(max_examples=500, deadline=None)
def test_whatever_was_said_becomes_messages(said: Any) -> None:
    found: list[dict[str, Any]] = []
    field = "$.x"
    try:
        found = as_messages(said, "user", "$.x")
    except FieldError as err:
        field = err.field
    assert field.startswith("$.x")
    assert all(isinstance(message.get("role"), str) for message in found)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("hi", [{"role": "user", "content": "hi"}]),
        ("", [{"role": "user", "content": ""}]),
        ('{"answer": 42}', [{"role": "user", "content": '{"answer": 42}'}]),
        ({"answer": 42}, [{"role": "user", "content": '{"answer":42}'}]),
        (["human", "x"], [{"role": "user", "content": "x"}]),
        (
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        ),
        (
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}},
                ],
            },
            [
                {
                    "role": "assistant",
                    "content": "a",
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}],
                }
            ],
        ),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "r"}]},
            [{"role": "tool", "tool_call_id": "1", "content": "r"}],
        ),
        (
            {"role": "user", "content": "x", "more": {"kept": 1}},
            [{"role": "user", "content": "x", "more": {"kept": 1}}],
        ),
    ],
    ids=range(9),
)
def test_messages_of_many_kinds(said: Any, found: list[dict[str, Any]]) -> None:
    assert as_messages(said, "user", "$") == found
