"""Group relative policy optimisation (Shao et al. 2024, DeepSeekMath, 4.1) by TRL's GRPOTrainer, on the model's own attempts.

Each step takes `batch x accumulate x processes / group` prompts (or tasks), the model of that moment makes `group` attempts at each, and

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)                                 over the attempts of a group   (4.1.2; std with n - 1)
    loss = sum_t [ - min(rho_t A, clip(rho_t, 1 - c, 1 + c) A) + beta k3_t ] / T

over the T tokens that were sampled in the step (TRL's `dapo`: each token counts alike, whichever attempt it is of). k3 is the estimate of
the divergence from the model that training begins with, as in `_rl`. Attempts are made anew for each step, so rho is 1 and nothing is
clipped: its gradient follows. Tokens of tools and of the user are context and count for nothing.

TRL's `rollout_func` is where the attempts come in. What is sampled depends on the seed, the step and the place of an attempt in it alone:
a training that goes on from a checkpoint ends as one that was never stopped, and several processes do what one with as large a batch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import AutoTokenizer
from treadle_schemas import SettingError, content_hash
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from treadle_trainer.errors import JobStopped
from treadle_trainer.jobs._spec import TrainSpec
from treadle_trainer.launch._ranks import place
from treadle_trainer.methods._prompts import Found, find_prompts, find_tasks, load_world, places, prompts_a_step
from treadle_trainer.methods._rollouts import Rollout, Writer, answer, perform
from treadle_trainer.methods._trl import Data, Streamed, fit, load_model, lora_of, placeholder, training_settings
from treadle_trainer.scorecard.evaluators import check_evaluator

__all__ = ["train_grpo"]


class _GrpoTrainer(Streamed, GRPOTrainer):  # type: ignore[misc,unused-ignore]  # trl is not typed here
    """Reads the places of prompts, and lets its attempts be made by `rollout_func`."""

    asked: Callable[[], bool] = staticmethod(lambda: False)
    """Whether the process is to end."""

    def leave(self) -> None:
        """End in the middle of a step, with a checkpoint of the step before: nothing has changed since. Raises JobStopped."""
        step = self.state.global_step
        kept = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        if step and not kept.exists():
            model: Any = self.model
            self._save_checkpoint(model, trial=None)
            self.callback_handler.on_save(self.args, self.state, self.control)
        kept_text = "; its checkpoint is kept" if step else ""
        raise JobStopped(f"stopped after step {step} of {self.args.max_steps}{kept_text}")


class _Sampling(NamedTuple):
    """Where attempts come from: what there is, and how a list of it is attempted."""

    found: Found
    attempt: Callable[[Writer, Sequence[Any], Callable[[int], torch.Tensor]], list[Rollout]]


def train_grpo(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Train `spec.base` on its own attempts. Returns counts, rewards and invalid shares of the first and the last twentieth of the steps.

    Raises SettingError, DataRefused, TemplateRefused, RewardFailed, JobStopped.
    """
    count = prompts_a_step(spec)
    if spec.reward_function is not None:
        check_evaluator(f"reward={spec.reward_function}")
    torch.manual_seed(spec.seed)
    tokenizer = AutoTokenizer.from_pretrained(spec.base, local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    sampling = _sampling(spec, tokenizer)
    found = sampling.found
    counts = {"rows": found.rows, "used": found.used, "prompts": len(found.items), "group": spec.group}
    left_out = {name: n for name, n in {**found.dropped, **found.left_out}.items() if n}
    progress(stage="prompts", **counts, **left_out)

    model = load_model(spec.base)
    settings = training_settings(
        GRPOConfig,
        spec,
        model.num_parameters(),
        num_generations=spec.group,
        max_completion_length=None,
        temperature=spec.temperature,
        beta=spec.beta,
        epsilon=spec.clip,
        loss_type="dapo",
        disable_dropout=True,
    )
    trainer: Any = _GrpoTrainer(
        model=model,
        reward_funcs=_given_rewards,
        args=settings,
        processing_class=tokenizer,
        train_dataset=placeholder(prompt=""),
        peft_config=lora_of(spec),
    )
    trainer.rollout_func = partial(_rollouts, spec=spec, sampling=sampling)
    trainer.feed = _Steps(trainer, spec, count, len(found.items))
    result = fit(trainer, Data(tokenizer, None, None, counts), None, spec, progress)
    return {**result, **_told(trainer.state.log_history, spec, count)}


class _Steps:
    """The places of a rank's attempts, batch after batch: a function of the step, so it needs no memory of its own."""

    def __init__(self, trainer: Any, spec: TrainSpec, count: int, items: int) -> None:
        self._trainer, self._spec, self._count, self._items = trainer, spec, count, items

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        spec = self._spec
        mine = _own(spec)
        while True:
            chosen = places(self._trainer.state.global_step, self._count, self._items, spec.seed)
            every = [item for item in chosen for _ in range(spec.group)]
            yield [{"prompt": item} for item in every[mine]]


def _own(spec: TrainSpec) -> slice:
    """Which of a step's attempts this rank makes."""
    rank, _ = place()
    size = spec.batch * spec.accumulate
    return slice(rank * size, (rank + 1) * size)


def _sampling(spec: TrainSpec, tokenizer: Any) -> _Sampling:
    function = spec.reward_function
    if function is not None:
        return _Sampling(
            find_prompts(spec, tokenizer), lambda writer, prompts, noise: answer(writer, prompts, noise, function)
        )
    name = spec.environment
    if name is None:
        raise SettingError("method grpo wants a reward function or an environment, which score what is sampled")
    world = load_world(name)
    return _Sampling(
        find_tasks(spec, tokenizer, world),
        lambda writer, tasks, noise: perform(writer, world, name, tasks, noise, spec.max_new_tokens),
    )


def _rollouts(items: list[int], trainer: Any, *, spec: TrainSpec, sampling: _Sampling) -> dict[str, Any]:
    """TRL's hook: the attempts of this rank at the things of these places, scored."""
    step, mine = trainer.state.global_step, _own(spec)
    total = prompts_a_step(spec) * spec.group

    def noise(turn: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(content_hash([spec.seed, step, turn])[:15], 16))
        return torch.rand(total, spec.max_new_tokens, generator=generator)[mine]  # of all ranks, however many there are

    def look() -> None:
        if place()[1] == 1 and trainer.asked():  # several ranks end together, after the step
            trainer.leave()

    whole = trainer.accelerator.unwrap_model(trainer.model)
    model = whole.get_base_model() if isinstance(whole, PeftModel) else whole
    was_training = model.training
    model.eval()
    positions = getattr(model.config, "max_position_embeddings", None) or spec.max_length
    writer = Writer(
        model=model,
        tokenizer=trainer.processing_class,
        temperature=spec.temperature,
        max_length=min(spec.max_length, positions),
        on_token=look,
    )
    try:
        with trainer.accelerator.autocast():
            made = sampling.attempt(writer, [sampling.found.items[item] for item in items], noise)
    finally:
        model.train(was_training)
    return {
        "prompt_ids": [one.prompt_ids for one in made],
        "completion_ids": [one.completion_ids for one in made],
        "logprobs": [one.logprobs for one in made],
        "env_mask": [list(map(int, one.sampled)) for one in made],
        "scored": [one.reward for one in made],
        "invalid": [one.invalid for one in made],
        "cut": [float(one.cut) for one in made],
    }


def _given_rewards(
    scored: list[float | None],
    invalid: list[float],
    cut: list[float],
    log_metric: Callable[[str, float], None],
    **_: Any,
) -> list[float | None]:
    """TRL's reward function: what came with the attempts."""
    log_metric("invalid", sum(invalid) / len(invalid))
    log_metric("cut", sum(cut) / len(cut))
    log_metric("unscored", sum(reward is None for reward in scored) / len(scored))
    return scored


def _told(history: Sequence[dict[str, Any]], spec: TrainSpec, count: int) -> dict[str, Any]:
    """What the log of a training says of its attempts; entries are means over the steps since the one before."""
    entries = [entry for entry in history if "frac_reward_zero_std" in entry]
    steps: list[int] = [entry["step"] for entry in entries]
    spans = [step - before for step, before in zip(steps, [0, *steps], strict=False)]

    def total(name: str, each: int) -> int:
        found = (float(entry.get(name) or 0.0) * span * each for entry, span in zip(entries, spans, strict=True))
        return round(sum(found))

    first, last = (entries[0], entries[-1]) if entries else ({}, {})
    attempts = count * spec.group
    return {
        "attempts": spec.steps * attempts,
        "sampled_tokens": total("completions/mean_length", attempts),
        "groups": spec.steps * count,
        "flat_groups": total("frac_reward_zero_std", count),
        "unscored": total("unscored", attempts),
        "cut": total("cut", attempts),
        "first_reward": first.get("reward"),
        "last_reward": last.get("reward"),
        "first_invalid": first.get("invalid"),
        "last_invalid": last.get("invalid"),
    }
