"""The streaming reader: token columns as shuffled batches of torch tensors, sharded, resumable, made ahead by a thread.

    columns = build(corpus, tokenizer, "sft", max_length=2048)
    stream = TokenStream(columns, identify(tokenizer), batch=16, seed=1, rank=rank, ranks=world)
    for batch in stream:                       # the rest of this epoch; the next loop is the next epoch
        loss = model(**batch.tensors).loss
        save({"reader": stream.state_dict(), ...})

Every example is in exactly one batch of an epoch over all ranks and workers. The same seed and epoch give the same order. Of a mixture
(`MixedColumns`) that holds for the first source; of the others an epoch has their shares.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from treadle_trainer.data._device import DeviceCopies
from treadle_trainer.data._prefetch import Prefetch
from treadle_trainer.data.columns import Columns
from treadle_trainer.data.order import BLOCK, POOL, Shard, even_batches, pack
from treadle_trainer.data.rendering import TokenizerId
from treadle_trainer.errors import DataRefused, StateRefused, TokenizerMismatch

__all__ = ["IGNORED", "Batch", "TokenStream"]

IGNORED: Final = -100
"""Label of a token that is not trained on."""
STATE_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """`tensors` go into a model as they are: int64 `input_ids` and `labels` of [rows, width], and how rows lie in them.

    Padded: bool `attention_mask`. Packed: int64 `position_ids`, which begin anew with each sequence; the padding at the end is a
    sequence of its own. Of pairs all chosen rows come first, then all rejected ones.
    """

    tensors: dict[str, torch.Tensor]
    examples: NDArray[np.int64]
    """Which examples of the columns."""
    owner: NDArray[np.int64]
    """For each sequence, in the order of `value`, the place in `examples` of the example that it belongs to."""
    value: torch.Tensor
    """float32, for each sequence in order: reward, label or margin; NaN for none."""
    tokens: int
    """Tokens without padding."""
    logprobs: torch.Tensor | None = None
    """float32 [rows, width] where some were logged (rl): of each token when it was sampled; NaN for none."""
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """For each sequence in order, where it stands in the `members` of the columns."""
    arrival: Any = None
    """Of a batch on its way to a CUDA device: when it is there."""


class TokenStream:
    """Batches of columns. Iterating gives the rest of the present epoch, then moves on to the next one."""

    def __init__(
        self,
        columns: Columns,
        identity: TokenizerId,
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        together: bool = False,
        worker: int = 0,
        workers: int = 1,
        packed: int | None = None,
        last: Literal["short", "drop"] = "short",
        pad_id: int = 0,
        multiple: int = 1,
        prefetch: int = 8,
        pin: bool | None = None,
        device: torch.device | str | None = None,
        block: int = BLOCK,
        pool: int = POOL,
    ) -> None:
        """Read `columns` with the tokenizer of `identity`.

        `batch` counts examples, of like length where a window of the order has such, or with `packed` rows of so many tokens, into which
        sequences are put one behind the other. Ranks read shares of the order of their own, or `together` the same batches of
        `batch` times `ranks`, of which each takes its part: that is the order of one reader with a batch so large, with equally many
        batches for each, and a position that holds for any rank. Where the last batch has fewer examples than ranks, a rank without
        gets one with every label ignored. `last`:
        a short last batch is given, or dropped, so that every rank has equally many (padded only). Widths are rounded up to a
        `multiple`. `prefetch` batches are made ahead (0: no thread); `pin`: in pinned memory, by default where CUDA is. With a CUDA
        `device` batches are on it, or on their way to it, when they are given: the thread starts the copies.

        Raises TokenizerMismatch, DataRefused.
        """
        if columns.meta.identity != identity:
            raise TokenizerMismatch(columns.path, expected=str(identity), found=str(columns.meta.identity))
        if batch < 1 or multiple < 1:
            raise DataRefused(f"batch={batch} and multiple={multiple}: expected at least 1")
        self.epoch = 0
        self._columns = columns
        self._batch = batch
        self._seed = seed
        self._shard = Shard(0, 1, worker, workers) if together else Shard(rank, ranks, worker, workers)
        self._part = (rank, ranks) if together else (0, 1)
        if together:
            Shard(rank, ranks)  # raises ValueError for a rank beyond them
            self._batch = batch * ranks
        self._packed = packed
        self._last = last
        self._pad_id = pad_id
        self._multiple = multiple
        self._prefetch = prefetch
        self._pin = torch.cuda.is_available() if pin is None else pin
        target = torch.device("cpu" if device is None else device)
        self._copies = DeviceCopies(target) if target.type == "cuda" else None
        self._mix = (block, pool)
        self._given = 0
        self._width = _arity(columns)
        if packed is not None:
            if self._width != 1:
                raise DataRefused(
                    "pairs and groups are not packed: their sequences belong together. Use padded batches"
                )
            longest = int(columns.lengths.max(initial=0))
            if longest > packed:
                raise DataRefused(
                    f"a sequence has {longest} tokens, and a packed row {packed}: build columns with max_length={packed}"
                )
            if last == "drop":
                raise DataRefused(
                    "last='drop' gives ranks equally many padded batches; how many packed rows there are, chance decides"
                )

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this epoch that were not given yet."""
        if not self._prefetch:
            yield from self._counted(self._made(self._given))
            return
        start = self._given
        source = Prefetch(lambda: self._made(start), self._prefetch)
        try:
            yield from self._counted(iter(source))
        finally:
            source.close()

    def __len__(self) -> int:
        """Batches of this epoch for this reader, given ones included."""
        if self._packed is not None:
            return sum(1 for _ in self._plan(self.epoch))
        return self._padded_batches(self.epoch)

    def taken(self, batches: int) -> list[int]:
        """How many examples of each source (see `Columns.source_of`) the first `batches` batches since the beginning hold.

        Of a reader that reads together with other ranks: all of theirs.
        """
        found: Counter[int] = Counter()
        epoch = 0
        while batches > 0:
            before = batches
            for whole in islice(self._plan(epoch), batches):
                examples = whole if isinstance(whole, np.ndarray) else np.fromiter(chain.from_iterable(whole), np.int64)
                kinds = self._columns.source_of(examples)
                found.update({0: len(examples)} if kinds is None else Counter(kinds.tolist()))
                batches -= 1
            if batches == before:  # a share without any batch
                break
            epoch += 1
        return [found[n] for n in range(self._columns.source_count)]

    def _padded_batches(self, epoch: int) -> int:
        count = self._columns.drawn(epoch)
        share: slice = self._shard.part(count)
        if self._last == "drop":
            readers = self._shard.ranks * self._shard.workers
            return count // readers // self._batch
        return math.ceil(int(share.stop - share.start) / self._batch)

    def state_dict(self) -> dict[str, Any]:
        """Where the reader is: after the batches that were given, whatever was made ahead. JSON."""
        return {**self._setting(), "epoch": self.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position. Raises StateRefused where it belongs to other columns or to another order."""
        mine = self._setting()
        other = sorted(name for name in mine if state.get(name) != mine[name])
        if other or not {"epoch", "given"} <= state.keys():
            what = (
                ", ".join(f"{name} {state.get(name)!r} there and {mine[name]!r} here" for name in other)
                or "no position"
            )
            raise StateRefused(f"{self._columns.path}: the saved position is of another reader: {what}")
        self.epoch, self._given = int(state["epoch"]), int(state["given"])

    def _setting(self) -> dict[str, Any]:
        shard = self._shard
        return {
            "state": STATE_VERSION,
            "columns": self._columns.label,
            "seed": self._seed,
            "batch": self._batch,
            "packed": self._packed,
            "last": self._last,
            "shard": [shard.rank, shard.ranks, shard.worker, shard.workers],
            "mix": list(self._mix),
        }

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for made in batches:
            self._given += 1
            if self._copies is not None:
                self._copies.receive(_all_tensors(made), made.arrival)
            yield made
        self.epoch, self._given = self.epoch + 1, 0

    def _made(self, start: int) -> Iterator[Batch]:
        rank, ranks = self._part
        for whole in islice(self._plan(self.epoch), start, None):
            bins = whole[rank::ranks]
            idle = len(bins) == 0
            if idle:
                bins = whole[:1]
            made = self._padded(bins) if isinstance(bins, np.ndarray) else self._filled(bins)
            if idle:
                made.tensors["labels"].fill_(IGNORED)
            yield made if self._copies is None else _sent(made, self._copies)

    def _plan(self, epoch: int) -> Iterator[Any]:
        """The examples of each batch: an array of a padded one, a list by row of a packed one."""
        order = self._columns.order(self._seed, epoch, block=self._mix[0], pool=self._mix[1])
        mine = order[self._shard.part(len(order))]
        if self._packed is None:
            kinds = self._columns.source_of(mine)
            batches = even_batches(self._example_lengths(mine), self._batch, self._seed, epoch, kinds=kinds)
            for places in batches[: self._padded_batches(epoch)]:  # a last batch that is dropped is the short one
                yield mine[places]
            return
        sequences = self._columns.members[self._columns.member_bounds[mine]]
        bins = pack(self._columns.lengths[sequences].tolist(), self._packed)
        while rows := [[int(mine[at]) for at in row] for row in islice(bins, self._batch)]:
            yield rows

    def _example_lengths(self, examples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The longest sequence of each example."""
        lengths, bounds = self._columns.lengths[self._columns.members], self._columns.member_bounds
        if self._width:
            longest: NDArray[np.int64] = lengths[bounds[examples] + np.arange(self._width)[:, None]].max(axis=0)
            return longest
        return np.array([lengths[bounds[e] : bounds[e + 1]].max() for e in examples], np.int64)

    def _padded(self, examples: NDArray[np.int64]) -> Batch:
        columns = self._columns
        places = _places(columns.member_bounds, examples, self._width)
        sequences = columns.members[places]
        starts, stops = columns.bounds[sequences], columns.bounds[sequences + 1]
        lengths = stops - starts
        width = -(-int(lengths.max(initial=1)) // self._multiple) * self._multiple
        ids, labels = self._tensor(len(sequences), width), self._tensor(len(sequences), width)
        id_rows, label_rows = ids.numpy(), labels.numpy()
        label_rows.fill(IGNORED)
        for n, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            id_row = id_rows[n]
            id_row[: stop - start] = columns.ids[start:stop]
            id_row[stop - start :] = self._pad_id
        for n, begin, end in _spans(columns, sequences):
            label_rows[n, begin:end] = id_rows[n, begin:end]
        attention = torch.empty((len(sequences), width), dtype=torch.bool, pin_memory=self._pin)
        np.less(np.arange(width), lengths[:, None], out=attention.numpy())
        value = torch.from_numpy(columns.value[places])  # a fancy index is a copy
        logprobs: torch.Tensor | None = None
        if columns.logprobs is not None:
            logprobs = torch.full((len(sequences), width), math.nan, pin_memory=self._pin)
            logprob_rows = logprobs.numpy()
            for n, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
                logprob_rows[n, : stop - start] = columns.logprobs[start:stop]
        tensors = {"input_ids": ids, "labels": labels, "attention_mask": attention}
        owner = _owner(columns.member_bounds, examples, self._width)
        return Batch(tensors, examples, owner, value, int(lengths.sum()), logprobs, places)

    def _filled(self, rows: Sequence[Sequence[int]]) -> Batch:
        columns, width = self._columns, self._packed
        assert width is not None
        ids, labels, positions = (self._tensor(len(rows), width) for _ in range(3))
        id_rows, label_rows, position_rows = ids.numpy(), labels.numpy(), positions.numpy()
        label_rows.fill(IGNORED)
        examples = np.fromiter(chain.from_iterable(rows), np.int64)
        sequences = columns.members[columns.member_bounds[examples]]
        starts, stops = columns.bounds[sequences].tolist(), columns.bounds[sequences + 1].tolist()
        places: list[tuple[int, int]] = []
        counting, n = np.arange(width), 0
        for row, held in enumerate(rows):
            at = 0
            for _ in held:
                start, stop = starts[n], stops[n]
                places.append((row, at))
                id_rows[row, at : at + stop - start] = columns.ids[start:stop]
                position_rows[row, at : at + stop - start] = counting[: stop - start]
                at, n = at + stop - start, n + 1
            id_rows[row, at:] = self._pad_id
            position_rows[row, at:] = counting[: width - at]
        for n, begin, end in _spans(columns, sequences):
            row, at = places[n]
            # nothing before it says what the first token of a sequence is
            first = at + max(begin, 1)
            label_rows[row, first : at + end] = id_rows[row, first : at + end]
        total = sum(stops) - sum(starts)
        members = columns.member_bounds[examples]
        value = torch.from_numpy(columns.value[members])
        tensors = {"input_ids": ids, "labels": labels, "position_ids": positions}
        return Batch(tensors, examples, np.arange(len(examples)), value, total, None, members)

    def _tensor(self, rows: int, width: int) -> torch.Tensor:
        return torch.empty((rows, width), dtype=torch.int64, pin_memory=self._pin)


def _all_tensors(batch: Batch) -> dict[str, torch.Tensor]:
    others = {"": batch.value} if batch.logprobs is None else {"": batch.value, "logprobs": batch.logprobs}
    return {**batch.tensors, **others}


def _sent(batch: Batch, copies: DeviceCopies) -> Batch:
    there, arrival = copies.send(_all_tensors(batch))
    value, logprobs = there.pop(""), there.pop("logprobs", None)
    return replace(batch, tensors=there, value=value, logprobs=logprobs, arrival=arrival)


def _arity(columns: Columns) -> int:
    """Sequences of each example; 0 where they differ, as in groups."""
    counts = np.diff(columns.member_bounds)
    if not len(counts):
        return 1
    return int(counts[0]) if (counts == counts[0]).all() else 0


def _places(bounds: NDArray[np.int64], examples: NDArray[np.int64], arity: int) -> NDArray[np.int64]:
    """Where the members of examples stand: all first ones, then all second ones; of groups one group behind the other."""
    if arity == 1:
        return bounds[examples]
    if arity:
        places: NDArray[np.int64] = (bounds[examples] + np.arange(arity)[:, None]).ravel()
        return places
    return np.concatenate([np.arange(int(bounds[e]), int(bounds[e + 1])) for e in examples])


def _owner(bounds: NDArray[np.int64], examples: NDArray[np.int64], arity: int) -> NDArray[np.int64]:
    places = np.arange(len(examples))
    if arity == 1:
        return places
    return np.tile(places, arity) if arity else np.repeat(places, bounds[examples + 1] - bounds[examples])


def _spans(columns: Columns, sequences: NDArray[np.int32]) -> Iterator[tuple[int, int, int]]:
    """(place in `sequences`, begin, end) of each span to train on. Looked up for all at once: one by one costs as much as copying."""
    firsts, counts = columns.span_bounds[sequences], columns.span_bounds[sequences + 1] - columns.span_bounds[sequences]
    owners = np.repeat(np.arange(len(sequences)), counts)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = columns.spans[np.repeat(firsts, counts) + within]
    return zip(owners.tolist(), found[:, 0].tolist(), found[:, 1].tolist(), strict=True)
