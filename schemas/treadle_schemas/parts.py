"""Long contexts, stored once: an interaction names the parts of its episode instead of repeating them.

An agent of fifty steps sends its growing history fifty times. `split` takes it out of the interaction: the messages become a chain of
hashes, of which the interaction keeps the last one (`transcript`), and other long values are named at their JSON pointer (`claims`). What
was taken out travels once, as records of type `codec.PART` under the same key before the interaction:

    {"episode_id", "part": h_k, "prev": h_j | null, "count": k, "messages": [m_j+1 .. m_k], "claims"?: {"/messages/0/content": HASH}}
    {"episode_id", "part": HASH, "value": ANY}
    {"episode_id", "part": HASH, "erased": REASON}

with HASH = the first 32 hex digits of content_hash(value), and

    h_0 = "",  h_k = first 32 hex digits of sha256(h_k-1 + content_hash(m_k))

for a message as it stands in its link. Where strings were taken out of m_k, content_hash([m_k, claims of m_k]) stands in for its hash, with
pointers that begin at the message, so that a link can be checked by itself. So the hashes depend on the messages alone, not on how the
chain was cut into links, and an interaction has the same bytes whoever records it, whatever was sent before.

Everything here is pure but `SentParts`, the memory of a recorder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from treadle_schemas._pointers import escaped, place, put
from treadle_schemas._sent import SentParts, Tail
from treadle_schemas.canonical import canonical_json, content_hash, dumps
from treadle_schemas.errors import FieldError, PartErased, PartMissing, shown
from treadle_schemas.events import MAX_MESSAGES
from treadle_schemas.ids import check_id

__all__ = [
    "HASH_DIGITS",
    "LINK_BYTES",
    "LONG_BYTES",
    "SHORT_BYTES",
    "Part",
    "PartRecord",
    "SentParts",
    "check_claims",
    "claim_hash",
    "link_hash",
    "messages_of",
    "names_parts",
    "part_value",
    "read_part",
    "resolve",
    "split",
]

SHORT_BYTES: Final = 1024
"""Messages, and tools, of a named episode that are longer than this become parts: they are likely to come again."""
LONG_BYTES: Final = 64 * 1024
"""Messages and strings that are longer than this become parts in any case."""
LINK_BYTES: Final = 512 * 1024
"""A link is cut where its messages grow longer than this: far below the largest event."""
HASH_DIGITS: Final = 32
"""128 bits, as hex: no accidental collision among 10**12 parts of one episode."""

Value = dict[str, Any]

_UNTOUCHED: Final = frozenset(
    {
        "interaction_id",
        "episode_id",
        "agent",
        "slot",
        "started_at",
        "ended_at",
        "status",
        "references",
        "rights",
        "redaction",
        "messages",
    }
)
"""Fields of an interaction where null would say something else."""


class PartRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The value of a part record: a link of a transcript (messages, prev, count), a value, or the mark of an erased part.

    `part` is its hash. After a link `count` messages are known, of which it brings the last ones; `claims` maps JSON pointers of this value
    (`/messages/0/content`) to value parts.
    """

    episode_id: str
    part: str
    prev: str | None = None
    count: int | None = None
    messages: list[dict[str, Any]] | None = None
    claims: dict[str, str] | None = None
    value: Any = None
    erased: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One part, ready to keep: a message with the part before it (`prev`, None for the first), a value, or the mark of an erased one."""

    kind: Literal["message", "value", "erased"]
    hash: str
    body: Any
    """The message as it stands in its link, the value, or the reason of the erasure."""
    prev: str | None = None
    claims: dict[str, str] | None = None
    """Of a message: the value parts that belong at pointers of this message."""

    @property
    def needs(self) -> list[str]:
        """The parts that must be there to read this one."""
        before = [] if self.prev is None else [self.prev]
        return before + list((self.claims or {}).values())


def link_hash(prev: str | None, message: Any, claims: dict[str, str] | None = None) -> str:
    """h_k of a message after `prev` (h_k-1, None for the first)."""
    return _chain_hash(prev or "", content_hash([message, claims] if claims else message))


def _chain_hash(prev: str, own: str) -> str:
    return hashlib.sha256((prev + own).encode()).hexdigest()[:HASH_DIGITS]


def claim_hash(value: Any) -> str:
    """The name of a value part."""
    return content_hash(value)[:HASH_DIGITS]


def names_parts(interaction: Value) -> list[str]:
    """The parts that an interaction names: the head of its transcript, then its claims."""
    transcript = interaction.get("transcript")
    return ([] if transcript is None else [transcript["head"]]) + list((interaction.get("claims") or {}).values())


def split(value: Value, sent: SentParts) -> tuple[Value, list[Value]]:
    """An interaction without what its episode stores once, and the values of the part records that must go out before it.

    `value` is a checked interaction as JSON values; it is not changed, and returned itself where there is nothing to take out. Which bytes
    the interaction gets does not depend on `sent`; which parts come with it does. They count as sent from here on: call `sent.forget` if
    they were refused. Raises FieldError for what JSON cannot carry.
    """
    messages = value.get("messages")
    if not isinstance(messages, list) or "transcript" in value or "claims" in value:
        return value, []
    named = value.get("episode_id") is not None
    if not named and len(dumps(value)) <= LONG_BYTES:
        return value, []
    episode_id: str = value["episode_id"] if named else value["interaction_id"]
    try:
        return _split(value, messages, episode_id, named, sent)
    except FieldError:
        dumps(value)  # names the field by its place in the whole
        raise


def _split(
    value: Value, messages: list[Any], episode_id: str, named: bool, sent: SentParts
) -> tuple[Value, list[Value]]:
    tail, mark = sent.tail(episode_id)
    known = _Known.of(messages, tail)
    new = messages[known.count :]
    encoded = [canonical_json(m) for m in new]
    size = known.size + sum(map(len, encoded))
    out = dict(value)
    claims: dict[str, str] = {}
    values: dict[str, Any] = {}
    tools = value.get("tools")
    if named and tools is not None and len(canonical_json(tools)) > SHORT_BYTES:
        out["tools"] = _claimed(tools, "/tools", claims, values)
    others = {name: item for name, item in out.items() if name not in _UNTOUCHED}
    if len(dumps(others)) > LONG_BYTES:
        out |= {name: _below(item, "", name, claims, values) for name, item in others.items()}
    links: list[_Link] = []
    tail = None
    if messages and size > (SHORT_BYTES if named else LONG_BYTES):
        links = _chained(new, encoded, known.head, values)
        head = links[-1].hash if links else known.head
        assert head is not None, "a transcript that is not empty has a head"
        tail = Tail(len(messages), head, size, known.digest_with(new))
        out["messages"] = []
        out["transcript"] = {"head": head, "count": len(messages)}
    if claims:
        out["claims"] = claims
    if tail is None and not claims:
        return value, []
    fresh = sent.missing(episode_id, [*values, *(link.hash for link in links)])
    parts: list[Value] = [
        {"episode_id": episode_id, "part": name, "value": item} for name, item in values.items() if name in fresh
    ]
    # a part is sent after all that it needs, so everything up to the last known one is there
    start = max((n for n, link in enumerate(links, 1) if link.hash not in fresh), default=0)
    parts += _cut(episode_id, links, start, known)
    sent.add(episode_id, fresh, tail, mark)
    return out, parts


@dataclass(slots=True)
class _Known:
    """The messages that a transcript begins with and that were sent before."""

    count: int
    head: str | None
    size: int
    digest: Any
    """SHA-256 over the members of the JSON list of these messages: where it is equal, so is the chain."""

    @classmethod
    def of(cls, messages: list[Any], tail: Tail | None) -> _Known:
        """Those up to `tail`, where the messages begin with the same; else none."""
        if tail is not None and tail.count <= len(messages):
            digest = hashlib.sha256(dumps(messages[: tail.count])[1:-1])
            if digest.digest() == tail.digest:
                return cls(tail.count, tail.head, tail.size, digest)
        return cls(0, None, 0, hashlib.sha256())

    def digest_with(self, new: list[Any]) -> bytes:
        """The digest of these messages and `new` ones."""
        whole = self.digest.copy()
        if new:
            whole.update((b"," if self.count else b"") + dumps(new)[1:-1])
        return bytes(whole.digest())


@dataclass(slots=True)
class _Link:
    message: Any
    hash: str
    claims: dict[str, str] | None
    size: int


def _chained(messages: list[Any], encoded: list[bytes], head: str | None, values: dict[str, Any]) -> list[_Link]:
    links: list[_Link] = []
    prev = head or ""
    for message, data in zip(messages, encoded, strict=True):
        claims: dict[str, str] = {}
        stub = message
        if len(data) > LONG_BYTES:
            stub = _without_long(message, "", claims, values)
            data = canonical_json([stub, claims]) if claims else data
        prev = _chain_hash(prev, hashlib.sha256(data).hexdigest())
        links.append(_Link(stub, prev, claims or None, len(data)))
    return links


def _cut(episode_id: str, links: list[_Link], start: int, known: _Known) -> Iterator[Value]:
    while start < len(links):
        end, size = start, 0
        while end < len(links) and (end == start or size + links[end].size <= LINK_BYTES):
            size += links[end].size
            end += 1
        part: Value = {
            "episode_id": episode_id,
            "part": links[end - 1].hash,
            "prev": links[start - 1].hash if start else known.head,
            "count": known.count + end,
            "messages": [link.message for link in links[start:end]],
        }
        claims = {
            f"/messages/{n}{pointer}": name
            for n, link in enumerate(links[start:end])
            for pointer, name in (link.claims or {}).items()
        }
        if claims:
            part["claims"] = claims
        yield part
        start = end


def _without_long(item: Any, where: str, claims: dict[str, str], values: dict[str, Any]) -> Any:
    """`item` with null for each long string in it. Containers on the way to one are copied, everything else is shared."""
    match item:
        case str():
            if len(item) * 4 <= LONG_BYTES or len(item.encode(errors="surrogatepass")) <= LONG_BYTES:
                return item
            return _claimed(item, where, claims, values)
        case dict():
            changed = {k: new for k, v in item.items() if (new := _below(v, where, k, claims, values)) is not v}
            return {**item, **changed} if changed else item
        case list() | tuple():
            inner = [_below(v, where, n, claims, values) for n, v in enumerate(item)]
            return item if all(a is b for a, b in zip(inner, item, strict=True)) else inner
        case _:
            return item


def _below(item: Any, where: str, key: str | int, claims: dict[str, str], values: dict[str, Any]) -> Any:
    if not isinstance(item, str | dict | list | tuple):
        return item
    try:
        pointer = f"{where}/{escaped(str(key))}"
        pointer.encode()
    except UnicodeEncodeError:
        return item  # a pointer through a lone surrogate is more than other readers can be asked to follow
    return _without_long(item, pointer, claims, values)


def _claimed(item: Any, where: str, claims: dict[str, str], values: dict[str, Any]) -> Any:
    name = claim_hash(item)
    claims[where] = name
    values[name] = item
    return None


def read_part(value: Value) -> tuple[str, list[Part]]:
    """The episode of a part record, and its parts: one for each message of a link. Hashes are verified.

    Raises FieldError naming the field, also where a hash is not that of the content.
    """
    episode_id, name = value.get("episode_id"), _checked_hash(value.get("part"), "$.part")
    if not isinstance(episode_id, str):
        raise FieldError("$.episode_id", "is missing or not a string")
    check_id(episode_id, "$.episode_id")
    kinds = [kind for kind in ("messages", "value", "erased") if kind in value]
    match kinds:
        case ["messages"]:
            return episode_id, _read_link(value, name)
        case ["value"]:
            found = claim_hash(value["value"])
            if found != name:
                raise FieldError("$.part", f"is {name}, but the value has the hash {found}")
            return episode_id, [Part("value", name, value["value"])]
        case ["erased"]:
            if not isinstance(value["erased"], str):
                raise FieldError("$.erased", "is not a string")
            return episode_id, [Part("erased", name, value["erased"])]
    raise FieldError("$", "is no part: it needs one of messages, value and erased")


def _read_link(value: Value, name: str) -> list[Part]:
    messages, prev, count = value["messages"], value.get("prev"), value.get("count")
    if not isinstance(messages, list) or not messages:
        raise FieldError("$.messages", "is empty or no list")
    if prev is not None:
        _checked_hash(prev, "$.prev")
    if not isinstance(count, int) or isinstance(count, bool) or not len(messages) <= count <= MAX_MESSAGES:
        raise FieldError("$.count", f"{shown(count)} is not from {len(messages)} to {MAX_MESSAGES}")
    if (prev is None) != (count == len(messages)):
        raise FieldError("$.count", f"is {count} of a link of {len(messages)} messages with prev {prev}")
    claims: dict[int, dict[str, str]] = {}
    for pointer, claim in _checked_claims(value).items():
        n, rest = _into_message(pointer, messages)
        claims.setdefault(n, {})[rest] = claim
    parts: list[Part] = []
    for n, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise FieldError(f"$.messages[{n}].role", "is missing or not a string")
        prev, before = link_hash(prev, message, claims.get(n)), prev
        parts.append(Part("message", prev, message, before, claims.get(n)))
    if prev != name:
        raise FieldError("$.part", f"is {name}, but the messages have the chain hash {prev}")
    return parts


def check_claims(interaction: Value) -> None:
    """Does each claim of an interaction name a place that holds null? Raises FieldError."""
    transcript = interaction.get("transcript")
    if transcript is not None:
        _checked_hash(transcript["head"], "$.transcript.head")
    for pointer in _checked_claims(interaction):
        place(interaction, pointer)


def _checked_claims(value: Value) -> dict[str, str]:
    claims = value.get("claims")
    if claims is None:
        return {}
    if not isinstance(claims, dict):
        raise FieldError("$.claims", "is no object")
    for pointer, claim in claims.items():
        _checked_hash(claim, f"$.claims.{shown(pointer)}")
        try:
            pointer.encode()
        except UnicodeEncodeError:
            raise FieldError("$.claims", f"{shown(pointer)} holds a lone surrogate") from None
    return claims


def _checked_hash(value: Any, where: str) -> str:
    if isinstance(value, str) and len(value) == HASH_DIGITS and not value.strip("0123456789abcdef"):
        return value
    raise FieldError(where, f"{shown(value)} is not {HASH_DIGITS} hex digits in lower case")


def _into_message(pointer: str, messages: list[Any]) -> tuple[int, str]:
    _, _, rest = pointer.partition("/messages/")
    number, slash, inner = rest.partition("/")
    if not pointer.startswith("/messages/") or not slash or not number.isdecimal() or int(number) >= len(messages):
        raise FieldError("$.claims", f"{shown(pointer)} does not point into a message of the link")
    place(messages[int(number)], slash + inner)
    return int(number), slash + inner


def part_value(episode_id: str, parts: list[Part], count: int = 0) -> Value:
    """The value of a record of one value, one erased part, or of consecutive messages of a chain, the last one being number `count`."""
    first, last = parts[0], parts[-1]
    head: Value = {"episode_id": episode_id, "part": last.hash}
    if first.kind != "message":
        return {**head, first.kind: first.body}
    link: Value = {**head, "prev": first.prev, "count": count, "messages": [p.body for p in parts]}
    claims = {
        f"/messages/{n}{pointer}": name for n, p in enumerate(parts) for pointer, name in (p.claims or {}).items()
    }
    return {**link, "claims": claims} if claims else link


def resolve(value: Value, get: Callable[[str], Part | None]) -> Value:
    """The interaction as it was before `split`: the same JSON bytes. `get` gives a part of its episode, None where it is not there.

    Messages are shared with what `get` gives and with other interactions resolved from the same parts: read them, do not change them.
    Raises PartMissing, PartErased, and FieldError for a claim that names no place.
    """
    transcript, claims = value.get("transcript"), value.get("claims")
    if transcript is None and claims is None:
        return value
    out: Value = {k: v for k, v in value.items() if k not in ("transcript", "claims")}
    for pointer, name in (claims or {}).items():
        out = put(out, pointer, _value(name, get))
    if transcript is not None:
        chain = messages_of(transcript["head"], get)
        if len(chain) != transcript["count"]:
            raise FieldError("$.transcript.count", f"is {transcript['count']}, but the chain has {len(chain)} messages")
        out["messages"] = chain + out["messages"]
    return out


def messages_of(head: str, get: Callable[[str], Part | None]) -> list[Any]:
    """The messages of a chain up to `head`. Raises PartMissing, PartErased, FieldError."""
    found: list[Any] = []
    at: str | None = head
    while at is not None:
        part = _found(at, "message", get)
        message = part.body
        for pointer, name in (part.claims or {}).items():
            message = put(message, pointer, _value(name, get))
        found.append(message)
        at = part.prev
    found.reverse()
    return found


def _value(name: str, get: Callable[[str], Part | None]) -> Any:
    return _found(name, "value", get).body


def _found(name: str, kind: str, get: Callable[[str], Part | None]) -> Part:
    part = get(name)
    if part is None:
        raise PartMissing(name)
    if part.kind == "erased":
        raise PartErased(name, str(part.body))
    if part.kind != kind:
        raise FieldError("$", f"part {name} is a {part.kind}, but a {kind} belongs there")
    return part
