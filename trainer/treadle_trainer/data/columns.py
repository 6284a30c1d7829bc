"""Token columns: the tokens of a view of a corpus version, written once beside the corpus and read through memory maps.

    PATH/tokens/TOKENIZER-TEMPLATE/KEY/
        meta.json       what it is made of, counts, sizes and checksums
        ids             the tokens of all sequences, one behind the other (uint16, or uint32 for a large vocabulary)
        bounds          int64[n + 1]: sequence i is ids[bounds[i]:bounds[i + 1]]
        spans           uint32[m, 2]: start and stop, within their sequence, of the tokens to train on
        span_bounds     int64[n + 1]: the spans of sequence i
        members         int32: the sequences of all examples, one behind the other
        member_bounds   int64[k + 1]: example j is members[member_bounds[j]:member_bounds[j + 1]]
        logprobs        float32[tokens] of the sampling, where the view is rl and some were logged; NaN for tokens without
        value           float32[members]: reward (sft, rl, eval), label (kto) or margin (dpo, reward); NaN for none
        digests         bytes[c, 16]: of each conversation, from which the next version takes over what did not change
        conversations   int64[c, 4]: first sequence, sequences, turns that fit into none, tokens of its steps apart

KEY is a hash of the version's number and content, the view and its options, and the length. All of it is derived: it can be made again,
and deleting PATH/tokens erases every trace of the texts. A folder appears whole, by a rename, and never changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from treadle_schemas.canonical import canonical_json

from treadle_trainer._files import crc32_file, fsync_file, fsync_folder
from treadle_trainer.data.order import BLOCK, POOL, epoch_order
from treadle_trainer.data.rendering import TokenizerId
from treadle_trainer.errors import ColumnsDamaged, ColumnsMissing, TokenizerMismatch

__all__ = ["ARRAYS", "FOLDER", "Columns", "ColumnsMeta", "conversation_digest", "forget", "publish"]

FOLDER: Final = "tokens"
FORMAT: Final = 2
META: Final = "meta.json"
DIGEST_BYTES: Final = 16

ARRAYS: Final[Mapping[str, tuple[str, int]]] = {
    "bounds": ("<i8", 0),
    "spans": ("<u4", 2),
    "span_bounds": ("<i8", 0),
    "members": ("<i4", 0),
    "member_bounds": ("<i8", 0),
    "logprobs": ("<f4", 0),
    "value": ("<f4", 0),
    "digests": ("|u1", DIGEST_BYTES),
    "conversations": ("<i8", 4),
}
"""Name, type, and width of a row (0: one number) of each file but `ids`."""


class ColumnsMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What columns are made of. `files` maps a name to [bytes, CRC-32]."""

    format: int
    tokenizer: str
    template: str
    version: int
    content_hash: str
    view: str
    options: dict[str, Any]
    split: str
    max_length: int | None
    dtype: str
    examples: int
    sequences: int
    tokens: int
    trained_tokens: int
    step_tokens: int
    """What the logged steps would cost, each with its history."""
    too_long: dict[str, int]
    """What does not fit into `max_length`: `turns` of trajectories that are split, whole `examples` of those that are not."""
    unaligned: int
    """Logged turns whose token ids are not those that the tokenizer gives: their log-probabilities belong to no token here."""
    images: int
    """Examples that hold images: their tokens depend on the image processor. They have columns of their own, see `pictures`."""
    reused: int
    """Conversations whose tokens came from the columns of another version."""
    rows: int
    used: int
    dropped: dict[str, int]
    left_out: dict[str, int]
    made: int
    """Examples that the view made. A long trajectory is several examples here, and what is too long or holds images is none."""
    files: dict[str, tuple[int, int]]

    @property
    def identity(self) -> TokenizerId:
        """Whose tokens they are."""
        return TokenizerId(self.tokenizer, self.template)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    @property
    def ratio(self) -> float:
        """Tokens of the steps apart for each token in the columns: what merging the steps of an episode saves."""
        return self.step_tokens / self.tokens if self.tokens else 1.0


class Columns:
    """Columns, open to read. `len()` is the number of examples."""

    def __init__(self, path: Path, meta: ColumnsMeta, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Use `open`."""
        self.path = path
        self.meta = meta
        self.ids: NDArray[Any] = arrays["ids"]
        self.bounds: NDArray[np.int64] = arrays["bounds"]
        self.spans: NDArray[np.uint32] = arrays["spans"]
        self.span_bounds: NDArray[np.int64] = arrays["span_bounds"]
        self.members: NDArray[np.int32] = arrays["members"]
        self.member_bounds: NDArray[np.int64] = arrays["member_bounds"]
        self.logprobs: NDArray[np.float32] | None = arrays["logprobs"] if len(arrays["logprobs"]) else None
        self.value: NDArray[np.float32] = arrays["value"]
        self.digests: NDArray[np.uint8] = arrays["digests"]
        self.conversations: NDArray[np.int64] = arrays["conversations"]

    @classmethod
    def open(cls, path: Path, identity: TokenizerId | None) -> Columns:
        """Open the folder of one set of columns, for the tokenizer that will read them; None: to look at them.

        Raises ColumnsMissing, ColumnsDamaged (a file is not as long as it was written), TokenizerMismatch.
        """
        try:
            raw = (path / META).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ColumnsMissing(f"{path}: no token columns are there; make them again from the corpus") from None
        try:
            meta = msgspec.json.decode(raw, type=ColumnsMeta)
        except msgspec.DecodeError as err:
            raise ColumnsDamaged(path, f"{META} cannot be read ({err})") from err
        if meta.format != FORMAT:
            raise ColumnsDamaged(path, f"has format {meta.format}, and this version reads {FORMAT}")
        if identity is not None and identity != meta.identity:
            raise TokenizerMismatch(path, expected=str(identity), found=str(meta.identity))
        arrays = {"ids": _mapped(path, "ids", meta, meta.dtype, 0)}
        for name, (dtype, width) in ARRAYS.items():
            arrays[name] = _mapped(path, name, meta, dtype, width)
        return cls(path, meta, arrays)

    def __len__(self) -> int:
        return len(self.member_bounds) - 1

    @property
    def label(self) -> str:
        """What a reader's position says that it reads."""
        return f"{self.meta.identity}/{self.path.name}"

    def order(self, seed: int, epoch: int, *, block: int = BLOCK, pool: int = POOL) -> NDArray[np.int64]:
        """The examples of an epoch in the order in which they are read."""
        return epoch_order(len(self), seed, epoch, block=block, pool=pool)

    def drawn(self, epoch: int) -> int:
        """How many examples an epoch has."""
        return len(self)

    @property
    def source_count(self) -> int:
        """Sources of a mixture, else 1."""
        return 1

    def source_of(self, examples: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Of which source of a mixture each example is; None where there is one source."""
        return None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence."""
        return np.diff(self.bounds)

    def tokens(self, sequence: int) -> NDArray[Any]:
        """The token ids of a sequence, read-only."""
        return self.ids[self.bounds[sequence] : self.bounds[sequence + 1]]

    def trained(self, sequence: int) -> NDArray[np.uint32]:
        """The spans (start, stop) of a sequence that are trained on."""
        return self.spans[self.span_bounds[sequence] : self.span_bounds[sequence + 1]]

    def verify(self) -> None:
        """Read every file and compare its checksum. Raises ColumnsDamaged."""
        for name, (_, checksum) in self.meta.files.items():
            if crc32_file(self.path / name) != checksum:
                raise ColumnsDamaged(self.path, f"{name} has other bytes than were written")


def conversation_digest(
    messages: Any, response: Any, tools: Any, sampled: Any, *, max_length: int | None, split: bool
) -> bytes:
    """Identity of what a conversation becomes under one tokenizer: 16 bytes. `sampled` are its logged ids and log-probabilities."""
    said = canonical_json([FORMAT, messages, response, tools, sampled, max_length, split])
    return hashlib.sha256(said).digest()[:DIGEST_BYTES]


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a fresh folder and give it its name, after all is on the disk. If another process was first, its work is kept.

    Raises OSError (a full disk leaves nothing behind).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        write(fresh)
        for file in fresh.iterdir():
            fsync_file(file)
        fsync_folder(fresh)
        try:
            fresh.rename(folder)
        except OSError:
            if not (folder / META).exists():
                raise
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def forget(corpus: Path) -> None:
    """Remove all token columns of a corpus. Readers that have them open go on; whoever needs them makes them again."""
    shutil.rmtree(corpus / FOLDER, ignore_errors=True)


def checksums(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and CRC-32 of each file in a folder."""
    return {file.name: (file.stat().st_size, crc32_file(file)) for file in sorted(folder.iterdir())}


def _mapped(path: Path, name: str, meta: ColumnsMeta, dtype: str, width: int) -> NDArray[Any]:
    file, kind = path / name, np.dtype(dtype)
    size = meta.files.get(name, (-1, 0))[0]
    found = file.stat().st_size if file.exists() else -1
    if found != size or size % (kind.itemsize * max(width, 1)):
        raise ColumnsDamaged(path, f"{name} has {found} bytes, and was written with {size}")
    shape = (size // kind.itemsize,) if not width else (size // kind.itemsize // width, width)
    if not size:
        return np.empty(shape, kind)
    # a plain array over the map: slices of a memmap object cost ten times as much
    return np.asarray(np.memmap(file, kind, "r", shape=shape))
