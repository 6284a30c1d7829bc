"""Token by token: what is trained on is what the assistant wrote, on a real tokenizer and real templates."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer
from treadle_demo.model import train_tokenizer
from treadle_trainer.data.rendering import encode
from treadle_trainer.errors import TemplateRefused

CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "get_order", "arguments": '{"order_id":47}'}},
    ],
}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "shop desk"},
    {"role": "user", "content": "where is order 47, étrange 🙂"},
    CALL,
    {"role": "tool", "content": '{"status":"lost"}'},
    {"role": "assistant", "content": "it is lost, sorry 🙂"},
    {"role": "user", "content": "thanks"},
    {"role": "assistant", "content": "it is lost, sorry 🙂"},
]
CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m.get('tool_calls') %}{{ m['tool_calls'][0]['function'] | tojson }}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}<|end|>{% endfor %}"
)
OBJECTS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{% for c in m.get('tool_calls') or [] %}{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}{% endfor %}"
    "{{ m['content'] or '' }}<|end|>{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([MESSAGES]).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _trained_text(tokenizer: Any, response: list[int]) -> str:
    encoded = encode(tokenizer, MESSAGES, response)
    assert len(encoded.input_ids) == len(encoded.trained)
    return str(tokenizer.decode([t for t, on in zip(encoded.input_ids, encoded.trained, strict=True) if on]))


def test_all_assistant_turns_are_masked_as_the_library_masks_them(tokenizer: Any) -> None:
    encoded = encode(tokenizer, MESSAGES, [2, 4, 6])
    theirs = tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert encoded.input_ids == theirs["input_ids"]
    assert [int(on) for on in encoded.trained] == theirs["assistant_masks"]


def test_each_token_belongs_to_the_turn_that_it_came_from(tokenizer: Any) -> None:
    encoded = encode(tokenizer, MESSAGES, [2, 4])
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    ends = [i for i, token in enumerate(tokens) if token == "<|end|>"]
    assert len(ends) == len(MESSAGES)
    starts = [0, *(end + 1 for end in ends[:-1])]
    for n, (start, end) in enumerate(zip(starts, ends, strict=True)):
        turn = encoded.trained[start : end + 1]
        # the role marker is given to the model; what it writes, its end token included, is learned
        assert turn == [n in (2, 4)] * len(turn) if n not in (2, 4) else turn == [False] + [True] * (len(turn) - 1)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ([2], '{"name":"get_order","arguments":{"order_id":47}}<|end|>'),
        ([4], "it is lost, sorry 🙂<|end|>"),
        ([2, 6], '{"name":"get_order","arguments":{"order_id":47}}<|end|>it is lost, sorry 🙂<|end|>'),
        ([], ""),
    ],
)
def test_only_the_marked_messages_are_trained_on(tokenizer: Any, response: list[int], text: str) -> None:
    assert _trained_text(tokenizer, response) == text


def test_equal_turns_are_told_apart_by_their_place(tokenizer: Any) -> None:
    first, last = encode(tokenizer, MESSAGES, [4]), encode(tokenizer, MESSAGES, [6])
    assert sum(first.trained) == sum(last.trained) > 0
    assert not any(a and b for a, b in zip(first.trained, last.trained, strict=True))


def test_a_template_without_generation_marks_is_masked_by_what_each_turn_adds(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", CHATML)
    assert _trained_text(tokenizer, [4]) == "it is lost, sorry 🙂<|end|>"
    called = '{"name": "get_order", "arguments": {"order_id": 47}}<|end|>'  # no JSON within JSON
    assert _trained_text(tokenizer, [2]) == called


def test_a_template_that_wants_objects_as_arguments_gets_them(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", OBJECTS)
    assert _trained_text(tokenizer, [2]) == "order_id=47<|end|>"


def test_what_cannot_be_told_apart_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TemplateRefused, match="message 1 is marked as response, but is not the assistant's"):
        encode(tokenizer, MESSAGES, [1, 2])
    monkeypatch.setattr(tokenizer, "chat_template", FORGETFUL)
    plain = [m for m in MESSAGES if not m.get("tool_calls")]
    with pytest.raises(TemplateRefused, match="differently once another follows"):
        encode(tokenizer, plain, [i for i, m in enumerate(plain) if m["role"] == "assistant"])
    monkeypatch.setattr(tokenizer, "chat_template", "{% generation %}x{% endgeneration %}")
    with pytest.raises(TemplateRefused, match="marks 1 generations in a conversation of 3 assistant turns"):
        encode(tokenizer, MESSAGES, [2])
