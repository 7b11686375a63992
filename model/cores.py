"""CPU cores that this process may use. The CPU quota of a container bounds the time of all its threads together, while
the system still reports every core that the process may run on. OpenVINO 2026.4 starts a thread for each reported core.
Together they use up the quota early in each period; then all threads of the process stand still, also that of the event
loop.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def quota_cores() -> int | None:
    """Return how many whole cores the CPU quota of this container allows, at least one; None without a quota, or where
    it is not below the cores of the machine."""
    quota = _quota()
    return max(1, int(quota)) if quota is not None and quota < machine_cores() else None


def usable_cores() -> int:
    """Return the number of threads that can compute at once."""
    return quota_cores() or machine_cores()


def machine_cores() -> int:
    """Return the number of cores that the system lets this process run on (its cpuset or affinity), at least one."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota() -> float | None:
    """Return the CPU quota of this container in cores; None without one, and where there are no cgroups."""
    with suppress(OSError, ValueError):  # version 2; "max": no quota
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):  # version 1
        quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    return None
