"""What this machine lets the process use: the most that settings and sizes may ask for."""

from pathlib import Path

import joblib
import psutil

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def usable_cores() -> int:
    """Cores that this process may run on, at least 1: affinity and a container's CPU quota respected."""
    return int(joblib.cpu_count())


def usable_memory_bytes() -> int:
    """Memory of this machine, or of the container around this process where that has less."""
    limits = [psutil.virtual_memory().total]
    for path in _CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limits)
