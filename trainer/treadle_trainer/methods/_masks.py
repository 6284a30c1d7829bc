"""Which tokens of a conversation are trained on: exactly those of the messages marked as response.

A chat template with `{% generation %}` says itself what the assistant wrote. For one without, the template is rendered up to each
assistant turn and after it: what the second has more is the turn. A template for which neither holds is refused, never guessed at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from treadle_trainer.errors import TemplateRefused

__all__ = ["Encoded", "encode"]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one conversation, and for each whether it is trained on."""

    input_ids: list[int]
    trained: list[bool]


def encode(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    response: Collection[int],
    tools: list[dict[str, Any]] | None = None,
) -> Encoded:
    """Render and tokenise `messages`; the tokens of the messages with an index in `response` are trained on.

    Raises TemplateRefused where the template cannot tell them from the rest, or a marked message is not the assistant's.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TemplateRefused("the tokenizer has no fast form, so tokens cannot be traced back to messages")
    assistants = [i for i, m in enumerate(messages) if m.get("role") == "assistant"]
    foreign = sorted(set(response) - set(assistants))
    if foreign:
        raise TemplateRefused(f"message {foreign[0]} is marked as response, but is not the assistant's")
    template = tokenizer.get_chat_template(None, tools)
    spans_of = _marked if _GENERATION.search(template) else _by_prefix
    try:
        text, spans = spans_of(tokenizer, template, messages, assistants, tools)
    except TypeError:
        # some templates want tool arguments as an object where OpenAI sends a JSON string
        text, spans = spans_of(tokenizer, template, _with_objects(messages), assistants, tools)
    wanted = [span for i, span in zip(assistants, spans, strict=True) if i in response]
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    trained = [
        any(start < end and start < stop and end > begin for begin, stop in wanted)
        for start, end in tokens["offset_mapping"]
    ]
    return Encoded(list(tokens["input_ids"]), trained)


def _marked(
    tokenizer: Any,
    template: str,
    messages: Sequence[dict[str, Any]],
    assistants: list[int],
    tools: list[dict[str, Any]] | None,
) -> tuple[str, list[Span]]:
    rendered, indices = render_jinja_template(
        conversations=[list(messages)],
        tools=[*tools] if tools is not None else None,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    spans: list[Span] = [(int(a), int(b)) for a, b in indices[0]]
    if len(spans) != len(assistants):
        raise TemplateRefused(
            f"the chat template marks {len(spans)} generations in a conversation of {len(assistants)} assistant turns"
        )
    return rendered[0], spans


def _by_prefix(
    tokenizer: Any,
    template: str,
    messages: Sequence[dict[str, Any]],
    assistants: list[int],
    tools: list[dict[str, Any]] | None,
) -> tuple[str, list[Span]]:
    whole = _render(tokenizer, template, messages, tools, prompt=False)
    spans: list[Span] = []
    for i in assistants:
        before = _render(tokenizer, template, messages[:i], tools, prompt=True) if i else ""
        after = _render(tokenizer, template, messages[: i + 1], tools, prompt=False)
        if not (after.startswith(before) and whole.startswith(after)):
            raise TemplateRefused(
                f"the chat template writes message {i} differently once another follows, and has no "
                "{% generation %} block: what the assistant wrote cannot be told"
            )
        spans.append((len(before), len(after.rstrip("\n"))))
    return whole, spans


def _render(tokenizer: Any, template: str, messages: Sequence[dict[str, Any]], tools: Any, *, prompt: bool) -> str:
    rendered = tokenizer.apply_chat_template(
        list(messages), tools=tools, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    return str(rendered)


def _with_objects(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for message in messages:
        calls = message.get("tool_calls")
        if calls:
            parsed = [
                {**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}} for c in calls
            ]
            message = {**message, "tool_calls": parsed}
        out.append(message)
    return out
