"""The demo's gpu profile at its tiny size: the model is an ordinary folder, no tool's name is one token, five calls fit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from treadle.cli import main
from treadle_demo import BackOffice
from treadle_demo.model import build_model, load
from treadle_demo.profiles import CPU, GPU, GPU_TINY
from treadle_demo.sampling import evaluate_long, play
from treadle_demo.warmstart import warm_start
from treadle_schemas.split import Split

OFFICE = BackOffice()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gpu-tiny") / "r0"
    few = replace(GPU_TINY.warm, demonstrations=80, steps=8, batch=8)
    warm_start(OFFICE, made, seed=0, split=Split(share=0.2), settings=few, profile=GPU_TINY)
    return made


@pytest.fixture(scope="module")
def base(folder: Path) -> tuple[Any, Any]:
    return load(folder)


def test_no_name_of_a_tool_is_one_token_and_an_order_number_is(base: tuple[Any, Any]) -> None:
    _, tokenizer = base
    for tool in OFFICE.tools:
        assert len(tokenizer.tokenize(tool["function"]["name"])) >= 5
    assert all(len(tokenizer.tokenize(str(number))) == 1 for number in (10, 47, 99))


def test_a_whole_case_fits_into_the_model(base: tuple[Any, Any]) -> None:

    model, tokenizer = base
    rng = random.Random(0)
    longest = 0
    for task in OFFICE.tasks(50, 1):
        messages = OFFICE.demonstrate(task, rng, 1.0)
        longest = max(longest, len(tokenizer.apply_chat_template(messages, return_dict=False)))
        for message in messages:
            if message["role"] == "assistant":
                text = tokenizer.apply_chat_template([message], tokenize=False)
                assert len(tokenizer.tokenize(text)) <= GPU.max_new_tokens
    assert 2 * longest < model.config.max_position_embeddings


def test_the_full_size_has_more_than_100_million_parameters(base: tuple[Any, Any]) -> None:
    _, tokenizer = base
    with torch.device("meta"):
        assert build_model(tokenizer, 0, GPU.shape).num_parameters() > 100_000_000


def test_a_model_of_the_profile_plays_and_is_evaluated(base: tuple[Any, Any], folder: Path) -> None:
    tasks = list(OFFICE.tasks(6, 2))
    episodes = play(*base, OFFICE, tasks, 1, max_new_tokens=GPU_TINY.max_new_tokens)
    assert all(1 <= len(episode.response) <= 7 for episode in episodes)
    assert max(len(ids) for episode in episodes for ids in episode.token_ids) > CPU.max_new_tokens
    scores = evaluate_long(str(folder), OFFICE, tasks, 1)
    assert [one["score"] for one in scores] == [episode.success for episode in episodes]


def test_without_a_device_the_profile_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    done = CliRunner().invoke(main, ["--home", str(tmp_path), "demo", "--profile", "gpu"])
    assert done.exit_code == 2
    assert "--profile gpu: wants a CUDA device, and this machine shows none" in done.output
    assert not list(tmp_path.rglob("*"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_wheel_turns_with_the_profile(broker: str, tmp_path: Path) -> None:
    """A turn and the drill of the broken grader, by all processes. At this size no case is settled, so nothing is promoted."""
    from rich.console import Console
    from treadle_demo.view import View
    from treadle_demo.wheel import DemoSettings, Wheel

    settings = DemoSettings(
        workspace="gpu-tiny",
        home=tmp_path,
        bootstrap_servers=broker,
        turns=1,
        episodes=GPU_TINY.episodes,
        environment=GPU_TINY.environment,
        profile=GPU_TINY,
        stage_timeout_s=400,
    )
    view = View(Console(highlight=False, soft_wrap=True, quiet=True))
    with view, Wheel(settings, view) as wheel:
        wheel.set_up()
        turn = wheel.turn(1)
        assert turn.decision in ("rejected", "not_enough_evidence"), turn.reason
        assert turn.heldout is not None
        assert turn.live_success is not None
        drill = wheel.poison(1)
        assert drill.decision in ("rejected", "not_enough_evidence"), drill.reason
        assert len(wheel.registry.releases()) == 3
        played = (tmp_path / "episodes" / "turn-1.jsonl").read_text().splitlines()
        assert len(played) == GPU_TINY.episodes
