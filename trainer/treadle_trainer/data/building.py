"""Making token columns out of a view. Conversations that an earlier version's columns hold are copied, not tokenised again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from treadle_corpus import Corpus
from treadle_corpus.heldout import HeldOut
from treadle_corpus.images import has_images
from treadle_corpus.reader import SplitChoice
from treadle_corpus.views import VIEWS, View
from treadle_schemas.canonical import content_hash

from treadle_trainer.data.anchors import anchor_view
from treadle_trainer.data.columns import (
    ARRAYS,
    FOLDER,
    FORMAT,
    META,
    Columns,
    ColumnsMeta,
    checksums,
    conversation_digest,
    publish,
)
from treadle_trainer.data.rendering import identify
from treadle_trainer.data.sequences import TokenSequence, render
from treadle_trainer.data.sources import source_view
from treadle_trainer.errors import ColumnsDamaged, ColumnsMissing, DataRefused

__all__ = ["KEPT_ANCHORS", "KEPT_VERSIONS", "SPLIT_VIEWS", "build", "build_anchor", "columns_folder"]

KEPT_VERSIONS: Final = 2
"""Columns of older versions of the same view are removed: they can be made again, and nobody trains on them."""
KEPT_ANCHORS: Final = 8
"""Columns of anchor sets that are kept for each view, the newest."""
WITHOUT: Final = "without"
"""The option of columns from which another corpus's held-out side was taken: that side's identity."""
SPLIT_VIEWS: Final = frozenset({"sft", "rl", "eval"})
"""Where a long trajectory may become several sequences. A pair or a label stands for the whole: what is too long is left out."""


class Conversation(NamedTuple):
    """What becomes sequences. `steps` counts messages by step; `sampled` has (token ids, log-probabilities) by message."""

    messages: list[dict[str, Any]]
    response: list[int]
    tools: Any
    value: float
    steps: Sequence[int] = ()
    sampled: Mapping[int, tuple[list[int], list[float]]] = MappingProxyType({})


class _Tokens(NamedTuple):
    """One sequence on its way to the disk."""

    ids: NDArray[Any]
    spans: Sequence[Any]
    logprobs: NDArray[np.float32] | None


def build(
    corpus: Corpus,
    tokenizer: Any,
    view: str = "sft",
    *,
    max_length: int | None = None,
    split: SplitChoice = "train",
    newest_rows: int | None = None,
    without: HeldOut | None = None,
    root: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Columns:
    """The columns of a view of this version: those that are there, or else made now.

    `options` are the view's own (`min_margin`, `cap`, `min_attempts`; for sft `where`: "rewarded" or "all"), `newest_rows` limits the view
    to the newest rows, `without` takes out what another corpus holds out. They lie below `root`, by default the corpus's own folder.
    `on_progress` hears the number of examples done. Raises DataRefused, TemplateRefused, OSError.
    """
    if view not in VIEWS:
        raise DataRefused(f"view {view!r} is unknown; there are {', '.join(sorted(VIEWS))}")
    plain = dict(options)
    if newest_rows is not None:
        options["newest_rows"] = newest_rows
    if without is not None:
        options[WITHOUT] = without.identity
    identity = identify(tokenizer)
    folder = columns_folder(corpus, identity, view, max_length=max_length, split=split, root=root, **options)
    try:
        return Columns.open(folder, identity)
    except ColumnsMissing:
        pass
    except ColumnsDamaged:  # derived data: made again
        shutil.rmtree(folder)
    made = source_view(corpus, view, split=split, newest_rows=newest_rows, without=without, **plain)
    _publish(
        folder,
        made,
        _Writer(tokenizer, view, max_length, _before(folder.parent, view, max_length)),
        on_progress,
        tokenizer=identity.tokenizer,
        template=identity.template,
        version=corpus.version,
        content_hash=corpus.manifest.content_hash,
        options=options,
        max_length=max_length,
    )
    _prune(folder, view, split, options)
    return Columns.open(folder, identity)


def build_anchor(
    path: Path,
    data: bytes,
    sha256: str,
    tokenizer: Any,
    view: str,
    *,
    without: HeldOut,
    max_length: int | None,
    root: Path,
) -> Columns:
    """The columns of an anchor set with these bytes, without what a corpus holds out: those that are there, or else made now.

    They lie below `root`, the folder of that corpus. Raises SettingError naming the line, TemplateRefused, OSError.
    """
    identity = identify(tokenizer)
    key = content_hash([FORMAT, sha256, view, max_length, without.identity])[:16]
    folder = root / FOLDER / str(identity) / f"anchor-{view}-{key}"
    try:
        return Columns.open(folder, identity)
    except ColumnsMissing:
        pass
    except ColumnsDamaged:  # derived data: made again
        shutil.rmtree(folder)
    _publish(
        folder,
        anchor_view(path, data, view, without),
        _Writer(tokenizer, view, max_length, None),
        None,
        tokenizer=identity.tokenizer,
        template=identity.template,
        version=0,
        content_hash=sha256,
        options={WITHOUT: without.identity},
        max_length=max_length,
    )
    others = sorted(folder.parent.glob(f"anchor-{view}-*"), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in others[KEPT_ANCHORS:]:
        shutil.rmtree(old, ignore_errors=True)
    return Columns.open(folder, identity)


def _publish(
    folder: Path,
    made: View[Any],
    writer: _Writer,
    on_progress: Callable[[int], None] | None,
    **said: Any,
) -> None:
    def write(fresh: Path) -> None:
        writer.write(fresh, made, on_progress or (lambda _: None))
        meta = ColumnsMeta(
            format=FORMAT,
            view=made.name,
            split=made.split,
            rows=made.rows,
            used=made.used,
            dropped=dict(made.dropped),
            left_out=dict(made.left_out),
            made=len(made),
            files=checksums(fresh),
            **said,
            **writer.counts(),
        )
        (fresh / META).write_bytes(msgspec.json.encode(meta))

    publish(folder, write)


def columns_folder(
    corpus: Corpus,
    identity: object,
    view: str,
    *,
    max_length: int | None,
    split: str,
    root: Path | None = None,
    **options: Any,
) -> Path:
    """Where the columns of a view of this version lie, or would."""
    manifest = corpus.manifest
    key = content_hash([FORMAT, manifest.version, manifest.content_hash, view, options, split, max_length])[:16]
    return (root or corpus.path) / FOLDER / str(identity) / f"v{manifest.version}-{view}-{key}"


class _Writer:
    """Turns examples into arrays; ids go to the disk as they come."""

    def __init__(self, tokenizer: Any, view: str, max_length: int | None, before: Columns | None) -> None:
        self._tokenizer = tokenizer
        self._view = view
        self._max_length = max_length
        self._before = before
        # the ids that the tokenizer can give, special tokens included
        self._dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
        self._known = {} if before is None else {bytes(d): n for n, d in enumerate(np.asarray(before.digests))}
        self._done: dict[bytes, int] = {}
        self._lists: dict[str, list[Any]] = {name: [] for name in ARRAYS}
        for name in ("bounds", "span_bounds", "member_bounds"):
            self._lists[name].append(0)
        self._reused = self._turns = self._whole = self._pictured = self._unaligned = 0
        self._logprobs: list[NDArray[np.float32]] = []

    def write(self, folder: Path, view: View[Any], on_progress: Callable[[int], None]) -> None:
        """Write every file but the meta data."""
        with (folder / "ids").open("wb") as ids:
            for done, example in enumerate(view, 1):
                self._add(example, ids)
                on_progress(done)
        if any(not np.isnan(one).all() for one in self._logprobs):  # otherwise the file is empty
            self._lists["logprobs"] = list(np.concatenate(self._logprobs))
        for name, (dtype, width) in ARRAYS.items():
            made = np.array(self._lists[name], np.dtype(dtype)).reshape((-1, width) if width else -1)
            made.tofile(folder / name)

    def counts(self) -> dict[str, Any]:
        """What was written, for the meta data."""
        made = self._lists
        spans = np.array(made["spans"], np.int64).reshape(-1, 2)
        return {
            "dtype": self._dtype.str,
            "examples": len(made["member_bounds"]) - 1,
            "sequences": len(made["bounds"]) - 1,
            "tokens": made["bounds"][-1],
            "trained_tokens": int((spans[:, 1] - spans[:, 0]).sum()),
            "step_tokens": sum(row[3] for row in made["conversations"]),
            "too_long": {"turns": self._turns, "examples": self._whole},
            "unaligned": self._unaligned,
            "images": self._pictured,
            "reused": self._reused,
        }

    def _add(self, example: Any, ids: Any) -> None:
        """One example of the view, or for trajectories that are split one example a sequence."""
        groups = []
        conversations = list(_conversations(self._view, example))
        if any(has_images(one.messages) for one in conversations):
            self._pictured += 1
            return
        for one in conversations:
            first, count, turns, _ = self._sequences(one, ids)
            self._turns += turns
            groups.append([(first + n, one.value) for n in range(count)])
        if self._view in ("sft", "eval"):
            for member in groups[0]:
                self._example([member])
            return
        members = [member for group in groups for member in group]
        if self._view != "rl" and not all(groups):
            self._whole += 1
        elif members:
            self._example(members)

    def _example(self, members: list[tuple[int, float]]) -> None:
        self._lists["members"] += [sequence for sequence, _ in members]
        self._lists["value"] += [value for _, value in members]
        self._lists["member_bounds"].append(len(self._lists["members"]))

    def _sequences(self, one: Conversation, ids: Any) -> tuple[int, ...]:
        """The sequences of a conversation, made once however many examples it is in."""
        splits = self._view in SPLIT_VIEWS
        sampled = [[message, *logged] for message, logged in sorted(one.sampled.items())]
        digest = conversation_digest(
            one.messages, one.response, one.tools, sampled, max_length=self._max_length, split=splits
        )
        if digest in self._done:
            first, count, _, _ = self._lists["conversations"][self._done[digest]]
            return first, count, 0, 0
        first = len(self._lists["bounds"]) - 1
        known = self._known.get(digest)
        if known is not None and self._before is not None:
            found, too_long, step_tokens = self._copied(self._before, known)
            self._reused += 1
        else:
            found, too_long, step_tokens = self._rendered(one, splits)
        for tokens in found:
            ids.write(np.ascontiguousarray(tokens.ids, self._dtype).data)
            self._lists["bounds"].append(self._lists["bounds"][-1] + len(tokens.ids))
            self._lists["spans"] += tokens.spans
            self._lists["span_bounds"].append(len(self._lists["spans"]))
            if self._view == "rl":
                missing = np.full(len(tokens.ids), np.nan, np.float32)
                self._logprobs.append(missing if tokens.logprobs is None else tokens.logprobs)
        entry = (first, len(found), too_long, step_tokens)
        self._done[digest] = len(self._lists["conversations"])
        self._lists["conversations"].append(entry)
        self._lists["digests"].append(list(digest))
        return entry

    def _rendered(self, one: Conversation, splits: bool) -> tuple[list[_Tokens], int, int]:
        limit = self._max_length if splits else None
        made = render(self._tokenizer, one.messages, one.response, one.tools, max_length=limit, steps=one.steps)
        found = []
        for sequence in made.sequences:
            tokens = np.asarray(sequence.ids, self._dtype)
            if splits or self._max_length is None or len(tokens) <= self._max_length:
                found.append(_Tokens(tokens, sequence.spans, self._aligned(sequence, one)))
        return found, made.too_long, made.step_tokens

    def _aligned(self, sequence: TokenSequence, one: Conversation) -> NDArray[np.float32] | None:
        """The log-probabilities of a sequence's tokens, where what was sampled is what the tokenizer makes of its text."""
        out: NDArray[np.float32] | None = None
        for message, (start, stop) in zip(sequence.messages, sequence.spans, strict=True):
            if message not in one.sampled:
                continue
            logged, logprobs = one.sampled[message]
            end = start + len(logged)
            # the template may end the turn with more than was sampled, never with less
            if len(logged) != len(logprobs) or end > stop or sequence.ids[start:end] != list(logged):
                self._unaligned += 1
                continue
            out = np.full(len(sequence.ids), np.nan, np.float32) if out is None else out
            out[start:end] = logprobs
        return out

    def _copied(self, before: Columns, at: int) -> tuple[list[_Tokens], int, int]:
        first, count, too_long, step_tokens = map(int, before.conversations[at])
        found = []
        for n in range(first, first + count):
            logprobs = None if before.logprobs is None else before.logprobs[before.bounds[n] : before.bounds[n + 1]]
            found.append(_Tokens(before.tokens(n), before.trained(n).tolist(), logprobs))
        return found, too_long, step_tokens


def _conversations(view: str, example: Any) -> Iterable[Conversation]:
    nan = float("nan")
    tools = example.get("tools")
    if view in ("sft", "eval"):
        value = nan if example["reward"] is None else example["reward"]
        yield Conversation(example["messages"], example["response"], tools, value, example.get("steps", []))
    elif view == "kto":
        messages, response = _behind(example["prompt"], example["completion"], example["response"])
        yield Conversation(messages, response, tools, float(example["label"]))
    elif view == "rl":
        for attempt in example["attempts"]:
            logged = zip(attempt["response"], attempt["token_ids"], attempt["logprobs"], strict=True)
            sampled = {i: (ids, logprobs) for i, ids, logprobs in logged if ids and logprobs}
            yield Conversation(
                attempt["messages"], attempt["response"], attempt["tools"], attempt["reward"], (), sampled
            )
    else:
        margin = nan if example["margin"] is None else example["margin"]
        for half in ("chosen", "rejected"):
            messages, response = _behind(example["prompt"], example[half], example[f"{half}_response"])
            yield Conversation(messages, response, tools, margin)


def _behind(prompt: list[Any], answer: list[Any], response: list[int]) -> tuple[list[Any], list[int]]:
    return [*prompt, *answer], [len(prompt) + i for i in response]


def _before(folder: Path, view: str, max_length: int | None) -> Columns | None:
    """The newest columns of the same view beside these, to take over from."""
    best: Columns | None = None
    for path in sorted(folder.glob(f"v*-{view}-*")):
        try:
            found = Columns.open(path, None)
        except (ColumnsMissing, ColumnsDamaged):
            continue
        if found.meta.max_length == max_length and (best is None or found.meta.version > best.meta.version):
            best = found
    return best


def _prune(folder: Path, view: str, split: str, options: dict[str, Any]) -> None:
    """Keep the columns of the newest versions of this view and options. Where something was taken out, whatever that was."""
    found: list[tuple[int, float, Path]] = []
    for path in folder.parent.glob(f"v*-{view}-*"):
        try:
            meta = Columns.open(path, None).meta
        except (ColumnsMissing, ColumnsDamaged):
            continue
        if (meta.split, _kind_of(meta.options)) == (split, _kind_of(options)):
            found.append((meta.version, path.stat().st_mtime, path))
    for *_, path in sorted(found, reverse=True)[KEPT_VERSIONS:]:
        if path != folder:
            shutil.rmtree(path, ignore_errors=True)


def _kind_of(options: dict[str, Any]) -> dict[str, Any]:
    return {name: True if name == WITHOUT else value for name, value in options.items()}
