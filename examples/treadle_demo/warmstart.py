"""The warm start: a tiny model that has seen noisy demonstrations, the agent's first release.

It learns to look things up and to write well-formed calls, and hardly which action is right: that is left to the wheel. Live success
begins near that of a random action.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from treadle_schemas.environment import Environment, Message, Task, load_environment
from treadle_schemas.errors import SettingError
from treadle_schemas.split import Split

from treadle_demo.model import ASSISTANT, build_model, render, save, train_tokenizer
from treadle_demo.profiles import CPU, PROFILES, Profile, WarmStart

__all__ = ["Demonstrator", "demonstrations", "fit", "warm_start"]


@runtime_checkable
class Demonstrator(Protocol):
    """The optional fourth method of an environment, needed only for a warm start."""

    def demonstrate(self, task: Task, rng: random.Random, skill: float) -> list[Message]:
        """A conversation whose last action is right with probability `skill`, else random."""
        ...


def warm_start(
    environment: Environment,
    folder: Path,
    *,
    seed: int,
    split: Split,
    settings: WarmStart | None = None,
    profile: Profile = CPU,
) -> None:
    """Train a tokenizer and a tiny model on demonstrations of train tasks, and write them into `folder`.

    About 8 s of one core with the profile `cpu`. Raises SettingError when the environment has no method `demonstrate`.
    """
    settings = settings or profile.warm
    conversations = demonstrations(environment, settings, seed=seed, split=split)
    tokenizer = train_tokenizer(conversations, profile.shape)
    model = build_model(tokenizer, seed, profile.shape)
    if profile.cuda:
        model = model.to("cuda")
    fit(model, tokenizer, conversations, settings, seed)
    save(model, tokenizer, folder)


def demonstrations(environment: Environment, settings: WarmStart, *, seed: int, split: Split) -> list[list[Message]]:
    """Conversations on tasks of the train side, up to and including the last action (the tool's answer to it teaches nothing)."""
    if not isinstance(environment, Demonstrator):
        name = type(environment).__name__
        raise SettingError(
            f"environment {name} has no method demonstrate; start from a model folder with --model instead"
        )
    rng = random.Random(f"demonstrations-{seed}")
    conversations: list[list[Message]] = []
    for round_ in range(10_000):
        for task in environment.tasks(settings.demonstrations, _WARM_SEEDS + seed * 10_000 + round_):
            if split.side(task.task_id) == "train":
                conversations.append(_to_last_action(environment.demonstrate(task, rng, settings.skill)))
            if len(conversations) == settings.demonstrations:
                return conversations
    raise SettingError(f"environment {type(environment).__name__} gives no tasks on the train side of the split")


_WARM_SEEDS = 1_000_000_000
"""Task seeds of the warm start lie far from those that an agent or an evaluation counts up from 0."""


def _to_last_action(messages: list[Message]) -> list[Message]:
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[: last + 1]


def fit(model: Any, tokenizer: Any, conversations: Sequence[Sequence[Message]], settings: WarmStart, seed: int) -> None:
    """Train `model` in place: cross entropy on what the assistant wrote, AdamW, the schedule of `settings`. Leaves it in eval mode.

    For conversations in the demo's own chat template; releases are trained by treadle_trainer.
    """
    rows = [_labelled(tokenizer, messages) for messages in conversations]
    batches = _batches(len(rows), settings, random.Random(f"batches-{seed}"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    model.train()
    for step, batch in enumerate(batches):
        rate = min(1.0, (step + 1) / 5) * max(0.05, 1 - step / settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        padded = _right_padded([rows[i] for i in batch], tokenizer.pad_token_id)
        ids, labels = (part.to(model.device) for part in padded)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
            loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def _labelled(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation: the ids of what the assistant wrote, -100 elsewhere."""
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        text = render([message], add_generation_prompt=False)
        part: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += part
        # the role's own token is given, not written
        wrote = text.startswith(ASSISTANT)
        labels += [-100, *part[1:]] if wrote else [-100] * len(part)
    return ids, labels


def _batches(rows: int, settings: WarmStart, rng: random.Random) -> Iterator[list[int]]:
    pool: list[int] = []
    for _ in range(settings.steps):
        while len(pool) < settings.batch:
            epoch = list(range(rows))
            rng.shuffle(epoch)
            pool += epoch
        yield pool[: settings.batch]
        pool = pool[settings.batch :]


def _right_padded(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in rows)
    padded = [(ids + [pad] * (width - len(ids)), labels + [-100] * (width - len(labels))) for ids, labels in rows]
    return torch.tensor([ids for ids, _ in padded]), torch.tensor([labels for _, labels in padded])


def main() -> None:
    """Write the first release of a demo: `python -m treadle_demo.warmstart --environment PKG:CLASS --seed N FOLDER`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--environment", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=float, default=0.1, help="held-out share of the workspace's split")
    parser.add_argument("--profile", choices=sorted(PROFILES), default=CPU.name)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    split = Split(share=args.held_out)
    environment = load_environment(args.environment)
    warm_start(environment, args.folder, seed=args.seed, split=split, profile=PROFILES[args.profile])


if __name__ == "__main__":
    main()
