"""The tiny model: an ordinary Hugging Face folder, sampled as it should be, that learns from its own wins."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from treadle_demo import CustomerDesk, RoomDesk
from treadle_demo.model import CHAT_TEMPLATE, build_model, load, render, save, train_tokenizer
from treadle_demo.profiles import WarmStart
from treadle_demo.sampling import Episode, play, prompt_ids, sample
from treadle_demo.warmstart import demonstrations, fit, warm_start
from treadle_schemas.environment import Environment, Task
from treadle_schemas.errors import SettingError
from treadle_schemas.split import Split

_SPLIT = Split(share=0.2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def desk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "r0"
    warm_start(CustomerDesk(), folder, seed=0, split=_SPLIT)
    return folder


@pytest.fixture(scope="module")
def desk_base(desk_folder: Path) -> tuple[Any, Any]:
    return load(desk_folder)


def _tasks(environment: Environment, side: str, n: int, seed: int) -> list[Task]:
    return [t for t in environment.tasks(20 * n, seed) if _SPLIT.side(t.task_id) == side][:n]


def _mean(episodes: list[Episode]) -> float:
    return sum(episode.success for episode in episodes) / len(episodes)


def _looked_up(episodes: list[Episode]) -> float:
    return sum(len(e.response) == 2 and "error" not in e.messages[3]["content"] for e in episodes) / len(episodes)


def test_the_warm_start_writes_an_ordinary_folder(desk_folder: Path, desk_base: tuple[Any, Any]) -> None:
    names = {path.name for path in desk_folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    model, tokenizer = desk_base
    assert (type(model).__name__, tokenizer.chat_template) == ("LlamaForCausalLM", CHAT_TEMPLATE)
    assert sum(p.numel() for p in model.parameters()) < 200_000
    assert len(tokenizer("47", add_special_tokens=False)["input_ids"]) == 1


def test_both_ways_to_render_a_conversation_are_equal(desk_base: tuple[Any, Any]) -> None:
    _, tokenizer = desk_base
    prose = [{"role": "user", "content": "hi {{ 1 }} <b>\n"}, {"role": "assistant", "content": "no call"}]
    conversations = [prose, *demonstrations(CustomerDesk(), WarmStart(demonstrations=50), seed=3, split=_SPLIT)]
    for messages in conversations:
        for prompt in (True, False):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert text == render(messages, add_generation_prompt=prompt)
        slow = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert slow == prompt_ids(tokenizer, messages, None)


def test_the_template_marks_what_the_assistant_wrote(desk_base: tuple[Any, Any]) -> None:
    _, tokenizer = desk_base
    messages = demonstrations(CustomerDesk(), WarmStart(demonstrations=1), seed=3, split=_SPLIT)[0]
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    wrote = tokenizer.decode([token for token, mask in pairs if mask])
    calls = [m["tool_calls"][0]["function"] for m in messages if m["role"] == "assistant"]
    assert wrote == "".join(f'{{"name":"{c["name"]}","arguments":{c["arguments"]}}}<|end|>' for c in calls)


def test_the_desks_first_release_looks_up_but_acts_almost_at_random(desk_base: tuple[Any, Any]) -> None:
    desk = CustomerDesk()
    episodes = play(*desk_base, desk, _tasks(desk, "train", 512, 1), seed=1)
    assert _looked_up(episodes) > 0.85
    assert 0.08 < _mean(episodes) < 0.35


def test_the_rooms_first_release_looks_up_but_acts_almost_at_random(tmp_path: Path) -> None:
    rooms = RoomDesk()
    warm_start(rooms, tmp_path / "r0", seed=0, split=_SPLIT)
    episodes = play(*load(tmp_path / "r0"), rooms, _tasks(rooms, "train", 512, 1), seed=1)
    assert _looked_up(episodes) > 0.85
    assert 0.05 < _mean(episodes) < 0.35


def test_an_episode_holds_what_training_needs(desk_base: tuple[Any, Any]) -> None:
    model, tokenizer = desk_base
    desk = CustomerDesk()
    for episode in play(model, tokenizer, desk, _tasks(desk, "train", 32, 2), seed=2):
        assert [episode.messages[i]["role"] for i in episode.response] == ["assistant"] * len(episode.response)
        assert sum(m["role"] == "assistant" for m in episode.messages) == len(episode.response)
        assert list(map(len, episode.token_ids)) == list(map(len, episode.logprobs))
        for i, ids, logprobs in zip(episode.response, episode.token_ids, episode.logprobs, strict=True):
            prompt = prompt_ids(tokenizer, episode.messages[:i], None)
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(logprobs), expected, atol=1e-3)


def test_the_same_seed_plays_the_same_episodes_in_any_batch_size(desk_base: tuple[Any, Any]) -> None:
    desk = CustomerDesk()
    tasks = _tasks(desk, "heldout", 40, 3)
    first = play(*desk_base, desk, tasks, seed=7)
    assert first == play(*desk_base, desk, tasks, seed=7)
    small = play(*desk_base, desk, tasks, seed=7, batch_size=7)
    assert [e.messages for e in first] == [e.messages for e in small]
    assert [e.messages for e in first] != [e.messages for e in play(*desk_base, desk, tasks, seed=8)]


def test_a_folder_with_another_template_plays_through_the_generic_path(
    desk_base: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = desk_base
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{# another template #}" + CHAT_TEMPLATE
    save(model, other, tmp_path / "other")
    desk = CustomerDesk()
    tasks = _tasks(desk, "heldout", 24, 4)
    assert play(*load(tmp_path / "other"), desk, tasks, seed=1) == play(model, tokenizer, desk, tasks, seed=1)


def test_sampling_follows_the_models_distribution(desk_base: tuple[Any, Any]) -> None:
    model, tokenizer = desk_base
    prompt = prompt_ids(tokenizer, [{"role": "user", "content": "where is order 47"}], None)
    n = 4_000
    noise = (torch.arange(n) + 0.5)[:, None] / n  # a uniform grid: counts must then equal probabilities to within one
    drawn = torch.tensor([s.token_ids[0] for s in sample(model, tokenizer, [prompt] * n, noise, temperature=0.7)])
    with torch.inference_mode():
        expected = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    shares = torch.bincount(drawn, minlength=len(expected)) / n
    assert (shares - expected).abs().max() < 2 / n


def test_temperature_zero_takes_the_likeliest_token(desk_base: tuple[Any, Any]) -> None:
    model, tokenizer = desk_base
    prompts = [prompt_ids(tokenizer, t.messages, None) for t in _tasks(CustomerDesk(), "train", 8, 5)]
    for row, prompt in zip(sample(model, tokenizer, prompts, torch.rand(8, 32), temperature=0), prompts, strict=True):
        out = model.generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False)
        assert out[0, len(prompt) :].tolist() == row.token_ids
        assert all(-20 < logprob <= 0 and math.isfinite(logprob) for logprob in row.logprobs)


def test_one_round_of_its_own_wins_makes_the_model_better_on_tasks_it_never_saw(desk_base: tuple[Any, Any]) -> None:
    model, tokenizer = desk_base
    desk = CustomerDesk()
    heldout = _tasks(desk, "heldout", 256, 6)
    before = _mean(play(model, tokenizer, desk, heldout, seed=3))
    wins = [e.messages for e in play(model, tokenizer, desk, _tasks(desk, "train", 768, 6), seed=2) if e.success]
    candidate = copy.deepcopy(model)
    fit(candidate, tokenizer, wins, WarmStart(steps=80, learning_rate=2e-3), seed=1)
    assert _mean(play(candidate, tokenizer, desk, heldout, seed=3)) > before + 0.15


def test_demonstrations_come_from_the_train_side_only() -> None:
    desk = CustomerDesk()
    shown = demonstrations(desk, WarmStart(demonstrations=300), seed=1, split=_SPLIT)
    asked = {t.messages[1]["content"] for s in range(50) for t in _tasks(desk, "heldout", 200, s)}
    assert len(shown) == 300
    assert not asked & {messages[1]["content"] for messages in shown}


def test_the_same_seed_builds_the_same_model_and_leaves_torchs_state_alone() -> None:
    shown = demonstrations(CustomerDesk(), WarmStart(demonstrations=100), seed=1, split=_SPLIT)
    tokenizer = train_tokenizer(shown)
    assert train_tokenizer(shown).get_vocab() == tokenizer.get_vocab()
    state = torch.get_rng_state()
    one, two = build_model(tokenizer, 5), build_model(tokenizer, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_an_environment_without_demonstrations_is_refused_by_name() -> None:
    class Silent:
        def tasks(self, n: int, seed: int) -> Any: ...
        def start(self, task: Task) -> Any: ...
        def outcomes(self, attempt: Any, rng: Any) -> Any: ...

    with pytest.raises(SettingError, match="Silent has no method demonstrate"):
        demonstrations(Silent(), WarmStart(), seed=0, split=_SPLIT)
