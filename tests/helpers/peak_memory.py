"""Peak memory of this process in MB; Linux only.

Not ``ru_maxrss``: a process inherits the peak of the one that started it, and cannot forget it.
"""

from __future__ import annotations

from pathlib import Path


def reset_peak() -> float:
    """Forget the peak so far; returns what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """Most that was resident at a time since the last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
