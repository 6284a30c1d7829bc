"""The stages of the GPU check. Each returns numbers; on CPU the same lines run, but for those that are CUDA's own."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from _gpu_world import Scale, Size, make_model, prompts_of
from treadle_trainer.data.columns import Columns
from treadle_trainer.data.stream import TokenStream
from treadle_trainer.evaluate.player import sample

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 with float32 accumulation, from the vendor's sheets, by a part of the device's name."""
FULL_SHARE = 0.8
"""Of the device's memory that the batch may fill."""
NUMERIC_STEPS = 20
LEAST_STEPS = 3
PROMPTS_AT_ONCE = 1_024
"""As many as the trainer's evaluation plays at once: the keys and values of more do not fit beside 1.7B."""


class World(NamedTuple):
    """What every stage needs."""

    scale: Scale
    columns: Columns
    tokenizer: Any
    device: torch.device

    def stream(self, batch: int, device: torch.device | None = None) -> TokenStream:
        """The reader that a training job uses, every row padded to one width."""
        target = device or self.device
        return TokenStream(
            self.columns,
            self.columns.meta.identity,
            batch=batch,
            seed=1,
            pad_id=self.tokenizer.pad_token_id,
            multiple=self.scale.width,
            device=target if target.type == "cuda" else None,
        )


def feed(world: World) -> dict[str, float]:
    """The reader alone: tokens a second from the columns to the device."""
    deadline = time.monotonic() + world.scale.seconds["feed"]
    tokens, batches, started = 0, 0, time.monotonic()
    for batch in endless(world.stream(world.scale.batches[-1])):
        tokens, batches = tokens + batch.tokens, batches + 1
        if time.monotonic() > deadline:
            break
    wait(world.device)
    seconds = time.monotonic() - started
    return {"tokens_s": round(tokens / seconds), "batches": batches, "seconds": round(seconds, 3)}


def training(world: World, size: Size) -> dict[str, Any]:
    """Steps on one resident batch, then on batches of the reader; the largest batch that fits is found first."""
    model = make_model(size, world.scale, world.tokenizer, world.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=world.device.type == "cuda")
    batch = largest_batch(world, model, optimizer)
    seconds = world.scale.seconds["train"] / 3
    resident = next(iter(world.stream(batch)))
    forget_memory(world.device)
    alone = timed(world, model, optimizer, repeat(resident), seconds)
    streamed = timed(world, model, optimizer, endless(world.stream(batch)), seconds)
    parameters = model.num_parameters()
    peak = peak_flops(world.device)
    tokens_s = batch * world.scale.width / streamed["p50"]
    found = {
        "size": size.name,
        "parameters": parameters,
        "dtype": "bfloat16 (autocast)" if world.device.type == "cuda" else "float32",
        "batch_rows": batch,
        "batch_tokens": batch * world.scale.width,
        "tokens_s": round(tokens_s),
        "mfu": round(6 * parameters * tokens_s / peak, 4) if peak else None,
        "resident": alone,
        "streamed": streamed,
        "stall": round(max(0.0, 1 - alone["mean"] / streamed["mean"]), 4),
        "peak_memory_gb": round(peak_memory(world.device) / 2**30, 3),
    }
    del model, optimizer, resident
    free(world.device)
    return found


def timed(world: World, model: Any, optimizer: Any, batches: Iterator[Any], seconds: float) -> dict[str, Any]:
    """Warm-up steps, then timed ones until they are enough or the time is up (three at least). Seconds a step, and the share waited."""
    took: list[float] = []
    waited = 0.0
    loss = torch.zeros(())
    started = time.monotonic()
    for _ in range(world.scale.warmup):
        step(model, optimizer, next(batches))
        wait(world.device)
        if time.monotonic() - started > seconds / 3:
            break
    while len(took) < world.scale.steps and (len(took) < LEAST_STEPS or time.monotonic() - started < seconds):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        loss = step(model, optimizer, batch)
        wait(world.device)
        took.append(time.perf_counter() - before)
    ordered = sorted(took)
    return {
        "steps": len(took),
        "mean": statistics.fmean(took),
        "p50": statistics.median(took),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "waited_share": round(waited / sum(took), 5),
        "loss": round(float(loss), 4),
    }


def step(model: Any, optimizer: Any, batch: Any) -> torch.Tensor:
    """One step. No attention mask: padding is on the right, where causal attention never looks, and a mask costs the fast kernel."""
    ids, labels = batch.tensors["input_ids"], batch.tensors["labels"]
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        loss: torch.Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def largest_batch(world: World, model: Any, optimizer: Any) -> int:
    """The last of the batches to try that leaves a fifth of the device's memory."""
    best = world.scale.batches[0]
    for rows in world.scale.batches:
        forget_memory(world.device)
        batch = next(iter(world.stream(rows)))
        try:
            step(model, optimizer, batch)
            wait(world.device)
        except torch.OutOfMemoryError:
            optimizer.zero_grad(set_to_none=True)
            free(world.device)
            break
        best = rows
        # the next one is twice as large
        if world.device.type == "cuda" and 2 * peak_memory(world.device) > FULL_SHARE * total_memory(world.device):
            break
    return best


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
        found["logprob_error"] = logprob_error(model, prompts, drawn)
        found["generate_tokens_s"] = generated(world, model, prompts)
        if world.device.type == "cuda":
            found["generate_batch"] = batched(world, model, prompts)
        out.append(found)
    del model
    free(world.device)
    return out


@torch.inference_mode()
def logprob_error(model: Any, prompts: list[list[int]], drawn: Any) -> float:
    """The greatest difference between the log-probabilities that sampling reports and those of a forward pass, over eight prompts."""
    worst = 0.0
    for prompt, one in list(zip(prompts, drawn, strict=True))[:8]:
        ids = torch.tensor([prompt + one.token_ids], device=model.device)
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        expected = logits.gather(1, ids[0, len(prompt) :, None])[:, 0].cpu()
        worst = max(worst, float((expected - torch.tensor(one.logprobs)).abs().max()))
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
    """Tokens a second of `generate_batch`. It needs kernels that not every machine has: what fails is said, and fails nothing else."""
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    settings = GenerationConfig(
        max_new_tokens=world.scale.new_tokens,
        do_sample=True,
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
    return {"tokens_s": round(sum(len(one.generated_tokens) for one in out.values()) / (time.monotonic() - started))}


def numeric(world: World) -> dict[str, Any]:
    """The tiny model trained in float32 from the same columns, here and on the CPU: loss by loss, and the logits at the end."""
    from _gpu_world import TINY

    losses, logits = [], []
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for device in (torch.device("cpu"), world.device):
        model = make_model(TINY.sizes[-1], TINY._replace(width=world.scale.width), world.tokenizer, torch.device("cpu"))
        model = model.to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        batches = endless(world.stream(2, device))
        said = []
        for _ in range(NUMERIC_STEPS):
            batch = next(batches)
            loss = model(input_ids=batch.tensors["input_ids"], labels=batch.tensors["labels"], use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            said.append(float(loss.detach()))
        losses.append(said)
        with torch.inference_mode():
            probe = torch.tensor(prompts_of(world.tokenizer, 1, 20), device=device)
            logits.append(model(input_ids=probe).logits.float().cpu())
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    return {
        "devices": ["cpu", world.device.type],
        "steps": NUMERIC_STEPS,
        "first_loss": round(losses[0][0], 5),
        "last_loss": round(losses[0][-1], 5),
        "worst_loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        "worst_logit_difference": float((logits[0] - logits[1]).abs().max()),
    }


def endless(stream: TokenStream) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    while True:
        yield from stream


def repeat(batch: Any) -> Iterator[Any]:
    """The same batch again and again."""
    while True:
        yield batch


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give memory back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forget_memory(device: torch.device) -> None:
    """Count the peak of memory from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def total_memory(device: torch.device) -> int:
    """Bytes of the device."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def peak_flops(device: torch.device) -> float | None:
    """Of the device in bf16, where its name is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
