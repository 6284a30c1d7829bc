"""The forms of other trainers: what they say is trained on is what was marked, or they say nothing."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_corpus import CorpusRow
from treadle_corpus.forms import FORMS, convert
from treadle_corpus.testing import corpus_row, graded
from treadle_corpus.views import VIEWS, dpo, kto, reward, rl, sft

SYSTEM = {"role": "system", "content": "s"}
ASK = {"role": "user", "content": "q"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
TOOL = {"role": "tool", "tool_call_id": "c", "content": "result"}


def say(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}


def row(interaction_id: str, *messages: dict[str, Any], **fields: Any) -> CorpusRow:
    return corpus_row(graded(interaction_id, messages=list(messages), **fields))


AGENT = row("a", SYSTEM, ASK, CALL, TOOL, say("done"), tools=TOOLS)
FEW_SHOT = row("b", ASK, say("shown"), ASK, say("mine"), response=[3])
GAP = row("c", ASK, say("1"), ASK, say("not mine"), ASK, say("3"), response=[1, 5])


def test_trl_sft_completions_hold_only_what_its_assistant_mask_selects() -> None:
    lines = convert("trl", "sft", sft([AGENT, FEW_SHOT, GAP])).lines
    assert lines == [
        {"prompt": [SYSTEM, ASK], "completion": [CALL, TOOL, say("done")], "tools": json.dumps(TOOLS)},
        {"prompt": [ASK, say("shown"), ASK], "completion": [say("mine")]},
        {"prompt": [ASK], "completion": [say("1")]},
        {"prompt": GAP.interaction["messages"][:5], "completion": [say("3")]},
    ]


def test_openai_and_axolotl_say_of_each_turn_whether_it_is_learned() -> None:
    lines = convert("openai", "sft", sft([AGENT, FEW_SHOT])).lines
    assert [m.get("weight") for m in lines[0]["messages"]] == [None, None, 1, None, 1]
    assert lines[0]["tools"] == TOOLS
    assert [m.get("weight") for m in lines[1]["messages"]] == [None, 0, None, 1]
    lines = convert("axolotl", "sft", sft([GAP])).lines
    assert [m["train"] for m in lines[0]["messages"]] == [False, True, False, False, False, True]


def test_verl_trains_on_every_assistant_turn_so_others_are_left_out() -> None:
    made = convert("verl", "sft", sft([AGENT, FEW_SHOT, GAP]))
    assert [line["messages"] for line in made.lines] == [AGENT.interaction["messages"]]
    assert made.left_out == {"unmarked_turns": 2}
    assert len(convert("verl", "sft", sft([AGENT, FEW_SHOT, GAP]), loose=True).lines) == 3


def pair(win: list[dict[str, Any]], loss: list[dict[str, Any]], **fields: Any) -> Any:
    return dpo([row("w", ASK, *win, **fields), row("l", ASK, *loss, reward=0.0, **fields)])


def test_a_pair_begins_where_its_halves_part() -> None:
    view = pair([CALL, TOOL, say("good")], [CALL, TOOL, say("bad")])
    prompt = [ASK, CALL, TOOL]
    assert convert("trl", "dpo", view).lines == [{"prompt": prompt, "chosen": [say("good")], "rejected": [say("bad")]}]
    assert convert("openai", "dpo", view).lines == [
        {"input": {"messages": prompt}, "preferred_output": [say("good")], "non_preferred_output": [say("bad")]}
    ]
    assert convert("axolotl", "dpo", view).lines == [
        {"messages": prompt, "chosen": say("good"), "rejected": say("bad")}
    ]


def test_halves_with_tool_answers_are_left_out_unless_asked_for() -> None:
    view = pair([CALL, TOOL, say("good")], [say("bad")])
    for form in ("trl", "openai", "axolotl"):
        assert (convert(form, "dpo", view).lines, convert(form, "dpo", view).left_out) == ([], {"needs_masks": 1})
    (line,) = convert("trl", "dpo", view, loose=True).lines
    assert (line["chosen"], line["rejected"]) == ([CALL, TOOL, say("good")], [say("bad")])
    assert convert("openai", "dpo", view, loose=True).left_out == {"several_messages": 1}
    # a reward model reads the whole: nothing needs masking
    rows = [row("w", ASK, CALL, TOOL, say("good")), row("l", ASK, say("bad"), reward=0.25)]
    assert convert("trl", "reward", reward(rows)).lines[0]["margin"] == 0.75


def test_one_half_that_goes_on_where_the_other_ends_keeps_its_last_turn() -> None:
    view = pair([say("same"), say("more")], [say("same")])
    assert convert("trl", "dpo", view).lines == [
        {"prompt": [ASK], "chosen": [say("same"), say("more")], "rejected": [say("same")]}
    ]


def test_kto_takes_answers_that_are_learned_as_a_whole() -> None:
    rows = [row("a", ASK, say("good")), row("b", ASK, CALL, TOOL, say("bad"), reward=0.0)]
    made = convert("trl", "kto", kto(rows))
    assert made.lines == [{"prompt": [ASK], "completion": [say("good")], "label": True}]
    assert made.left_out == {"needs_masks": 1}
    assert [line["label"] for line in convert("trl", "kto", kto(rows), loose=True).lines] == [True, False]


def test_prompts_for_rl_are_the_different_questions_of_a_task() -> None:
    other = {"role": "user", "content": "other words"}
    rows = [
        row("a", ASK, say("1"), reward=0.5),
        row("b", ASK, say("2"), reward=1.0),
        row("c", other, say("3"), reward=0.0),
    ]
    trl = convert("trl", "rl", rl(rows)).lines
    assert [(line["prompt"], line["logged_rewards"]) for line in trl] == [([ASK], [0.5, 1.0]), ([other], [0.0])]
    verl = convert("verl", "rl", rl(rows)).lines
    assert verl[0]["reward_model"] == {"style": "rule", "ground_truth": "2"}
    assert verl[0]["extra_info"] == {"split": "train", "task": "task", "logged_rewards": [0.5, 1.0]}
    assert convert("openai", "rl", rl(rows)).lines[0]["reference"] == "2"
    silent = [row(n, SYSTEM, say(n), reward=1.0) for n in "xy"]
    for form in ("trl", "verl", "openai"):
        assert convert(form, "rl", rl(silent)).left_out == {"no_question": 1}


# -- images ------------------------------------------------------------------------------------------------------------------

PIXEL = b"\x89PNG pixels"


def shown(url: str = "data:image/png;base64," + base64.b64encode(PIXEL).decode()) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it"}]
    return {"role": "user", "content": parts}


def test_images_become_a_column_and_placeholders() -> None:
    rows = [row("a", shown(), say("a cat"), shown(), say("the same cat")), row("b", ASK, say("text only"))]
    lines = convert("trl", "sft", sft(rows)).lines
    placed = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it"}]}
    cat = {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}
    same = {"role": "assistant", "content": [{"type": "text", "text": "the same cat"}]}
    # TRL masks no assistant turns beside images: a line has one run of answers
    assert [(line["prompt"], line["completion"], line["images"]) for line in lines[:2]] == [
        ([placed], [cat], [PIXEL]),
        ([placed, cat, placed], [same], [PIXEL, PIXEL]),
    ]
    assert lines[2]["images"] == []
    assert lines[2]["prompt"] == [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
    assert all("images" not in line for line in convert("trl", "sft", sft(rows[1:])).lines)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([shown("https://example.org/cat.png"), say("a cat")], "remote_image"),
        ([shown("[IMAGE]"), say("a cat")], "broken_image"),
        ([shown("data:image/png;base64,???"), say("a cat")], "broken_image"),
        ([ASK, CALL, {**TOOL, "content": shown()["content"]}, say("a cat")], "image_place"),
    ],
)
def test_images_that_cannot_be_had_are_counted(messages: list[dict[str, Any]], reason: str) -> None:
    assert convert("trl", "sft", sft([row("a", *messages)])).left_out == {reason: 1}


def test_forms_without_a_place_for_images_say_so_and_openai_has_its_own() -> None:
    rows = [row("a", shown(), say("a cat")), row("b", shown(), say("a dog"), reward=0.0)]
    for form, view in (("axolotl", "sft"), ("axolotl", "dpo"), ("verl", "sft"), ("verl", "rl")):
        assert set(convert(form, view, VIEWS[view](rows)).left_out) == {"images"}
    assert convert("openai", "sft", sft(rows)).lines[0]["messages"][0] == shown()
    (line,) = convert("trl", "dpo", dpo(rows)).lines
    assert line["images"] == [PIXEL]


ROLES = st.sampled_from(["assistant", "assistant", "user", "tool"])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(ROLES, st.booleans()), min_size=1, max_size=8), st.lists(ROLES, min_size=1, max_size=5))
def test_no_form_trains_on_what_nobody_marked(marked: list[tuple[str, bool]], other: list[str]) -> None:
    messages = [ASK, *({"role": role, "content": str(n)} for n, (role, _) in enumerate(marked))]
    response = [n + 1 for n, (_, on) in enumerate(marked) if on]
    rows = [
        row("a", *messages, response=response),
        row("b", ASK, *({"role": role, "content": f"o{n}"} for n, role in enumerate(other)), reward=0.0),
    ]
    learned = {messages[i]["content"] for i in response if messages[i]["role"] == "assistant"}
    learned |= {f"o{n}" for n, role in enumerate(other) if role == "assistant"}
    for form, views in FORMS.items():
        for view in views:
            if view in ("rl", "reward"):
                continue
            for line in convert(form, view, VIEWS[view](rows)).lines:
                assert trained_on(form, view, line) <= learned


def trained_on(form: str, view: str, line: dict[str, Any]) -> set[str]:
    """What each trainer trains on, by its own documentation."""
    if view == "sft":
        if form == "trl":  # with assistant_only_loss
            return {m["content"] for m in line["completion"] if m["role"] == "assistant"}
        if form == "openai":
            return {m["content"] for m in line["messages"] if m["role"] == "assistant" and m.get("weight", 1)}
        if form == "axolotl":
            return {m["content"] for m in line["messages"] if m["train"]}
        return {m["content"] for m in line["messages"] if m["role"] == "assistant"}
    if view == "kto":
        return {m["content"] for m in line["completion"]}
    if form == "openai":
        return {m["content"] for name in ("preferred_output", "non_preferred_output") for m in line[name]}
    if form == "axolotl":
        return {line["chosen"]["content"], line["rejected"]["content"]}
    return {m["content"] for name in ("chosen", "rejected") for m in line[name]}


def test_every_form_names_views_that_there_are() -> None:
    assert {view for views in FORMS.values() for view in views} <= set(VIEWS)
    with pytest.raises(KeyError):
        convert("verl", "kto", [])
