"""A trainer of somebody else's, as small as it can be: a command that reads rows in Axolotl's or TRL's form and leaves a model folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def train(rows: Path, base: Path, out: Path, steps: int, lr: float, seed: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        line = lines[step % len(lines)]
        messages = line.get("messages") or [*line["prompt"], *line["completion"]]
        ids = tokenizer.apply_chat_template(messages, return_dict=False, return_tensors="pt")
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "told.json").write_text(json.dumps({"rows": len(lines), "first": lines[0]}))
    # what Hugging Face's trainer leaves as well
    torch.save({"lr": lr}, out / "training_args.bin")
    (out / f"checkpoint-{steps}").mkdir()


def leave(out: Path, flags: list[str]) -> None:
    """Spoil a model folder as other trainers might."""
    match flags:
        case ["--without", name]:
            (out / name).unlink()
        case ["--pickle"]:
            (out / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        case ["--torn"]:
            weights = out / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-5])
        case ["--adapter"]:
            (out / "config.json").rename(out / "adapter_config.json")
        case _:
            config = json.loads((out / "config.json").read_text())
            (out / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "code.Model"}}))


if __name__ == "__main__":
    given = sys.argv[1:]
    named = dict(zip(given[3::2], given[4::2], strict=True))
    train(
        *(Path(text) for text in given[:3]),
        steps=int(named["--steps"]),
        lr=float(named["--lr"]),
        seed=int(named["--seed"]),
    )
