"""Whether a folder is a model that can be loaded without executing anything of it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from treadle_trainer.errors import FolderRefused

__all__ = ["check_folder"]

BY_PRODUCTS: Final = (
    "training_args.bin",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "rng_state*.pth",
    "scaler.pt",
)
"""Pickles that trainers leave beside the model; no part of it."""
BY_PRODUCT_FOLDERS: Final = ("checkpoint-*", "global_step*", "runs", "wandb")
PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
INDEX: Final = "model.safetensors.index.json"
HEADER_LIMIT_BYTES: Final = 100 << 20
"""The limit of the safetensors format."""


def check_folder(folder: Path) -> dict[str, Any]:
    """Take the by-products of training out of `folder`, and see that what is left is a model, its tokenizer and nothing to execute.

    Returns `removed` (names), `weights` (names) and `tensors` (their number). Raises FolderRefused naming everything that is wrong.
    """
    if not folder.is_dir():
        raise FolderRefused(folder, ["the folder is not there"])
    removed = sorted(_swept(folder))
    problems: list[str] = []
    _check_config(folder, problems)
    weights, tensors = _check_weights(folder, problems)
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        problems.append("the tokenizer is missing (tokenizer.json, tokenizer_config.json)")
    problems += [
        f"{path.relative_to(folder)} is a pickle, which runs code when it is loaded: save as safetensors"
        for path in sorted(folder.rglob("*"))
        if path.suffix in PICKLES
    ]
    problems += [f"{path.relative_to(folder)} is a link" for path in sorted(folder.rglob("*")) if path.is_symlink()]
    if not problems:
        problems += _not_loaded(folder)
    if problems:
        raise FolderRefused(folder, problems)
    return {"removed": removed, "weights": weights, "tensors": tensors}


def _swept(folder: Path) -> Iterator[str]:
    for pattern in BY_PRODUCTS:
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink()
                yield path.name
    for pattern in BY_PRODUCT_FOLDERS:
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
                yield f"{path.name}/"


def _check_config(folder: Path, problems: list[str]) -> None:
    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        problems.append(
            "config.json is missing: this is an adapter; merge it into its base and save the whole model"
            if adapter
            else "config.json is missing"
        )
        return
    config = _json(path, problems)
    if not isinstance(config, dict):
        return
    if not isinstance(config.get("model_type"), str):
        problems.append("config.json names no model_type")
    if config.get("auto_map"):
        problems.append("config.json has an auto_map, so the model wants code of its folder to be executed")


def _check_weights(folder: Path, problems: list[str]) -> tuple[list[str], int]:
    index = folder / INDEX
    names = ["model.safetensors"]
    if index.is_file():
        found = _json(index, problems)
        placed = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(placed, dict) or not placed:
            problems.append(f"{INDEX} has no weight_map")
            return [], 0
        names = sorted({str(name) for name in placed.values()})
    tensors = 0
    for name in names:
        path = folder / name
        if "/" in name or not path.is_file():
            problems.append(
                f"{name} is missing" + (f", though {INDEX} names it" if index.is_file() else " (the weights)")
            )
            continue
        count = _tensors(path)
        if isinstance(count, str):
            problems.append(f"{name} {count}")
        else:
            tensors += count
    return names, tensors


def _tensors(path: Path) -> int | str:
    """How many tensors a safetensors file holds, or what is wrong with it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(size - 8, HEADER_LIMIT_BYTES):
            return "is no safetensors file"
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError):
            return "is no safetensors file"
    if not ends:
        return "holds no tensor"
    if size != 8 + length + max(ends):
        return f"has {size} bytes instead of {8 + length + max(ends)}: it was not written whole"
    return len(ends)


def _json(path: Path, problems: list[str]) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        problems.append(f"{path.name} is no JSON ({err})")
        return None


def _not_loaded(folder: Path) -> Iterator[str]:
    """What transformers says against configuration and tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as err:  # whatever it is that the folder makes the library raise
        yield f"its configuration is not understood ({type(err).__name__}: {err})"
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as err:
        yield f"its tokenizer does not load ({type(err).__name__}: {err})"
        return
    if not tokenizer.is_fast:
        yield "its tokenizer has no fast form (tokenizer.json)"
    if not tokenizer.chat_template:
        yield "its tokenizer has no chat template: save the base's tokenizer with the model"
