"""The views: pure functions over rows, and an account of every row."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from treadle_corpus import CorpusRow
from treadle_corpus.testing import corpus_row, graded
from treadle_corpus.views import VIEWS, dpo, evaluation, every_row, jsonl, kto, repetition, reward, rl, sft
from treadle_schemas.records import Feedback


def row(interaction_id: str, **fields: Any) -> CorpusRow:
    return corpus_row(graded(interaction_id, **fields))


def said(kind: Any, **fields: Any) -> Feedback:
    fields.setdefault("outcome_id", "o")
    return Feedback(kind=kind, name=kind, observed_at="2024-05-16T00:00:00Z", **fields)


def attempt(interaction_id: str, answer: str | None = None, **fields: Any) -> CorpusRow:
    """A row that was asked what all others were."""
    return row(interaction_id, messages=[SYSTEM, ASK, say(answer or interaction_id)], **fields)


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
    for n, worth in enumerate(rewards):
        messages = [*messages, ASK, say(str(n))]
        out.append(row(f"s{9 - n}", episode_id="e", step=n, messages=messages, reward=worth))
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
        attempt(f"{t}{n}", task_id=t, reward=float(n < wins))
        for t, wins in (("x", 1), ("y", 2), ("z", 4))
        for n in range(4)
    ]
    pairs = list(dpo(rows))
    assert len(pairs) == 1 * 3 + 2 * 2
    assert {p["task_id"] for p in pairs} == {"x", "y"}
    assert all((p["chosen_reward"], p["rejected_reward"], p["margin"]) == (1.0, 0.0, 1.0) for p in pairs)


def test_rows_without_a_reward_are_in_no_pair() -> None:
    view = dpo([attempt("a"), attempt("b", reward=None)])
    assert (list(view), view.dropped) == ([], {"no_pair": 1, "no_reward": 1})


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


def test_jsonl_is_one_object_a_line() -> None:
    lines = list(jsonl(sft([row("a", messages=[ASK, say("two\nlines \ud83d")])])))
    assert len(lines) == 1
    assert lines[0].count(b"\n") == 1
    assert json.loads(lines[0])["messages"][1]["content"] == "two\nlines \ud83d"


# -- trajectories ------------------------------------------------------------------------------------------------------------


def test_steps_sent_n_squared_messages_and_the_example_has_n() -> None:
    view = sft(steps(*[1.0] * 20))
    (example,) = view
    assert example["steps"] == list(range(3, 43, 2))
    assert repetition(view) == pytest.approx(sum(range(3, 43, 2)) / 41)
    assert repetition([]) == 1.0


def test_two_conversations_of_one_episode_that_alternate_are_two_sequences() -> None:
    other = {"role": "system", "content": "another agent"}
    rows = []
    for n in range(6):
        first, turns = (SYSTEM, other)[n % 2], n // 2 + 1
        messages = [first, *(m for k in range(turns) for m in (ASK, say(f"{n % 2}-{k}")))]
        rows.append(row(f"s{n}", episode_id="e", step=n, messages=messages))
    assert [(e["interaction_id"], e["response"]) for e in sft(rows)] == [("s4", [2, 4, 6]), ("s5", [2, 4, 6])]


def test_a_step_that_goes_on_from_an_earlier_one_trains_only_what_it_adds() -> None:
    one, two = [SYSTEM, ASK, say("1")], [SYSTEM, ASK, say("1"), ASK, say("2")]
    rows = [
        row("a", episode_id="e", step=0, messages=one),
        row("b", episode_id="e", step=1, messages=two),
        row("c", episode_id="e", step=2, messages=[*one, ASK, say("2 again"), ASK, say("3")]),
    ]
    assert [(e["interaction_id"], e["response"]) for e in sft(rows)] == [("b", [2, 4]), ("c", [4, 6])]


def test_what_a_client_adds_to_an_echoed_answer_does_not_part_the_steps() -> None:
    echoed = {**say("1"), "refusal": None, "tool_calls": []}
    rows = [
        row("a", episode_id="e", step=0, messages=[ASK, say("1")], response=[1]),
        row("b", episode_id="e", step=1, messages=[ASK, echoed, ASK, say("2")], response=[3]),
    ]
    assert [e["response"] for e in sft(rows)] == [[1, 3]]


@pytest.mark.parametrize("field", ["tools", "slot"])
def test_steps_with_other_tools_or_of_another_slot_stay_apart(field: str) -> None:
    value = {"tools": [{"type": "function", "function": {"name": "f"}}], "slot": "coder"}[field]
    rows = steps(1.0, 1.0)
    rows[1].interaction[field] = value
    assert sorted(e["steps"] for e in sft(rows)) == [[3], [5]]


def test_only_messages_of_the_assistant_are_trained_on_whatever_was_marked() -> None:
    view = sft([row("a", messages=[ASK, say("1"), ASK], response=[0, 1, 2]), row("b", response=[])])
    assert [e["response"] for e in view] == [[1]]
    assert view.dropped == {"no_response": 1}


# -- what somebody said -------------------------------------------------------------------------------------------------------

BETTER = [say("better")]


def test_a_demonstration_is_a_target_whatever_the_reward() -> None:
    failed = attempt("a", reward=0.0, feedback=[said("demonstration", messages=BETTER)])
    view = sft([failed])
    (example,) = view
    assert (example["messages"], example["response"], example["origin"]) == (
        [SYSTEM, ASK, *BETTER],
        [2],
        "demonstration",
    )
    assert (view.used, view.dropped) == (1, {})


def test_a_demonstration_may_repeat_the_question_and_answer_a_call_that_failed() -> None:
    whole = [SYSTEM, ASK, *BETTER]
    rows = [
        attempt("a", reward=0.0, feedback=[said("demonstration", messages=whole)]),
        row("b", messages=[SYSTEM, ASK], response=[], reward=0.0, feedback=[said("demonstration", messages=BETTER)]),
    ]
    assert [e["messages"] for e in sft(rows)] == [whole, whole]


def test_a_demonstration_of_an_unmarked_conversation_replaces_its_last_turn() -> None:
    turns = [ASK, say("1"), ASK, say("2")]
    unmarked = row("a", messages=turns, reward=0.0, feedback=[said("demonstration", messages=BETTER)])
    (example,) = sft([unmarked])
    assert (example["messages"], example["response"]) == ([*turns[:3], *BETTER], [3])


def test_what_is_demonstrated_as_it_was_said_is_learned_once() -> None:
    view = sft([attempt("a", "better", feedback=[said("demonstration", messages=BETTER)])])
    assert (len(view), view.left_out) == (1, {"demonstration_as_logged": 1})


def test_a_demonstration_wins_over_what_was_said() -> None:
    (pair,) = dpo([attempt("a", reward=None, feedback=[said("demonstration", messages=BETTER)])])
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ([SYSTEM, ASK], BETTER, [say("a")])
    assert (pair["chosen_id"], pair["rejected_id"], pair["margin"]) == (None, "a", None)


def test_a_preference_is_a_pair_by_itself() -> None:
    rows = [
        attempt("a", reward=None, feedback=[said("preference", over="b")]),
        attempt("b", reward=None),
        attempt("c", task_id="other", reward=None, feedback=[said("preference", messages=[say("worse")])]),
        attempt("d", task_id="third", feedback=[said("preference", over="gone"), said("comment", value="fine")]),
    ]
    view = dpo(rows)
    found = [(p["chosen_id"], p["rejected_id"], p["rejected"], p["origin"]) for p in view]
    assert found == [("c", None, [say("worse")], "preference"), ("a", "b", [say("b")], "preference")]
    assert view.left_out == {"other_missing": 1}
    assert view.dropped == {"no_pair": 1}


def test_a_preference_overrules_rewards() -> None:
    rows = [
        attempt("a", reward=0.0, feedback=[said("preference", over="b"), said("preference", over="b", outcome_id="p")]),
        attempt("b", reward=1.0),
    ]
    view = dpo(rows)
    assert [(p["chosen_id"], p["rejected_id"], p["origin"]) for p in view] == [("a", "b", "preference")]
    assert view.left_out == {"overruled": 1}


# -- pairs -------------------------------------------------------------------------------------------------------------------


def test_what_was_asked_otherwise_or_answered_alike_is_no_pair() -> None:
    rows = [attempt("a"), row("b", reward=0.0), attempt("c", "a", reward=0.0)]
    view = dpo(rows)
    assert (list(view), view.left_out) == ([], {"no_shared_prompt": 1, "same_answer": 1})


def test_a_task_has_at_most_cap_pairs_and_the_widest_stay() -> None:
    rows = [attempt(f"w{n}", reward=n / 10) for n in range(11)]
    view = dpo(rows, cap=3)
    assert sorted(p["margin"] or 0 for p in view) == pytest.approx([0.9, 0.9, 1.0])
    assert view.left_out["over_cap"] == 52
    assert view.used + sum(view.dropped.values()) == 11
    assert len(dpo(rows, cap=None)) == 55
    assert len(dpo(rows, cap=None, min_margin=0.85)) == 3


def test_which_pairs_of_equal_margin_stay_depends_on_their_ids_alone_and_is_spread() -> None:
    rows = [attempt(f"w{n}", reward=float(n % 2)) for n in range(40)]
    view = dpo(rows, cap=10)
    assert len(view) == 10
    assert len({p["chosen_id"] for p in view}) > 5
    assert list(view) == list(dpo(rows[::-1], cap=10))


def test_thousands_of_attempts_at_one_task_are_not_compared_with_each_other() -> None:
    rows = [attempt(f"w{n}", reward=float(n % 2)) for n in range(4_000)]
    assert len(dpo(rows)) == 16  # of four million


def test_the_masks_of_a_pair_are_the_turns_of_the_agent() -> None:
    win = row("a", messages=[SYSTEM, ASK, say("x"), ASK, say("good"), ASK], response=[4])
    loss = row("b", messages=[SYSTEM, ASK, say("y"), ASK, say("bad")], reward=0.0)
    (pair,) = dpo([win, loss])
    assert (pair["chosen"], pair["chosen_response"]) == ([say("x"), ASK, say("good")], [2])
    assert pair["rejected_response"] == [0, 2]


def test_a_reward_model_gets_the_same_pairs() -> None:
    rows = [attempt("a"), attempt("b", reward=0.25)]
    assert list(reward(rows)) == list(dpo(rows))
    assert reward(rows).name == "reward"
    assert [p["margin"] for p in reward(rows)] == [0.75]


# -- kto, rl, eval -----------------------------------------------------------------------------------------------------------


def test_kto_labels_by_reward_demonstration_and_lost_preference() -> None:
    rows = [
        attempt("a", feedback=[said("preference", messages=[say("worse")])]),
        attempt("b", reward=0.0, feedback=[said("demonstration", messages=BETTER)]),
        attempt("c", reward=None),
    ]
    view = kto(rows)
    found = [(e["completion"][0]["content"], e["label"], e["origin"]) for e in view]
    assert found == [
        ("a", True, "logged"),
        ("worse", False, "preference"),
        ("b", False, "logged"),
        ("better", True, "demonstration"),
    ]
    assert all((e["prompt"], e["response"]) == ([SYSTEM, ASK], [0]) for e in view)
    assert view.dropped == {"no_reward": 1}


def test_rl_groups_attempts_with_what_was_sampled() -> None:
    logged = {"response": [2], "token_ids": [[5, 6]], "logprobs": [[-0.5, -0.25]], "release": "w/main/r1"}
    rows = [
        attempt("a", reward=0.3, **logged),
        attempt("b", reward=-1.0, response=[2], token_ids=[[1], [2]]),
        attempt("c", task_id="other"),
        attempt("d", reward=None),
    ]
    view = rl(rows)
    (group,) = view
    assert [(a["reward"], a["token_ids"], a["logprobs"]) for a in group["attempts"]] == [
        (0.3, [[5, 6]], [[-0.5, -0.25]]),
        (-1.0, [None], [None]),  # two lists for one message: nobody knows which
    ]
    assert [a["release"] for a in group["attempts"]] == ["w/main/r1", None]
    assert view.dropped == {"alone": 1, "no_reward": 1}
    assert len(rl(rows, min_attempts=1)) == 2


def test_the_tokens_of_steps_come_behind_each_other() -> None:
    rows = [
        row("a", episode_id="e", step=0, messages=[ASK, say("1")], response=[1], token_ids=[[1]], logprobs=[[-1.0]]),
        row("b", episode_id="e", step=1, messages=[ASK, say("1"), ASK, say("2")], response=[3], token_ids=[[2]]),
    ]
    (group,) = rl(rows, min_attempts=1)
    (found,) = group["attempts"]
    assert (found["response"], found["token_ids"], found["logprobs"]) == ([1, 3], [[1], [2]], [[-1.0], None])


def test_eval_takes_every_held_out_trajectory() -> None:
    rows = [attempt("a"), attempt("b", reward=0.0, split="heldout"), attempt("c", reward=None, split="heldout")]
    view = evaluation(rows)
    assert [(e["interaction_id"], e["reward"], e["metrics"]) for e in view] == [
        ("b", 0.0, {"reward": ["observed", 0.0]}),
        ("c", None, {"reward": ["absent", None]}),
    ]
    assert view.dropped == {"train": 1}


# -- sides and accounts ------------------------------------------------------------------------------------------------------


def test_a_view_is_of_the_train_side_unless_told_otherwise() -> None:
    rows = [attempt("a"), attempt("b", split="heldout"), attempt("c", reward=0.0)]
    assert [e["split"] for e in sft(rows)] == ["train"]
    assert sft(rows).dropped == {"heldout": 1, "not_selected": 1}
    assert [e["interaction_id"] for e in sft(rows, split="heldout")] == ["b"]
    assert [e["interaction_id"] for e in sft(rows, every_row, split="all")] == ["a", "b", "c"]


def test_no_pair_has_a_half_of_each_side() -> None:
    rows = [
        attempt("a", feedback=[said("preference", over="b")]),
        attempt("b", split="heldout", reward=0.0),
    ]
    assert [len(VIEWS[name](rows, split="all")) for name in ("dpo", "reward", "rl")] == [0, 0, 0]


def test_every_public_name_of_the_views_is_there() -> None:
    module = importlib.import_module("treadle_corpus.views")
    assert sorted(module.__all__) == sorted({name for name in vars(module) if name in module.__all__})
    assert sorted(VIEWS) == ["dpo", "eval", "kto", "reward", "rl", "sft"]
