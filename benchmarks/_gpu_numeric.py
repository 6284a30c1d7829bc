"""The tiny model trained here and on the CPU, in float32 and in bf16: the same losses, the same logits?"""

from __future__ import annotations

from typing import Any

import torch
from _gpu_world import TINY, World, endless, make_model, prompts_of

NUMERIC_STEPS = 20


def numeric(world: World) -> dict[str, Any]:
    """Losses step by step and logits at the end, from the same columns: how far the device is from the CPU in each type."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {"devices": ["cpu", world.device.type], "steps": NUMERIC_STEPS}
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        (expected, at_end), (losses, logits) = (
            trained(world, device, dtype) for device in (torch.device("cpu"), world.device)
        )
        found[name] = {
            "first_loss": round(expected[0], 5),
            "last_loss": round(expected[-1], 5),
            "worst_loss_difference": max(abs(a - b) for a, b in zip(expected, losses, strict=True)),
            "worst_logit_difference": float((at_end - logits).abs().max()),
        }
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    return found


def trained(world: World, device: torch.device, dtype: torch.dtype | None) -> tuple[list[float], torch.Tensor]:
    """The losses of each step, and the logits of one prompt at the end. `dtype`: of the autocast, float32 without."""
    model = make_model(TINY.sizes[-1], TINY._replace(width=world.scale.width), world.tokenizer, torch.device("cpu"))
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = endless(world.stream(2, device))
    losses = []
    for _ in range(NUMERIC_STEPS):
        batch = next(batches)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = model(input_ids=batch.tensors["input_ids"], labels=batch.tensors["labels"], use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        probe = torch.tensor(prompts_of(world.tokenizer, 1, 20), device=device)
        return losses, model(input_ids=probe).logits.float().cpu()
