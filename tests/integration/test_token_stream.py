"""Token columns beside a corpus, and the reader over them: every example once, in an order that can be had again, from where it stopped."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_corpus import Corpus, CorpusWriter, GradedRecord, Policy
from treadle_corpus.testing import SelectAll, graded
from treadle_trainer.data._prefetch import Prefetch
from treadle_trainer.data.building import build
from treadle_trainer.data.columns import FOLDER, META, Columns, forget, publish
from treadle_trainer.data.order import Shard, epoch_order, even_batches, pack
from treadle_trainer.data.rendering import TokenizerId, encode, identify
from treadle_trainer.data.stream import IGNORED, Batch, TokenStream
from treadle_trainer.errors import (
    ColumnsDamaged,
    ColumnsMissing,
    DataRefused,
    StateRefused,
    TemplateRefused,
    TokenizerMismatch,
)

from .token_world import PLAIN, make_tokenizer

ASK = {"role": "user", "content": "please answer"}


def talk(*answers: str) -> list[dict[str, Any]]:
    return [m for text in answers for m in (ASK, {"role": "assistant", "content": text})]


def rows(count: int) -> list[GradedRecord]:
    """Rows of many lengths, a long growing episode, pairs within tasks, both sides."""
    out = [
        graded(f"r{n:03}", task_id=f"t{n // 4}", reward=(n % 4) / 2, messages=talk("word " * (n % 37 + 1) + str(n)))
        for n in range(count)
    ]
    out += [
        graded(f"s{n}", episode_id="e", step=n, messages=talk(*(f"step {k}" for k in range(n + 1)))) for n in range(12)
    ]
    return [*out, graded("h", task_id="h", split="heldout", messages=talk("never to be seen"))]


def write(path: Path, records: Sequence[GradedRecord]) -> Corpus:
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as writer:
        start = writer.offsets.get(0, 0)
        writer.apply(list(records), {0: start + len(records)}, 1000)
        writer.finish(SelectAll())
    return Corpus.open(path)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(["word " * 40, "please answer step 1 2 3 4 5 6 7 8 9", "never to be seen"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write(tmp_path_factory.mktemp("stream") / "corpus", rows(120))


@pytest.fixture(scope="module")
def columns(corpus: Corpus, tokenizer: Any) -> Columns:
    return build(corpus, tokenizer, "sft", max_length=64)


# -- columns -----------------------------------------------------------------------------------------------------------------


def test_columns_hold_the_tokens_and_masks_of_the_view(corpus: Corpus, tokenizer: Any) -> None:
    made = build(corpus, tokenizer, "sft")
    rewarded = [row for row in corpus.rows("train") if row.grade.reward and row.episode_id != "e"]
    assert len(made) == made.meta.sequences == len(rewarded) + 1
    by_ids = {tuple(made.tokens(n).tolist()): made.trained(n).tolist() for n in range(len(made.bounds) - 1)}
    for row in rewarded:
        encoded = encode(tokenizer, row.interaction["messages"], [1])
        end = encoded.turns[-1].stop  # what follows the last turn teaches nothing
        spans = by_ids[tuple(encoded.input_ids[:end])]
        assert [any(a <= i < b for a, b in spans) for i in range(end)] == encoded.trained[:end]
    assert (made.meta.rows, made.meta.used, made.meta.dropped) == (132, 102, {"not_selected": 30})
    # twelve steps, each with its history, became one sequence
    steps = encode(tokenizer, talk(*(f"step {k}" for k in range(12))), [])
    assert len(by_ids[tuple(steps.input_ids[: steps.turns[-1].stop])]) == 12
    assert 1.2 < made.meta.ratio < 2
    made.verify()


def test_nothing_held_out_is_in_the_columns(corpus: Corpus, columns: Columns, tokenizer: Any) -> None:
    seen = tokenizer("never to be seen", add_special_tokens=False)["input_ids"]
    text = bytes(np.asarray(columns.ids))
    assert np.array(seen, columns.ids.dtype).tobytes() not in text
    heldout = build(corpus, tokenizer, "sft", split="heldout")
    assert len(heldout) == 1


def test_what_is_there_is_not_made_again(corpus: Corpus, columns: Columns, tokenizer: Any) -> None:
    before = (columns.path / META).stat()
    again = build(corpus, tokenizer, "sft", max_length=64)
    assert again.path == columns.path
    assert (again.path / META).stat() == before


def test_long_trajectories_are_split_and_nothing_is_longer(columns: Columns) -> None:
    assert columns.meta.too_long == {"turns": 0, "examples": 0}
    assert columns.lengths.max() <= 64
    assert columns.meta.sequences > 92


def test_pairs_labels_and_groups(corpus: Corpus, tokenizer: Any) -> None:
    pairs = build(corpus, tokenizer, "dpo", cap=2)
    assert pairs.meta.options == {"cap": 2}
    assert set(np.diff(pairs.member_bounds)) == {2}
    assert len(pairs) == 60
    assert set(pairs.value) == {1.0, 1.5}
    # a trajectory in several pairs is there once
    assert pairs.meta.sequences < 2 * len(pairs)
    short = build(corpus, tokenizer, "dpo", cap=2, max_length=30)
    assert short.meta.too_long["examples"] == len(pairs) - len(short) > 0
    assert short.lengths.max() <= 30
    labels = build(corpus, tokenizer, "kto")
    assert set(labels.value) == {0.0, 1.0}
    groups = build(corpus, tokenizer, "rl")
    assert set(np.diff(groups.member_bounds)) == {4}
    rejected = build(corpus, tokenizer, "reward")
    assert rejected.meta.examples == len(rejected) > 60


def test_the_next_version_takes_over_what_did_not_change(tmp_path: Path, tokenizer: Any) -> None:
    corpus = write(tmp_path / "c", rows(20))
    first = build(corpus, tokenizer, "sft", max_length=64)
    assert first.meta.reused == 0
    changed = [
        graded("r001", revision=2, task_id="t0", reward=0.75, messages=talk("word " * 2 + "1")),
        graded("new", messages=talk("new")),
    ]
    second = build(write(tmp_path / "c", changed), tokenizer, "sft", max_length=64)
    assert (len(second), second.meta.reused) == (len(first) + 1, len(first.conversations))
    fresh = build(Corpus.open(tmp_path / "c"), tokenizer, "sft", max_length=64, root=tmp_path / "elsewhere")
    assert fresh.meta.reused == 0
    for name in ("ids", "bounds", "spans", "value", "conversations"):
        assert (fresh.path / name).read_bytes() == (second.path / name).read_bytes()
    # two versions are kept, and the oldest goes
    third = build(write(tmp_path / "c", [graded("newer", messages=talk("newer"))]), tokenizer, "sft", max_length=64)
    assert not first.path.exists()
    assert second.path.exists()
    assert third.meta.version == 3
    assert first.tokens(0).tolist()  # who has it open reads on


def test_columns_of_another_tokenizer_or_template_are_refused(
    corpus: Corpus, columns: Columns, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = identify(make_tokenizer(["quite another text"]))
    for attempt in (
        lambda: Columns.open(columns.path, other),
        lambda: TokenStream(columns, other, batch=4, seed=1),
    ):
        with pytest.raises(TokenizerMismatch, match="the tokens of another tokenizer "):
            attempt()
    monkeypatch.setattr(tokenizer, "chat_template", PLAIN)
    with pytest.raises(TokenizerMismatch, match="another chat template"):
        Columns.open(columns.path, identify(tokenizer))
    beside = build(corpus, tokenizer, "sft", max_length=64)
    assert beside.path.parent.parent == columns.path.parent.parent
    assert beside.path.parent != columns.path.parent


def test_examples_with_images_are_counted_and_have_no_tokens(tmp_path: Path, tokenizer: Any) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    shown = [{"role": "user", "content": [picture]}, {"role": "assistant", "content": "a cat"}]
    corpus = write(tmp_path / "c", [graded("a", messages=talk("x")), graded("b", messages=shown)])
    made = build(corpus, tokenizer, "sft")
    assert (len(made), made.meta.images) == (1, 1)


def test_damage_is_found_and_made_good(tmp_path: Path, tokenizer: Any) -> None:
    corpus = write(tmp_path / "c", rows(8))
    made = build(corpus, tokenizer, "sft")
    identity = made.meta.identity
    ids = made.path / "ids"
    original = ids.read_bytes()
    ids.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(ColumnsDamaged, match="ids has other bytes than were written"):
        Columns.open(made.path, identity).verify()
    ids.write_bytes(original[:-2])
    with pytest.raises(ColumnsDamaged, match=r"ids has [0-9]+ bytes, and was written with"):
        Columns.open(made.path, identity)
    build(corpus, tokenizer, "sft").verify()
    (made.path / META).write_bytes(b"{")
    with pytest.raises(ColumnsDamaged, match="cannot be read"):
        Columns.open(made.path, identity)
    (made.path / META).unlink()
    with pytest.raises(ColumnsMissing, match="no token columns are there"):
        Columns.open(made.path, identity)


def test_columns_of_a_later_format_are_not_guessed_at(tmp_path: Path, columns: Columns) -> None:
    copy = shutil.copytree(columns.path, tmp_path / "copy")
    (copy / META).write_bytes(msgspec.json.encode(msgspec.structs.replace(columns.meta, format=99)))
    with pytest.raises(ColumnsDamaged, match="has format 99"):
        Columns.open(copy, None)


def test_forgetting_removes_every_trace_and_they_can_be_made_again(tmp_path: Path, tokenizer: Any) -> None:
    corpus = write(tmp_path / "c", rows(8))
    made = build(corpus, tokenizer, "sft")
    content = [made.tokens(n).tolist() for n in range(made.meta.sequences)]
    forget(corpus.path)
    assert not (corpus.path / FOLDER).exists()
    again = build(corpus, tokenizer, "sft")
    assert [again.tokens(n).tolist() for n in range(again.meta.sequences)] == content
    Corpus.open(corpus.path).verify()


def test_a_failure_leaves_nothing_and_the_first_of_two_makers_wins(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "ids").write_bytes(b"x" * 100)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path / "a", broken)
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / META).write_bytes(b"first")
    publish(tmp_path / "b", lambda folder: (folder / META).write_bytes(b"second") and None)
    assert (tmp_path / "b" / META).read_bytes() == b"first"


def test_wrong_wishes_are_refused(
    corpus: Corpus, columns: Columns, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataRefused, match="view 'spo' is unknown; there are dpo, eval"):
        build(corpus, tokenizer, "spo")
    with pytest.raises(DataRefused, match="where='good'"):
        build(corpus, tokenizer, "sft", where="good")
    identity = columns.meta.identity
    with pytest.raises(DataRefused, match="batch=0"):
        TokenStream(columns, identity, batch=0, seed=1)
    with pytest.raises(DataRefused, match="and a packed row 20"):
        TokenStream(columns, identity, batch=1, seed=1, packed=20)
    with pytest.raises(DataRefused, match="chance decides"):
        TokenStream(columns, identity, batch=1, seed=1, packed=64, last="drop")
    with pytest.raises(DataRefused, match="belong together"):
        TokenStream(build(corpus, tokenizer, "dpo", cap=2), identity, batch=1, seed=1, packed=64)
    with pytest.raises(ValueError, match="count from 0"):
        TokenStream(columns, identity, batch=1, seed=1, rank=2, ranks=2)
    monkeypatch.setattr(
        tokenizer, "chat_template", "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(TemplateRefused, match="differently once another follows"):
        build(corpus, tokenizer, "sft")


# -- order -------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 9), st.integers(1, 70), st.integers(1, 9))
def test_an_order_is_a_permutation_that_depends_on_seed_and_epoch(count: int, seed: int, block: int, pool: int) -> None:
    order = epoch_order(count, seed, 3, block=block, pool=pool)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == epoch_order(count, seed, 3, block=block, pool=pool).tolist()
    if count > 30:
        assert order.tolist() != epoch_order(count, seed, 4, block=block, pool=pool).tolist()
        assert order.tolist() != epoch_order(count, seed + 1, 3, block=block, pool=pool).tolist()


def test_an_order_is_the_same_on_every_machine() -> None:
    assert epoch_order(12, 1, 0, block=3, pool=2).tolist() == GOLDEN


GOLDEN = [8, 2, 1, 6, 7, 0, 4, 11, 3, 5, 10, 9]


def test_what_is_read_together_lies_together() -> None:
    order = epoch_order(100_000, 1, 0, block=64, pool=16)
    blocks = {int(n) // 64 for n in order[: 64 * 16]}
    assert len(blocks) <= 17  # the last block of all is short, and may be among them
    assert max(blocks) - min(blocks) > 500  # and from everywhere


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=300), st.integers(50, 120))
def test_packing_loses_nothing_and_overfills_nothing(lengths: list[int], capacity: int) -> None:
    bins = list(pack(lengths, capacity))
    assert sorted(n for held in bins for n in held) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in held) <= capacity for held in bins)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=300), st.integers(1, 9))
def test_batches_of_like_length_hold_everything_once(lengths: list[int], batch: int) -> None:
    batches = even_batches(np.array(lengths, np.int64), batch, 1, 0, window=4)
    assert sorted(int(n) for places in batches for n in places) == list(range(len(lengths)))
    assert all(len(places) == batch for places in batches[:-1])


# -- the reader --------------------------------------------------------------------------------------------------------------


def reader(columns: Columns, **given: Any) -> TokenStream:
    given = {"batch": 5, "seed": 7, "block": 4, "pool": 3, **given}
    return TokenStream(columns, columns.meta.identity, **given)


MODES = [{}, {"packed": 64}, {"prefetch": 0}]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 1), (3, 2), (1, 5), (7, 3)])
def test_every_example_is_read_once_an_epoch_whoever_reads(
    columns: Columns, mode: dict[str, Any], ranks: int, workers: int
) -> None:
    for_all: list[int] = []
    for rank in range(ranks):
        for worker in range(workers):
            stream = reader(columns, rank=rank, ranks=ranks, worker=worker, workers=workers, **mode)
            count = len(stream)
            batches = list(stream)
            assert len(batches) == count
            for_all += [int(n) for batch in batches for n in batch.examples]
    assert sorted(for_all) == list(range(len(columns)))


@pytest.mark.parametrize("mode", [{}, {"packed": 64}], ids=["padded", "packed"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_that_read_together_read_what_one_reader_reads(
    columns: Columns, mode: dict[str, Any], ranks: int
) -> None:
    whole = reader(columns, batch=2 * ranks, **mode)
    streams = [reader(columns, batch=2, rank=rank, ranks=ranks, together=True, **mode) for rank in range(ranks)]
    assert {len(stream) for stream in streams} == {len(whole)}
    for _ in range(2):  # epochs
        batches = [list(stream) for stream in streams]
        for n, batch in enumerate(whole):
            parts = [found[n] for found in batches if (found[n].tensors["labels"] != IGNORED).any()]
            assert sorted(e for part in parts for e in part.examples) == sorted(batch.examples)
            trained = [int((one.tensors["labels"] != IGNORED).sum()) for one in (batch, *parts)]
            assert trained[0] == sum(trained[1:])
            assert {len(found) for found in batches} == {len(whole)}
    assert all(stream.state_dict() == whole.state_dict() for stream in streams)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_every_rank_has_equally_many_batches_where_the_last_is_dropped(columns: Columns, ranks: int) -> None:
    streams = [reader(columns, rank=rank, ranks=ranks, last="drop") for rank in range(ranks)]
    batches = [list(stream) for stream in streams]
    assert {len(found) for found in batches} == {len(columns) // ranks // 5}
    assert {len(batch.examples) for found in batches for batch in found} == {5}
    read = [int(n) for found in batches for batch in found for n in batch.examples]
    assert len(read) == len(set(read))


def contents(batches: Iterator[Batch] | list[Batch]) -> list[Any]:
    return [
        (b.examples.tolist(), b.value.tolist(), b.tokens, {name: t.tolist() for name, t in b.tensors.items()})
        for b in batches
    ]


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_batches_and_each_epoch_others(columns: Columns, mode: dict[str, Any]) -> None:
    one, two = reader(columns, **mode), reader(columns, **mode)
    first = contents(list(one))
    assert first == contents(list(two))
    assert one.epoch == 1
    second = contents(list(one))
    assert second != first
    assert second == contents(list(two))
    assert contents(list(reader(columns, **mode, seed=8))) != first


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop", [0, 1, 4, 10_000])
def test_a_resumed_reader_gives_exactly_the_rest(columns: Columns, mode: dict[str, Any], stop: int) -> None:
    whole = reader(columns, rank=1, ranks=2, **mode)
    everything = [contents(list(whole)), contents(list(whole))]
    stopped = reader(columns, rank=1, ranks=2, **mode)
    list(stopped)
    before: list[Any] = []
    state = stopped.state_dict()
    for batch in stopped:  # in the second epoch
        if len(before) == stop:
            break
        before += contents([batch])
        state = msgspec.json.decode(msgspec.json.encode(stopped.state_dict()))
    resumed = reader(columns, rank=1, ranks=2, **mode)
    resumed.load_state_dict(state)
    assert before + contents(list(resumed)) == everything[1]
    assert resumed.epoch == 2


def test_a_position_of_another_reader_is_refused(columns: Columns, corpus: Corpus, tokenizer: Any) -> None:
    state = reader(columns).state_dict()
    for other in (
        reader(columns, seed=8),
        reader(columns, rank=1, ranks=2),
        reader(columns, packed=64),
        reader(columns, block=5),
        reader(build(corpus, tokenizer, "sft")),
    ):
        with pytest.raises(StateRefused, match="of another reader: "):
            other.load_state_dict(state)
    with pytest.raises(StateRefused, match="no position"):
        reader(columns).load_state_dict({k: v for k, v in state.items() if k != "given"})


def test_padded_batches_are_what_the_columns_hold(columns: Columns) -> None:
    for batch in reader(columns, pad_id=9, multiple=8):
        ids, labels, attention = (batch.tensors[n] for n in ("input_ids", "labels", "attention_mask"))
        assert ids.dtype == labels.dtype == torch.int64
        assert attention.dtype == torch.bool
        assert ids.shape == labels.shape == attention.shape
        assert ids.shape[1] % 8 == 0
        for n, example in enumerate(batch.examples):
            sequence = int(columns.members[columns.member_bounds[example]])
            tokens, size = columns.tokens(sequence).tolist(), len(columns.tokens(sequence))
            assert ids[n].tolist() == tokens + [9] * (ids.shape[1] - size)
            assert attention[n].tolist() == [True] * size + [False] * (ids.shape[1] - size)
            learned = {i for a, b in columns.trained(sequence).tolist() for i in range(a, b)}
            assert labels[n].tolist() == [tokens[i] if i in learned else IGNORED for i in range(ids.shape[1])]
            assert batch.value[n] == columns.value[columns.member_bounds[example]]
        assert batch.tokens == int(attention.sum())


def test_packed_rows_hold_sequences_that_do_not_see_each_other(columns: Columns) -> None:
    starts = 0
    for batch in reader(columns, packed=64, batch=2):
        ids, labels, positions = (batch.tensors[n] for n in ("input_ids", "labels", "position_ids"))
        assert ids.shape[1] == 64
        wanted = [int(columns.members[columns.member_bounds[e]]) for e in batch.examples]
        row, at = 0, 0
        for sequence in wanted:
            tokens = columns.tokens(sequence).tolist()
            if at + len(tokens) > 64 or positions[row, at : at + len(tokens)].tolist() != list(range(len(tokens))):
                row, at = row + 1, 0
            assert ids[row, at : at + len(tokens)].tolist() == tokens
            assert positions[row, at : at + len(tokens)].tolist() == list(range(len(tokens)))
            assert labels[row, at] == IGNORED  # nothing before it says what the first token is
            learned = {i for a, b in columns.trained(sequence).tolist() for i in range(max(a, 1), b)}
            expected = [t if i in learned else IGNORED for i, t in enumerate(tokens)]
            assert labels[row, at : at + len(tokens)].tolist() == expected
            starts, at = starts + 1, at + len(tokens)
    assert starts == len(columns)
    full = [b.tokens / b.tensors["input_ids"].numel() for b in reader(columns, packed=256, batch=2)]
    assert np.mean(full[:-1]) > 0.9


def test_of_pairs_all_chosen_come_first(corpus: Corpus, tokenizer: Any) -> None:
    pairs = build(corpus, tokenizer, "dpo", cap=2)
    for batch in reader(pairs):
        count = len(batch.examples)
        assert batch.tensors["input_ids"].shape[0] == 2 * count
        assert batch.owner.tolist() == [*range(count), *range(count)]
        for half in range(2):
            for n, example in enumerate(batch.examples):
                sequence = int(pairs.members[pairs.member_bounds[example] + half])
                tokens = pairs.tokens(sequence).tolist()
                assert batch.tensors["input_ids"][half * count + n, : len(tokens)].tolist() == tokens


def test_groups_of_any_size_stay_together(tmp_path: Path, tokenizer: Any) -> None:
    records = [
        graded(f"{t}{n}", task_id=t, reward=float(n), messages=talk(f"{n}"))
        for t, c in (("a", 2), ("b", 3))
        for n in range(c)
    ]
    groups = build(write(tmp_path / "c", records), tokenizer, "rl")
    (batch,) = reader(groups, batch=2)
    sizes = np.bincount(batch.owner).tolist()
    assert sizes == [int(np.diff(groups.member_bounds)[e]) for e in batch.examples]
    assert batch.value.tolist() == [float(n) for size in sizes for n in range(size)]


def test_what_was_sampled_stands_beside_its_tokens(tmp_path: Path, tokenizer: Any) -> None:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    answer = ids("step 1")
    logged = {"response": [1], "token_ids": [answer], "logprobs": [[-0.5] * len(answer)]}
    other = {"response": [1], "token_ids": [ids("step 2")], "logprobs": [[-0.5] * len(answer)]}
    records = [
        graded("a", reward=1.0, messages=talk("step 1"), **logged),
        graded("b", reward=0.0, messages=talk("step 3"), **other),
        graded("c", reward=0.0, messages=talk("step 4")),
    ]
    groups = build(write(tmp_path / "c", records), tokenizer, "rl")
    assert groups.meta.unaligned == 1  # the tokens are not those of its text
    (batch,) = reader(groups)
    assert batch.logprobs is not None
    known = ~torch.isnan(batch.logprobs)
    assert known.sum(dim=1).tolist() == [len(answer), 0, 0]
    assert batch.tensors["input_ids"][known].tolist() == answer
    # the end of the turn is learned, and nobody sampled it here
    assert (batch.tensors["labels"][0] != IGNORED).sum() == len(answer) + 1
    later = build(write(tmp_path / "c", [graded("d", messages=talk("step 5"))]), tokenizer, "rl")
    assert later.meta.reused == 3
    assert later.logprobs is not None
    assert np.nansum(later.logprobs) == -0.5 * len(answer)
    assert build(Corpus.open(tmp_path / "c"), tokenizer, "sft").logprobs is None


def test_an_empty_view_has_no_batches(tmp_path: Path, tokenizer: Any) -> None:
    empty = build(write(tmp_path / "c", [graded("a", reward=0.0)]), tokenizer, "sft")
    assert (len(empty), list(reader(empty)), list(reader(empty, packed=8))) == (0, [], [])
    assert empty.meta.ratio == 1.0


# -- prefetching ---------------------------------------------------------------------------------------------------------------


def threads() -> int:
    return sum(thread.name == "treadle-prefetch" for thread in threading.enumerate())


def test_batches_are_made_ahead_and_no_further() -> None:
    made: list[int] = []
    full = threading.Event()

    def make() -> Iterator[int]:
        for n in range(10):
            made.append(n)
            if n == 3:
                full.set()
            yield n

    source = Prefetch(make, depth=3)
    assert full.wait(20)  # three wait, and the fourth is in hand, though nobody asked
    found = iter(source)
    assert next(found) == 0
    assert len(made) <= 5
    assert list(found) == list(range(1, 10))
    assert threads() == 0


def test_what_goes_wrong_ahead_is_raised_in_its_place() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    found = iter(Prefetch(make, depth=3))
    assert next(found) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_a_loop_that_is_left_ends_its_thread(columns: Columns) -> None:
    stream = reader(columns, batch=1)
    for _ in stream:
        break
    assert threads() == 0
    assert stream.state_dict()["given"] == 1


def test_a_model_takes_both_kinds_of_batches_and_packing_changes_no_loss(columns: Columns, tokenizer: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    totals = []
    for mode in ({}, {"packed": 64}):
        loss = tokens = 0.0
        for batch in reader(columns, **mode):
            count = float((batch.tensors["labels"][:, 1:] != IGNORED).sum())
            with torch.inference_mode():
                loss += float(model(**batch.tensors).loss) * count
            tokens += count
        totals.append((tokens, loss / tokens))
    assert totals[0][0] == totals[1][0]
    assert totals[0][1] == pytest.approx(totals[1][1], rel=1e-4)


def test_readers_of_one_shard_have_no_example_in_common() -> None:
    parts = [Shard(rank, 4).part(10) for rank in range(4)]
    assert [(p.start, p.stop) for p in parts] == [(0, 2), (2, 5), (5, 7), (7, 10)]


def test_an_identity_says_both_hashes() -> None:
    assert str(TokenizerId("a", "b")) == "a-b"
