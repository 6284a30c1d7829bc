"""What /proc says of a process, so that a reused pid cannot fool anyone (Linux)."""

from __future__ import annotations

from pathlib import Path

__all__ = ["boot_id", "start_ticks", "stat"]


def stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on; None if there is no such process or it only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in "ZX" else fields


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if there is none or it only waits to be reaped."""
    fields = stat(pid)
    return None if fields is None else int(fields[19])


def boot_id() -> str:
    """Identity of this boot: start ticks of another boot mean nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
