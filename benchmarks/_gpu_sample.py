"""Sampling of the GPU check: tokens a second, and whether the log-probabilities told are those of a forward pass."""

from __future__ import annotations

import time
from typing import Any

import torch
from _gpu_device import free, wait
from _gpu_world import Size, World, make_model, prompts_of
from treadle_trainer.evaluate.player import sample

PROMPTS_AT_ONCE = 1_024
"""As many as the trainer's evaluation plays at once: the keys and values of more do not fit beside 1.7B."""
COMPARED = 8
"""Prompts whose log-probabilities are compared."""
Told = list[tuple[list[int], list[int], list[float]]]
"""(prompt, tokens sampled, their log-probabilities)."""


def sampling(world: World, size: Size) -> list[dict[str, Any]]:
    """Tokens a second of the trainer's own sampler, of `generate`, and of `generate_batch` (continuous batching, CUDA only)."""
    dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32
    model = make_model(size, world.scale, world.tokenizer, world.device).to(dtype).eval()
    out: list[dict[str, Any]] = []
    deadline = time.monotonic() + world.scale.seconds["sample"]
    for count in world.scale.prompts:
        if time.monotonic() > deadline:
            out.append({"size": size.name, "prompts": count, "left_out": "the stage's time is up"})
            continue
        prompts = prompts_of(world.tokenizer, count, 40)
        found: dict[str, Any] = {"size": size.name, "prompts": count}
        noise = torch.rand(count, world.scale.new_tokens, generator=torch.Generator().manual_seed(0))
        started = time.monotonic()
        drawn = []
        for first in range(0, count, PROMPTS_AT_ONCE):
            part = slice(first, first + PROMPTS_AT_ONCE)
            drawn += sample(model, world.tokenizer, prompts[part], noise[part], 1.0)
        wait(world.device)
        found["sampler_tokens_s"] = round(sum(len(one.token_ids) for one in drawn) / (time.monotonic() - started))
        told = zip(prompts, (one.token_ids for one in drawn), (one.logprobs for one in drawn), strict=True)
        found["logprob_error"] = logprob_error(model, list(told))
        found["generate_tokens_s"] = generated(world, model, prompts)
        if world.device.type == "cuda":
            found["generate_batch"] = batched(world, model, prompts)
        out.append(found)
    del model
    free(world.device)
    return out


@torch.inference_mode()
def logprob_error(model: Any, told: Told) -> float:
    """The greatest difference between the log-probabilities that sampling told and those of a forward pass, over a few prompts."""
    worst = 0.0
    for prompt, tokens, logprobs in told[:COMPARED]:
        ids = torch.tensor([prompt + tokens], device=model.device)
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        expected = logits.gather(1, ids[0, len(prompt) :, None])[:, 0].cpu()
        worst = max(worst, float((expected - torch.tensor(logprobs)).abs().max()))
    return round(worst, 6)


@torch.inference_mode()
def generated(world: World, model: Any, prompts: list[list[int]]) -> int:
    """Tokens a second of `generate` on left-padded prompts."""
    pad, tokens, started = world.tokenizer.pad_token_id, 0, time.monotonic()
    length = {"max_new_tokens": world.scale.new_tokens, "min_new_tokens": world.scale.new_tokens}
    for first in range(0, len(prompts), PROMPTS_AT_ONCE):
        chunk = prompts[first : first + PROMPTS_AT_ONCE]
        width = max(map(len, chunk))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in chunk], device=world.device)
        out = model.generate(ids, attention_mask=(ids != pad).long(), do_sample=True, **length)
        tokens += (out.shape[1] - width) * len(chunk)
    wait(world.device)
    return round(tokens / (time.monotonic() - started))


def batched(world: World, model: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """Tokens a second of `generate_batch`, and its log-probabilities. It needs kernels that not every machine has: what fails is said."""
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    settings = GenerationConfig(
        max_new_tokens=world.scale.new_tokens,
        do_sample=True,
        # the distribution as it is, or its log-probabilities would be of another one
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=-1,
        pad_token_id=world.tokenizer.pad_token_id,
    )
    started = time.monotonic()
    try:
        out = model.generate_batch(
            prompts,
            generation_config=settings,
            continuous_batching_config=ContinuousBatchingConfig(return_logprobs=True),
        )
    except Exception as err:
        return {"failed": f"{type(err).__name__}: {err}"[:300]}
    seconds = time.monotonic() - started
    done = [one for one in out.values() if one.error is None and one.generated_tokens]
    if not done:
        why = next((one.error for one in out.values()), "no request was finished")
        return {"failed": f"{why}"[:300]}
    told = [(list(one.prompt_ids), list(one.generated_tokens), list(one.logprobs)) for one in done]
    return {
        "tokens_s": round(sum(len(one.generated_tokens) for one in done) / seconds),
        "unfinished": len(prompts) - len(done),
        "logprob_error": logprob_error(model, told),
    }
