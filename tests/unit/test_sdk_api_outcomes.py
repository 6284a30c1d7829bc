"""Outcomes of the SDK: what they may be about, what each kind says, and what the join makes of it."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from treadle import outcomes, targets, testing
from treadle.cli import main
from treadle.errors import LogUnreachable, TargetError
from treadle_schemas import FieldError, Handle, HandleError, WorkspaceSettings
from treadle_schemas.canonical import content_hash
from treadle_schemas.codec import OUTCOME, encode, make_headers
from treadle_schemas.events import default_outcome_id, read_outcome
from treadle_streams.join import arrivals
from treadle_streams.join.grading import Grading

USER = {"role": "user", "content": "hi"}
HANDLE = Handle("shop", "e", "i")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    targets.forget()
    yield
    targets.forget()


@pytest.fixture
def sink() -> treadle.MemorySink:
    return treadle.MemorySink()


@pytest.fixture
def recorder(sink: treadle.MemorySink) -> treadle.Recorder:
    return treadle.Recorder("shop", sink=sink, agent="desk")


@pytest.fixture
def anywhere(sink: treadle.MemorySink, monkeypatch: pytest.MonkeyPatch) -> treadle.MemorySink:
    """What treadle.outcome sends for the workspace shop."""
    monkeypatch.setattr(outcomes, "_recorders", {"shop": treadle.Recorder("shop", sink=sink)})
    return sink


class Answer:
    """A client library's answer."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


# --- what an outcome is about --------------------------------------------------------------------------------------------------

TARGETS: list[tuple[str, Any, tuple[str | None, str | None, str | None]]] = [
    ("a handle", HANDLE, ("i", "e", None)),
    ("its text", "shop/e/i", ("i", "e", None)),
    ("a text with odd ids", "shop/a%2Fb/%C3%BC", ("ü", "a/b", None)),
    ("a target", targets.Target(episode_id="e"), (None, "e", None)),
    ("a reference", "pr:org/repo#12", (None, None, "pr:org/repo#12")),
    ("a pull request's address", "https://github.com/org/repo/pull/12", (None, None, "pr:org/repo#12")),
    ("a page of it", "https://github.com/org/repo/pull/12/files#diff-1", (None, None, "pr:org/repo#12")),
    ("another address", "https://jira.example/T-1", (None, None, "https://jira.example/T-1")),
    ("a provider's id", "chatcmpl-7", (None, None, "response:chatcmpl-7")),
    ("an answer elsewhere recorded", Answer(id="msg_1"), (None, None, "response:msg_1")),
    ("an answer as a dict", {"id": "resp_1"}, (None, None, "response:resp_1")),
    ("langchain's", Answer(id="run--1", response_metadata={"id": "chatcmpl-8"}), (None, None, "response:chatcmpl-8")),
]


@pytest.mark.parametrize(("target", "expected"), [case[1:] for case in TARGETS], ids=[case[0] for case in TARGETS])
def test_an_outcome_is_about(
    recorder: treadle.Recorder, sink: treadle.MemorySink, target: Any, expected: tuple[Any, Any, Any]
) -> None:
    assert recorder.outcome(target, "pr_merged", True)
    (value,) = sink.outcomes
    assert (value.get("interaction_id"), value.get("episode_id"), value.get("reference")) == expected
    assert sink.sent[0].key.decode() == (expected[1] or expected[0] or expected[2])


NO_TARGETS: list[tuple[Any, type[Exception], str]] = [
    ("no handle", HandleError, "no handle"),
    ("shop/e", HandleError, "expected workspace/episode/interaction"),
    ("", HandleError, "''"),
    (7, TargetError, "Keep the handle"),
    (None, TargetError, "Keep the handle"),
    ({"content": "x"}, TargetError, "Keep the handle"),
    ("pr:" + "x" * 300, TargetError, "256"),
    ("elsewhere/e/i", FieldError, "use treadle.outcome"),
]


@pytest.mark.parametrize(("target", "error", "match"), NO_TARGETS, ids=str)
def test_an_outcome_is_not_about(target: Any, error: type[Exception], match: str) -> None:
    recorder = treadle.Recorder("shop", sink=treadle.MemorySink())
    with pytest.raises(error, match=match):
        recorder.outcome(target, "reward", 1.0)
    calm = treadle.Recorder("shop", sink=treadle.MemorySink(), raise_errors=False)
    calm.outcome(target, "reward", 1.0)
    assert calm.stats().refused == 1


def test_an_answer_that_this_process_recorded_is_its_interaction(
    recorder: treadle.Recorder, anywhere: treadle.MemorySink
) -> None:
    answer = {"id": "chatcmpl-1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}}]}
    text = Answer(role="assistant", model_dump=lambda **_: {"role": "assistant", "content": "b"})
    with recorder.interaction(messages=[USER]) as turn:
        turn.respond(answer)
    with recorder.interaction(messages=[USER]) as without_id:
        without_id.respond(text)
    for target in (answer, "chatcmpl-1", turn, turn.handle):
        treadle.outcome(target, "reward", 1.0)
    treadle.outcome(text, "reward", 1.0)
    assert [v["interaction_id"] for v in anywhere.outcomes] == [turn.interaction_id] * 4 + [without_id.interaction_id]
    assert [treadle.handle_of(known) for known in (answer, "chatcmpl-1", turn, text)] == [
        treadle.Handle.parse(scope.handle) for scope in (turn, turn, turn, without_id)
    ]
    assert treadle.handle_of("chatcmpl-1", "elsewhere") is None
    assert treadle.handle_of("chatcmpl-unknown") is None
    # what a model said is no id of it
    with recorder.interaction(messages=[USER]) as turn:
        turn.respond("yes")
    assert targets.resolve("yes", "shop").reference == "response:yes"
    # said of another workspace it is a reference there
    assert targets.resolve("chatcmpl-1", "elsewhere").reference == "response:chatcmpl-1"


def test_what_a_process_remembers_of_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "MAX_REMEMBERED", 3)
    answers = [Answer(id=f"a{n}") for n in range(5)]
    for n in range(5):
        targets.remember(answers[n], HANDLE)
    assert [targets.resolve(f"a{n}").reference for n in range(5)] == ["response:a0", "response:a1", None, None, None]
    del answers
    gc.collect()
    assert targets._by_object == {}
    targets.remember(object(), "no handle")  # never raises


def test_a_reference_needs_a_workspace(anywhere: treadle.MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match="pass workspace=, set TREADLE_WORKSPACE"):
        treadle.outcome("pr:org/repo#1", "pr_merged", True)
    assert treadle.outcome("pr:org/repo#1", "pr_merged", True, workspace="shop")
    monkeypatch.setenv("TREADLE_WORKSPACE", "shop")
    assert treadle.outcome("pr:org/repo#2", "pr_merged", True)
    assert [v["reference"] for v in anywhere.outcomes] == ["pr:org/repo#1", "pr:org/repo#2"]


def test_an_outcome_that_is_nobody_s_is_logged_in_production(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outcomes, "under_pytest", lambda: False)
    with caplog.at_level(logging.WARNING, logger="treadle"):
        assert treadle.outcome("pr:org/repo#1", "pr_merged", True) is None
        assert treadle.comment(7, "x") is None
        treadle.retract("no handle", "x")
        assert treadle.rights("no handle", train="deny") == []
    assert "TREADLE_WORKSPACE" in caplog.text


EPISODES: list[tuple[Any, str]] = [
    ("ticket-17", "ticket-17"),
    ("any text at all", "any text at all"),
    ("shop/e/i", "e"),
    (HANDLE, "e"),
    (targets.Target(episode_id="t"), "t"),
]


@pytest.mark.parametrize(("episode", "expected"), EPISODES, ids=str)
def test_a_whole_episode_is_named_by(anywhere: treadle.MemorySink, episode: Any, expected: str) -> None:
    assert treadle.episode_outcome(episode, "solved", True, workspace="shop")
    (value,) = anywhere.outcomes
    assert (value.get("interaction_id"), value["episode_id"]) == (None, expected)


def test_an_open_episode_is_a_target(recorder: treadle.Recorder, anywhere: treadle.MemorySink) -> None:
    with recorder.episode(episode_id="e1") as episode:
        treadle.outcome(episode, "solved", True)
        treadle.episode_outcome(episode, "solved", True)
    treadle.retract(episode, "solved")
    assert [v["episode_id"] for v in anywhere.outcomes] == ["e1"] * 3
    with pytest.raises(TargetError, match="names no episode"):
        treadle.episode_outcome(7, "solved", True, workspace="shop")


# --- what each kind says -------------------------------------------------------------------------------------------------------


def test_every_kind_can_be_said_from_anywhere(anywhere: treadle.MemorySink) -> None:
    made = [
        treadle.outcome(HANDLE, "reward", 1.0),
        treadle.comment(HANDLE, "too long"),
        treadle.preference(HANDLE, over="shop/e/worse"),
        treadle.preference(HANDLE, messages=[{"role": "assistant", "content": "worse"}]),
        treadle.demonstration(HANDLE, "Sorry. It is on its way."),
        treadle.demonstration(HANDLE, [{"role": "assistant", "content": "Sorry."}]),
        *treadle.rights(HANDLE, train="deny", eval="allow"),
    ]
    treadle.retract(HANDLE, "comment", made[1], kind="comment")
    treadle.flush(1)
    kinds = [(v.get("kind", "metric"), v["name"], v.get("op", "set")) for v in anywhere.outcomes]
    assert kinds == [
        ("metric", "reward", "set"),
        ("comment", "comment", "set"),
        ("preference", "preference", "set"),
        ("preference", "preference", "set"),
        ("demonstration", "demonstration", "set"),
        ("demonstration", "demonstration", "set"),
        ("rights", "train", "set"),
        ("rights", "eval", "set"),
        ("comment", "comment", "retract"),
    ]
    values = anywhere.outcomes
    assert [v["outcome_id"] for v in values] == [*made, made[1]]
    assert (values[2]["over"], values[2]["value"]) == ("worse", None)
    assert values[4]["messages"] == [{"role": "assistant", "content": "Sorry. It is on its way."}]
    assert (values[6]["value"], values[7]["value"]) == ("deny", "allow")
    for value in values:
        read_outcome(value)


BASE: dict[str, Any] = {"observed_at": "2026-01-01T00:00:00Z", "outcome_id": "o", "interaction_id": "i", "value": None}
BAD_KINDS: list[tuple[str, dict[str, Any], str]] = [
    ("a comment without text", {"kind": "comment", "name": "comment"}, r"\$.value"),
    ("an empty comment", {"kind": "comment", "name": "comment", "value": ""}, r"\$.value"),
    ("a preference over nothing", {"kind": "preference", "name": "p"}, r"\$.over"),
    ("a preference over both", {"kind": "preference", "name": "p", "over": "x", "messages": [USER]}, r"\$.over"),
    ("a preference over itself", {"kind": "preference", "name": "p", "over": "i"}, r"\$.over"),
    ("a preference with a value", {"kind": "preference", "name": "p", "over": "x", "value": 1}, r"\$.value"),
    ("a preference over too long an id", {"kind": "preference", "name": "p", "over": "x" * 300}, r"\$.over"),
    ("a demonstration of nothing", {"kind": "demonstration", "name": "d"}, r"\$.messages"),
    ("a demonstration without messages", {"kind": "demonstration", "name": "d", "messages": []}, r"\$.messages"),
    (
        "one without a role",
        {"kind": "demonstration", "name": "d", "messages": [{"content": "x"}]},
        r"messages\[0\].role",
    ),
    ("a right nobody knows", {"kind": "rights", "name": "sell", "value": "deny"}, r"\$.name"),
    ("a right neither allowed nor denied", {"kind": "rights", "name": "train", "value": "maybe"}, r"\$.value"),
    ("a right that is true", {"kind": "rights", "name": "train", "value": True}, r"\$.value"),
    ("a metric over something", {"name": "reward", "value": 1, "over": "x"}, r"\$.over"),
    ("a metric with messages", {"name": "reward", "value": 1, "messages": [USER]}, r"\$.messages"),
    ("a comment with messages", {"kind": "comment", "name": "c", "value": "x", "messages": [USER]}, r"\$.messages"),
    ("an unknown kind", {"kind": "applause", "name": "c"}, r"\$.kind"),
]


@pytest.mark.parametrize(("said", "field"), [case[1:] for case in BAD_KINDS], ids=[case[0] for case in BAD_KINDS])
def test_an_outcome_is_refused_that_is(said: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError, match=field):
        read_outcome({**BASE, **said})


@pytest.mark.parametrize("kind", ["comment", "preference", "demonstration"])
def test_a_retract_says_only_what_it_takes_back(kind: str) -> None:
    said = {k: v for k, v in BASE.items() if k not in ("value", "outcome_id")}
    assert read_outcome({**said, "kind": kind, "name": kind, "op": "retract"}).outcome_id is None


ALL_KINDS: list[dict[str, Any]] = [
    {"name": "comment", "kind": "comment", "value": "x"},
    {"name": "preference", "kind": "preference", "over": "other"},
    {"name": "demonstration", "kind": "demonstration", "messages": [USER]},
    {"name": "comment", "kind": "comment", "op": "retract"},
    {"name": "reward", "interaction_id": None, "episode_id": "e"},
    {"name": "reward", "interaction_id": None, "reference": "pr:org/repo#1"},
    {"name": "comment", "kind": "comment", "value": "x", "interaction_id": None, "reference": "response:chatcmpl-1"},
]


@pytest.mark.parametrize("said", ALL_KINDS, ids=str)
def test_the_join_understands_every_kind_of_outcome_and_target(said: dict[str, Any]) -> None:
    body = {name: given for name, given in {**BASE, **said}.items() if given is not None or name == "value"}
    key = read_outcome(body).key
    headers: Any = make_headers(OUTCOME, "shop", source="test")
    arrival = arrivals.Arrival("outcomes", 0, 0, 0, key.encode(), encode(body), headers)
    understood = arrivals.understand(arrival, Grading(WorkspaceSettings(workspace="shop", partitions=1)))
    assert isinstance(understood, arrivals.OutcomeEvent | arrivals.EpisodeEvent)


def test_the_made_up_id_of_an_imported_outcome_tells_kinds_apart() -> None:
    said = {**BASE, "name": "demonstration", "kind": "demonstration"}
    lines: list[dict[str, Any]] = [
        {**said, "messages": [USER]},
        {**said, "messages": [{"role": "user", "content": "other"}]},
        {**BASE, "name": "demonstration"},
    ]
    ids = [default_outcome_id(read_outcome(line)) for line in lines]
    assert len(set(ids)) == 3
    # that of a metric is what it always was
    assert ids[2] == content_hash([[None, "i", None], "demonstration", None, BASE["observed_at"]])[:32]


# --- the command ---------------------------------------------------------------------------------------------------------------

COMMANDS: list[tuple[list[str], int, str]] = [
    (["shop/e/i"], 2, "nothing to say: give NAME=VALUE, --comment"),
    (["shop/e/i", "a=1", "--comment", "x", "--outcome-id", "o"], 2, "say one thing"),
    (["shop/e/i", "reward"], 2, "is not NAME=VALUE"),
    (["pr:org/repo#1", "merged=true"], 2, "give --workspace, or set TREADLE_WORKSPACE"),
    (["ticket-1", "solved=true", "--episode"], 2, "give --workspace, or set TREADLE_WORKSPACE"),
    (["no handle", "a=1"], 1, "is not a handle"),
    (["pr:o/r#1", "a=1", "--workspace", "No.Workspace"], 1, "is not a workspace name"),
    (["shop/e/i", "a=1"], 5, "127.0.0.1:9"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), COMMANDS, ids=[" ".join(case[0]) for case in COMMANDS])
def test_the_command_says_what_is_wrong(
    arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.log import Admin

    def absent(self: Admin) -> dict[str, int]:
        raise LogUnreachable("no broker at 127.0.0.1:9")

    monkeypatch.setattr(Admin, "partitions", absent)
    ran = CliRunner().invoke(main, ["--bootstrap-servers", "127.0.0.1:9", "outcome", *arguments])
    assert (ran.exit_code, ran.stdout) == (code, "")
    assert message in ran.stderr


# --- in tests of agents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffered", [False, True])
def test_what_an_agent_s_tests_record_stays_in_memory(tmp_path: Path, buffered: bool) -> None:
    recorder = treadle.Recorder("shop", spool_dir=tmp_path, bootstrap_servers="127.0.0.1:9", buffered=buffered)
    with testing.captured(recorder) as sink, recorder.episode():
        with recorder.interaction(messages="x" * 3000) as turn:
            turn.respond("y")
        treadle.outcome(turn, "reward", 1.0)
        treadle.outcome("pr:o/r#1", "merged", True, workspace="elsewhere")
        recorder.flush()
    assert sink.interactions[0]["messages"][0]["content"] == "x" * 3000
    assert [v["name"] for v in sink.outcomes] == ["reward", "merged"]
    assert list(tmp_path.rglob("*.seg")) == []
    # afterwards all goes where it went before
    assert outcomes.redirect(None) is None
    recorder.record(messages=[USER])
    recorder.close(timeout_s=0)
    assert len(list(tmp_path.rglob("*.seg"))) == 1


# --- handles in the wild -------------------------------------------------------------------------------------------------------

FOUND: list[tuple[str, str | None]] = [
    ("Opened by the agent.\n\n<!-- treadle: shop/e/i -->", "shop/e/i"),
    ("treadle: shop/e/i.", "shop/e/i"),
    ("(Treadle:shop/e/i)", "shop/e/i"),
    ("see `treadle: shop/a%2Fb/i`, and treadle: shop/other/x", "shop/a%2Fb/i"),
    ("treadle: Not-A-Workspace/e/i but treadle: shop/e/i", "shop/e/i"),
    ("treadle: shop/e", None),
    ("shop/e/i", None),
    ("mistreadle: shop/e/i", None),
]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_a_handle_is_found_in_prose(text: str, expected: str | None) -> None:
    found = Handle.find(text)
    assert (None if found is None else str(found)) == expected


IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(IDS, IDS, st.sampled_from(["{}", "{}.", "\n{} and more", "[link]({})", "<!-- {} -->"]))
def test_any_handle_survives_a_comment_a_url_and_a_column(episode: str, interaction: str, around: str) -> None:
    handle = Handle("shop", episode, interaction)
    assert Handle.find(around.format(handle.mark)) == handle
    assert Handle.parse(str(handle)) == handle
    assert targets.resolve(str(handle)) == targets.Target.of_handle(handle)


def test_a_new_handle_is_short() -> None:
    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", sink=sink)
    with recorder.episode(), recorder.interaction(messages=[USER]) as turn:
        turn.respond("x")
    assert len(turn.handle) <= 80


# --- how light it is -----------------------------------------------------------------------------------------------------------


def test_importing_loads_and_starts_nothing_heavy() -> None:
    code = """
import sys, threading, _thread, socket
made = []
def spy(name, real):
    def wrapper(*args, **named):
        made.append(name)
        return real(*args, **named)
    return wrapper
import orjson, msgspec, logging, zlib, json, uuid, datetime, typing, dataclasses, contextlib, urllib.parse, ahocorasick_rs
socket.socket = spy("socket", socket.socket)
_thread.start_new_thread = threading._start_new_thread = spy("thread", _thread.start_new_thread)
import treadle
heavy = {'torch', 'faust', 'deeplake', 'confluent_kafka', 'duckdb', 'numpy', 'asyncio', 'openai', 'httpx', 'langchain_core'}
print(made, sorted(heavy & set(sys.modules)), threading.active_count())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[] [] 1"
