"""What the GPU check trains on and with: a corpus of random words, its token columns, and random Llamas."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from treadle_corpus import Corpus, CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded
from treadle_demo.model import train_tokenizer
from treadle_trainer.data.building import build
from treadle_trainer.data.columns import Columns
from treadle_trainer.data.stream import TokenStream

WORDS = [
    a + b + c
    for a in ("ba", "ko", "mi", "ru", "te", "za", "lo", "ni")
    for b in ("da", "fe", "gu", "pi")
    for c in ("n", "r", "s")
]
PART = 500
"""Rows written at a time, between looks at the clock."""


class Size(NamedTuple):
    """A Llama: its width, its layers, the width between, its heads."""

    name: str
    hidden: int
    layers: int
    between: int
    heads: int


class Scale(NamedTuple):
    """How large the check is."""

    sizes: tuple[Size, ...]
    vocabulary: int
    rows: int
    words: int
    """Words of a row, each one token; the row is a few tokens longer."""
    width: int
    """Tokens of a padded row: every batch has the same shape."""
    warmup: int
    steps: int
    most_rows: int
    """Rows a step, at most: they are doubled from one until the memory is used."""
    feed_rows: int
    """Rows of a batch where feeding is measured alone."""
    trl_rows: int
    """Conversations that TRL tokenises."""
    deeplake_rows: int
    """Rows of tokens in a Deeplake data set."""
    prompts: tuple[int, ...]
    new_tokens: int
    episodes: int
    """Of the demo's turn."""
    seconds: dict[str, float]
    """What each stage may take: it stops early and says so."""


FULL = Scale(
    sizes=(
        Size("0.15B", 768, 13, 3072, 12),
        Size("0.6B", 1536, 18, 4608, 12),
        Size("1.7B", 2048, 30, 6144, 16),
    ),
    vocabulary=32_768,
    rows=20_000,
    words=980,
    width=1_024,
    warmup=20,
    steps=50,
    most_rows=1_024,
    feed_rows=64,
    trl_rows=1_000,
    deeplake_rows=4_000,
    prompts=(256, 1_024, 4_096),
    new_tokens=64,
    episodes=960,
    # feed: of each reader; train and sample: of each size
    seconds={"corpus": 40.0, "feed": 12.0, "train": 66.0, "sample": 34.0, "demo": 100.0},
)
TINY = Scale(
    sizes=(Size("tiny-1", 32, 1, 64, 2), Size("tiny-2", 64, 2, 128, 4)),
    vocabulary=1_024,
    rows=64,
    words=40,
    width=64,
    warmup=1,
    steps=3,
    most_rows=4,
    feed_rows=4,
    trl_rows=32,
    deeplake_rows=64,
    prompts=(4, 8),
    new_tokens=8,
    episodes=200,
    seconds={"corpus": 20.0, "feed": 0.5, "train": 20.0, "sample": 10.0, "demo": 240.0},
)


class World(NamedTuple):
    """What every stage needs."""

    scale: Scale
    columns: Columns
    tokenizer: Any
    device: torch.device
    folder: Path
    """For what a stage writes."""

    def stream(self, batch: int, device: torch.device | None = None) -> TokenStream:
        """The reader that a training job uses, every row padded to one width."""
        target = device or self.device
        return TokenStream(
            self.columns,
            self.columns.meta.identity,
            batch=batch,
            seed=1,
            pad_id=self.tokenizer.pad_token_id,
            multiple=self.scale.width,
            device=target if target.type == "cuda" else None,
        )


def conversation(rng: random.Random, words: int) -> list[dict[str, Any]]:
    """Half of the words are asked, half are answered."""
    said = [" ".join(rng.choices(WORDS, k=words // 2)) for _ in range(2)]
    return [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]


def make_corpus(folder: Path, scale: Scale) -> tuple[Corpus, float]:
    """A corpus of `scale.rows` rows, or of as many as half of the stage's time allows. Returns it and the seconds taken."""
    rng, started = random.Random(0), time.monotonic()
    with CorpusWriter.open(folder, workspace="gpu-check", policy=Policy()) as writer:
        made = 0
        while made < scale.rows and (not made or time.monotonic() - started < scale.seconds["corpus"] / 2):
            part = [
                graded(f"r{n:06}", messages=conversation(rng, scale.words), response=[1])
                for n in range(made, min(made + PART, scale.rows))
            ]
            made += len(part)
            writer.apply(part, {0: made}, 1000)
        writer.finish(SelectAll())
    return Corpus.open(folder), time.monotonic() - started


def make_columns(corpus: Corpus, scale: Scale) -> tuple[Columns, Any]:
    """The token columns of the corpus, and the tokenizer."""
    rng = random.Random(1)
    tokenizer = train_tokenizer([conversation(rng, 40) for _ in range(400)])
    return build(corpus, tokenizer, "sft", max_length=scale.width), tokenizer


def make_model(size: Size, scale: Scale, tokenizer: Any, device: torch.device) -> Any:
    """A Llama with random weights in float32, on the device. Deterministic."""
    config = LlamaConfig(
        vocab_size=max(scale.vocabulary, len(tokenizer)),
        hidden_size=size.hidden,
        intermediate_size=size.between,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=2 * scale.width,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config)


def make_tiny(world: World) -> Any:
    """The tiny model, with room for rows of this scale."""
    return make_model(TINY.sizes[-1], TINY._replace(width=world.scale.width), world.tokenizer, world.device)


def endless(stream: TokenStream) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    while True:
        yield from stream


def prompts_of(tokenizer: Any, count: int, words: int) -> list[list[int]]:
    """Token ids of random questions."""
    rng = random.Random(2)
    asked: Iterator[list[dict[str, Any]]] = (conversation(rng, words)[:1] for _ in range(count))
    return [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False) for one in asked]
