"""Going through an event: string leaves are redacted, JSON inside strings too; ids, references and structure stay as they are."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any, Final

from treadle_schemas.canonical import dumps, loads
from treadle_schemas.errors import ContractError
from treadle_schemas.pii import Action

from treadle.redaction import _media
from treadle.redaction._episodes import Episode, Memory, text_key
from treadle.redaction._finding import PLACEHOLDER
from treadle.redaction._scan import Scanner
from treadle.redaction._secrets import secret_under

STRUCTURE: Final = frozenset(
    {"role", "type", "id", "tool_call_id", "call_id", "index", "finish_reason", "object", "tool_use_id"}
)
"""Keys whose strings say how a message is built. Only exactly named ones, and only where their text is short."""
_MAX_STRUCTURE_CHARS: Final = 128
_MAX_NESTED_JSON: Final = 4
_SHORTEST: Final = 4
"""No private thing that can be told from its text alone is shorter."""
_LONGEST_NUMBER_DIGITS: Final = 19
_PLACES: Final = ("content", "text", "arguments", "input")

DROP: Final[Any] = object()
"""What `Walk` returns for a value that goes altogether."""


class Refused(Exception):
    """Something of a kind that the policy refuses was found."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Walk:
    """One event on its way through a policy. `counts` says what was found, `place` where the walk is."""

    def __init__(
        self,
        scanner: Scanner,
        actions: Mapping[str, Action],
        memory: Memory,
        episode: Callable[[], Episode],
        hash_key: bytes | None,
        keep_media: bool,
    ) -> None:
        self._scanner = scanner
        self._actions = actions
        self._memory = memory
        self._episode_of = episode
        self._episode: Episode | None = None
        self._hash_key = hash_key
        self._keep_media = keep_media
        self.counts: dict[str, int] = {}

    def value(self, value: Any, parent: Mapping[str, Any] | None = None, key: str = "", depth: int = 0) -> Any:
        """`value` redacted: itself, the same object, where nothing was found. DROP where it goes altogether."""
        if isinstance(value, str):
            return self.string(value, parent, key, depth)
        if isinstance(value, dict):
            return self._object(value, depth)
        if isinstance(value, list):
            return self._list(value, depth)
        if isinstance(value, tuple):
            return self._list(list(value), depth)
        if isinstance(value, int) and not isinstance(value, bool):
            return self._number(value, key)
        return value

    def string(self, text: str, parent: Mapping[str, Any] | None = None, key: str = "", depth: int = 0) -> Any:
        """A string leaf that stands under `key` of `parent`."""
        if key in STRUCTURE and len(text) <= _MAX_STRUCTURE_CHARS and not self._scanner.may_hold(text):
            return text
        if parent is not None:
            mime = _media.media_type(parent, key, text)
            if mime is not None:
                if self._keep_media:
                    return text
                self.count("media")
                return _media.stand_in(text, mime)
            if self._scanner.keyed_secrets and secret_under(key, text):
                return self.replace(text, "secret")
        if len(text) < _SHORTEST:
            return text
        memo = text_key(text)
        if memo in self._memory.clean:
            return text
        known = self.episode.texts.get(memo) if self._episode is not None else None
        if known is None and not self._scanner.may_hold(text):
            self._memory.remember_clean(memo)
            return text
        known = known or self.episode.texts.get(memo)
        if known is not None:
            for kind, count in known[1].items():
                self.count(kind, count)
            return known[0]
        outer, self.counts = self.counts, {}
        try:
            done = self._inner(text, depth)
            found = self.counts
        finally:
            inner, self.counts = self.counts, outer
            for kind, count in inner.items():
                self.count(kind, count)
        if done is text:
            self._memory.remember_clean(memo)
        elif done is not DROP and len(self.episode.texts) < 4096:
            self.episode.texts[memo] = (done, found)
        return done

    def replace(self, text: str, kind: str, action: Action | None = None) -> Any:
        """What stands for a private value. Raises Refused."""
        action = action or self._actions.get(kind, "mask")
        if action == "refuse":
            raise Refused(kind)
        self.count(kind)
        if action == "drop":
            return DROP
        plain = _normal(kind, text)
        if action == "hash" and self._hash_key is not None:
            return f"[{kind.upper()}:{keyed_hash(self._hash_key, kind, plain)}]"
        return f"[{kind.upper()}_{self.episode.number(kind, self._memory.digest(kind, plain))}]"

    def everything(self, value: Any, action: Action, key: str = "") -> Any:
        """A private place: each scalar leaf below it is replaced, structure stays."""
        if isinstance(value, dict):
            made = {k: self.everything(v, action, k) for k, v in value.items()}
            return {k: v for k, v in made.items() if v is not DROP}
        if isinstance(value, list):
            return [v for v in (self.everything(item, action) for item in value) if v is not DROP]
        if value is None or isinstance(value, bool) or (isinstance(value, str) and (key in STRUCTURE or not value)):
            return value
        text = value if isinstance(value, str) else str(value)
        return value if PLACEHOLDER.fullmatch(text) else self.replace(text, "field", action)

    def count(self, kind: str, times: int = 1) -> None:
        """Something of `kind` was found."""
        self.counts[kind] = self.counts.get(kind, 0) + times

    @property
    def episode(self) -> Episode:
        """The memory of the event's episode."""
        if self._episode is None:
            self._episode = self._episode_of()
        return self._episode

    def _object(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        changed: dict[Any, Any] | None = None
        for key, item in value.items():
            name = key if isinstance(key, str) else ""
            done = self.value(item, value, name, depth)
            new_key = self._key(name) if name else key
            if done is item and new_key == key:
                continue
            if changed is None:
                changed = dict(value)
            if done is DROP:
                if name in _PLACES:
                    changed[key] = None if name == "content" else "{}" if name == "arguments" else ""
                else:
                    del changed[key]
            elif new_key == key:
                changed[key] = done
            else:
                # the order of keys says little, but nothing may be lost to a clash
                del changed[key]
                while new_key in changed:
                    new_key += "_"
                changed[new_key] = done
        return value if changed is None else changed

    def _key(self, key: str) -> str:
        if len(key) < 6 or (key.isidentifier() and len(key) < 12):
            return key
        done = self.string(key)
        return "[DROPPED]" if done is DROP else str(done)

    def _list(self, value: list[Any], depth: int) -> list[Any]:
        changed: list[Any] | None = None
        for i, item in enumerate(value):
            done = self.value(item, None, "", depth)
            if done is not item:
                if changed is None:
                    changed = list(value)
                changed[i] = "[DROPPED]" if done is DROP else done
        return value if changed is None else changed

    def _number(self, value: int, key: str) -> Any:
        if not 10**7 <= value < 10**_LONGEST_NUMBER_DIGITS:
            return value
        # the name it stands under says what it is, as a word before it would
        prefix = f"{key.replace('_', ' ')}: "
        for found in self._scanner.find(prefix + str(value)):
            if found.start >= len(prefix):
                return self.replace(str(value), found.kind)
        return value

    def _inner(self, text: str, depth: int) -> Any:
        """A string in which the prefilter saw something."""
        if depth < _MAX_NESTED_JSON and text[:64].lstrip()[:1] in ("{", "[") and text[-64:].rstrip()[-1:] in ("}", "]"):
            try:
                data = loads(text)
            except ContractError:
                pass
            else:
                done = self.value(data, None, "", depth + 1)
                if done is not data:
                    again = dumps(done).decode()
                    return self._text(again) if self._scanner.find(again) else again
        return self._text(text)

    def _text(self, text: str) -> Any:
        parts: list[str] = []
        end = 0
        for found in self._scanner.find(text):
            stand_in = self.replace(text[found.start : found.end], found.kind)
            if stand_in is DROP:
                return DROP
            parts += (text[end : found.start], stand_in)
            end = found.end
        return text if not parts else "".join((*parts, text[end:]))


def keyed_hash(key: bytes, kind: str, value: str) -> str:
    """32 hex digits of HMAC-SHA256: the same for the same value wherever the key is the same."""
    return hmac.new(key, f"{kind}\0{value}".encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:32]


def _normal(kind: str, text: str) -> str:
    """One form of each value, so that two spellings of one address get one placeholder."""
    if kind == "email":
        return text.lower()
    if kind in ("phone", "card", "iban", "national_id"):
        return "".join(c for c in text if c.isalnum()).upper()
    return text
