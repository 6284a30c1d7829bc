"""The plan of a method that samples: what it would begin with, without sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle_trainer.jobs._spec import TrainSpec
from treadle_trainer.methods._prompts import find_prompts, find_tasks, load_world, prompts_a_step

if TYPE_CHECKING:
    from treadle_trainer.methods.plan import Plan

__all__ = ["prompt_plan"]


def prompt_plan(spec: TrainSpec, tokenizer: Any) -> Plan:
    """The plan, with the first prompt as its example. Raises SettingError, DataRefused, TemplateRefused."""
    from treadle_trainer.methods.plan import Plan, Sampling, Segment
    from treadle_trainer.scorecard.evaluators import check_evaluator

    count = prompts_a_step(spec)
    if spec.reward_function is not None:
        check_evaluator(f"reward={spec.reward_function}")
        found = find_prompts(spec, tokenizer)
    elif spec.environment is not None:
        found = find_tasks(spec, tokenizer, load_world(spec.environment))
    else:
        raise AssertionError("a policy of grpo names a reward function or an environment")
    return Plan(
        rows=found.rows,
        used=found.used,
        dropped=found.dropped,
        left_out=found.left_out,
        unit="prompts",
        examples=len(found.items),
        sequences=len(found.items),
        tokens=sum(map(len, found.ids)),
        trained_tokens=0,
        logged_tokens=0,
        longest=max(map(len, found.ids)),
        epochs=round(spec.steps * count / len(found.items), 2),
        example=[[Segment(text=tokenizer.decode(found.ids[0]), trained=False)]],
        values=[None],
        sampling=Sampling(
            source="train rows" if spec.reward_function is not None else f"tasks of {spec.environment}",
            scored_by=str(spec.reward_function or spec.environment),
            prompts=count,
            group=spec.group,
            max_new_tokens=spec.max_new_tokens,
        ),
    )
