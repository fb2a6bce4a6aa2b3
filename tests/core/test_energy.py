"""Joules as Linux's powercap counts them: each zone once, counters that begin anew, and what is not told."""

from pathlib import Path

import pytest

from moekit.core import energy
from moekit.core.energy import EnergyMeter


def zone(root: Path, folder: str, name: str, microjoules: int, most: int = 262_143_328_850) -> Path:
    made = root / folder
    made.mkdir(exist_ok=True, parents=True)
    (made / "name").write_text(f"{name}\n")
    (made / "energy_uj").write_text(f"{microjoules}\n")
    (made / "max_energy_range_uj").write_text(f"{most}\n")
    return made


def spend(made: Path, microjoules: int) -> None:
    (made / "energy_uj").write_text(str(microjoules))


def test_packages_and_memory_are_counted_once(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    other = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    cores = zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    dram = zone(tmp_path, "intel-rapl:0:1", "dram", 7_000_000)
    whole = zone(tmp_path, "intel-rapl:2", "psys", 0)
    meter = EnergyMeter(tmp_path)
    assert meter.joules() == 0
    for made, microjoules in ((package, 8_000_000), (other, 500_000), (cores, 3_000_000), (dram, 7_250_000)):
        spend(made, microjoules)
    spend(whole, 9_000_000)
    assert meter.joules() == pytest.approx(3.0 + 0.5 + 0.25)


def test_a_counter_that_begins_anew(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 262_143_000_000)
    meter = EnergyMeter(tmp_path)
    spend(package, 671_149)
    assert meter.joules() == pytest.approx(1.0)


def test_what_may_have_begun_anew_twice_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    now = 100.0
    monkeypatch.setattr(energy.time, "monotonic", lambda: now)
    meter = EnergyMeter(tmp_path)
    assert meter.joules() == 0
    now += 263
    assert meter.joules() is None


def test_nothing_is_guessed(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path / "nowhere").joules() is None
    assert EnergyMeter(tmp_path).joules() is None
    made = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(tmp_path)
    (made / "energy_uj").unlink()
    assert meter.joules() is None
    (made / "energy_uj").write_text("n/a")
    assert meter.joules() is None
