"""The parts of a partition's episodes within one batch: what is known of them, what becomes whole, what goes out on `.graded`.

A link of several messages is kept as one part a message, so it does not matter how producers cut their chains. A part is WHOLE when its
content and all that it needs are there, TAINTED when something that it needs was erased, ERASED when it was erased itself: that wins over
content, whichever came first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from treadle_schemas.canonical import content_hash, dumps, loads
from treadle_schemas.errors import KeyErased
from treadle_schemas.parts import HASH_DIGITS, LINK_BYTES, Part, messages_of, part_value
from treadle_schemas.sealing import is_sealed, key_id_of

from treadle_streams.join.emissions import Emission
from treadle_streams.join.sealed import open_state, seal_state
from treadle_streams.join.state import (
    ERASED,
    TAINTED,
    WAITING,
    WHOLE,
    Node,
    content_key,
    decode_node,
    dependents_prefix,
    encode_node,
    is_part_key,
    part_key,
)

__all__ = ["Availability", "Contents", "PartReader"]

Availability = Literal["whole", "missing", "erased"]

_CONTENT = b"C"
_HASH_BYTES = HASH_DIGITS // 2


class PartReader(Protocol):
    """What is read of the partition's state."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records of keys, None where there is none."""
        ...

    def parked(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(index key, the key behind it) of all index keys under a prefix."""
        ...


@dataclass(slots=True)
class _Entry:
    node: Node | None
    before: bytes | None


class Contents:
    """The working set of one batch. `puts` takes new contents at once, and what is known of parts with `write`."""

    def __init__(self, reader: PartReader, puts: dict[bytes, bytes]) -> None:
        self._reader = reader
        self._puts = puts
        self._entries: dict[bytes, _Entry] = {}
        self._fresh: dict[bytes, list[bytes]] = {}
        """Parts of this batch by what they need, which the index does not know yet."""
        self._queue: deque[bytes] = deque()
        self.emissions: list[Emission] = []
        """Erasures of this batch, for `.graded`."""

    def add(self, episode_id: str, parts: Iterable[Part], key_id: str = "") -> bool:
        """Take in the parts of one record, which `key_id` sealed. False: nothing of it was new. Raises KeyErased."""
        changed = False
        for part in parts:
            key = part_key(episode_id, part.hash)
            entry = self._entry(key)
            known = entry.node
            if part.kind == "erased":
                if known is not None and known.state == ERASED:
                    continue
                entry.node = Node(ERASED, "erased", emitted=True)
                self.emissions.append(_emission(episode_id, [part], 0))
            elif known is not None:
                continue
            else:
                prev = None if part.prev is None else bytes.fromhex(part.prev)
                said = part.kind == "message" and part.body["role"] == "assistant"
                entry.node = Node(WAITING, part.kind, prev, part.claims or {}, assistant=said)
                for need in entry.node.needs(key):
                    self._fresh.setdefault(need, []).append(key)
            where, body = content_key(key), dumps(part.body)
            self._puts[where] = _CONTENT + (seal_state(body, key_id, where) if key_id else body)
            self._queue.append(key)
            changed = True
        return changed

    def ended(self, episode_id: str, key: bytes, known: bytes) -> None:
        """A part of an erased episode ended: whoever has it from `.graded` is told."""
        if decode_node(known).emitted:
            self._entries.pop(key, None)
            self.emissions.append(_emission(episode_id, [Part("erased", key[-_HASH_BYTES:].hex(), "erased")], 0))

    def spread(self) -> list[bytes]:
        """Find what the new parts make whole or taint. Returns the keys of rows that need a part which changed."""
        rows: dict[bytes, None] = {}
        while self._queue:
            key = self._queue.popleft()
            node = self._entry(key).node
            assert node is not None
            if node.state in (WAITING, WHOLE, TAINTED):
                before = node.state
                self._judge(key, node)
                if node.state == before:
                    continue
            for dependent in [*self._fresh.get(key, ()), *(k for _, k in self._reader.parked(dependents_prefix(key)))]:
                if is_part_key(dependent):
                    self._queue.append(dependent)
                else:
                    rows[dependent] = None
        return list(rows)

    def write(self) -> None:
        """Put what is known of the parts that changed."""
        for key, entry in self._entries.items():
            if entry.node is not None:
                value = encode_node(entry.node)
                if value != entry.before:
                    self._puts[key] = value

    def availability(self, episode_id: str, names: Sequence[str], messages: int) -> Availability:
        """Is all there that a row names? With `messages` the first name is the head of a transcript that has so many."""
        nodes = [self._entry(part_key(episode_id, name)).node for name in names]
        if any(node is not None and node.state in (TAINTED, ERASED) for node in nodes):
            return "erased"
        for n, node in enumerate(nodes):
            count = messages if n == 0 else 0  # a value counts no messages
            if node is None or node.state != WHOLE or node.count != count:
                return "missing"
        return "whole"

    def group(self, episode_id: str, head: str) -> str:
        """The split group of the whole transcript up to `head`."""
        node = self._entry(part_key(episode_id, head)).node
        if node is not None and node.group is not None:
            return node.group.hex()
        return content_hash(messages_of(head, lambda name: self.part(episode_id, name)))

    def part(self, episode_id: str, name: str) -> Part | None:
        """A part with its content, None where it is not there."""
        key = part_key(episode_id, name)
        node = self._entry(key).node
        return None if node is None else _part(key, node, self._content(key))

    def emit(self, episode_id: str, names: Iterable[str]) -> list[Emission]:
        """The parts that `.graded` has not, among those named and all that they need, in the order of need. They are whole."""
        out: list[Emission] = []
        for name in names:
            chain: list[tuple[bytes, Node]] = []
            at: bytes | None = bytes.fromhex(name)
            while at is not None:
                key = part_key(episode_id, at.hex())
                node = self._entry(key).node
                if node is None or node.emitted:
                    break
                chain.append((key, node))
                at = node.prev
            link: list[Part] = []
            size = last = 0
            sealed_by = ""
            for key, node in reversed(chain):
                out += self.emit(episode_id, node.claims.values())
                content = self._content(key)
                part, key_id = _part(key, node, content), key_id_of(content) if is_sealed(content) else ""
                node.emitted = True
                length = len(dumps(part.body))
                if link and (size + length > LINK_BYTES or key_id != sealed_by):
                    out.append(_emission(episode_id, link, last, sealed_by))
                    link, size = [], 0
                link.append(part)
                size, last, sealed_by = size + length, node.count, key_id
            if link:
                out.append(_emission(episode_id, link, last, sealed_by))
        return out

    def _judge(self, key: bytes, node: Node) -> None:
        needs = [self._entry(need).node for need in node.needs(key)]
        if any(n is not None and n.state in (TAINTED, ERASED) for n in needs):
            node.state, node.group = TAINTED, None
            return
        if node.state != WAITING or any(n is None or n.state != WHOLE for n in needs):
            return
        before = needs.pop(0) if node.prev is not None else None
        if (before is not None and before.kind != "message") or any(n is not None and n.kind != "value" for n in needs):
            return  # what is named is there, but it is something else: like a part that never comes
        node.state = WHOLE
        if node.kind != "message":
            return
        node.count = (0 if before is None else before.count) + 1
        if before is not None and before.group is not None:
            node.group = before.group
        elif node.assistant:
            episode_id = _episode_of(key)
            try:
                asked = (
                    [] if node.prev is None else messages_of(node.prev.hex(), lambda name: self.part(episode_id, name))
                )
            except KeyErased:
                node.state = TAINTED
                return
            node.group = bytes.fromhex(content_hash(asked))

    def _content(self, key: bytes) -> bytes:
        where = content_key(key)
        data = self._puts.get(where) or self._reader.get_many([where])[0]
        assert data is not None, "a part and its content are written together"
        return data[len(_CONTENT) :]

    def _entry(self, key: bytes) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            data = self._reader.get_many([key])[0]
            entry = self._entries[key] = _Entry(None if data is None else decode_node(data), data)
        return entry


def _episode_of(key: bytes) -> str:
    length = int.from_bytes(key[1:3])
    return key[3 : 3 + length].decode()


def _part(key: bytes, node: Node, content: bytes) -> Part:
    body: Any = loads(open_state(content, content_key(key)))
    prev = None if node.prev is None else node.prev.hex()
    return Part(node.kind, key[-16:].hex(), body, prev, node.claims or None)


def _emission(episode_id: str, parts: list[Part], count: int, key_id: str = "") -> Emission:
    return Emission("part", episode_id.encode(), dumps(part_value(episode_id, parts, count)), key_id=key_id)
