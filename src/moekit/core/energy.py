"""What the processor has used, where the system counts it (Linux's powercap, filled by RAPL on Intel and AMD)."""

import time
from collections.abc import Mapping
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")
# Counters begin anew after some minutes; what is longer than this many watts would take for it may be a turn short.
_MOST_WATTS = 1000.0


class EnergyMeter:
    """Count the joules of the machine's processors and memory from when it is made; other programs' are among them.

    Args:
        root: the folder of the kernel's counters.
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._root = root
        self._began = time.monotonic()
        self._before = _counters(root)

    def joules(self) -> float | None:
        """Give the joules so far; None where the system does not tell them, or a counter may have begun anew twice."""
        now, seconds = _counters(self._root), time.monotonic() - self._began
        if not now or now.keys() != self._before.keys():
            return None
        total = 0.0
        for zone, (count, most) in now.items():
            if seconds * _MOST_WATTS * 1e6 > most:
                return None
            total += (count - self._before[zone][0]) % (most + 1)
        return total / 1e6


def _counters(root: Path) -> Mapping[str, tuple[int, int]]:
    """Read the microjoules of each zone and where its counter begins anew: packages, and memory beside them."""
    found = {}
    try:
        zones = sorted(root.glob("*-rapl:*"))
    except OSError:
        return {}
    for zone in zones:
        try:
            name = (zone / "name").read_text().strip()
            # Cores are part of their package, and `psys` is all of it once more.
            if name.startswith("package") or name == "dram":
                most = int((zone / "max_energy_range_uj").read_text())
                found[zone.name] = (int((zone / "energy_uj").read_text()), most)
        except (OSError, ValueError):
            return {}  # what only root may read is not there for others
    return found
