"""Whether training on a CUDA machine keeps the device busy, and computes what the CPU computes. At most 10 minutes.

    python benchmarks/gpu_check.py [--json FILE] [--tiny]

1. machine   GPU, driver, torch; refused where more than 1 GiB of it is in use
2. corpus    20,000 rows of 1,000 tokens, through the corpus writer, and their token columns
3. numeric   the tiny model, 20 steps from these columns on GPU and CPU, in float32 and in bf16: losses and logits
4. feed      tokens a second from a corpus onto the device, by the streaming reader, by TRL's data set, by Deeplake's loader
5. train     random Llamas of 0.15, 0.6 and 1.7B: float32 weights, bf16 autocast, AdamW, no activation checkpointing, rows of 1,024
             tokens, the batch doubled until the memory is four fifths full; 20 steps to warm up and 50 on one resident batch, then the
             same from the reader. Tokens a second, MFU = 6 N tokens/s / peak, memory, the timed wait for a batch, and
             stall = 1 - seconds a step resident / seconds a step streamed, the share of time that waits for data
6. sample    256, 1,024 and 4,096 prompts x 64 tokens: the trainer's sampler, `generate`, and `generate_batch` where it runs;
             log-probabilities of the first and the last against a forward pass
7. demo      one turn of the demo's wheel, with its processes and a broker of its own

Each stage has its share of the time and ends early when that is up; once the whole time is, the rest is left out. The JSON is written
after each. --tiny runs every line that is not CUDA's own on a CPU, in minutes, and passes no judgement on speed.

Exit code 0: passed; 1: stall of 5 % or more at the largest size (the goal is under 1 %), numbers that differ, or a
demo's turn that failed; 2: no such machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _gpu_demo import demo_turn
from _gpu_feed import feed
from _gpu_numeric import numeric
from _gpu_sample import sampling
from _gpu_train import training
from _gpu_world import FULL, TINY, Scale, World, make_columns, make_corpus
from _machine import describe

STALL_LIMIT, STALL_GOAL = 0.05, 0.01
IN_USE_LIMIT_BYTES = 1 << 30
LATE = "the time of the whole check is up"
NUMERIC_LIMITS = {"float32": (2e-3, 2e-2), "bfloat16": (5e-2, 5e-1)}
"""Of losses and of logits, after twenty steps on two kinds of hardware: sums in another order, and Adam's early steps, which amplify the
last bits. Those of bf16 are worth 2^-8 of a value, those of float32 2^-24."""
TIME_LIMIT_S = 570.0
"""No stage begins after this, less what it may take."""
LOGPROB_LIMIT = 0.25
"""bf16 has 8 bits: logits near 10 are known to a few hundredths, a difference of two passes twice that."""


class Refused(Exception):
    """This machine is not one to check."""


def main() -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the numbers go, after each stage")
    parser.add_argument("--tiny", action="store_true", help="every line that is not CUDA's own, on a CPU")
    options = parser.parse_args()
    report: dict[str, Any] = {"tiny": options.tiny}
    started = time.monotonic()
    try:
        device = find_device(options.tiny)
    except Refused as err:
        print(err, file=sys.stderr)
        return 2
    report["machine"] = {**describe("torch", "transformers"), **device_facts(device)}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        deadline = started + TIME_LIMIT_S
        stages(report, TINY if options.tiny else FULL, device, Path(folder), options.json, deadline)
    report["problems"] = problems(report)
    report["seconds"] = round(time.monotonic() - started, 1)
    tell(report, "result", {"seconds": report["seconds"], "problems": report["problems"]}, options.json)
    return 1 if report["problems"] else 0


def find_device(tiny: bool) -> torch.device:
    """The device to check: the first CUDA device, or the CPU with `tiny`. Raises Refused."""
    if tiny:
        torch.set_num_threads(1)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Refused(
            "this machine shows no CUDA device; --tiny runs the same code on a CPU, at a size without meaning"
        )
    device = torch.device("cuda:0")
    free, total = torch.cuda.mem_get_info(device)
    if total - free > IN_USE_LIMIT_BYTES:
        raise Refused(
            f"{(total - free) / 2**30:.1f} GiB of the device are in use: what is measured beside somebody else says nothing"
        )
    return device


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, memory, driver and CUDA version of the device."""
    if device.type != "cuda":
        return {"device": "cpu"}
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split("\n")[0]
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory_gb": round(properties.total_memory / 2**30, 1),
        "driver": driver,
        "cuda": torch.version.cuda,
    }


def stages(
    report: dict[str, Any], scale: Scale, device: torch.device, folder: Path, out: Path | None, deadline: float
) -> None:
    """Stages 2 to 7. One that would end after `deadline` is left out."""
    corpus, seconds = make_corpus(folder / "corpus", scale)
    before = time.monotonic()
    columns, tokenizer = make_columns(corpus, scale)
    world = World(scale, columns, tokenizer, device, folder)
    facts = {
        "rows": columns.meta.rows,
        "tokens": columns.meta.tokens,
        "write_seconds": round(seconds, 1),
        "columns_seconds": round(time.monotonic() - before, 1),
    }
    tell(report, "corpus", facts, out)
    tell(report, "numeric", numeric(world), out)
    tell(report, "feed", feed(world), out)
    report["train"], report["sample"] = [], []
    for size in scale.sizes:
        tell(report, "train", training(world, size), out)
    for size in scale.sizes:
        if time.monotonic() + scale.seconds["sample"] > deadline:
            tell(report, "sample", {"size": size.name, "left_out": LATE}, out)
            continue
        for found in sampling(world, size):
            tell(report, "sample", found, out)
    late = time.monotonic() + scale.seconds["demo"] > deadline
    tell(report, "demo", {"left_out": LATE} if late else demo_turn(world), out)


def tell(report: dict[str, Any], stage: str, found: dict[str, Any], out: Path | None) -> None:
    """Keep, print and write what a stage found."""
    if isinstance(report.get(stage), list):
        report[stage].append(found)
    elif stage != "result":
        report[stage] = found
    print(f"{stage:8} {json.dumps(found)}", flush=True)
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")


def problems(report: dict[str, Any]) -> list[str]:
    """What makes the check fail."""
    found = []
    largest = report["train"][-1]
    if not report["tiny"] and largest["stall"] >= STALL_LIMIT:
        found.append(
            f"at {largest['size']} {largest['stall']:.1%} of the time waits for data: at most {STALL_LIMIT:.0%} may"
        )
    numbers = report["numeric"]
    for kind, limits in NUMERIC_LIMITS.items():
        for name, limit in zip(("worst_loss_difference", "worst_logit_difference"), limits, strict=True):
            if not numbers[kind][name] <= limit:  # NaN is a problem too
                between = " and ".join(numbers["devices"])
                found.append(f"{name} in {kind} {numbers[kind][name]:.2g} between {between}: at most {limit:g} may be")
    for one in report["sample"]:
        for told, by in ((one, "the sampler"), (one.get("generate_batch", {}), "generate_batch")):
            if not told.get("logprob_error", 0.0) <= LOGPROB_LIMIT:
                found.append(f"the log-probabilities of {by} at {one['size']} are off by {told['logprob_error']:.2g}")
    if "failed" in report["demo"]:
        found.append(f"the demo's turn failed: {report['demo']['failed']}")
    return found


if __name__ == "__main__":
    sys.exit(main())
