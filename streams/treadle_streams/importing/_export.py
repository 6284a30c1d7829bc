"""Another product's export as lines that the import can send: two passes, the first to learn who belongs to whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from treadle_schemas.errors import ContractError, FieldError

from treadle_streams.importing._documents import Documents
from treadle_streams.importing._lines import BadLine
from treadle_streams.importing.formats import (
    FORMATS,
    Bad,
    Call,
    Index,
    Item,
    Passed,
    Score,
    interaction_line,
    outcome_line,
)

__all__ = ["PASSES", "Export"]

PASSES: Final = 3
"""How often an export's files are read: for the index, for interactions, for outcomes."""
_NAMES: Final = ("id", "trace_id", "parent_id", "span_id", "session", "subject", "name", "key")


class Export:
    """Files of one product. Use it as a context manager: the index is a temporary file."""

    def __init__(self, product: str, files: Sequence[Path], agent: str | None = None) -> None:
        """`product` is one of FORMATS; `agent` is the agent's name where the export has none, by default the product's."""
        self.files = tuple(files)
        self.passed: Counter[str] = Counter()
        """What was understood and holds nothing to import, by what it is."""
        self._read = FORMATS[product]
        self._agent = agent or product
        self._index = Index()

    def learn(self, on_progress: Callable[[int], None]) -> int:
        """The first pass. Returns the bytes read. What is wrong with the files is said in the second."""
        before = 0
        for path in self.files:
            documents = Documents(path)
            for _, document in documents:
                if isinstance(document, dict):
                    for item in self._items(document):
                        self._index.add(item)
                on_progress(before + documents.bytes_read)
            before += documents.bytes_read
        return before

    def interactions(self, path: Path) -> _Converted:
        """The second pass over one file."""
        return _Converted(self, path, "interactions")

    def outcomes(self, path: Path) -> _Converted:
        """The third pass over one file. What is wrong with the file was said in the second."""
        return _Converted(self, path, "outcomes")

    def lines(
        self, document: dict[str, Any], kind: Literal["interactions", "outcomes"]
    ) -> Iterator[dict[str, Any] | FieldError]:
        """The lines of one document, and what is wrong with its parts."""
        for item in self._items(document):
            try:
                match item:
                    case Bad() if kind == "interactions":
                        yield item.error
                    case Passed() if kind == "interactions":
                        self.passed[item.what] += 1
                    case Call() if kind == "interactions":
                        yield interaction_line(item, self._index, self._agent)
                    case Score() if kind == "outcomes":
                        yield outcome_line(item, self._index)
                    case _:
                        pass
            except FieldError as err:
                yield err

    def _items(self, document: dict[str, Any]) -> Iterator[Item]:
        try:
            for item in self._read(document, self._index.recall):
                name = _not_text(item)
                yield (
                    item
                    if name is None
                    else Bad(FieldError("$", f"its {name} holds a lone surrogate, so nothing can refer to it"))
                )
        except FieldError as err:
            yield Bad(err)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._index.__exit__(kind, value, traceback)


def _not_text(item: Item) -> str | None:
    """Which of the names by which items refer to each other cannot be encoded."""
    for name in _NAMES:
        try:
            str(getattr(item, name, None) or "").encode()
        except UnicodeEncodeError:
            return name
    return None


class _Converted:
    """One file's interactions or outcomes, in the shape of `Lines`."""

    def __init__(self, export: Export, path: Path, kind: Literal["interactions", "outcomes"]) -> None:
        self._export = export
        self._documents = Documents(path)
        self._kind: Literal["interactions", "outcomes"] = kind
        self.bytes_read = 0

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
        for number, document in self._documents:
            self.bytes_read = self._documents.bytes_read
            if isinstance(document, BadLine):
                if self._kind == "interactions":
                    yield number, document
                continue
            try:
                for line in self._export.lines(document, self._kind):
                    yield number, line if isinstance(line, dict) else self.bad(number, line)
            except ContractError as err:
                yield number, self.bad(number, err)
        self.bytes_read = self._documents.bytes_read

    def bad(self, number: int, reason: object) -> BadLine:
        """A bad line of this file."""
        return self._documents.bad(number, reason)
