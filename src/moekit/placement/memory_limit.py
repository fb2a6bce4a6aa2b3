"""How much memory a model may take: what was asked for, or what is free."""

from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")
# A limit that nobody set is written as a number near 2^63 in version 1, as "max" in version 2.
_NO_LIMIT = 1 << 60
# What is free now, others may want in a minute.
_KEPT_FREE = 0.1


def free_bytes() -> int:
    """Measure what this process may still take: of the machine, and of the control groups that it is in."""
    return min([int(psutil.virtual_memory().available), *left_in_groups(_CGROUPS, _MINE)])


def default_budget(resident: int) -> int:
    """Choose a budget where none was asked for: what this process has and what is free, less a margin."""
    return resident + int((1 - _KEPT_FREE) * max(0, free_bytes()))


def left_in_groups(cgroups: Path, mine: Path) -> Iterator[int]:
    """Tell what each control group that has a limit has left; pages of files that it can give up are not used.

    cgroups: where the groups lie. mine: what says which of them a process is in, in version 1 or 2.
    """
    for group, names in _groups(cgroups, mine):
        try:
            limit = (group / names["limit"]).read_text().strip()
            used = int((group / names["used"]).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < _NO_LIMIT:
            yield int(limit) - (used - int(stat.get(names["cache"], 0)))


def _groups(cgroups: Path, mine: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Give the folders of the control groups from the process's up to the root, and how their files are called."""
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = cgroups, {"limit": "memory.max", "used": "memory.current", "cache": "inactive_file"}
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            names = {
                "limit": "memory.limit_in_bytes",
                "used": "memory.usage_in_bytes",
                "cache": "total_inactive_file",
            }
        else:
            continue
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            yield group, names
            group = group.parent
