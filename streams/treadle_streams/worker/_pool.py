"""One process for all small workspaces: follows the operators' list and keeps a seat for each.

    Follower -> a task for each workspace: prepare, PoolSeat.run, and again after a failure
    shared: one event loop of apps, one fetching consumer, one clock, one admin client, a few threads that take turns, one block cache

What fails in one workspace takes that one out and is tried again later; what nobody can tell the extent of ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

from treadle.log import Admin
from treadle_schemas.errors import TreadleError
from treadle_schemas.moments import now
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import workspaces
from treadle_streams.worker._pool_clock import PoolClock
from treadle_streams.worker._pool_faust import Storage
from treadle_streams.worker._pool_fetch import SharedFetch
from treadle_streams.worker._pool_seat import STATUS_S, PoolSeat, Shared
from treadle_streams.worker._pool_turns import Turns
from treadle_streams.worker._settings import WorkerSettings
from treadle_streams.worker._status import StatusFile, status_path
from treadle_streams.worker._tuning import POOL_OBJECTS, collect_seldom
from treadle_streams.worker._worker import check_topics, end_process, state_folder
from treadle_streams.workspaces import Listed

__all__ = ["run_pool"]

_log = logging.getLogger(__name__)

_START_THREADS: Final = 4
_LOOK_S: Final = 0.5
"""How often the followed list is compared with what runs."""
_STARTS: Final = 16
"""So many workspaces start at a time: each start is a hundred ms of CPU and some seconds of waiting."""
_FIRST_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_STEADY_S: Final = 60.0
"""A workspace that was joined for so long starts again with the shortest wait."""


def run_pool(servers: str, home: Path, parent_pid: int | None = None) -> int:
    """Join all workspaces of one partition until SIGTERM or SIGINT; returns the exit code of an orderly end."""
    collect_seldom(POOL_OBJECTS)
    return asyncio.run(_Pool(servers, home, parent_pid).run())


class _Tenant:
    """One workspace for as long as it is listed: a seat, and another one after each failure."""

    def __init__(
        self, settings: WorkerSettings, shared: Shared, threads: ThreadPoolExecutor, starts: asyncio.Semaphore
    ):
        self.workspace = settings.workspace
        self.seat: PoolSeat | None = None
        self._settings, self._shared, self._threads, self._starts = settings, shared, threads, starts
        self._instance = 0
        self._quit = asyncio.Event()
        self._task = asyncio.create_task(self._live())

    async def end(self) -> None:
        """Leave its group and let go of it."""
        self._quit.set()
        await self._task

    async def _live(self) -> None:
        wait_s, failures = _FIRST_BACKOFF_S, 0
        while not self._quit.is_set():
            began = time.monotonic()
            try:
                await self._once()
                return
            except Exception as err:
                if time.monotonic() - began > _STEADY_S:
                    wait_s, failures = _FIRST_BACKOFF_S, 0
                failures += 1
                _log.warning(
                    "workspace %s: taken out, again in %g s: %s", self._settings.workspace, wait_s, _words(err)
                )
                await self._pause(err, wait_s, failures)
                wait_s = min(wait_s * 2, _LONGEST_BACKOFF_S)

    async def _once(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._starts:
            workspace, folder, instance, lock = await loop.run_in_executor(self._threads, self._prepare)
            self._instance = instance
            status = self._status_file(folder)
            try:
                self.seat = PoolSeat(self._shared, self._settings, workspace, folder, status)
                running = asyncio.create_task(self.seat.run(self._quit))
                await self.seat.begun(running)
            except BaseException:
                lock.close()
                raise
        try:
            await running
            status.remove()
        finally:
            self.seat = None
            lock.close()

    def _prepare(self) -> tuple[WorkspaceSettings, Path, int, IO[str]]:
        workspace = workspaces.get(self._settings.servers, self._settings.workspace)
        check_topics(self._settings, workspace, self._shared.admin)
        return workspace, *state_folder(self._settings)

    def _status_file(self, folder: Path | None = None) -> StatusFile:
        return StatusFile(status_path(self._settings.home, self.workspace, self._instance), self.workspace, folder)

    async def _pause(self, err: Exception, wait_s: float, failures: int) -> None:
        until = time.monotonic() + wait_s
        status = self._status_file()
        while not self._quit.is_set() and (left := until - time.monotonic()) > 0:
            status.write(
                {
                    "state": "failing",
                    "error": _words(err),
                    "failures": failures,
                    "again_in_s": round(left, 1),
                    "updated_at": now(),
                    "monotonic_s": time.monotonic(),
                    "shared": True,
                }
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._quit.wait(), min(left, STATUS_S))
        if self._quit.is_set():
            status.remove()


class _Pool:
    def __init__(self, servers: str, home: Path, parent_pid: int | None) -> None:
        self._servers, self._home, self._parent_pid = servers, home, parent_pid
        self._tenants: dict[str, tuple[Listed, _Tenant]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        quit_ = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, quit_.set)
        threads = ThreadPoolExecutor(_START_THREADS, "treadle-start")
        turns = Turns(end_process)
        fetch = SharedFetch(self._servers, end_process)
        clock = PoolClock(self._servers, self._seats, end_process)
        shared = Shared(Admin(self._servers), fetch, turns, Storage(), threading.Event(), end_process)
        starts = asyncio.Semaphore(_STARTS)
        follower = workspaces.Follower(self._servers).start()
        turns.start()
        fetch.start()
        clock.start()
        try:
            while not quit_.is_set() and self._has_parent():
                self._follow(follower.listed, lambda made: _Tenant(made, shared, threads, starts))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(quit_.wait(), _LOOK_S)
        finally:
            self._follow({}, lambda made: _Tenant(made, shared, threads, starts))
            await asyncio.gather(*self._ending)
            follower.stop()
            clock.close()
            fetch.close()
            turns.close()
            threads.shutdown()
        return 0

    def _follow(self, listed: Mapping[str, Listed], take_in: Callable[[WorkerSettings], _Tenant]) -> None:
        """Begin and end what is needed so that those listed are joined. One that was made anew is another one."""
        wanted = {name: entry for name, entry in listed.items() if entry.small}
        for name, (entry, tenant) in list(self._tenants.items()):
            if wanted.get(name) != entry:
                del self._tenants[name]
                self._end(tenant)
        ending = {task.get_name() for task in self._ending}
        for name in wanted.keys() - self._tenants.keys() - ending:
            settings = WorkerSettings(workspace=name, servers=self._servers, home=self._home)
            self._tenants[name] = wanted[name], take_in(settings)

    def _end(self, tenant: _Tenant) -> None:
        task = asyncio.create_task(tenant.end(), name=tenant.workspace)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _seats(self) -> list[PoolSeat]:
        return [tenant.seat for _, tenant in list(self._tenants.values()) if tenant.seat is not None]

    def _has_parent(self) -> bool:
        return self._parent_pid is None or os.getppid() == self._parent_pid


def _words(err: BaseException) -> str:
    return str(err) if isinstance(err, TreadleError) else f"{type(err).__name__}: {err}"
