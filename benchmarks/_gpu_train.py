"""Training steps of the GPU check: the largest batch that fits, then steps on one resident batch and steps from the reader."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from _gpu_device import forget_memory, free, peak_flops, peak_memory, total_memory, wait
from _gpu_world import Size, World, endless, make_model

FULL_SHARE = 0.8
"""Of the device's memory that the batch may fill."""
LEAST_STEPS = 3


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
    """Rows: doubled from one, until twice as many would fill more than four fifths of the device's memory (or `scale.most_rows`)."""
    rows = best = 1
    while rows <= world.scale.most_rows:
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
        if world.device.type == "cuda" and 2 * peak_memory(world.device) > FULL_SHARE * total_memory(world.device):
            break
        rows *= 2
    return best


def repeat(batch: Any) -> Iterator[Any]:
    """The same batch again and again."""
    while True:
        yield batch
