"""The sft and dpo views: pure functions over rows."""

from __future__ import annotations

import json
import random
from typing import Any

from treadle_corpus import CorpusRow
from treadle_corpus.testing import graded
from treadle_corpus.views import dpo, jsonl, sft


def row(interaction_id: str, **fields: Any) -> CorpusRow:
    found = graded(interaction_id, **fields).row
    return CorpusRow(
        found.episode_id,
        found.interaction_id,
        found.interaction,
        found.grade,
        found.split,
        found.split_group,
        found.provenance,
    )


SYSTEM = {"role": "system", "content": "s"}
ASK = {"role": "user", "content": "q"}


def say(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_sft_takes_rewarded_rows_only() -> None:
    rows = [row("a"), row("b", reward=0.0), row("c", reward=None), row("d", reward=0.1)]
    assert [e["interaction_id"] for e in sft(rows)] == ["a", "d"]


def test_sft_trains_on_every_assistant_turn_of_an_unmarked_row() -> None:
    (example,) = sft([row("a", messages=[SYSTEM, ASK, say("1"), ASK, say("2")], tools=[{"type": "function"}])])
    assert example["response"] == [2, 4]
    assert example["tools"] == [{"type": "function"}]


def test_sft_trains_on_marked_turns_only() -> None:
    (example,) = sft([row("a", messages=[ASK, say("few-shot"), ASK, say("mine")], response=[3])])
    assert example["response"] == [3]


def steps(*rewards: float | None) -> list[CorpusRow]:
    messages: list[dict[str, Any]] = [SYSTEM]
    out = []
    for n, reward in enumerate(rewards):
        messages = [*messages, ASK, say(str(n))]
        out.append(row(f"s{9 - n}", episode_id="e", step=n, messages=messages, reward=reward))
    return out


def test_the_steps_of_a_growing_episode_are_one_sequence_and_no_turn_is_trained_twice() -> None:
    (example,) = sft(steps(1.0, 1.0, 1.0))
    assert example["response"] == [2, 4, 6]
    assert len(example["messages"]) == 7


def test_the_turns_of_an_unrewarded_step_are_context() -> None:
    (example,) = sft(steps(1.0, 0.0, 1.0))
    assert example["response"] == [2, 6]


def test_steps_that_do_not_repeat_each_other_stay_apart() -> None:
    rows = [
        row("a", episode_id="e", step=0, messages=[ASK, say("1")]),
        row("b", episode_id="e", step=1, messages=[SYSTEM, ASK, say("2")]),
    ]
    assert [e["interaction_id"] for e in sft(rows)] == ["a", "b"]


def test_dpo_pairs_every_win_with_every_loss_of_a_task() -> None:
    rows = [
        row(f"{t}{n}", task_id=t, reward=float(n < wins))
        for t, wins in (("x", 1), ("y", 2), ("z", 4))
        for n in range(4)
    ]
    pairs = list(dpo(rows))
    assert len(pairs) == 1 * 3 + 2 * 2
    assert {p["task_id"] for p in pairs} == {"x", "y"}
    assert all(p["chosen_reward"] > 0 >= p["rejected_reward"] for p in pairs)


def test_rows_without_a_reward_are_in_no_pair() -> None:
    assert list(dpo([row("a"), row("b", reward=None)])) == []


def test_the_prompt_is_what_both_begin_with_up_to_the_first_assistant_turn() -> None:
    win = row("a", messages=[SYSTEM, ASK, say("hi"), ASK, say("good")])
    loss = row("b", messages=[SYSTEM, ASK, say("hi"), ASK, say("bad")], reward=0.0)
    (pair,) = dpo([loss, win])
    assert pair["prompt"] == [SYSTEM, ASK]
    assert pair["chosen"] == [say("hi"), ASK, say("good")]
    assert pair["rejected"] == [say("hi"), ASK, say("bad")]
    other = row("c", messages=[SYSTEM, {"role": "user", "content": "other"}, say("x")], reward=0.0)
    (pair,) = dpo([other, win])
    assert pair["prompt"] == [SYSTEM]
    assert pair["prompt"] + pair["chosen"] == win.interaction["messages"]


def test_a_growing_episode_is_one_trajectory_with_its_last_reward() -> None:
    rows = [*steps(0.0, 1.0), row("z", reward=0.0, messages=[SYSTEM, ASK, say("no")])]
    assert [(p["chosen_id"], p["rejected_id"]) for p in dpo(rows)] == [("s8", "z")]


def test_the_order_of_rows_changes_nothing() -> None:
    rows = [*steps(1.0, 0.0, 1.0), *(row(f"r{n}", reward=float(n % 2)) for n in range(8))]
    shuffled = random.Random(3).sample(rows, len(rows))
    assert list(sft(rows)) == list(sft(shuffled))
    assert list(dpo(rows)) == list(dpo(shuffled))


def test_jsonl_is_one_object_a_line() -> None:
    lines = list(jsonl(sft([row("a", messages=[ASK, say("two\nlines \ud83d")])])))
    assert len(lines) == 1
    assert lines[0].count(b"\n") == 1
    assert json.loads(lines[0])["messages"][1]["content"] == "two\nlines \ud83d"
