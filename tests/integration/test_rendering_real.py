"""Masks over real conversations, token by token: every token of the marked response, and no other, is trained on."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from treadle_trainer.data.rendering import encode, identify
from treadle_trainer.data.sequences import render
from treadle_trainer.errors import TemplateRefused

from .token_world import MARKED, PLAIN, make_tokenizer, segments

Conversation = list[dict[str, Any]]

TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}]
SMALL: list[Conversation] = [
    [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "où est-il? 🙂"},
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"q": "è"}'}},
                {"id": "b", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "here"},
        {"role": "tool", "tool_call_id": "b", "content": "let me see"},
        {"role": "assistant", "content": "here 🙂🙂"},
    ],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "x"}],
    [{"role": "assistant", "content": "first"}, {"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
]


@pytest.fixture(scope="module")
def real(tau_airline: Path) -> list[Conversation]:
    with (tau_airline / "interactions.jsonl").open() as file:
        found = [json.loads(line)["messages"] for line in file]
    return random.Random(5).sample(found, 40)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [text for conversation in SMALL for text, _ in segments(conversation, [])]
    return make_tokenizer(
        [*texts, "Your reservation was booked. The user id is mia_li_3668.", '{"reservation_id": "1N99U6"}']
    )


def check_token_by_token(tokenizer: Any, messages: Conversation, response: list[int], tools: Any = None) -> None:
    """Each piece is tokenised by itself: special tokens stand at its borders, so no token crosses one."""
    expected: list[tuple[int, bool]] = []
    for text, learned in segments(messages, response, tools):
        expected += [(token, learned) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    encoded = encode(tokenizer, messages, response, tools)
    for n, (wanted, found) in enumerate(
        zip(expected, zip(encoded.input_ids, encoded.trained, strict=True), strict=True)
    ):
        assert wanted == found, f"token {n}, {tokenizer.decode([wanted[0]])!r}: expected {wanted}, is {found}"


def assistants(messages: Conversation) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


@pytest.mark.parametrize("template", [MARKED, PLAIN], ids=["marked", "plain"])
@pytest.mark.parametrize("messages", SMALL)
def test_small_conversations_token_by_token(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str, messages: Conversation
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    turns = assistants(messages)
    for response in ([], turns, turns[-1:], turns[:1]):
        for tools in (None, TOOLS):
            check_token_by_token(tokenizer, messages, response, tools)


@pytest.mark.parametrize("template", [MARKED, PLAIN], ids=["marked", "plain"])
def test_real_conversations_token_by_token(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, real: list[Conversation], template: str
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    rng, learned = random.Random(1), 0
    for messages in real[:12]:
        turns = assistants(messages)
        response = sorted(rng.sample(turns, rng.randint(1, len(turns))))
        check_token_by_token(tokenizer, messages, response)
        learned += len(response)
    assert learned > 50


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507"])
def test_a_published_template_and_its_form_with_marks_give_the_same_masks(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, real: list[Conversation], name: str
) -> None:
    """What is found by rendering up to each turn and after it is what the template's authors would mark."""
    templates = files("trl").joinpath("chat_templates")
    for messages in real[:6]:
        found = []
        for file in (f"{name}.jinja", f"{name}_training.jinja"):
            monkeypatch.setattr(tokenizer, "chat_template", templates.joinpath(file).read_text())
            found.append(encode(tokenizer, messages, assistants(messages)[1:]))
        assert found[0].input_ids == found[1].input_ids
        ends = {tokenizer.convert_tokens_to_ids("<|im_end|>"), *tokenizer("\n")["input_ids"]}
        different = {
            token for token, a, b in zip(found[0].input_ids, found[0].trained, found[1].trained, strict=True) if a != b
        }
        assert different <= ends  # some mark the newline behind the end as well
        assert sum(found[0].trained) > 50


def test_a_published_template_that_rewrites_its_turns_is_masked_by_its_training_form(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, real: list[Conversation]
) -> None:
    """Qwen3 drops the thoughts of earlier turns, so what it writes of a turn depends on what follows."""
    text = files("trl").joinpath("chat_templates", "qwen3.jinja").read_text()
    monkeypatch.setattr(tokenizer, "chat_template", text)
    for messages in real[:4]:
        turns = assistants(messages)
        encoded = encode(tokenizer, messages, turns[1:2])
        learned = tokenizer.decode([t for t, on in zip(encoded.input_ids, encoded.trained, strict=True) if on])
        said = messages[turns[1]]
        assert (said["content"] or said["tool_calls"][0]["function"]["name"]) in learned
        assert learned.count("<|im_end|>") == 1
        assert len(encoded.turns) == len(turns)
    monkeypatch.setattr(tokenizer, "chat_template", text + " ")  # one that nobody published
    with pytest.raises(TemplateRefused, match="differently once another follows"):
        encode(tokenizer, real[0], assistants(real[0]))


def test_long_real_conversations_are_split_and_every_turn_is_learned_once(
    tokenizer: Any, real: list[Conversation]
) -> None:
    pieces = 0
    for messages in real:
        turns = assistants(messages)
        whole = encode(tokenizer, messages, turns)
        limit = max(len(whole.input_ids) * 2 // 3, 800)
        rendered = render(tokenizer, messages, turns, max_length=limit)
        pieces += len(rendered.sequences)
        learned: list[int] = []
        for sequence in rendered.sequences:
            assert len(sequence.ids) <= limit
            for start, stop in sequence.spans:
                learned += sequence.ids[start:stop]
        if not rendered.too_long:
            assert learned == [t for t, on in zip(whole.input_ids, whole.trained, strict=True) if on]
    assert pieces > len(real)


def test_what_no_template_can_mask_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tokenizer,
        "chat_template",
        "{% for m in messages %}{% for c in m.get('tool_calls') or [] %}{% for k, v in c.function.arguments | items %}{{ k }}"
        "{% endfor %}{% endfor %}{{ m['content'] }}{% endfor %}",
    )
    broken = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{no json"}}]}
    with pytest.raises(TemplateRefused, match="wants tool arguments as objects, and those of message 1 are none"):
        encode(tokenizer, [{"role": "user", "content": "q"}, broken], [1])
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(TemplateRefused, match="no chat template"):
        identify(tokenizer)


@pytest.mark.parametrize("template", [MARKED, PLAIN], ids=["marked", "plain"])
def test_text_in_parts_is_text_where_the_template_knows_no_parts(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    parts = [{"type": "text", "text": "où est-il?"}, {"type": "text", "text": " 🙂"}]
    plain: Conversation = [{"role": "user", "content": "où est-il? 🙂"}, {"role": "assistant", "content": "here"}]
    assert encode(tokenizer, [{"role": "user", "content": parts}, plain[1]], [1]) == encode(tokenizer, plain, [1])
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(TemplateRefused, match="knows text only, and message 0 has parts of other kinds"):
        encode(tokenizer, [{"role": "user", "content": picture}, plain[1]], [1])


def test_the_identity_is_that_of_tokenizer_and_template_and_of_nothing_else(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identify(tokenizer)
    tokenizer(["a", "b b b"], padding=True, truncation=True, max_length=2)
    assert identify(tokenizer) == before
    monkeypatch.setattr(tokenizer, "chat_template", PLAIN)
    assert identify(tokenizer).tokenizer == before.tokenizer
    assert identify(tokenizer).template != before.template
    assert identify(make_tokenizer(["other text"] * 3)).tokenizer != before.tokenizer
