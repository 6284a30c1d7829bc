"""Scopes of the SDK on a recorder that keeps everything in memory: interactions, episodes, sub-agents, tasks and threads."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import treadle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from treadle import episodes
from treadle_schemas import FieldError, Handle
from treadle_schemas.events import read_interaction

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "ho"}


@pytest.fixture
def sink() -> treadle.MemorySink:
    return treadle.MemorySink()


@pytest.fixture
def recorder(sink: treadle.MemorySink) -> treadle.Recorder:
    return treadle.Recorder("shop", sink=sink, agent="desk")


def by_text(sink: treadle.MemorySink) -> dict[str, dict[str, Any]]:
    """The interactions by the text of their first message."""
    return {value["messages"][0]["content"]: value for value in sink.interactions}


def say(recorder: treadle.Recorder, text: str, **options: Any) -> str:
    """One interaction."""
    with recorder.interaction(messages=text, **options) as turn:
        turn.respond(f"re: {text}")
    return turn.interaction_id


# --- one interaction -----------------------------------------------------------------------------------------------------------


def test_three_lines_capture_an_interaction(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    with recorder.interaction(messages=[USER], model="m", sampling={"temperature": 0}, task_id="t") as turn:
        assert turn.respond("ho") == "ho"
    (value,) = sink.interactions
    assert value["messages"] == [USER, ASSISTANT]
    assert value["response"] == [1]
    assert (value["model"], value["sampling"], value["task_id"]) == ("m", {"temperature": 0}, "t")
    assert "episode_id" not in value
    assert "step" not in value
    assert value["started_at"] <= value["ended_at"]
    assert turn.handle == str(sink.handles[0])
    assert Handle.parse(turn.handle).episode_id == turn.interaction_id


def test_the_request_is_what_it_was_when_the_interaction_began(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    messages = [dict(USER)]
    with recorder.interaction(messages=messages) as turn:
        messages.append(turn.respond(dict(ASSISTANT)))
        messages[0]["content"] = "changed"
    assert sink.interactions[0]["messages"] == [USER, ASSISTANT]


def test_only_what_the_model_said_is_the_response(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    with recorder.interaction(messages=[USER]) as turn:
        turn.respond(ASSISTANT)
        turn.add({"role": "tool", "tool_call_id": "1", "content": "42"})
        turn.respond([{"role": "assistant", "content": "so"}, {"role": "assistant", "content": "42"}])
    (value,) = sink.interactions
    assert [m["role"] for m in value["messages"]] == ["user", "assistant", "tool", "assistant", "assistant"]
    assert value["response"] == [1, 3, 4]


def test_an_exception_is_recorded_and_goes_on(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    with pytest.raises(TimeoutError, match="30 s"):
        with recorder.interaction(messages=[USER]):
            raise TimeoutError("30 s")
    (value,) = sink.interactions
    assert (value["status"], value["error"], value["response"]) == ("error", "TimeoutError: 30 s", [])


def test_what_a_host_knows_beside_the_answer_is_kept(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    with recorder.interaction(messages=[USER], tags={"a": 1}, references=["ticket:7"]) as turn:
        turn.attempt(ConnectionError("reset"), started_at="2026-01-01T00:00:00Z")
        turn.respond("ho")
        turn.set(cost=0.01, token_ids=[[1, 2]], logprobs=[[-0.5, -1.0]], tags={"b": 2}, references=["pr:o/r#1"])
    event = read_interaction(sink.interactions[0])
    assert (event.cost, event.token_ids, event.logprobs) == (0.01, [[1, 2]], [[-0.5, -1.0]])
    assert (event.tags, event.references) == ({"a": 1, "b": 2}, ["ticket:7", "pr:o/r#1"])
    assert event.attempts is not None
    assert event.attempts[0]["error"] == "ConnectionError: reset"


def test_an_async_interaction_that_is_cancelled_says_so(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    async def work(started: asyncio.Event) -> None:
        async with recorder.interaction(messages=[USER]):
            started.set()
            await asyncio.Event().wait()

    async def main() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(work(started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert sink.interactions[0]["error"] == "CancelledError"


def test_of_several_answers_to_one_request_each_is_an_interaction(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    choices = [
        {"index": n, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for n, text in enumerate("ab")
    ]
    with recorder.interaction(messages=[USER]) as turn:
        turn.respond({"id": "chatcmpl-1", "choices": choices, "usage": {"total_tokens": 9}})
    first, second = sink.interactions
    assert first["interaction_id"] == second["episode_id"] == turn.interaction_id
    assert [value["messages"][-1]["content"] for value in (first, second)] == ["a", "b"]
    assert (first["references"], second["references"]) == (["response:chatcmpl-1"], ["response:chatcmpl-1:1"])
    assert "usage" in first
    assert "usage" not in second


BAD: list[dict[str, Any]] = [
    {"messages": 7},
    {"messages": [object()], "model": 7},
    {"messages": [{"content": "no role"}]},
    {"messages": [USER], "tags": {"x": object()}},
    {"messages": [USER], "slot": "Not A Slot"},
    {"messages": []},
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: ",".join(bad))
def test_what_cannot_be_recorded_never_hurts_the_host(bad: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", sink=sink, raise_errors=False)
    with caplog.at_level(logging.WARNING, logger="treadle"):
        with recorder.episode():
            with recorder.interaction(**bad) as turn:
                assert Handle.parse(turn.handle).workspace == "shop"
    stats = recorder.stats()
    assert (stats.produced, stats.acked + stats.refused) == (2, 2), "the interaction and the end of its episode"
    assert caplog.records or sink.interactions[0]["status"] == "error" or sink.interactions[0]["messages"]
    strict = treadle.Recorder("shop", sink=sink)
    if stats.refused:
        with pytest.raises((FieldError, TypeError)):
            with strict.interaction(**bad):
                pass


def test_an_unknown_field_is_counted_not_raised() -> None:
    recorder = treadle.Recorder("shop", sink=treadle.MemorySink(), raise_errors=False)
    with recorder.interaction(messages=[USER]) as turn:
        turn.set(colour="red")
    assert recorder.stats().refused == 1


# --- episodes ------------------------------------------------------------------------------------------------------------------


def test_an_episode_gives_its_interactions_what_they_share(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    with recorder.episode(
        task_id="refund", subject="u1", slot="planner", tags={"site": "a"}, references=["ticket:1"]
    ) as episode:
        say(recorder, "one")
        episode.refer("pr:o/r#2")
        say(recorder, "two", slot="router", tags={"n": 2})
    one, two = sink.interactions
    assert one["episode_id"] == two["episode_id"] == episode.episode_id
    assert (one["step"], two["step"]) == (0, 1)
    assert (one["slot"], two["slot"], one["task_id"], one["subject"]) == ("planner", "router", "refund", "u1")
    assert (one["tags"], two["tags"]) == ({"site": "a"}, {"site": "a", "n": 2})
    assert (one["references"], two["references"]) == (["ticket:1"], ["ticket:1", "pr:o/r#2"])
    assert episodes.current() is None


def test_record_joins_the_open_episode_unless_it_names_another(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    with recorder.episode(episode_id="e", references=["a:1"], tags={"x": 1}):
        handle = recorder.record(messages=[USER, ASSISTANT], references=["b:2"], tags={"y": 2})
        recorder.record(messages=[USER, ASSISTANT], episode_id="other")
        recorder.record(messages=[USER, ASSISTANT], step=9)
    first, other, third = sink.interactions
    assert handle.episode_id == first["episode_id"] == "e"
    assert (first["references"], first["tags"]) == (["a:1", "b:2"], {"x": 1, "y": 2})
    assert other["episode_id"] == "other"
    assert "step" not in other
    assert (third["episode_id"], third["step"]) == ("e", 9)


def test_a_sub_agent_has_its_slot_and_the_interaction_that_called_it(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    with recorder.episode(task_id="t", slot="planner") as outer:
        plan = say(recorder, "plan")
        with recorder.episode(slot="coder", agent="coder") as inner:
            assert inner.episode_id == outer.episode_id
            code = say(recorder, "code")
            with recorder.episode(slot="tester"):
                say(recorder, "test")
        say(recorder, "done")
    found = by_text(sink)
    assert [found[text]["step"] for text in ("plan", "code", "test", "done")] == [0, 1, 2, 3]
    assert [found[text].get("parent_id") for text in ("plan", "code", "test", "done")] == [None, plan, code, None]
    assert [found[text]["slot"] for text in ("plan", "code", "test", "done")] == [
        "planner",
        "coder",
        "tester",
        "planner",
    ]
    assert {found[text]["task_id"] for text in found} == {"t"}
    assert (found["code"]["agent"], found["done"]["agent"]) == ("coder", "desk")


def test_an_episode_of_another_id_inside_one_is_its_own_with_a_parent(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    with recorder.episode(task_id="outer"):
        caller = say(recorder, "a")
        with recorder.episode(episode_id="apart"):
            say(recorder, "b")
    value = by_text(sink)["b"]
    assert (value["episode_id"], value["step"], value["parent_id"]) == ("apart", 0, caller)
    assert "task_id" not in value


def test_interactions_inside_an_interaction_are_its_children(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    with recorder.interaction(messages="outer") as outer:
        say(recorder, "inner")
    found = by_text(sink)
    assert found["outer"]["episode_id"] == found["inner"]["episode_id"] == outer.interaction_id
    assert (found["inner"]["step"], found["inner"]["parent_id"]) == (1, outer.interaction_id)


def test_a_recorder_of_another_workspace_does_not_join(recorder: treadle.Recorder) -> None:
    other = treadle.MemorySink()
    with recorder.episode(episode_id="e"), recorder.interaction(messages=[USER]):
        say(treadle.Recorder("elsewhere", sink=other), "x")
    assert "episode_id" not in other.interactions[0]
    assert "parent_id" not in other.interactions[0]


def test_an_episode_that_goes_on_counts_from_where_it_is_told(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    with recorder.episode(episode_id="chat-1", first_step=7):
        say(recorder, "x")
    assert sink.interactions[0]["step"] == 7


def test_tasks_that_run_at_once_keep_their_episodes_apart(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    async def agent(n: int) -> str:
        async with recorder.episode(task_id=f"t{n}") as episode:
            for step in range(3):
                async with recorder.interaction(messages=f"{n}.{step}") as turn:
                    await asyncio.sleep(0)
                    turn.respond("ok")
            return episode.episode_id

    async def main() -> list[str]:
        return await asyncio.gather(*(agent(n) for n in range(20)))

    ids = asyncio.run(main())
    found = by_text(sink)
    assert len(set(ids)) == 20
    for n, episode_id in enumerate(ids):
        for step in range(3):
            value = found[f"{n}.{step}"]
            assert (value["episode_id"], value["step"], value["task_id"]) == (episode_id, step, f"t{n}")


def test_sub_agents_that_run_at_once_share_steps_and_parent(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    async def sub_agent(n: int) -> None:
        async with recorder.episode(slot="worker"):
            async with recorder.interaction(messages=f"sub {n}") as turn:
                await asyncio.sleep(0)
                turn.respond("ok")

    async def main() -> str:
        async with recorder.episode():
            caller = say(recorder, "fan out")
            await asyncio.gather(*(sub_agent(n) for n in range(10)))
            return caller

    caller = asyncio.run(main())
    values = [value for text, value in by_text(sink).items() if text.startswith("sub")]
    assert {value["parent_id"] for value in values} == {caller}
    assert sorted(value["step"] for value in sink.interactions) == list(range(11))
    assert len({value["episode_id"] for value in sink.interactions}) == 1


def test_threads_join_by_a_copied_context_or_by_attaching(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    def attached(episode: treadle.EpisodeScope, n: int) -> str:
        with episode.attach():
            return say(recorder, f"attached {n}")

    with recorder.episode() as episode, ThreadPoolExecutor(4) as pool:
        work = [pool.submit(contextvars.copy_context().run, say, recorder, f"copied {n}") for n in range(25)]
        work += [pool.submit(attached, episode, n) for n in range(25)]
        alone = pool.submit(say, recorder, "alone").result()
        for one in work:
            one.result()
        asyncio.run(_in_a_thread(recorder))
    found = by_text(sink)
    assert found.pop("alone").get("episode_id", alone) == alone  # a plain thread does not know of the episode
    assert {value["episode_id"] for value in found.values()} == {episode.episode_id}
    assert sorted(value["step"] for value in found.values()) == list(range(51))


async def _in_a_thread(recorder: treadle.Recorder) -> None:
    await asyncio.to_thread(say, recorder, "to_thread")


def test_a_scope_can_be_used_without_the_context(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    episode = recorder.episode(episode_id="e", slot="a")
    thread = threading.Thread(target=lambda: say_in(episode, "from a thread"))
    thread.start()
    thread.join()
    with episode.episode(slot="b"):
        say(recorder, "below")
    found = by_text(sink)
    assert (found["from a thread"]["episode_id"], found["from a thread"]["step"]) == ("e", 0)
    assert (found["below"]["slot"], found["below"]["step"]) == ("b", 1)


def say_in(episode: treadle.EpisodeScope, text: str) -> None:
    with episode.interaction(messages=text) as turn:
        turn.respond("ok")


def test_an_exception_in_an_episode_leaves_no_scope_open(recorder: treadle.Recorder) -> None:
    with pytest.raises(ValueError, match="host"):
        with recorder.episode(), recorder.episode(slot="b"), recorder.interaction(messages="x"):
            raise ValueError("host")
    assert episodes.where() is None


# A tree of agents: an interaction (True) or a sub-agent (a list of what it does).
Tree = list[Any]
TREES: st.SearchStrategy[Tree] = st.lists(
    st.recursive(st.just(True), lambda inner: st.lists(inner, max_size=3), max_leaves=8), max_size=4
)


# how long a tree takes to draw is a matter of what else the machine does
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TREES)
def test_however_agents_nest_steps_are_distinct_and_parents_right(tree: Tree) -> None:
    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", sink=sink)
    expected: dict[str, str | None] = {}

    def run(work: Tree, parent: str | None) -> None:
        latest = None
        for item in work:
            if item is True:
                latest = say(recorder, f"n{len(expected)}")
                expected[latest] = parent
            else:
                with recorder.episode():
                    run(item, latest or parent)

    with recorder.episode() as episode:
        run(tree, None)
    values = sink.interactions
    assert [value["step"] for value in values] == list(range(len(expected)))
    assert {value["interaction_id"]: value.get("parent_id") for value in values} == expected
    assert {value["episode_id"] for value in values} <= {episode.episode_id}
    assert episodes.where() is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_interactions_within_interactions_form_the_tree_that_the_calls_form(depths: list[int]) -> None:
    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", sink=sink)
    expected: dict[str, str | None] = {}
    open_turns: list[Any] = []
    for depth in depths:
        while len(open_turns) > depth:
            open_turns.pop().__exit__(None, None, None)
        turn = recorder.interaction(messages="x").__enter__()
        expected[turn.interaction_id] = open_turns[-1].interaction_id if open_turns else None
        open_turns.append(turn)
    while open_turns:
        open_turns.pop().__exit__(None, None, None)
    assert {v["interaction_id"]: v.get("parent_id") for v in sink.interactions} == expected
    places = [(v.get("episode_id", v["interaction_id"]), v.get("step", 0)) for v in sink.interactions]
    assert len(set(places)) == len(places)
