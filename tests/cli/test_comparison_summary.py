"""What compare prints at its end: as many columns as the terminal holds, what decides first, and no wrapped row."""

import pytest
from rich.cells import cell_len
from tests.comparison.report.test_report import hostile
from tests.comparison.sample_results import everyone, results

from moekit.cli.comparison_summary import print_summary


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, comparison: object) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    print_summary(comparison)  # type: ignore[arg-type]
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [
        (80, ["bits per byte", "FLOPs to level", "seconds to level"], ["tokens/s", "memory", "ms/token"]),
        (120, ["bits per byte", "FLOPs to level", "params", "tokens/s", "memory", "ms/token (p95)"], []),
    ],
)
def test_columns_follow_the_width(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    shown: list[str],
    left_out: list[str],
) -> None:
    comparison = everyone()
    lines = printed(capsys, monkeypatch, width, comparison).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert all(heading in lines[0] for heading in shown)
    assert not any(heading in lines[0] for heading in left_out)
    for one in comparison.contestants:
        assert sum(line.startswith(f"{one.name} ") for line in lines) == 1


def test_answer_and_what_weakens_it_stand_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(printed(capsys, monkeypatch, 80, everyone()).split())
    assert "Mixture of experts for each FLOP" in text
    assert "! `moe-fine`: 1 of 3 runs failed" in text
    assert "checks of the evidence hold" in text


@pytest.mark.parametrize("comparison", [hostile(), results([], seeds=[0])], ids=["hostile", "nobody"])
def test_whatever_there_is_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, comparison: object
) -> None:
    assert printed(capsys, monkeypatch, 80, comparison)
