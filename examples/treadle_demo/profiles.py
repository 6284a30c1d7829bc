"""What the demo is made of: the world, the model, how it is trained. `cpu` is the demo; `gpu` is the same wheel at 100 million parameters.

Light to import: no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["CPU", "GPU", "GPU_TINY", "PROFILES", "Profile", "Shape", "WarmStart"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama and its tokenizer. The defaults are the demo's tiny model: two layers of width 64."""

    hidden: int = 64
    between: int = 192
    layers: int = 2
    heads: int = 4
    positions: int = 256
    """Longest conversation in tokens."""
    initializer_range: float = 0.1
    """Five times the usual value: at this width the usual one does not learn to copy a number in a warm start."""
    vocabulary: int = 1024
    """Upper bound; the generated texts of one environment hold about 750 distinct pieces."""
    pieces: str = r" ?[^\s]+|\s+"
    """What the tokenizer never merges across: here a word keeps its space, and a name is one word."""


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """How the first release is made. One list of numbers serves every seed and both environments of the cpu profile."""

    demonstrations: int = 2_000
    """Conversations to learn from."""
    skill: float = 0.2
    """Share of deliberate actions among them; the rest are random."""
    steps: int = 240
    """Optimiser steps."""
    batch: int = 32
    """Conversations a step."""
    learning_rate: float = 6e-3
    """Peak of the learning rate: five steps up, then linearly down."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One way to run the demo."""

    name: str
    environment: str = "treadle_demo:CustomerDesk"
    shape: Shape = field(default_factory=Shape)
    cuda: bool = False
    """Whether agent and warm start use the CUDA device. Jobs always do where there is one."""
    warm: WarmStart = field(default_factory=WarmStart)
    episodes: int = 960
    """Episodes a turn."""
    steps: int = 80
    """Optimiser steps of a turn."""
    lr: float = 2e-3
    batch: int = 32
    rows: Literal["rewarded", "all"] = "rewarded"
    """What a turn imitates."""
    max_new_tokens: int = 32
    """Longest text of one turn of the agent."""
    evaluator: str = "treadle_trainer.evaluate.player:evaluate"


CPU = Profile(name="cpu")
GPU = Profile(
    name="gpu",
    environment="treadle_demo:BackOffice",
    # 113 million parameters in layers, 3 million in embeddings
    shape=Shape(
        hidden=768,
        between=3_072,
        layers=12,
        heads=12,
        positions=1_024,
        initializer_range=0.02,
        vocabulary=4_096,
        # a tool's name falls into its words and underscores: no name is one token
        pieces=r" ?[A-Za-z]+|[0-9]+|\s+|[^\sA-Za-z0-9]",
    ),
    cuda=True,
    warm=WarmStart(demonstrations=20_000, skill=0.35, steps=1_500, batch=64, learning_rate=6e-4),
    steps=150,
    lr=2e-4,
    max_new_tokens=64,
    evaluator="treadle_demo.sampling:evaluate_long",
)
GPU_TINY = replace(
    GPU,
    name="gpu-tiny",
    shape=replace(GPU.shape, hidden=64, between=192, layers=2, heads=4, initializer_range=0.1),
    cuda=False,
    warm=replace(GPU.warm, demonstrations=400, steps=60, batch=16, learning_rate=6e-3),
    episodes=200,
    steps=10,
    lr=2e-3,
    rows="all",
)
"""Every line of the gpu profile on a CPU, at a size that settles no case: it imitates everything, for there are no wins."""

PROFILES = {profile.name: profile for profile in (CPU, GPU, GPU_TINY)}
