"""Real trajectories through the whole wheel: do rewards of logged work teach a model anything that held-out tasks show?

    python benchmarks/tau_wheel.py --data FOLDER [--quick] --json FILE

FOLDER holds interactions.jsonl and outcomes.jsonl of tau-bench's airline domain (200 trajectories, 4 at each of 50 tasks). They are
imported into a real Kafka, joined, and become a corpus; 30 % of the tasks are held out. A small Llama with random weights learns all train
rows: the base. From it go on, for as many steps and on as many trajectories,

    rewarded    those that earned a reward
    shuffled    the same, after rewards were permuted over all interactions, in a workspace of its own
    all         every train row: what more training alone does

and each is measured against the base on the same held-out rows: preference accuracy, log-likelihood of what succeeded, generation. With 200
trajectories a null result is the likely one; it is printed as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _machine import describe
from transformers import LlamaConfig, LlamaForCausalLM
from treadle_corpus import Corpus
from treadle_demo.model import save, train_tokenizer
from treadle_streams.broker import LocalBroker

HELD_OUT = 0.3
MAX_LENGTH = 6144
ARMS = ("rewarded", "shuffled", "all")


def main() -> None:
    """Run it and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--quick", action="store_true", help="few steps: shows that it runs, nothing else")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each arm (default 3)")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    machine = describe("torch", "transformers", "trl")
    steps = {"base": 4, "arm": 2} if options.quick else {"base": 160, "arm": 40}
    seeds = range(1 if options.quick else options.seeds)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        broker = LocalBroker(Path(scratch) / "broker", die_with_parent=True, heap="512m")
        broker.start()
        try:
            results = Wheel(broker.bootstrap, Path(scratch), options.data, steps).run(seeds)
        finally:
            broker.stop()
    results["seconds"] = round(time.monotonic() - began, 1)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine, "steps": steps, "results": results}, indent=1) + "\n")


class Wheel:
    """Two workspaces on one Kafka, driven by the command that users have."""

    def __init__(self, servers: str, folder: Path, data: Path, steps: dict[str, int]) -> None:
        self._folder = folder
        self._data = data
        self._steps = steps
        self._home = folder / "home"
        self._home.mkdir()
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
        self._environment |= {"TREADLE_HOME": str(self._home), "TREADLE_BOOTSTRAP_SERVERS": servers}

    def run(self, seeds: range) -> dict[str, Any]:
        """Corpora, base, arms, scorecards."""
        shuffled = self._folder / "shuffled.jsonl"
        shuffled.write_text("".join(_shuffled((self._data / "outcomes.jsonl").read_text().splitlines(keepends=True))))
        corpora = {"rewarded": self._corpus("airline", self._data / "outcomes.jsonl")}
        corpora["all"] = corpora["rewarded"]
        corpora["shuffled"] = self._corpus("airline-shuffled", shuffled)
        random_weights = self._folder / "random"
        parameters = _random_model(Corpus.open(corpora["rewarded"]), random_weights)
        base = self._train(corpora["rewarded"], random_weights, "base", 0, rows="all", steps=self._steps["base"])
        self._treadle("release", "register", "airline", str(base), "--promote")
        cards = {"random": [self._card(self._register(random_weights), corpora["rewarded"])]}
        for arm in ARMS:
            cards[arm] = []
            for seed in seeds:
                rows = "all" if arm == "all" else "rewarded"
                model = self._train(corpora[arm], base, f"{arm}-{seed}", seed, rows=rows, steps=self._steps["arm"])
                cards[arm].append(self._card(self._register(model), corpora["rewarded"]))
                print(arm, seed, _line(cards[arm][-1]), flush=True)
        return {"parameters": parameters, "held_out": HELD_OUT, "against": "base", "arms": cards}

    def _corpus(self, workspace: str, outcomes: Path) -> str:
        self._treadle("workspace", "create", workspace, "--partitions", "2", "--held-out", str(HELD_OUT))
        interactions = str(self._data / "interactions.jsonl")
        self._treadle("import", workspace, "--interactions", interactions, "--outcomes", str(outcomes))
        self._treadle("worker", "--workspace", workspace, "--once-caught-up")
        target = str(self._home / "corpora" / workspace)
        command = [sys.executable, "-m", "treadle", "worker", "--workspace", workspace]
        worker = subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            print(self._treadle("snapshot", workspace, "--to", target).strip(), flush=True)
        finally:
            worker.terminate()
            worker.wait(60)
        return target

    def _train(self, corpus: str, base: Path, name: str, seed: int, *, rows: str, steps: int) -> Path:
        out = self._folder / "models" / name
        given = ["--from", str(base), "--out", str(out), "--rows", rows, "--steps", str(steps), "--seed", str(seed)]
        lr = "3e-3" if name == "base" else "5e-4"
        given += ["--batch", "2", "--lr", lr, "--max-length", str(MAX_LENGTH), "--timeout", "2h"]
        print(self._treadle("train", corpus, "-w", "airline", *given).strip(), flush=True)
        return out

    def _register(self, folder: Path) -> str:
        return str(json.loads(self._treadle("release", "register", "airline", str(folder), "--json"))["release"])

    def _card(self, release: str, corpus: str) -> dict[str, Any]:
        given = ["--corpus", corpus, "--max-length", str(MAX_LENGTH), "--generate", "24", "--max-new-tokens", "64"]
        card = json.loads(self._treadle("eval", release, *given, "--json"))
        whole = next(part for part in card["slices"] if part["name"] == "all")
        return {metric.pop("name"): metric for metric in whole["metrics"]}

    def _treadle(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "treadle", *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"treadle {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}")
        return done.stdout


def _shuffled(lines: list[str]) -> list[str]:
    """The same outcomes, their rewards permuted over the interactions that have one."""
    said = [json.loads(line) for line in lines]
    rewarded = [outcome for outcome in said if outcome["name"] == "reward"]
    values = [outcome["value"] for outcome in rewarded]
    random.Random(5).shuffle(values)
    for outcome, value in zip(rewarded, values, strict=True):
        outcome["value"] = value
    return [json.dumps(outcome) + "\n" for outcome in said]


def _random_model(corpus: Corpus, folder: Path) -> int:
    """A Llama of random weights with a tokenizer of the train side; how many parameters it has."""
    tokenizer = train_tokenizer([_plain(row.interaction["messages"]) for row in corpus.rows("train")])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    save(model, tokenizer, folder)
    return int(model.num_parameters())


def _plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**message, "content": message.get("content") or ""} for message in messages]


def _line(card: dict[str, Any]) -> str:
    named = ("log_likelihood", "preference", "tool_name")
    return "  ".join(
        f"{name} {card[name]['champion']:.3f} -> {card[name]['candidate']:.3f} [{card[name]['low']:+.3f}, {card[name]['high']:+.3f}]"
        for name in named
        if name in card
    )


if __name__ == "__main__":
    main()
