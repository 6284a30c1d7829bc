"""A training that draws from several sources: each has its share, in every method, and nothing that is held out is learned."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from treadle_corpus import Corpus
from treadle_corpus.heldout import HeldOut
from treadle_corpus.testing import graded
from treadle_corpus.views import VIEWS, jsonl
from treadle_schemas import SettingError, Split
from treadle_trainer.data.building import build
from treadle_trainer.data.mixture import MixedColumns
from treadle_trainer.data.stream import TokenStream
from treadle_trainer.errors import DataRefused, JobStopped, StateRefused
from treadle_trainer.jobs import TrainSpec
from treadle_trainer.mixture import Mixture, MixtureSource, mixture_of
from treadle_trainer.turn import job_key

from .model_world import save_model, write_corpus

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own

SPLIT = Split(share=0.0)
COLOURS = ["red", "green", "blue", "white"]
TOWNS = ["rome", "paris", "oslo", "bern"]


def talk(topic: str, n: int, word: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"{topic} {n}"}, {"role": "assistant", "content": word}]


def attempts(topic: str, words: list[str], tasks: int, *, scale: float = 1.0, **given: Any) -> list[Any]:
    """Two attempts at each task; the right word has reward `scale`, a wrong one none."""
    rows = []
    for n in range(tasks):
        for k, reward in ((n, scale), (n + 1, 0.0)):
            messages = talk(topic, n, words[k % 4])
            name = f"{topic}{n:02}{k - n}"
            rows.append(graded(name, reward=reward, task_id=f"{topic}-{n}", messages=messages, response=[1], **given))
    return rows


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.main = write_corpus(
            root / "main",
            [
                *attempts("sky", COLOURS, 24),
                graded("held", task_id="held", split="heldout", messages=talk("held", 1, "red"), response=[1]),
            ],
        )
        self.other = write_corpus(root / "other", attempts("town", TOWNS, 10, scale=0.5))
        self.anchor = root / "anchor.jsonl"
        self.base = save_model(
            root / "base",
            [talk(t, n, w) for t, w in (("sky", "red"), ("town", "rome"), ("sum", "two")) for n in range(24)],
        )

    def anchored(self, view: str) -> Path:
        """An anchor set as an export of the view."""
        rows = Corpus.open(
            write_corpus(self.root / f"sum-{view}", attempts("sum", ["one", "two", "ten", "six"], 3))
        ).rows()
        path = self.root / f"anchor-{view}.jsonl"
        path.write_bytes(b"".join(jsonl(VIEWS[view](rows))))
        return path

    def mixture(self, view: str = "sft", split: Split = SPLIT) -> Mixture:
        sources = [
            MixtureSource(corpus=str(self.other), weight=0.25),
            MixtureSource(anchor=str(self.anchored(view)), weight=0.125),
        ]
        with Corpus.open(self.main) as corpus:
            found = mixture_of(sources, corpus, split)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def spec(world: World, tmp_path: Path) -> Callable[..., TrainSpec]:
    def make(name: str = "one", **given: Any) -> TrainSpec:
        (tmp_path / name).mkdir(exist_ok=True)
        places = {"out": str(tmp_path / name / "model"), "work": str(tmp_path / name)}
        plain = {"method": "sft", "steps": 6, "lr": 5e-3, "batch": 8, "max_length": 64, "seed": 1, **places, **given}
        return TrainSpec(base=str(world.base), corpus=str(world.main), version=1, **plain)

    return make


def trained(spec: TrainSpec, hear: Callable[..., None] = lambda **_: None) -> dict[str, Any]:
    from treadle_trainer.methods import train

    return train(spec, hear)


def weights(spec: TrainSpec) -> bytes:
    return (Path(spec.out) / "model.safetensors").read_bytes()


VIEW = {"sft": "sft", "rwsft": "sft", "dpo": "dpo", "kto": "kto", "reward": "reward", "rl": "rl"}


@pytest.mark.parametrize("method", VIEW)
def test_every_method_reads_each_source_by_its_weight(
    world: World, spec: Callable[..., TrainSpec], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spec(method=method, steps=4, mixture=world.mixture(VIEW[method]))
    seen: Counter[int] = Counter()
    really = TokenStream._counted

    def counting(self: TokenStream, batches: Any) -> Any:
        for batch in really(self, batches):
            kinds = self._columns.source_of(batch.examples)
            assert kinds is not None
            assert np.bincount(kinds, minlength=3).tolist() == [5, 2, 1]
            seen.update(kinds.tolist())
            yield batch

    monkeypatch.setattr(TokenStream, "_counted", counting)
    result = trained(asked)
    assert [one["read"] for one in result["sources"]] == [20, 8, 4] == [seen[n] for n in range(3)]
    assert [one["share"] for one in result["sources"]] == [0.625, 0.25, 0.125]
    assert [Path(one["source"]).name for one in result["sources"]] == [
        "main@v1",
        "other@v1",
        f"anchor-{VIEW[method]}.jsonl",
    ]
    assert result["rows"] == 48
    assert Path(asked.out).is_dir()


@pytest.mark.parametrize("more", [{}, {"packed": True, "batch": 2}, {"accumulate": 2, "lora_rank": 2}])
def test_a_mixed_training_that_was_stopped_ends_with_the_same_weights(
    world: World, spec: Callable[..., TrainSpec], more: dict[str, Any]
) -> None:
    given = {"steps": 9, "mixture": world.mixture(), "max_length": 32, **more}
    whole, cut = spec("whole", **given), spec("cut", save_steps=2, **given)
    uncut = trained(whole)

    def stop_in_the_middle(stage: str, step: int = 0, **_: Any) -> None:
        if stage == "train" and step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(JobStopped):
        trained(cut, stop_in_the_middle)
    result = trained(cut)
    assert result["resumed_at"] == 6
    assert result["sources"] == uncut["sources"]
    assert weights(cut) == weights(whole)


def test_rewards_of_a_source_are_its_own(world: World, spec: Callable[..., TrainSpec]) -> None:
    from transformers import AutoTokenizer
    from treadle_trainer.methods._mixture import all_columns
    from treadle_trainer.methods._rl import advantages
    from treadle_trainer.methods._sft import _weights

    tokenizer = AutoTokenizer.from_pretrained(world.base, local_files_only=True)
    talks = world.root / "talks.jsonl"
    talks.write_text(json.dumps({"messages": talk("sum", 1, "two")}) + "\n")
    with Corpus.open(world.main) as corpus:
        mixture = mixture_of(
            [MixtureSource(corpus=str(world.other), weight=0.2), MixtureSource(anchor=str(talks), weight=0.2)],
            corpus,
            SPLIT,
        )
    mixed = all_columns(spec(method="rwsft", mixture=mixture), tokenizer, lambda **_: None)
    assert isinstance(mixed, MixedColumns)
    found = _weights(mixed)
    assert [set(found[mixed.members_of(n)].tolist()) for n in range(3)] == [{1.0}, {0.5}, {1.0}]
    # places in a batch mean the same members as those tables
    for batch in TokenStream(mixed, mixed.meta.identity, batch=5, seed=1, prefetch=0):
        kinds = mixed.source_of(batch.examples)
        assert found[batch.places].tolist() == [0.5 if kind == 1 else 1.0 for kind in kinds]
        for row, example, kind in zip(batch.tensors["input_ids"], batch.examples, kinds, strict=True):
            source = mixed.sources[kind]
            ids = source.tokens(int(source.members[example - mixed._firsts[kind]]))
            assert row[: len(ids)].tolist() == ids.tolist()
    groups = all_columns(spec(method="rl", mixture=world.mixture("rl")), tokenizer, lambda **_: None)
    assert isinstance(groups, MixedColumns)
    gains = advantages(groups)
    for n, one in enumerate(groups.sources):
        assert gains[groups.members_of(n)].tolist() == advantages(one).tolist()


def test_ranks_share_each_batch_and_a_position_is_of_one_mixture(world: World, spec: Callable[..., TrainSpec]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.base, local_files_only=True)
    sources = [build(Corpus.open(path), tokenizer, "sft", max_length=64) for path in (world.main, world.other)]
    mixed = MixedColumns(sources, [0.75, 0.25])

    def stream(rank: int = 0, columns: MixedColumns = mixed, batch: int = 8, ranks: int = 2) -> TokenStream:
        return TokenStream(
            columns, columns.meta.identity, batch=batch, seed=3, rank=rank, ranks=ranks, together=True, prefetch=0
        )

    alone = list(stream(batch=16, ranks=1))
    parts = [list(stream(rank)) for rank in range(2)]
    for n, whole in enumerate(alone):
        taken = np.concatenate([parts[rank][n].examples for rank in range(2)])
        assert sorted(taken.tolist()) == sorted(whole.examples.tolist())
    assert stream().taken(2 * len(alone)) == stream(1).taken(2 * len(alone)) == [48, 16]
    for given in range(len(alone)):
        cut = stream(batch=16, ranks=1)
        batches = iter(cut)
        for _ in range(given):
            next(batches)
        state = json.loads(json.dumps(cut.state_dict()))
        again = stream(batch=16, ranks=1)
        again.load_state_dict(state)
        assert [b.examples.tolist() for b in again] == [b.examples.tolist() for b in alone[given:]]
    with pytest.raises(StateRefused, match="columns"):
        stream(columns=MixedColumns(sources, [0.7, 0.3]), batch=16, ranks=1).load_state_dict(state)


def test_what_the_corpus_or_its_workspace_holds_out_is_drawn_from_no_source(
    world: World, spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer
    from treadle_trainer.methods._mixture import all_columns

    split = Split(salt="s", share=0.3)
    groups = [f"g{n}" for n in range(40)]
    out = next(g for g in groups if split.side(g) == "heldout")
    fine, good, own = [g for g in groups if split.side(g) == "train"][:3]
    held = talk("held", 1, "red")
    again = [{**held[0], "content": "  HELD  1 "}, held[1]]
    rows = [
        graded("a", task_id=fine, messages=talk("x", 1, "red"), response=[1]),
        graded("b", task_id=out, messages=talk("x", 2, "red"), response=[1]),
        graded("c", task_id="held", messages=talk("x", 3, "red"), response=[1]),
        graded("d", task_id=good, messages=again, response=[1]),
        graded("e", task_id=own, split="heldout", messages=talk("x", 5, "red"), response=[1]),
        graded("held", task_id=good, messages=talk("x", 6, "red"), response=[1]),
    ]
    other = write_corpus(tmp_path / "other", rows)
    lines = [
        {"messages": talk("y", 1, "red"), "task_id": fine},
        {"messages": talk("y", 2, "red"), "task_id": out},
        {"messages": held},  # asks what a held-out row asks, though it tells no task
        {"messages": again, "task_id": good},
        {"messages": talk("y", 3, "red"), "task_id": fine, "split": "heldout"},
        {"messages": [*held, *talk("y", 4, "green")], "task_id": good, "response": [1, 3]},  # goes on from one
    ]
    anchor = tmp_path / "anchor.jsonl"
    anchor.write_text("\n".join(map(json.dumps, lines)))
    sources = [MixtureSource(corpus=str(other), weight=0.2), MixtureSource(anchor=str(anchor), weight=0.2)]
    with Corpus.open(world.main) as corpus:
        mixture = mixture_of(sources, corpus, split)
    tokenizer = AutoTokenizer.from_pretrained(world.base, local_files_only=True)
    mixed = all_columns(spec(mixture=mixture), tokenizer, lambda **_: None)
    assert isinstance(mixed, MixedColumns)
    _, theirs, anchored = (one.meta for one in mixed.sources)
    assert (theirs.rows, theirs.used, theirs.dropped) == (5, 1, {"heldout_group": 2, "leak": 2})
    assert (anchored.rows, anchored.used) == (6, 1)
    assert anchored.dropped == {"heldout": 1, "heldout_group": 2, "leak": 2}
    texts = [tokenizer.decode(one.tokens(0)) for one in mixed.sources[1:]]
    assert "x 1" in texts[0]
    assert "y 1" in texts[1]
    # the plain columns of the other corpus are not those: it is trained on by itself as it is
    with Corpus.open(other) as opened:
        assert len(build(opened, tokenizer, "sft", max_length=64)) == 5


def test_where_a_version_removes_near_duplicates_near_ones_leak_too(tmp_path: Path) -> None:
    from treadle_corpus import CorpusWriter, Policy
    from treadle_corpus.heldout import Foreign
    from treadle_corpus.testing import SelectAll

    words = " ".join(f"word{n}" for n in range(60))
    held = talk(words, 1, "red")
    with CorpusWriter.open(tmp_path / "c", workspace="w", policy=Policy(dedupe="near")) as writer:
        writer.apply([graded("h", split="heldout", task_id="h", messages=held)], {0: 1}, 1)
        writer.finish(SelectAll())
    with Corpus.open(tmp_path / "c") as corpus:
        heldout = HeldOut(corpus, SPLIT)
    near, far = talk(words + " more", 1, "red"), talk("nothing alike", 2, "green")
    assert heldout.judge([Foreign("g", [near]), Foreign("g", [far])]) == ["leak", None]


def test_another_version_or_anchor_set_is_another_job(world: World, tmp_path: Path) -> None:
    from treadle_trainer.policy import TrainingPolicy

    anchor = tmp_path / "a.jsonl"
    anchor.write_text(json.dumps({"messages": talk("sum", 1, "two")}))
    plain = TrainingPolicy()
    policy = plain.changed({"mixture": [{"anchor": str(anchor), "weight": 0.1}]})
    with Corpus.open(world.main) as corpus:
        before, alone = job_key(corpus, policy), job_key(corpus, plain)
        assert before != alone
        assert job_key(corpus, policy) == before
        anchor.write_text(json.dumps({"messages": talk("sum", 1, "ten")}))
        assert job_key(corpus, policy) != before
        with pytest.raises(SettingError, match="is the corpus version that is trained on itself"):
            job_key(corpus, plain.changed({"mixture": [{"corpus": str(world.main), "weight": 0.1}]}))
        anchor.unlink()
        with pytest.raises(SettingError, match=r"the anchor set .*a\.jsonl cannot be read"):
            job_key(corpus, policy)


def test_a_source_that_changed_since_or_holds_nothing_is_refused(
    world: World, spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    anchor = tmp_path / "a.jsonl"
    anchor.write_text(json.dumps({"messages": talk("held", 1, "red")}))
    with Corpus.open(world.main) as corpus:
        mixture = mixture_of([MixtureSource(anchor=str(anchor), weight=0.1)], corpus, SPLIT)
    with pytest.raises(DataRefused, match=r"a\.jsonl has no sft example to train on, of 1 rows \(heldout_group 1\)"):
        trained(spec(mixture=mixture))
    anchor.write_text(json.dumps({"messages": talk("sum", 1, "two")}))
    with pytest.raises(SettingError, match="was changed since this job was made"):
        trained(spec(mixture=mixture))


@pytest.mark.parametrize(
    ("line", "view", "said"),
    [
        ("{", "sft", r"anchor\.jsonl:1: not a line of JSON"),
        ('{"prompt": []}', "sft", r"anchor\.jsonl:1: no line of an anchor set for the sft view, .*messages"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "sft", r"response \[\] names no messages"),
        ('{"messages": [{"content": "x"}]}', "sft", "a message has no role"),
        ('{"messages": []}', "dpo", "as `treadle corpus export --view dpo` writes it"),
        ('{"attempts": []}', "rl", "a group of 0 attempts: expected at least 2"),
        ("\n", "sft", "the anchor set is empty"),
    ],
)
def test_a_line_that_is_no_anchor_is_named(world: World, tmp_path: Path, line: str, view: str, said: str) -> None:
    from treadle_trainer.data.anchors import anchor_view

    with Corpus.open(world.main) as corpus:
        heldout = HeldOut(corpus, SPLIT)
    with pytest.raises(SettingError, match=said):
        anchor_view(tmp_path / "anchor.jsonl", line.encode(), view, heldout)


def test_a_dry_run_counts_each_source(world: World, spec: Callable[..., TrainSpec]) -> None:
    from treadle_trainer.commands._plan import shown
    from treadle_trainer.methods.plan import plan

    asked = spec(steps=10, mixture=world.mixture())
    found = plan(asked)
    # the last batch of an epoch is a smaller one
    assert [one["read"] for one in found["sources"]] == [48, 19, 10]
    assert [one["epochs"] for one in found["sources"]] == [2.0, 1.9, 3.33]
    assert found["epochs"] == 2.0
    text = shown("main@v1", "sft", found)
    assert "  24.7% (25.0% asked for)" in text
    assert "other@v1: 10 sequences from 20 rows" in text
    assert "19 read, each 1.9 times; dropped or left out: not_selected 10" in text
    assert trained(asked)["sources"] == found["sources"]


def test_an_external_trainer_gets_each_source_by_its_weight(
    world: World, spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    from treadle_trainer.backends import Backend

    keep = tmp_path / "kept.jsonl"
    copy = f"import shutil, sys; shutil.copy(sys.argv[1], {str(keep)!r}); shutil.copytree(sys.argv[2], sys.argv[3])"
    command = f'{sys.executable} -c "{copy}" {{rows}} {{base}} {{out}}'
    result = trained(spec(backend=Backend(command=command, form="openai"), mixture=world.mixture()))
    lines = [json.loads(line)["messages"][0]["content"].split()[0] for line in keep.read_text().splitlines()]
    # 24 of the corpus, once each, are five eighths
    assert Counter(lines) == {"sky": 24, "town": 10, "sum": 5}
    assert Counter(lines[:16]) == {"sky": 10, "town": 4, "sum": 2}
    assert [one["read"] for one in result["sources"]] == [24, 10, 5]
    assert result["lines"] == 39


@pytest.mark.long
def test_two_processes_read_a_mixture_as_one_with_twice_the_batch(
    world: World, spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    from safetensors.torch import load
    from treadle_trainer.jobs import JobRunner
    from treadle_trainer.launch import Launch

    given = {"steps": 6, "lr": 1e-3, "mixture": world.mixture()}
    one, two = spec("one", batch=16, **given), spec("two", batch=8, launch=Launch(processes=2), **given)
    alone = trained(one)
    with JobRunner(tmp_path / "jobs", preload=False) as runner:
        runner.prepare("two")
        together = runner.run("two", two, timeout_s=200)
    assert together["sources"] == alone["sources"]
    for name, whole in load(weights(one)).items():
        assert torch.allclose(whole, load(weights(two))[name], atol=2e-4), name


def test_an_anchor_set_keeps_what_a_training_would_forget(
    world: World, spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    from treadle_trainer.jobs import ScorecardSpec
    from treadle_trainer.scorecard.measure import measure
    from treadle_trainer.scorecard.rows import EvalRow, Measured

    # which town is meant, is told by the remainder
    talks = [talk("town", n, TOWNS[n % 4]) for n in range(16)]
    anchor, asked = tmp_path / "towns.jsonl", tmp_path / "asked.json"
    anchor.write_text("".join(json.dumps({"messages": one, "response": [1], "tools": None}) + "\n" for one in talks))
    rows = [EvalRow(messages=one, response=[1], group=str(n), decides=True) for n, one in enumerate(talks)]
    asked.write_bytes(msgspec.json.encode(Measured(rows=rows, pairs=[])))
    with Corpus.open(world.main) as corpus:
        mixtures = {w: mixture_of([MixtureSource(anchor=str(anchor), weight=w)], corpus, SPLIT) for w in (0.9, 0.25)}
    knows = spec("knows", steps=80, mixture=mixtures[0.9])
    trained(knows)
    folders = {"before": knows.out}
    for name, mixture in (("without", None), ("with", mixtures[0.25])):
        after = spec(name, steps=40, mixture=mixture)
        after = type(after)(**{**{f: getattr(after, f) for f in after.__struct_fields__}, "base": knows.out})
        trained(after)
        folders[name] = after.out
    plan = ScorecardSpec(models=folders, rows=str(asked), max_length=64, generate=0, max_new_tokens=1, kl=False)
    found = {name: said["log_likelihood"] for name, said in measure(plan, lambda **_: None)["values"].items()}
    mean = {name: sum(values.values()) / len(values) for name, values in found.items()}
    print(f"log-likelihood a token of the towns: {mean}")
    assert mean["with"] > mean["without"]


def test_a_mixture_by_hand_from_the_dry_run_to_the_release(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner
    from treadle.cli import main
    from treadle_corpus import CorpusWriter, Policy
    from treadle_corpus.testing import SelectAll
    from treadle_schemas.workspace import Metric, WorkspaceSettings
    from treadle_streams import workspaces

    name = f"t-{secrets.token_hex(6)}"
    workspaces.create(
        broker, WorkspaceSettings(workspace=name, partitions=1, metrics=(Metric(name="reward", required=True),))
    )
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", broker)
    places = {}
    for topic, words in (("sky", COLOURS), ("town", TOWNS)):
        places[topic] = tmp_path / topic
        rows = attempts(topic, words, 20)
        with CorpusWriter.open(places[topic], workspace=name, policy=Policy()) as writer:
            writer.apply(rows, {0: len(rows)}, 1)
            writer.finish(SelectAll())
    base = save_model(
        tmp_path / "base", [talk(t, n, w) for t, w in (("sky", "red"), ("town", "oslo")) for n in range(9)]
    )
    anchor = tmp_path / "anchor.jsonl"
    anchor.write_text("\n".join(json.dumps({"messages": talk("sum", n, "two")}) for n in range(30)))
    words = ["train", places["sky"], "--from", base, "--steps", "5", "--batch", "10"]
    words += ["--mix", f"{places['town']}=0.3", "--mix-anchor", f"{anchor}=0.1"]

    def told(*more: str) -> Any:
        done = CliRunner().invoke(main, [*map(str, words), *more])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if "--json" in more else done.stdout

    plan = told("--dry-run", "--json")
    assert [one["read"] for one in plan["sources"]] == [26, 13, 4]
    lines, theirs = plan["sources"][2], plan["sources"][1]
    # of 30 lines without a task about a tenth are held out by their prompts
    assert lines["examples"] + lines["dropped"]["heldout_group"] == 30
    assert theirs["examples"] + sum(theirs["dropped"].values()) == 40
    assert "30.2% (30.0% asked for)" in told("--dry-run")
    made = told("--register", "--json")
    assert made["sources"] == plan["sources"]
    found = CliRunner().invoke(main, ["lineage", made["release"], "--json"])
    mixed = json.loads(found.stdout)["mixture"]
    assert [one["weight"] for one in mixed] == [0.3, 0.1]
    wrong = CliRunner().invoke(main, [*map(str, words), "--mix", "nothing"])
    assert "--mix 'nothing': expected a source, = and its share" in wrong.output + wrong.stderr
