"""How many cores this process may use: CPU affinity and the cgroup's quota, whichever is less.

Knows nothing of what the cores are used for.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))


def usable_cores() -> int:
    """max(1, floor(min(quota, affinity))): a fraction of a core cannot run a second thread at speed."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_cores()
    return max(1, int(min(allowed, quota))) if quota is not None else allowed


def _quota_cores() -> float | None:
    try:
        if _CGROUP_V2.exists():
            quota, period = _CGROUP_V2.read_text().split()
        else:
            quota, period = (path.read_text().strip() for path in _CGROUP_V1)
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):
        # No cgroup, or "max": no quota.
        return None
