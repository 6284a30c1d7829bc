"""What the corpus remembers of each row beside its body, and how one more revision changes it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, TypeAlias, TypeVar

import msgspec
from treadle_schemas.canonical import canonical_json, dumps, loads
from treadle_schemas.errors import FieldError, PartMissing
from treadle_schemas.records import Grade, GradedRow
from treadle_schemas.split import Side

from treadle_corpus.hashing import LinePieces, digest, plain_sink_digest, sink_digest, twin_digest

__all__ = [
    "Decision",
    "Drop",
    "GradedRecord",
    "Key",
    "RowMeta",
    "Status",
    "absorb",
    "decode_key",
    "encode_key",
    "grade_of",
    "known_of",
    "read_body",
    "read_record",
    "stored_row",
]

T = TypeVar("T")
Key: TypeAlias = tuple[str, str]
"""(episode_id, interaction_id)."""

Decision = Literal["undecided", "selected", "rejected", "pending", "absent", "incomplete", "rights"]
"""What the policy says of a row by itself. `pending` and `absent` are both unknown: a metric that the filter needs has no value yet, or
never will. `incomplete`: a metric that the policy requires is not observed; `rights`: a use that it asks for is denied."""

Drop = Literal["", "erased", "redacted", "rights"]
"""Why a row may not be used, whatever a filter says: a part was erased, redaction left a tombstone, its side of the split is denied."""

Status = Literal[
    "member",
    "rejected",
    "unknown",
    "pending",
    "leak",
    "split_moved",
    "duplicate",
    "erased",
    "redacted",
    "rights",
    "near_duplicate",
    "incomplete",
    "expired",
]
"""Where a row stands in a version. Only members are in it."""

_SIDE_BIT: Final = {"train": 1, "heldout": 2}


class RowMeta(msgspec.Struct, array_like=True, kw_only=True):
    """All that decisions about a row need, so that none reads bodies. Digests are 16 bytes."""

    revision: int
    settled: bool
    side: Literal["train", "heldout"]
    sides: int
    """Bits of the sides that its settled revisions named: 1 train, 2 held-out."""
    reward: float | None
    group: bytes
    append_ms: int
    line: bytes
    """Digest of what a version holds of it: its line, which content_hash is made of, and the feedback, which it is not."""
    sink: bytes
    """See `hashing.sink_digest`. Empty where it follows from `line` and `rest`: most rows, and 16 bytes that nothing compresses."""
    twin: bytes
    decision: Decision = "undecided"
    status: Status = "pending"
    published: bytes = b""
    """`line` as the newest version holds it; empty where the row is not in it."""
    drop: Drop = ""
    sketch: bytes = b""
    """See `_sketch`; empty until a policy with near-duplicates first decides about the row."""
    source: bytes = b""
    """Digest of the bulk of the row: a revision that changes only the grade does not store it again."""
    bulk: int = -1
    """Where the bulk lies, see `_bodies`."""
    rest: bytes = b""
    """What is not bulk: the JSON of grade, split, provenance and the like, as it came."""


_REST: Final = {
    name: b'"%b":' % name.encode() for name in ("grade", "split", "split_group", "provenance", "rights", "erased")
}
"""Fields of a graded row that a new revision changes and that are small. All others, known here or not, are its bulk."""


@dataclass(frozen=True)
class GradedRecord:
    """A revision as it came from `.graded`: decoded, and its bytes."""

    row: GradedRow
    body: bytes

    @cached_property
    def pieces(self) -> LinePieces:
        """Its line, parts not put back."""
        return LinePieces.of(self.row)

    @cached_property
    def bulk_and_rest(self) -> tuple[bytes, bytes]:
        """The body as two JSON objects."""
        try:
            fields = _FIELDS.decode(self.body)
        except msgspec.DecodeError:
            # escaped lone surrogates, which JSON allows
            values = loads(self.body)
            changing = {name: values.pop(name) for name in _REST if name in values}
            return dumps(values), dumps(changing)
        rest = b",".join([_REST[name] + bytes(value) for name, value in fields.items() if name in _REST])
        bulk = b",".join(
            [msgspec.json.encode(name) + b":" + bytes(value) for name, value in fields.items() if name not in _REST]
        )
        return b"{%b}" % bulk, b"{%b}" % rest

    @property
    def key(self) -> Key:
        """(episode_id, interaction_id)."""
        return (self.row.episode_id, self.row.interaction_id)


def read_record(value: bytes) -> GradedRecord:
    """Decode the value of a `.graded` record. Raises FieldError naming the field."""
    return GradedRecord(read_body(value), value)


def read_body(value: bytes) -> GradedRow:
    """The graded row in a stored body. Raises FieldError."""
    try:
        row = msgspec.convert(loads(value), GradedRow)
    except msgspec.ValidationError as err:
        problem, _, path = str(err).partition(" - at `")
        raise FieldError(path.rstrip("`") or "$", problem) from None
    if not isinstance(row.interaction.get("messages"), list):
        raise FieldError("$.interaction.messages", "is missing or no list")
    if not all(isinstance(m, dict) for m in row.interaction["messages"]):
        raise FieldError("$.interaction.messages", "holds something that is no object")
    return row


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def stored_row(bulk: bytes, rest: bytes) -> GradedRow:
    """The graded row of a stored bulk and its rest. Raises FieldError."""
    return read_body(bulk[:-1] + (b"," if len(bulk) > 2 else b"") + rest[1:])


def grade_of(rest: bytes) -> tuple[Grade, Side]:
    """Grade and side in a stored rest, without the bulk. Raises FieldError."""
    found = _rest(rest, _GRADED)
    return found.grade, found.split


class _Graded(msgspec.Struct):
    grade: Grade
    split: Side


class _Rewarded(msgspec.Struct):
    reward: float | None = None


class _Revised(msgspec.Struct):
    revision: int


class _Known(msgspec.Struct):
    grade: _Rewarded
    provenance: _Revised


_GRADED: Final = msgspec.json.Decoder(_Graded)
_KNOWN: Final = msgspec.json.Decoder(_Known)


def _rest(rest: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """What a decoder finds in a stored rest. Raises FieldError."""
    try:
        return decoder.decode(rest)
    except msgspec.DecodeError:  # wrong, or with escaped lone surrogates, which JSON allows
        try:
            return msgspec.convert(loads(rest), decoder.type)
        except msgspec.ValidationError as err:
            raise FieldError("$", str(err)) from None


def absorb(
    before: RowMeta | None, record: GradedRecord, whole: GradedRow | PartMissing | FieldError | None = None
) -> RowMeta | None:
    """The row after one more revision, or None where the revision is old news. Raises FieldError where it contradicts.

    `whole` is the row with its parts put back, or why that cannot be done: nothing is made of it while the row is not settled.
    A sink ignores a revision not above its own with the same content; with other content it is an error of the writer. Where the bulk
    is new, `bulk` of the result is -1 until it is stored.
    """
    row = record.row
    line = digest(record.pieces.line)
    sink = sink_digest(row, line)
    revision = row.provenance.revision
    if before is not None and revision <= before.revision:
        if sink == (before.sink or _plain_sink(before)):
            return None
        raise FieldError(
            "$.provenance.revision",
            f"{revision} is not above revision {before.revision} that the corpus holds, yet its content differs",
        )
    if isinstance(whole, PartMissing | FieldError):
        if row.grade.settled:
            raise FieldError("$.interaction", f"cannot be put together: {whole}")
        whole = row
    content = row if whole is None else whole
    pieces = record.pieces if content is row else LinePieces.of(content)
    bulk, rest = record.bulk_and_rest
    source = digest(bulk)
    same = before is not None and before.source == source
    sides = before.sides if before else 0
    # parts may be erased while their names stay
    twin = before.twin if before and same and content is row else twin_digest(content)
    return RowMeta(
        revision=revision,
        settled=row.grade.settled,
        side=row.split,
        sides=sides | _SIDE_BIT[row.split] if row.grade.settled else sides,
        reward=row.grade.reward,
        group=digest(row.split_group.encode(errors="surrogatepass")),
        append_ms=row.provenance.append_ms,
        line=_said(row, line if content is row else digest(pieces.line)),
        sink=b"" if content is row and _is_plain(row) else sink,
        twin=twin,
        status=before.status if before else "pending",
        published=before.published if before else b"",
        drop=_drop(row, content),
        source=source,
        bulk=before.bulk if before and same else -1,
        rest=rest,
        sketch=before.sketch if before is not None and before.twin == twin else b"",
    )


def _is_plain(row: GradedRow) -> bool:
    """Whether the sink digest of a row is made of its line and grade alone."""
    interaction = row.interaction
    return not (
        row.feedback or row.erased or row.rights is not None or "transcript" in interaction or "claims" in interaction
    )


def _plain_sink(meta: RowMeta) -> bytes:
    grade, _ = grade_of(meta.rest)
    return plain_sink_digest(grade, meta.line)


def known_of(rest: bytes) -> tuple[int, float | None]:
    """Revision and reward in a stored rest: where it changed, a commit need not say them again. Raises FieldError."""
    found = _rest(rest, _KNOWN)
    return found.provenance.revision, found.grade.reward


def _said(row: GradedRow, line: bytes) -> bytes:
    """A late demonstration or preference changes what views make of the row, so there is a version with it."""
    return digest(line + canonical_json(msgspec.to_builtins(row.feedback))) if row.feedback else line


def _drop(row: GradedRow, content: GradedRow) -> Drop:
    if row.erased or content.erased:
        return "erased"
    if (row.interaction.get("redaction") or {}).get("error") is not None:
        return "redacted"
    if row.rights is not None and (row.rights.train if row.split == "train" else row.rights.eval) == "deny":
        return "rights"
    return ""


def encode_key(key: Key) -> bytes:
    """The stored form of a key, which is also the `row_id` header on `.graded`."""
    return canonical_json(list(key))


def decode_key(data: bytes) -> Key:
    """The key in its stored form."""
    episode_id, interaction_id = loads(data)
    return (episode_id, interaction_id)
