"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

__all__ = ["available_memory"]

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def available_memory() -> int | None:
    """Return the bytes that this process may still take; None where the system does not say.

    The least of what the machine has free, what the container is allowed (cgroup version 2), and
    what the process is (``ulimit -v``).

    Examples
    --------
    >>> free = available_memory()
    >>> free is None or free > 0
    True
    """
    found = [_free_of_machine(), _free_of_container(), _free_of_process()]
    known = [free for free in found if free is not None]
    return max(0, min(known)) if known else None


def _free_of_machine() -> int | None:
    return _field(_PROC / "meminfo", "MemAvailable:")


def _free_of_container() -> int | None:
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    # Cached files count as used, and are given back.
    return limit - used + (_field(_CGROUP / "memory.stat", "inactive_file", unit=1) or 0)


def _free_of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _field(_PROC / "self" / "status", "VmSize:")
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used


def _field(file: Path, name: str, *, unit: int = 1024) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.split()[:1] == [name]]
    return int(values[0]) * unit if values else None
