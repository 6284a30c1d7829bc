"""A process that dies between two durable steps of a corpus, for the drivers of the tests beside this.

Everything that counts on disk goes through `treadle_corpus._disk`, so the steps are the calls of that module; in an object store they are
the requests that change it.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

from treadle_corpus import _disk
from treadle_corpus.objects import ObjectStore


class Steps:
    """Counts the steps, and dies at one: before it, or with half of what it writes."""

    def __init__(self, last: int) -> None:
        """`last`: the step to die at; 0: none."""
        self.count, self.last = 0, last
        for owner, name in (
            (_disk.Appended, "append"),
            (_disk.Appended, "sync"),
            (_disk, "sync"),
            (_disk, "place"),
            (_disk, "remove"),
            (_disk, "create"),
        ):
            setattr(owner, name, self._wrapped(name, getattr(owner, name)))

    def _wrapped(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any) -> Any:
            self._here()
            if name in ("append", "create"):
                self._here(lambda: _half(name, *arguments))
            return step(*arguments)

        return stepped

    def _here(self, before: Callable[[], None] = lambda: None) -> None:
        self.count += 1
        if self.count == self.last:
            before()
            os.kill(os.getpid(), signal.SIGKILL)


class StoreSteps:
    """Counts the requests that change an object store, with `removals` also what is removed here, and dies before one."""

    def __init__(self, last: int, *, removals: bool = False) -> None:
        """`last`: the step to die before; 0: none."""
        self.count, self.last = 0, last
        for name in ("put", "create", "put_file", "delete"):
            setattr(ObjectStore, name, self._wrapped(getattr(ObjectStore, name)))
        if removals:
            _disk.remove = self._wrapped(_disk.remove)

    def _wrapped(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any) -> Any:
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments)

        return stepped


def _half(name: str, target: Any, data: bytes) -> None:
    if name == "append":
        os.pwrite(target._file, data[: len(data) // 2], target.size)
    else:
        target.with_name(target.name + ".new").write_bytes(data[: len(data) // 2])


def child(act: Callable[[], object]) -> int:
    """Run in a process of its own; its exit status."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            act()
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    return os.waitpid(pid, 0)[1]


def told(act: Callable[[], str]) -> str:
    """What `act` says in a process of its own."""
    reader, writer = os.pipe()

    def tell() -> None:
        with os.fdopen(writer, "w") as out:
            out.write(act())

    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            tell()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as back:
        said = back.read()
    assert os.waitpid(pid, 0)[1] == 0
    return said
