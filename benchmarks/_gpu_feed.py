"""What brings tokens from a corpus onto the device, alone: the trainer's reader, TRL's own data set, Deeplake's."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import deeplake
import numpy as np
import torch
from _gpu_device import wait
from _gpu_world import World, conversation, endless, make_tiny
from torch.utils.data import DataLoader

IGNORED = -100


def feed(world: World) -> dict[str, Any]:
    """Each of the three for its share of the stage's time: tokens a second, after what it takes to have its data."""
    return {"reader": reader(world), "trl": trl(world), "deeplake": deeplake_loader(world)}


def reader(world: World) -> dict[str, Any]:
    """Columns through memory maps, shuffled in blocks, padded in a thread, pinned, copied beside the computation."""
    return counted(world, ((batch.tensors, batch.tokens) for batch in endless(world.stream(world.scale.feed_rows))))


def trl(world: World) -> dict[str, Any]:
    """Conversations tokenised by SFTTrainer's own map when it is made, then its own loader."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    scale, cuda = world.scale, world.device.type == "cuda"
    rng = random.Random(3)
    texts = [{"messages": conversation(rng, scale.words)} for _ in range(scale.trl_rows)]
    started = time.monotonic()
    trainer = SFTTrainer(
        model=make_tiny(world),
        args=SFTConfig(
            output_dir=str(world.folder / "trl"),
            max_length=scale.width,
            assistant_only_loss=True,
            per_device_train_batch_size=scale.feed_rows,
            use_cpu=not cuda,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=cuda,
            report_to=[],
            disable_tqdm=True,
        ),
        processing_class=world.tokenizer,
        train_dataset=Dataset.from_list(texts),
    )
    seconds = time.monotonic() - started
    tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
    # the loader of accelerate copies to the device
    found = counted(world, ((batch, batch["input_ids"].numel()) for batch in again(trainer.get_train_dataloader())))
    return {**found, "tokenised_tokens_s": round(tokens / seconds)}


def deeplake_loader(world: World) -> dict[str, Any]:
    """A Deeplake data set of the same tokens, read by `ds.pytorch()` and torch's loader, shuffled."""
    place, columns = world.folder / "deeplake", world.columns
    rows = range(min(world.scale.deeplake_rows, len(columns)))
    started = time.monotonic()
    ids = [np.asarray(columns.tokens(n), np.int32) for n in rows]
    dataset = deeplake.create(place.as_uri())
    dataset.add_column("ids", deeplake.types.Array("int32", 1))
    dataset.add_column("trained", deeplake.types.Array("int32", 1))
    dataset.append({"ids": ids, "trained": [np.asarray(columns.trained(n), np.int32).reshape(-1) for n in rows]})
    dataset.commit()
    seconds = time.monotonic() - started
    loader = DataLoader(
        dataset.pytorch(),
        batch_size=world.scale.feed_rows,
        shuffle=True,
        collate_fn=lambda rows: padded(rows, world.tokenizer.pad_token_id),
        pin_memory=world.device.type == "cuda",
    )
    found = counted(world, ((batch, batch["input_ids"].numel()) for batch in again(loader)))
    return {**found, "written_tokens_s": round(sum(map(len, ids)) / seconds)}


def padded(rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Rows of tokens and spans to train on as a batch."""
    width = max(len(row["ids"]) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    for n, row in enumerate(rows):
        ids[n, : len(row["ids"])] = torch.from_numpy(np.asarray(row["ids"], np.int64))
        for start, stop in np.asarray(row["trained"]).reshape(-1, 2).tolist():
            labels[n, start:stop] = ids[n, start:stop]
    return {"input_ids": ids, "labels": labels}


def counted(world: World, batches: Iterator[tuple[Any, int]]) -> dict[str, Any]:
    """Batches onto the device, until the time is up: tokens a second."""
    # what the first batch costs, such as starting a thread, is not the rate
    next(batches)
    wait(world.device)
    started = time.monotonic()
    deadline = started + world.scale.seconds["feed"]
    tokens = given = 0
    for batch, inside in batches:
        for tensor in batch.values():
            if isinstance(tensor, torch.Tensor):
                tensor.to(world.device, non_blocking=True)
        tokens, given = tokens + inside, given + 1
        if time.monotonic() > deadline:
            break
    wait(world.device)
    seconds = time.monotonic() - started
    return {"tokens_s": round(tokens / seconds), "batches": given, "seconds": round(seconds, 3)}


def again(loader: Any) -> Iterator[Any]:
    """Batches of a loader, epoch after epoch."""
    while True:
        yield from loader
