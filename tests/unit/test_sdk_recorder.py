"""The recorder without a broker: what it sends, what it counts, that it never hurts its host."""

from __future__ import annotations

import datetime
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import treadle
from treadle.errors import NotDelivered, QueueFull, RecorderClosed
from treadle_schemas import FieldError, Handle, HandleError, SettingError
from treadle_schemas.events import read_interaction, read_outcome

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Where is my parcel? 😀"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
]


@pytest.fixture
def sink() -> treadle.MemorySink:
    return treadle.MemorySink()


@pytest.fixture
def recorder(sink: treadle.MemorySink) -> treadle.Recorder:
    return treadle.Recorder("shop", sink=sink, agent="desk", model="tiny", release="shop/main/r1", tags={"site": "a"})


class RefusingSink(treadle.MemorySink):
    def send_many(self, *_args: Any, **_kwargs: Any) -> None:
        raise QueueFull("full")


def test_an_interaction_is_sent_verbatim_under_its_episode(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    handle = recorder.record(messages=MESSAGES, task_id="t-1", episode_id="ep", step=2, response=[1], tags={"n": 1})
    (sent,) = sink.sent
    assert sent.topic == "treadle.shop.interactions"
    assert sent.key == b"ep"
    assert sent.event.type == "dev.treadle.interaction.v1"
    assert sent.event.data["messages"] == MESSAGES
    event = read_interaction(sent.event.data)
    assert (event.agent, event.model, event.release, event.slot) == ("desk", "tiny", "shop/main/r1", "main")
    assert (event.task_id, event.step, event.response, event.tags) == ("t-1", 2, [1], {"site": "a", "n": 1})
    assert handle == Handle("shop", "ep", event.interaction_id)


def test_ids_sort_by_time_and_default_to_one_interaction_an_episode(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    first = recorder.record(messages=MESSAGES)
    time.sleep(0.002)
    second = recorder.record(messages=MESSAGES)
    assert first.episode_id == first.interaction_id < second.interaction_id
    assert "episode_id" not in sink.interactions[0]
    assert sink.sent[0].key == first.interaction_id.encode()
    assert first.interaction_id[14] == "7"


def test_what_the_host_changes_after_the_call_changes_nothing(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    message = {"role": "user", "content": "before"}
    recorder.record(messages=[message])
    message["content"] = "after"
    assert sink.interactions[0]["messages"][0]["content"] == "before"


def test_client_objects_are_recorded_as_the_server_sent_them(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    class Message:
        def model_dump(self, **options: Any) -> dict[str, Any]:
            assert options == {"mode": "json", "exclude_unset": True}
            return {"role": "assistant", "content": "hi"}

    recorder.record(messages=[MESSAGES[0], Message()])
    assert sink.interactions[0]["messages"] == [MESSAGES[0], {"role": "assistant", "content": "hi"}]


def test_times_are_kept_verbatim_or_come_from_aware_datetimes(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    recorder.record(messages=MESSAGES, started_at="2024-05-15T20:31:00+02:00", ended_at="2024-05-15T20:31:01.5+02:00")
    started = datetime.datetime(2024, 5, 15, 20, 31, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    recorder.record(messages=MESSAGES, started_at=started)
    assert sink.interactions[0]["started_at"] == "2024-05-15T20:31:00+02:00"
    assert sink.interactions[1]["started_at"] == "2024-05-15T18:31:00.000000Z"
    with pytest.raises(FieldError, match="no time zone"):
        recorder.record(messages=MESSAGES, started_at=datetime.datetime(2024, 5, 15))


def test_an_outcome_from_a_stored_handle_meets_its_row(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    handle = str(recorder.record(messages=MESSAGES, episode_id="a/b c", interaction_id="ü"))
    assert handle == "shop/a%2Fb%20c/%C3%BC"
    made = recorder.outcome(handle, "reward", 1.0, source="webhook", observed_at="2024-05-15T20:31:00Z")
    again = recorder.outcome(handle, "reward", 1.0, outcome_id="delivery-7")
    recorder.retract(handle, "reward", outcome_id="delivery-7")
    first, second, third = (read_outcome(value) for value in sink.outcomes)
    assert {sent.key for sent in sink.sent} == {b"a/b c"}
    assert (first.interaction_id, first.episode_id, first.value, first.source) == ("ü", "a/b c", 1.0, "webhook")
    assert first.outcome_id == made != again == second.outcome_id == "delivery-7"
    assert (third.op, third.outcome_id) == ("retract", "delivery-7")


def test_a_null_outcome_says_absent_and_is_not_left_out(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    recorder.outcome(Handle("shop", "e", "i"), "reward", None)
    assert sink.outcomes[0]["value"] is None


REFUSED: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"messages": []}, FieldError),
    ({"messages": [{"content": "no role"}]}, FieldError),
    ({"messages": [{"role": "user", "content": object()}]}, FieldError),
    ({"messages": [{"role": "user", "content": float("nan")}]}, FieldError),
    ({"messages": MESSAGES, "response": [7]}, FieldError),
    ({"messages": MESSAGES, "task_id": "x" * 257}, FieldError),
    ({"messages": MESSAGES, "ended_at": "yesterday"}, FieldError),
    ({"messages": MESSAGES, "slot": "Not A Slot"}, FieldError),
    ({"messages": [{"role": "user", "content": "x" * 9_000_000}]}, FieldError),
    ({"messages": 7}, TypeError),
]


@pytest.mark.parametrize(("bad", "error"), REFUSED)
def test_a_bad_event_is_raised_under_pytest(
    recorder: treadle.Recorder, sink: treadle.MemorySink, bad: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        recorder.record(**bad)
    assert recorder.stats() == (1, 0, 0, 1, 0)
    assert sink.sent == []


def test_a_bad_event_is_logged_and_counted_in_production(caplog: pytest.LogCaptureFixture) -> None:
    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", sink=sink, raise_errors=False)
    with caplog.at_level(logging.WARNING, logger="treadle"):
        for bad, _ in REFUSED:
            assert recorder.record(**bad).workspace == "shop"
        assert recorder.outcome("no handle", "reward", 1.0)
        assert recorder.outcome(Handle("other", "e", "i"), "reward", 1.0)
    count = len(REFUSED) + 2
    assert recorder.stats() == (count, 0, 0, count, 0)
    assert sink.sent == []
    # one line of a kind, not one an event
    assert len(caplog.records) == len({type_ for _, type_ in REFUSED} | {HandleError})


def test_a_full_queue_refuses_at_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = treadle.Recorder("shop", sink=RefusingSink(), raise_errors=False)
    recorder.record(messages=MESSAGES)
    assert recorder.stats() == (1, 0, 0, 1, 0)
    assert "QueueFull" in caplog.text


def test_a_closed_recorder_refuses(recorder: treadle.Recorder) -> None:
    recorder.close()
    with pytest.raises(RecorderClosed):
        recorder.record(messages=MESSAGES)


def test_a_recorder_without_a_workspace_is_an_error_in_tests_and_a_complaint_elsewhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(SettingError, match="TREADLE_WORKSPACE"):
        treadle.Recorder()
    recorder = treadle.Recorder(raise_errors=False)
    recorder.record(messages=MESSAGES)
    assert recorder.stats().refused == 1
    assert "TREADLE_WORKSPACE" in caplog.text


def test_a_recorder_that_knows_no_broker_keeps_events_and_says_so(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    recorder = treadle.Recorder("shop", raise_errors=False, spool_dir=tmp_path)
    recorder.record(messages=MESSAGES)
    assert recorder.stats() == (1, 0, 1, 0, 0)
    assert recorder.close(timeout_s=0.3) == 1
    assert recorder.stats() == (1, 0, 1, 0, 0)
    assert "treadle up" in caplog.text
    assert str(tmp_path / "shop") in caplog.text
    assert len(list((tmp_path / "shop").glob("*.seg"))) == 1
    strict = treadle.Recorder("shop", spool_dir=tmp_path)
    strict.record(messages=MESSAGES)
    with pytest.raises(NotDelivered, match="treadle up"):
        strict.flush(10)
    strict.close(timeout_s=0)


def test_disabled_capture_sends_nothing(sink: treadle.MemorySink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_DISABLED", "1")
    recorder = treadle.Recorder("shop", sink=sink)
    handle = recorder.record(messages=MESSAGES)
    recorder.outcome(handle, "reward", 1.0)
    assert sink.sent == []
    assert recorder.stats() == (0, 0, 0, 0, 2)


def test_the_accounts_balance_at_every_moment_over_threads(sink: treadle.MemorySink) -> None:
    recorder = treadle.Recorder("shop", sink=sink, raise_errors=False)
    done = threading.Event()
    wrong: list[Any] = []

    def watch() -> None:
        while not done.is_set():
            stats = recorder.stats()
            if stats.produced != stats.acked + stats.spooled + stats.refused or stats.spooled < 0:
                wrong.append(stats)

    def work() -> None:
        for n in range(100):
            recorder.record(messages=MESSAGES if n % 5 else [])

    watcher = threading.Thread(target=watch)
    watcher.start()
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done.set()
    watcher.join()
    assert not wrong
    assert recorder.stats() == (400, 320, 0, 80, 0)


def test_private_content_is_out_before_anything_is_written(tmp_path: Path) -> None:
    secret = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH"
    recorder = treadle.Recorder("shop", bootstrap_servers="127.0.0.1:9", spool_dir=tmp_path, raise_errors=False)
    recorder.record(messages=[{"role": "user", "content": f"my key is {secret}"}], episode_id="e")
    recorder.record(messages=[{"role": "user", "content": f"my key is {secret} " + "word " * 500}], episode_id="e")
    recorder.close(timeout_s=0)
    (segment,) = (tmp_path / "shop").glob("*.seg")
    raw = segment.read_bytes()
    assert b"my key is" in raw
    assert secret.encode() not in raw
    assert recorder.stats() == (2, 0, 2, 0, 0)


def test_what_breaks_redaction_leaves_a_tombstone_and_not_the_text(
    sink: treadle.MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.redaction import TOMBSTONE_TEXT, Redactor

    def broken(self: Redactor, value: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError(f"what a bug would say of {value}")

    recorder = treadle.Recorder("shop", sink=sink)
    monkeypatch.setattr(Redactor, "redact", broken)
    handle = recorder.record(messages=MESSAGES, task_id="t", tags={"who": "someone"})
    (value,) = sink.interactions
    assert read_interaction(value).interaction_id == handle.interaction_id
    assert value["messages"] == [{"role": "system", "content": TOMBSTONE_TEXT}]
    assert value["redaction"]["error"] == "RuntimeError"
    assert set(value["rights"].values()) == {"deny"}
    assert b"parcel" not in sink.sent[0].value
    assert b"someone" not in sink.sent[0].value


def test_long_contexts_go_out_once_and_a_memory_sink_puts_them_back(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    messages: list[dict[str, Any]] = []
    handles = []
    for n in range(20):
        messages.append({"role": "user" if n % 2 else "assistant", "content": f"{n} " * 500})
        handles.append(recorder.record(messages=messages, episode_id="e", step=n))
    assert [len(value["messages"]) for value in sink.interactions] == list(range(1, 21))
    assert sink.interactions[-1]["messages"] == messages
    assert sink.handles == handles
    assert sum(len(sent.value) for sent in sink.sent) < 2 * len(repr(messages))
    assert recorder.stats() == (20, 20, 0, 0, 0)  # parts are no events
    sink.clear()
    assert sink.interactions == []


def test_parts_that_were_refused_go_out_with_the_next_interaction() -> None:
    class Moody(treadle.MemorySink):
        mood = "bad"

        def send_many(self, events: Any, done: Any) -> None:
            if self.mood == "bad":
                raise QueueFull("full")
            super().send_many(events, done)

    sink = Moody()
    recorder = treadle.Recorder("shop", sink=sink, raise_errors=False)
    messages = [{"role": "user", "content": "x" * 5000}]
    recorder.record(messages=messages, episode_id="e")
    sink.mood = "good"
    recorder.record(messages=messages, episode_id="e")
    assert [value["messages"] for value in sink.interactions] == [messages]
    assert recorder.stats() == (2, 1, 0, 1, 0)


def test_buffered_events_are_copies_and_all_arrive(sink: treadle.MemorySink) -> None:
    recorder = treadle.Recorder("shop", sink=sink, buffered=True)
    message = {"role": "user", "content": "before"}
    for _ in range(100):
        recorder.record(messages=[message])
    message["content"] = "after"
    with pytest.raises(FieldError):
        recorder.record(messages=[{"role": "user", "content": float("nan")}])
    assert recorder.flush() == 0
    assert [value["messages"][0]["content"] for value in sink.interactions] == ["before"] * 100
    assert recorder.stats() == (101, 100, 0, 1, 0)
    recorder.close()


NO_JSON: list[tuple[dict[str, Any], str]] = [
    ({"sampling": {"temperature": float("nan")}}, r"\$\.sampling\.temperature"),
    ({"logprobs": [[-0.5, float("-inf")]]}, r"\$\.logprobs\[0\]\[1\]"),
    ({"tags": {"a": None, "b": float("inf")}}, r"\$\.tags\.b"),
    ({"usage": {"n": {1: 2}}}, r"\$\.usage\.n"),
    ({"usage": {"at": datetime.datetime(2024, 1, 1)}}, r"\$\.usage\.at"),
]


@pytest.mark.parametrize(("bad", "field"), NO_JSON)
def test_what_json_cannot_carry_is_an_error_that_names_the_field(
    recorder: treadle.Recorder, sink: treadle.MemorySink, bad: dict[str, Any], field: str
) -> None:
    with pytest.raises(FieldError, match=field):
        recorder.record(messages=MESSAGES, **bad)
    assert sink.sent == []


def test_signal_handlers_are_left_alone(recorder: treadle.Recorder) -> None:
    before = signal.getsignal(signal.SIGTERM)
    recorder.record(messages=MESSAGES)
    assert signal.getsignal(signal.SIGTERM) is before


def test_importing_treadle_is_light() -> None:
    # how many milliseconds it takes is measured by benchmarks/capture.py; here, what they are spent on
    code = """
import sys, threading
before = set(sys.modules)
import treadle
heavy = {'torch', 'faust', 'deeplake', 'duckdb', 'numpy', 'confluent_kafka', 'click', 'rich', 'sqlglot', 'aiokafka', 'asyncio'}
print(len(set(sys.modules) - before), sorted(heavy & set(sys.modules)), threading.active_count())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, rest = ran.stdout.split(maxsplit=1)
    assert rest.strip() == "[] 1"
    assert int(modules) <= 160  # 145 with Python 3.11, most of them the standard library's


def test_exported_names_are_the_ones_in_all() -> None:
    assert all(hasattr(treadle, name) for name in treadle.__all__)
    assert list(treadle.__all__) == sorted(treadle.__all__)
