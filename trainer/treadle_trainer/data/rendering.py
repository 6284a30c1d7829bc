"""Which tokens of a conversation are trained on: exactly those of the messages marked as response.

A chat template with `{% generation %}` says itself what the assistant wrote. For one without, the template is rendered up to each
assistant turn and after it: what the second has more is the turn. Where that fails, since a template writes a turn otherwise once another
follows (Qwen3 drops its thoughts), TRL has a training form of many published templates. Any other is refused, never guessed at.

Everything that trains or scores logged conversations goes through `encode`.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError as JinjaError
from transformers.utils.chat_template_utils import render_jinja_template
from treadle_schemas.canonical import content_hash

from treadle_trainer.errors import TemplateRefused

__all__ = ["Encoded", "TokenizerId", "Turn", "as_template_wants", "encode", "identify", "rendered", "training_form"]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TokenizerId:
    """Which tokens a text becomes: 16 hex digits of a hash of the tokenizer, and of the chat template."""

    tokenizer: str
    template: str

    def __str__(self) -> str:
        return f"{self.tokenizer}-{self.template}"


def identify(tokenizer: Any) -> TokenizerId:
    """The identity of a fast tokenizer with a chat template. Raises TemplateRefused for any other."""
    _check_fast(tokenizer)
    if not tokenizer.chat_template:
        raise TemplateRefused("the tokenizer has no chat template, so a conversation has no tokens")
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("padding", "truncation"):  # of the last call, not of the tokenizer
        core.pop(state, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    # not canonical JSON: merges may hold lone surrogates and huge lists, and one process writes and reads this
    core_bytes = json.dumps([core, special], sort_keys=True).encode()
    return TokenizerId(hashlib.sha256(core_bytes).hexdigest()[:16], content_hash(tokenizer.chat_template)[:16])


class Turn(NamedTuple):
    """One assistant turn: the index of its message, and its tokens `start:stop`, the header of the role left out."""

    message: int
    start: int
    stop: int


@dataclass(frozen=True)
class Encoded:
    """Token ids of one conversation, for each whether it is trained on, and where the assistant's turns are."""

    input_ids: list[int]
    trained: list[bool]
    turns: list[Turn]


def encode(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    response: Collection[int],
    tools: list[dict[str, Any]] | None = None,
) -> Encoded:
    """Render and tokenise `messages`; the tokens of the messages with an index in `response` are trained on.

    Raises TemplateRefused where the template cannot tell them from the rest, or a marked message is not the assistant's.
    """
    _check_fast(tokenizer)
    assistants = [i for i, m in enumerate(messages) if m.get("role") == "assistant"]
    foreign = sorted(set(response) - set(assistants))
    if foreign:
        raise TemplateRefused(f"message {foreign[0]} is marked as response, but is not the assistant's")
    template = tokenizer.get_chat_template(None, tools)
    spans_of = _marked if _GENERATION.search(template) else _by_prefix
    messages = as_template_wants(template, messages)
    try:
        text, spans = spans_of(tokenizer, template, messages, assistants, tools)
    except TemplateRefused:
        known = training_form(template)
        if known is None:
            raise
        text, spans = _marked(tokenizer, known, messages, assistants, tools)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in tokens["offset_mapping"]]
    stops = [stop for _, stop in tokens["offset_mapping"]]
    turns = [
        # from the first token that ends within the turn to the last that begins within it
        Turn(message, bisect_right(stops, begin), bisect_left(starts, end))
        for message, (begin, end) in zip(assistants, spans, strict=True)
    ]
    trained = [False] * len(starts)
    for turn in turns:
        if turn.message in response:
            trained[turn.start : turn.stop] = [True] * (turn.stop - turn.start)
    return Encoded(list(tokens["input_ids"]), trained, turns)


def as_template_wants(template: str, messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The messages with tool arguments and contents in the form that the template was written for. Raises TemplateRefused."""
    if any(m.get("tool_calls") for m in messages) and _wants_objects(template):
        messages = _with_objects(messages)
    if any(isinstance(m.get("content"), list) for m in messages) and not _takes_parts(template):
        messages = _with_texts(messages)
    return messages


def training_form(template: str) -> str | None:
    """What TRL makes of a published template for training, where it knows it."""
    return _training_forms().get(template)


def _check_fast(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise TemplateRefused("the tokenizer has no fast form, so tokens cannot be traced back to messages")


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
    whole = rendered(tokenizer, template, messages, tools, prompt=False)
    spans: list[Span] = []
    for i in assistants:
        before = (
            rendered(tokenizer, template, messages[:i], tools, prompt=True)
            if i
            else _header(tokenizer, template, tools)
        )
        after = rendered(tokenizer, template, messages[: i + 1], tools, prompt=False)
        if not (after.startswith(before) and whole.startswith(after)):
            raise TemplateRefused(
                f"the chat template writes message {i} differently once another follows, and has no "
                "{% generation %} block: what the assistant wrote cannot be told"
            )
        spans.append((len(before), len(after.rstrip("\n"))))
    return whole, spans


def rendered(tokenizer: Any, template: str, messages: Sequence[dict[str, Any]], tools: Any, *, prompt: bool) -> str:
    """The text of messages by a template; with `prompt` up to where the assistant begins to write."""
    text = tokenizer.apply_chat_template(
        list(messages), tools=tools, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    return str(text)


def _header(tokenizer: Any, template: str, tools: Any) -> str:
    """What stands before the assistant's first word where nothing was said to it. A template that cannot do without is no help."""
    try:
        rendered, _ = render_jinja_template(
            conversations=[[]],
            tools=tools,
            chat_template=template,
            add_generation_prompt=True,
            **tokenizer.special_tokens_map,
        )
    except (TypeError, JinjaError):
        return ""
    return str(rendered[0])


@lru_cache(maxsize=1)
def _training_forms() -> dict[str, str]:
    """Published templates, and what TRL makes of each for training: with marks, and writing a turn alike wherever it stands."""
    folder = files("trl").joinpath("chat_templates")
    names = {file.name for file in folder.iterdir()}
    forms = ((name, f"{name.removesuffix('.jinja')}_training.jinja") for name in sorted(names))
    return {
        folder.joinpath(name).read_text(): folder.joinpath(form).read_text() for name, form in forms if form in names
    }


@lru_cache(maxsize=64)
def _wants_objects(template: str) -> bool:
    """Whether a template wants tool arguments as an object, where OpenAI sends them as a JSON string.

    Found by trying: a template that writes a string's quotes with backslashes, or fails, is made for objects, which is also what servers
    give it.
    """
    arguments = '{"probe": 1}'
    call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": arguments}}
    probe = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        rendered, _ = render_jinja_template(conversations=[probe], chat_template=template, bos_token="", eos_token="")
    except (TypeError, JinjaError):
        return True
    return arguments not in rendered[0] and '\\"probe' in rendered[0]


@lru_cache(maxsize=64)
def _takes_parts(template: str) -> bool:
    """Whether a template writes the text of a content that is a list of parts."""
    probe = [{"role": "user", "content": [{"type": "text", "text": "probe-text"}]}]
    try:
        rendered, _ = render_jinja_template(conversations=[probe], chat_template=template, bos_token="", eos_token="")
    except (TypeError, JinjaError):
        return False
    # others write the list as Python would
    return "probe-text" in rendered[0] and "probe-text'" not in rendered[0] and 'probe-text"' not in rendered[0]


def _with_texts(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Contents of text parts as one text, for templates that know no parts."""
    out = []
    for n, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
                raise TemplateRefused(f"the chat template knows text only, and message {n} has parts of other kinds")
            message = {**message, "content": "".join(part["text"] for part in content)}
        out.append(message)
    return out


def _with_objects(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for n, message in enumerate(messages):
        calls = message.get("tool_calls")
        if calls:
            try:
                parsed = [
                    {**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}}
                    for c in calls
                ]
            except (ValueError, KeyError, TypeError) as err:
                raise TemplateRefused(
                    f"the chat template wants tool arguments as objects, and those of message {n} are none ({err})"
                ) from None
            message = {**message, "tool_calls": parsed}
        out.append(message)
    return out
