"""What a job process is asked to do. Paths are absolute. A job reads files only and needs no Kafka."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from treadle_schemas import Split, content_hash

from treadle_trainer.backends import Backend
from treadle_trainer.launch import Launch
from treadle_trainer.mixture import Mixture

__all__ = ["EnvironmentSpec", "JobSpec", "ScorecardSpec", "TrainSpec"]


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, tag="train"):
    """Train the model in `base` on version `version` of the corpus at `corpus`, and save it to `out`.

    Checkpoints go to `work`/checkpoints, every `save_steps` steps and when the process is asked to end: the same spec with the same `work`
    goes on from the last valid one. `batch` counts examples of one process and step, with `packed` rows of `max_length` tokens; a step of
    the optimiser takes `accumulate` batches.
    """

    method: str
    base: str
    corpus: str
    version: int
    out: str
    work: str
    steps: int
    lr: float
    batch: int
    max_length: int
    seed: int
    rows: Literal["rewarded", "all"] = "rewarded"
    newest_rows: int | None = None
    accumulate: int = 1
    packed: bool = False
    save_steps: int | None = None
    lora_rank: int | None = None
    beta: float = 0.1
    clip: float = 0.2
    margin: float = 0.0
    cap: int | None = 16
    backend: Backend | None = None
    """None: TRL, in this process."""
    launch: Launch | None = None
    """None: one process."""
    reward_function: str | None = None
    """grpo: what scores answers to the prompts of the version. None: the environment scores whole attempts."""
    environment: str | None = None
    """grpo without a reward function: where attempts are played, on tasks of the train side of `split`."""
    split: Split | None = None
    group: int = 8
    max_new_tokens: int = 32
    temperature: float = 1.0
    prompts: Literal["task", "row"] = "task"
    mixture: Mixture | None = None
    """Further sources beside the corpus. None: the corpus alone."""

    def view_options(self, view: str) -> dict[str, Any]:
        """What it asks of its view; `where` is a name of data.SELECTIONS."""
        if view == "sft":
            return {"where": self.rows}
        return {"min_margin": self.margin, "cap": self.cap} if view in ("dpo", "reward") else {}

    @property
    def shaping(self) -> dict[str, Any]:
        """What the weights depend on, as plain data: everything but where it is done and how often it is saved."""
        shaping: dict[str, Any] = msgspec.to_builtins(self)
        for name in ("out", "work", "save_steps"):
            del shaping[name]
        return shaping

    @property
    def fingerprint(self) -> str:
        """Hash of what the weights depend on: a checkpoint of another training is not gone on from."""
        since = {"backend": None, "launch": None, "mixture": None, **_SINCE}
        return content_hash({n: v for n, v in self.shaping.items() if n not in since or v != since[n]})


_SINCE: Final = {
    "reward_function": None,
    "environment": None,
    "split": None,
    "group": 8,
    "max_new_tokens": 32,
    "temperature": 1.0,
    "prompts": "task",
}
"""What came later: a training that does without has the fingerprint that it had before."""


class EnvironmentSpec(msgspec.Struct, frozen=True, kw_only=True, tag="environment"):
    """Score models on `tasks` fresh held-out tasks of an environment: same tasks and sampling seed for each."""

    models: dict[str, str]
    environment: str
    evaluator: str
    tasks: int
    seed: int
    split: Split
    labels: list[str] = []
    """Keys of a task's data that divide the tasks into slices."""


class ScorecardSpec(msgspec.Struct, frozen=True, kw_only=True, tag="scorecard"):
    """Measure models on the rows and pairs in `rows` (scorecard.rows.Measured). `generate` of the rows are written anew by each model, at
    most `max_new_tokens` each; the first model is what the last one is compared with."""

    models: dict[str, str]
    rows: str
    max_length: int
    generate: int
    max_new_tokens: int
    evaluators: tuple[str, ...] = ()
    kl: bool = True
    """Whether the divergence of the last model from the first is measured."""
    batch: int = 16


JobSpec = TrainSpec | EnvironmentSpec | ScorecardSpec
