"""A tokenizer trained on the spot, with ChatML's special tokens, and templates to go with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

START, END = "<|im_start|>", "<|im_end|>"

_TURN = (
    "{% if m.get('content') %}{{ m['content'] }}{% endif %}"
    "{% for c in m.get('tool_calls') or [] %}<call>{{ c['function']['name'] }} {{ c['function']['arguments'] }}</call>{% endfor %}"
    "<|im_end|>"
)
_HEAD = "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
_TAIL = "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
MARKED = f"{_HEAD}{{% if m['role'] == 'assistant' %}}{{% generation %}}{_TURN}{{% endgeneration %}}{{% else %}}{_TURN}{{% endif %}}{_TAIL}"
"""Says itself what the assistant wrote."""
PLAIN = f"{_HEAD}{_TURN}{_TAIL}"
"""The same text, without marks."""


def make_tokenizer(texts: Iterable[str], template: str = MARKED, vocabulary: int = 1200) -> Any:
    """A byte-level BPE tokenizer. Deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|pad|>", START, END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token=END, clean_up_tokenization_spaces=False
    )
    made.chat_template = template
    return made


def segments(
    messages: list[dict[str, Any]], response: Iterable[int], tools: list[dict[str, Any]] | None = None
) -> list[tuple[str, bool]]:
    """What the templates write, by hand: pieces of text, and whether the model learns to write them."""
    import json

    marked = set(response)
    out: list[tuple[str, bool]] = []
    if tools:
        out.append((f"{START}tools\n{json.dumps(tools)}{END}\n", False))
    for n, message in enumerate(messages):
        said = message.get("content") or ""
        for call in message.get("tool_calls") or []:
            said += f"<call>{call['function']['name']} {call['function']['arguments']}</call>"
        out += [(f"{START}{message['role']}\n", False), (said + END, n in marked), ("\n", False)]
    return out
