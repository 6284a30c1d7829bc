"""A tiny Llama, its tokenizer and its chat template, saved as a normal Hugging Face folder.

About 0.15 million parameters: two layers of width 64. Small enough that four turns of the wheel fit into minutes on two cores, and
an ordinary model in every other way: `AutoTokenizer` and `AutoModelForCausalLM` load it, TRL trains it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging
from treadle_schemas.environment import Message

from treadle_demo.profiles import CPU, Shape

__all__ = ["CHAT_TEMPLATE", "build_model", "load", "render", "save", "train_tokenizer"]

PAD, END = "<|pad|>", "<|end|>"
ASSISTANT = "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, "<|system|>", "<|user|>", ASSISTANT, "<|tool|>")

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% generation %}"
    "{% if m.get('tool_calls') %}{% for c in m['tool_calls'] %}"
    "{{ '{\"name\":\"' + c['function']['name'] + '\",\"arguments\":' + c['function']['arguments'] + '}' }}"
    "{% endfor %}{% else %}{{ m['content'] }}{% endif %}<|end|>{% endgeneration %}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Marks what the assistant wrote with {% generation %}, so that trainers can mask everything else."""


def render(messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The text that CHAT_TEMPLATE gives for `messages`, without Jinja: about 20 times cheaper. A test holds the two equal."""
    parts = []
    for message in messages:
        parts.append(f"<|{message['role']}|>")
        if message["role"] == "assistant" and message.get("tool_calls"):
            for call in message["tool_calls"]:
                function = call["function"]
                parts.append(f'{{"name":"{function["name"]}","arguments":{function["arguments"]}}}')
        else:
            parts.append(message["content"])
        parts.append(END)
    if add_generation_prompt:
        parts.append(ASSISTANT)
    return "".join(parts)


def train_tokenizer(conversations: Iterable[Sequence[Message]], shape: Shape = CPU.shape) -> Any:
    """A byte-level BPE tokenizer with CHAT_TEMPLATE, trained on rendered conversations. Deterministic.

    A number is a piece of its own, so a two-digit id is one token: split into digits, copying it is not learned in a warm start.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(shape.pieces), "isolated"),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(_training_texts(conversations), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, padding_side="left", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _training_texts(conversations: Iterable[Sequence[Message]]) -> Iterable[str]:
    # The trainer does not cut at special tokens by itself: merges would cross turns and cost half the sequence length again.
    cut = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
    for messages in conversations:
        yield from filter(None, cut.split(render(messages, add_generation_prompt=False)))


def build_model(tokenizer: Any, seed: int, shape: Shape = CPU.shape) -> Any:
    """A fresh LlamaForCausalLM for `tokenizer`. Restores the process's random state of torch."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.between,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=shape.initializer_range,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model (safetensors) and tokenizer into `folder`, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with _no_progress_bar():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[Any, Any]:
    """Model (in eval mode) and tokenizer of a Hugging Face folder with a chat template. Never asks the network.

    Raises OSError or ValueError, as transformers does, when the folder holds no causal language model.
    """
    with _no_progress_bar():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    # a bar for 0.6 MB of weights would tear the demo's terminal view
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
