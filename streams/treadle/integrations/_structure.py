"""Who called the model: what adapters know of agent runs, tools and model calls, for whoever records the call.

An adapter builds a tree of nodes. The HTTP hook asks for the nodes that are current just before a request leaves, takes episode, slot and
step from them, and marks them: what it records, the adapter leaves alone. So one call is one interaction, whoever sees it.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, Generic, TypeVar

from treadle_schemas.errors import ContractError
from treadle_schemas.ids import Handle, check_id, check_slot

__all__ = ["SOURCES", "Node", "Open", "current", "enter", "entered", "id_of", "slot_of"]

MAX_OPEN: Final = 10_000
"""Nodes that an adapter keeps at most. A library that never ends what it began then loses the oldest, not memory."""

_K = TypeVar("_K")
_V = TypeVar("_V")
_NOT_IN_A_SLOT = re.compile(r"[^a-z0-9_-]+")


class Node:
    """One agent run, tool call or model call. `outer` is the node it happens in."""

    __slots__ = (
        "_cell",
        "_steps",
        "context",
        "details",
        "episode_id",
        "handle",
        "model",
        "open",
        "outer",
        "parent_id",
        "seen",
        "slot",
        "tags",
    )

    def __init__(
        self,
        outer: Node | None = None,
        *,
        episode_id: str | None = None,
        slot: str | None = None,
        tags: dict[str, str] | None = None,
        tool: bool = False,
        model: bool = False,
    ) -> None:
        self.outer = outer
        self.episode_id: str | None = episode_id if outer is None else outer.episode_id
        self.slot: str | None = slot or (None if outer is None else outer.slot)
        self.tags: dict[str, str] = {**({} if outer is None else outer.tags), **(tags or {})}
        self.model = model
        self.open = True
        self.seen = False
        """A request to a model left under this node, and is recorded by who saw it."""
        self.parent_id: str | None = None if outer is None else outer.last if tool else outer.parent_id
        """The interaction that called the tool that this is part of."""
        # the latest interaction of this agent; what a tool does inside has a latest of its own
        self._cell: list[str] = [] if outer is None or tool else outer._cell
        self._steps: Iterator[int] = itertools.count() if outer is None else outer._steps
        self.handle: Handle | None = None
        """Of the interaction that is this call."""
        self.context: Context | None = copy_context() if model else None
        """Where the call was made; its end may be reported from anywhere."""
        self.details: dict[str, Any] = {}
        """What the adapter needs at the end."""

    @property
    def last(self) -> str | None:
        """The latest interaction of the same agent."""
        return self._cell[-1] if self._cell else None

    def outers(self) -> Iterator[Node]:
        """What it happens in, innermost first."""
        node = self.outer
        while node is not None:
            yield node
            node = node.outer

    def next_step(self) -> int:
        """Steps count through the whole run, sub-agents included."""
        return next(self._steps)

    def recorded(self, handle: Handle) -> None:
        """An interaction under this node is being recorded."""
        self.handle = handle
        self._cell[:] = [handle.interaction_id]

    def close(self) -> None:
        """It is over: what happens in its context from now on is not part of it."""
        self.open = False


SOURCES: Final[list[Callable[[], Node | None]]] = []
"""Each adapter's answer to: which node is current here?"""

_entered: ContextVar[Node | None] = ContextVar("treadle_node", default=None)


def enter(node: Node) -> None:
    """Make `node` current in this context until it is closed. For libraries that say when something begins but own no context."""
    _entered.set(node)


def current() -> list[Node]:
    """The nodes that are current here, of every adapter, and the calls of models that they are part of."""
    found: list[Node] = []
    for source in SOURCES:
        node = source()
        if node is not None and node not in found:
            found.append(node)
            found += [outer for outer in node.outers() if outer.model and outer.open and outer not in found]
    return found


def entered() -> Node | None:
    """The innermost node of this context that is still open."""
    node = _entered.get()
    while node is not None and not node.open:
        node = node.outer
    return node


SOURCES.append(entered)


class Open(Generic[_K, _V]):
    """What began and has not ended, by the library's id; bounded. Only atomic operations of a dict: no lock that a fork could inherit."""

    def __init__(self) -> None:
        self._known: OrderedDict[_K, _V] = OrderedDict()

    def put(self, key: _K, value: _V) -> _V:
        """Keep `value`."""
        self._known[key] = value
        while len(self._known) > MAX_OPEN:
            try:
                self._known.popitem(last=False)
            except KeyError:
                break
        return value

    def get(self, key: _K | None) -> _V | None:
        """What is kept under `key`."""
        return None if key is None else self._known.get(key)

    def take(self, key: _K) -> _V | None:
        """What is kept under `key`, no more from now on."""
        return self._known.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()


def slot_of(name: object) -> str | None:
    """An agent's name as a slot: `Billing Agent` is billing-agent. None where nothing of it can be one."""
    if not isinstance(name, str):
        return None
    text = _NOT_IN_A_SLOT.sub("-", name.strip().lower()).strip("-_")[:63]
    try:
        return check_slot(text)
    except ContractError:
        return None


def id_of(value: object) -> str | None:
    """`value` as an id, or None where it cannot be one."""
    if value is None:
        return None
    try:
        return check_id(str(value), "$")
    except ContractError:
        return None
