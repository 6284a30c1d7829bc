"""An attempt of several turns as one sequence of tokens: what was sampled stays as it was sampled, and only what comes between is rendered.

Rendering the whole conversation anew before each turn would put other tokens in the place of those that the model wrote wherever it wrote
a word in an unusual way, or a template tidies up a turn: training would then be on what nobody sampled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from treadle_trainer.data.rendering import as_template_wants, rendered, training_form
from treadle_trainer.errors import TemplateRefused

__all__ = ["between"]


def between(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    turn: int,
    tools: list[dict[str, Any]] | None,
    *,
    last: int,
    ends: Collection[int],
) -> list[int]:
    """The token ids from the end of message `turn`, which the assistant wrote, to where it begins to write again after all `messages`.

    `last` is the last token that was sampled for it. Where that is none of `ends`, the turn was cut, and the end token comes first.
    Raises TemplateRefused where the template writes the turn otherwise once more follows.
    """
    template = tokenizer.get_chat_template(None, tools)
    for form in (template, training_form(template)):
        if form is None:
            continue
        fitting = as_template_wants(form, messages)
        before = rendered(tokenizer, form, fitting[:turn], tools, prompt=True)
        after = rendered(tokenizer, form, fitting[: turn + 1], tools, prompt=False)
        whole = rendered(tokenizer, form, fitting, tools, prompt=True)
        ending = _ending(form, tuple(sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items())))
        if not whole.startswith(after) and tokenizer.eos_token:  # some end a conversation with it, beside the turn
            after, ending = after.removesuffix(tokenizer.eos_token), ending.removesuffix(tokenizer.eos_token)
        if after.startswith(before) and whole.startswith(after):
            rest = _behind(ending, tokenizer.decode([last])) if last in ends else ending
            return list(tokenizer(rest + whole[len(after) :], add_special_tokens=False)["input_ids"])
    raise TemplateRefused(
        f"the chat template writes message {turn} differently once another follows: an attempt of several turns is no one sequence"
    )


def _behind(ending: str, sampled: str) -> str:
    """What of a turn's ending comes after the end token that was sampled; its white space where that is not the template's."""
    _, found, rest = ending.partition(sampled)
    return rest if found else ending[len(ending.rstrip()) :]


@lru_cache(maxsize=64)
def _ending(template: str, special: tuple[tuple[str, str], ...]) -> str:
    """What a template writes behind the words of the assistant: `<|im_end|>` and a line break, for example."""
    word = "treadle-word"
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": word}]
    names: dict[str, Any] = dict(special)
    texts, _ = render_jinja_template(conversations=[said], chat_template=template, **names)
    return str(texts[0]).rpartition(word)[2]
