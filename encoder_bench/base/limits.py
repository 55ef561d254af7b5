"""What of a machine this process may use: a container or a scheduler may give it a part."""

import contextlib
from pathlib import Path
from typing import NamedTuple


class _Cgroup(NamedTuple):
    """Where a version of cgroups keeps what."""

    folder: str
    limit: str
    used: str
    cached: str


_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_1 = _Cgroup(
    "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)
_CGROUP_2 = _Cgroup("", "memory.max", "memory.current", "inactive_file")


def usable_cores() -> int:
    """Return how many CPU cores this process may use, by its affinity and its container's quota."""
    import joblib

    return int(joblib.cpu_count())


def available_memory() -> int:
    """Return how many bytes this process may still take: of the machine, and of its cgroups."""
    import psutil

    return min([int(psutil.virtual_memory().available), *left_in_cgroups()])


def left_in_cgroups(groups: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> list[int]:
    """Return what is left of each memory limit that holds for this process, in bytes.

    Cached files do not count, since the kernel drops them. Reference: cgroups(7) and the kernel's
    documentation of both versions' memory controllers.
    """
    left: list[int] = []
    with contextlib.suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            version = _CGROUP_1 if controllers else _CGROUP_2
            top = root / version.folder
            own = top / path.lstrip("/")
            for folder in (own, *own.parents):
                left += _left_in(folder, version)
                if folder == top:
                    break
    return left


def _left_in(folder: Path, version: _Cgroup) -> list[int]:
    """Return what is left of one group's limit; nothing where it has none."""
    with contextlib.suppress(OSError, ValueError):  # a limit of "max" among them
        limit, used = (
            int((folder / name).read_text(encoding="utf-8"))
            for name in (version.limit, version.used)
        )
        stat = (folder / "memory.stat").read_text(encoding="utf-8").split()
        return [max(0, limit - used + int(stat[stat.index(version.cached) + 1]))]
    return []
