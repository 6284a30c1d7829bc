"""The demo's agent: a process that plays tasks with whatever release is champion, and records every interaction.

Commands: `play` (turn, episodes, seed) plays, writes the episodes to a file and answers `played`; `record` publishes them. In between
the world may already speak of interactions that nobody has seen yet, as it does in real life.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from treadle import Recorder, Releases
from treadle.settings import Settings
from treadle_schemas import Handle, new_id
from treadle_schemas.environment import load_environment
from treadle_schemas.moments import from_micros

from treadle_demo._pipe import answer, commands
from treadle_demo.clock import EventClock
from treadle_demo.profiles import CPU, PROFILES, Profile
from treadle_demo.sampling import Episode, play

__all__ = ["main"]

AGENT = "desk"
MEAN_EPISODE_S = 40.0
"""Event-time length of an episode."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """One episode with the identity and event times that it will be recorded under."""

    handle: Handle
    episode: Episode
    started_us: int
    ended_us: int


class Agent:
    """Plays with the champion; notices a new one before each batch, and keeps the last good one when loading fails."""

    def __init__(self, workspace: str, environment: str, registry: Path, temperature: float, profile: Profile) -> None:
        self.environment = load_environment(environment)
        self.workspace = workspace
        self.temperature = temperature
        self.profile = profile
        self.registry = registry
        self.recorder = Recorder(workspace, agent=AGENT)
        self.releases = Releases(workspace)
        self.release: str | None = None
        self.model: Any = None
        self.tokenizer: Any = None

    def follow_release(self) -> None:
        """Load the champion if it is another one than ours."""
        event = self.releases.current()
        champion = event.champion if event else None
        if champion is None or champion == self.release:
            return
        folder = self.registry.joinpath(*champion.split("/"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.model = model.to("cuda" if self.profile.cuda else "cpu").eval()
        self.release = champion

    def play(self, turn: int, episodes: int, seed: int, clock: EventClock) -> list[Played]:
        """Play `episodes` tasks and give each an identity and event times within the turn's day."""
        self.follow_release()
        tasks = list(self.environment.tasks(episodes, seed))
        rng = random.Random(f"agent-{seed}")
        out = []
        played = play(
            self.model,
            self.tokenizer,
            self.environment,
            tasks,
            seed,
            self.temperature,
            max_new_tokens=self.profile.max_new_tokens,
        )
        for n, episode in enumerate(played):
            started = clock.start_of(turn) + int(clock.WORKDAY_S * 1e6 * n / episodes)
            ended = started + int(rng.uniform(0.5, 1.5) * MEAN_EPISODE_S * 1e6)
            ident = new_id()
            out.append(
                Played(handle=Handle(self.workspace, ident, ident), episode=episode, started_us=started, ended_us=ended)
            )
        return out

    def record(self, turn: int, played: list[Played]) -> int:
        """Publish every episode, a few of them twice (a client that retries). Returns how many Kafka has not acknowledged."""
        for n, item in enumerate(played):
            for _ in range(2 if n % 50 == 7 else 1):
                self.recorder.record(
                    interaction_id=item.handle.interaction_id,
                    task_id=item.episode.task.task_id,
                    messages=item.episode.messages,
                    response=item.episode.response,
                    token_ids=item.episode.token_ids,
                    logprobs=item.episode.logprobs,
                    started_at=from_micros(item.started_us),
                    ended_at=from_micros(item.ended_us),
                    release=self.release,
                    sampling={"temperature": self.temperature},
                    tags={"turn": turn},
                )
        return self.recorder.flush(30.0)


def write_episodes(path: Path, played: list[Played]) -> None:
    """Hand the episodes' fates to the world: it knows what happened, the agent does not."""
    with path.open("wb") as file:
        for item in played:
            line = {
                "handle": str(item.handle),
                "ended_us": item.ended_us,
                "success": item.episode.success,
                "verdicts": [
                    {
                        "after_s": v.after_s,
                        "name": v.name,
                        "value": v.value,
                        "source": v.source,
                        "op": v.op,
                        "ref": v.ref,
                    }
                    for v in item.episode.verdicts
                ],
            }
            file.write(orjson.dumps(line) + b"\n")


def main() -> None:
    """Serve commands until the pipe closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--environment", required=True)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--profile", choices=sorted(PROFILES), default=CPU.name)
    args = parser.parse_args()
    torch.set_num_threads(2)
    settings = Settings.load()
    agent = Agent(
        args.workspace, args.environment, settings.home / "registry", args.temperature, PROFILES[args.profile]
    )
    clock = EventClock()
    played: list[Played] = []
    answer(event="ready")
    for command in commands():
        turn = int(command["turn"])
        if command["do"] == "play":
            played = agent.play(turn, int(command["episodes"]), int(command["seed"]), clock)
            write_episodes(Path(command["file"]), played)
            answer(event="played", turn=turn, release=agent.release, ids=[p.handle.interaction_id for p in played])
        else:
            left = agent.record(turn, played)
            answer(event="recorded", turn=turn, left=left, stats=agent.recorder.stats()._asdict())
    agent.recorder.close()


if __name__ == "__main__":
    main()
