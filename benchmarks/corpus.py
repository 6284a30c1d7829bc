"""What reading a corpus for training costs, and writing, opening and correcting it, beside other stores of training data.

    python benchmarks/corpus.py [--quick] [--only NAME,...] --json FILE

treadle's corpus is made as it always is: graded rows with whole conversations (some 3.3 KB), a version, token columns by a tokenizer and a
chat template. The other stores get the same tokens, already made, with the spans to train on, an id and a reward each. Then, in turn,
round after round:

- mtok_per_cpu_s: epochs of shuffled padded batches of 16 with labels and attention mask; millions of tokens without padding for each
  second of CPU time of the process, all its threads included
- append_ms: making rows (1,000; quick 200) durable in addition; treadle: as a new version of whole conversations
- open_ms: opening, of a version by chance where there are versions (treadle has 60 and more of them)
- update_ms, update_bytes: new rewards for 1 % of the rows, as a new version, where there are versions

append and update have their CPU time as well (`append_cpu_ms`, `update_cpu_ms`): on a busy machine it says more.

`snapshot` is treadle alone: CPU time a row of the snapshotter's path (decode and check the graded record, fold, decide, hash, commit), and
of tokenising it on first use, with whatever part of it is the tokenizer's own, and again for the newest version, of which all but the
appended rows were there.

Stores that are not installed are left out; `missing` says how to install them. Exit code 1 where one failed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _corpus_batches import BATCH, Rows
from _corpus_stores import STORES, Missing, Store, fresh
from _machine import describe
from treadle_corpus import Corpus, CorpusWriter, Policy, read_record
from treadle_corpus.testing import SelectAll, graded

VERSIONS = 60
LEAST_CPU_S = 1.0
"""Epochs are read until they have cost so much."""
LENGTHS = (5.0, 0.6)
"""Words of the longest message: log-normal, so that lengths are as unequal as conversations'."""
WORDS = ["".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz", k=3 + n % 8)) for n in range(4000)]


def conversation(number: int) -> list[dict[str, Any]]:
    """Some 800 tokens: system, question, call, its result, answer."""
    chance = random.Random(number)
    size = int(chance.lognormvariate(*LENGTHS)) + 20
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": json.dumps({"n": number})}}
    return [
        {"role": "system", "content": _text(chance, 60)},
        {"role": "user", "content": _text(chance, 40)},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": _text(chance, size)},
        {"role": "assistant", "content": _text(chance, size // 2)},
    ]


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def record(number: int, revision: int = 1, reward: float = 1.0) -> bytes:
    """A graded row as `.graded` carries it."""
    name = f"{number:08d}"
    made = graded(
        name,
        revision=revision,
        reward=reward,
        task_id=f"t{number // 8}",
        messages=conversation(number),
        response=[2, 4],
    )
    return made.body


class Treadle(Store):
    """A corpus, its token columns, and their reader."""

    name, package = "treadle", "treadle"

    def __init__(self, folder: Path, rows: int) -> None:
        super().__init__(folder)
        self.rows = rows
        self.path = folder / "corpus"
        self._offset = 0
        self._revisions = [1] * rows
        self._tokenizer: Any = None
        self._columns: Any = None
        self.snapshot: dict[str, Any] = {}

    def prepare(self) -> None:
        """Write the corpus, and tokenise it."""
        self._writer = CorpusWriter.open(self.path, workspace="bench", policy=Policy())
        took = 0.0
        for start in range(0, self.rows, 2000):
            bodies = [record(n) for n in range(start, min(start + 2000, self.rows))]
            cpu = _cpu_s()
            self._apply(bodies)
            took += _cpu_s() - cpu
        cpu = _cpu_s()
        self._writer.finish(SelectAll())
        took += _cpu_s() - cpu
        self._tokenizer = tokenizer()
        from treadle_trainer.data.building import build

        cpu = _cpu_s()
        self._columns = build(Corpus.open(self.path), self._tokenizer, "sft", max_length=8192)
        tokenised = _cpu_s() - cpu
        texts = [json.dumps(conversation(n)) for n in range(min(1000, self.rows))]
        cpu = _cpu_s()
        for text in texts:
            self._tokenizer(text, add_special_tokens=False)
        alone = (_cpu_s() - cpu) / len(texts)
        self.snapshot = {
            "rows": self.rows,
            "record_bytes": round(median(len(record(n)) for n in range(100))),
            "tokens_a_row": round(self._columns.meta.tokens / self.rows),
            "snapshot_us": round(took / self.rows * 1e6, 1),
            "columns_us": round(tokenised / self.rows * 1e6, 1),
            "tokenizer_alone_us": round(alone * 1e6, 1),
        }

    def tokens(self) -> tuple[Rows, Any]:
        """The same rows, for the others."""
        found = self._columns
        rows = Rows(np.array(found.ids), np.array(found.bounds), np.array(found.spans), np.array(found.span_bounds))
        return rows, np.ones(len(rows))

    def many_versions(self) -> None:
        """So many that one can be chosen."""
        chance = random.Random(3)
        while len(Corpus.open(self.path).versions()) < VERSIONS:
            self.update(chance.sample(range(self.rows), 5), [chance.random() for _ in range(5)])

    def batches(self, seed: int) -> Iterator[tuple[Any, int]]:
        from treadle_trainer.data.stream import TokenStream

        stream = TokenStream(self._columns, self._columns.meta.identity, batch=BATCH, seed=seed)
        return ((batch.tensors, batch.tokens) for batch in stream)

    def append_bodies(self, bodies: list[bytes]) -> None:
        """A new version with new rows."""
        self._apply(bodies)
        assert self._writer.finish(SelectAll()) is not None

    def open(self, chance: Any) -> None:
        with Corpus.open(f"{self.path}@v{chance.randint(1, VERSIONS)}") as corpus:
            assert corpus.manifest.rows

    def update(self, places: Any, rewards: Any) -> None:
        self.correct(self.corrections(places, rewards))

    def corrections(self, places: Any, rewards: Any) -> list[bytes]:
        """What the join writes when rewards change."""
        bodies = []
        for place, reward in zip(places, rewards, strict=True):
            self._revisions[place] += 1
            bodies.append(record(int(place), self._revisions[place], float(reward)))
        return bodies

    def correct(self, bodies: list[bytes]) -> None:
        """A new version with them."""
        self._apply(bodies)
        assert self._writer.finish(SelectAll()) is not None

    def tokenised_again(self) -> None:
        """The columns of the newest version, which take over what did not change."""
        from treadle_trainer.data.building import build

        cpu = _cpu_s()
        made = build(Corpus.open(self.path), self._tokenizer, "sft", max_length=8192)
        self.snapshot["columns_again_us"] = round((_cpu_s() - cpu) / made.meta.rows * 1e6, 1)
        self.snapshot["columns_reused"] = made.meta.reused / max(1, len(made.conversations))

    def close(self) -> None:
        """Let go of the corpus."""
        self._writer.close()

    def _apply(self, bodies: list[bytes]) -> None:
        self._offset += len(bodies)
        self._writer.apply([read_record(body) for body in bodies], {0: self._offset}, self._offset)


def tokenizer() -> Any:
    """A byte-level BPE trained on the spot, with a chat template that says what the assistant writes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator((m["content"] or "" for n in range(300) for m in conversation(n)), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|im_end|>")
    turn = (
        "{% if m.get('content') %}{{ m['content'] }}{% endif %}"
        "{% for c in m.get('tool_calls') or [] %}{{ c | tojson }}{% endfor %}<|im_end|>"
    )
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
        + turn
        + "{% endgeneration %}{% else %}"
        + turn
        + "{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, two rounds")
    parser.add_argument("--only", help="stores, by name and comma; treadle is always there")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # a reader of LitData keeps every chunk that it saw open
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    rows, more, rounds = (3_000, 200, 2) if options.quick else (20_000, 1_000, 5)
    wanted = options.only.split(",") if options.only else list(STORES)
    machine = describe("torch", "numpy", "tokenizers", "transformers")
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="corpus-") as home:
        treadle = Treadle(fresh(Path(home) / "treadle"), rows)
        versions["treadle"] = treadle.version()
        treadle.prepare()
        print(f"treadle          {json.dumps(treadle.snapshot)}", flush=True)
        treadle.many_versions()
        data, rewards = treadle.tokens()
        stores: dict[str, Store] = {"treadle": treadle}
        for name in wanted:
            if name == "treadle":
                continue
            store = STORES[name](fresh(Path(home) / name))
            try:
                versions[name] = store.version()
                store.write(data, rewards)
                stores[name] = store
            except Missing as err:
                missing[name] = str(err)
                print(f"{name}: missing: {err}", file=sys.stderr)
        samples: dict[str, dict[str, list[float]]] = {name: {} for name in stores}
        for number in range(rounds + 1):  # the first one warms up
            for name, store in stores.items():
                found: dict[str, float] = {}
                for what, act in _acts(store, data, rewards, more, number):
                    try:
                        found |= act()
                    except NotImplementedError:
                        continue
                    except Exception as err:  # a peer's error must not end the others
                        failures.append(f"{name} {what}: {type(err).__name__}: {err}")
                        print(failures[-1], file=sys.stderr, flush=True)
                if number:
                    for what, value in found.items():
                        samples[name].setdefault(what, []).append(value)
                print(f"round {number} {name:10} {json.dumps(found)}", flush=True)
        treadle.tokenised_again()
        treadle.close()
    results = {
        name: {**{what: _round(median(values)) for what, values in of.items()}, "raw": of, "version": versions[name]}
        for name, of in samples.items()
    }
    text = {
        "machine": machine,
        "rows": rows,
        "tokens": int(data.bounds[-1]),
        "appended": more,
        "rounds": rounds,
        "snapshot": treadle.snapshot,
        "results": results,
        "missing": missing,
        "failures": failures,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(text, indent=1) + "\n")
    sys.exit(1 if failures else 0)


def _acts(
    store: Store, data: Rows, rewards: Any, more: int, number: int
) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """The measurements of one store in one round."""
    chance = random.Random(number)
    count = len(rewards)
    yield "batches", lambda: {"mtok_per_cpu_s": _epochs(store, number)}
    yield "open", lambda: {"open_ms": median(_ms(lambda: store.open(chance)) for _ in range(store.opened))}
    places = sorted(chance.sample(range(count), max(1, count // 100)))
    fresh_rewards = [chance.random() for _ in places]

    def update() -> dict[str, float]:
        before = store.size()
        if isinstance(store, Treadle):
            bodies = store.corrections(places, fresh_rewards)
            took = _timed("update", lambda: store.correct(bodies))
        else:
            took = _timed("update", lambda: store.update(np.array(places), np.array(fresh_rewards)))
        return {**took, "update_bytes": store.size() - before}

    yield "update", update

    def append() -> dict[str, float]:
        if isinstance(store, Treadle):
            first = 1_000_000 + number * more
            bodies = [record(n) for n in range(first, first + more)]
            return _timed("append", lambda: store.append_bodies(bodies))
        some = Rows(
            data.ids[: int(data.bounds[more])],
            data.bounds[: more + 1],
            data.spans[: int(data.span_bounds[more])],
            data.span_bounds[: more + 1],
        )
        return _timed("append", lambda: store.append(some, rewards[:more]))

    yield "append", append


def _epochs(store: Store, seed: int) -> float:
    cpu, tokens, looked, epoch = _cpu_s(), 0, 0, 0
    while epoch == 0 or _cpu_s() - cpu < LEAST_CPU_S:
        for tensors, count in store.batches(seed * 100 + epoch):
            tokens += count
            looked += int(tensors["labels"][0, -1])  # somebody looks at it
        epoch += 1
    return tokens / (_cpu_s() - cpu) / 1e6


def _timed(name: str, act: Callable[[], object]) -> dict[str, float]:
    cpu = _cpu_s()
    took = _ms(act)
    return {f"{name}_ms": took, f"{name}_cpu_ms": (_cpu_s() - cpu) * 1e3}


def _ms(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3


def _cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _round(value: float) -> float:
    return round(value, 2) if value < 1000 else round(value)


if __name__ == "__main__":
    main()
