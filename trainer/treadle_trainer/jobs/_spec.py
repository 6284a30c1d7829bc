"""What a job process is asked to do. Paths are absolute; rows lie in a file, so that a job needs no corpus and no Kafka."""

from __future__ import annotations

import msgspec
from treadle_schemas import Split

__all__ = ["EnvironmentSpec", "JobSpec", "LikelihoodSpec", "TrainSpec"]


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, tag="train"):
    """Train the model in `base` on the examples in `rows` (JSON lines of data.Example) and save it to `out`."""

    method: str
    base: str
    rows: str
    out: str
    steps: int
    lr: float
    batch: int
    max_length: int
    seed: int


class EnvironmentSpec(msgspec.Struct, frozen=True, kw_only=True, tag="environment"):
    """Score models on `tasks` fresh held-out tasks of an environment: same tasks and sampling seed for each."""

    models: dict[str, str]
    environment: str
    evaluator: str
    tasks: int
    seed: int
    split: Split


class LikelihoodSpec(msgspec.Struct, frozen=True, kw_only=True, tag="likelihood"):
    """Score models by their mean log-likelihood a token of the responses in `rows`."""

    models: dict[str, str]
    rows: str
    max_length: int
    batch: int = 16


JobSpec = TrainSpec | EnvironmentSpec | LikelihoodSpec
