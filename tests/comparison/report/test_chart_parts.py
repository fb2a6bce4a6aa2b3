"""What charts are made of: ticks, labels that do not cover one another, colours that everyone can tell apart."""

import itertools
import re

import jinja2
import numpy as np
import numpy.typing as npt
import pytest

from moekit.comparison.report import chart_parts as parts
from moekit.comparison.report.chart_parts import End, Look


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.8, 1.25, [0.8, 0.9, 1, 1.1, 1.2]),
        (0.5, 3, [0.5, 1, 1.5, 2, 2.5, 3]),
        (0.12, 8.1, [0.2, 0.5, 1, 2, 5]),
        (3e11, 4e12, [5e11, 1e12, 2e12]),
        (1e12, 1e18, [10.0**power for power in range(12, 19)]),
        (1e12, 1e24, [10.0**power for power in range(12, 25, 2)]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, ticks: list[float]) -> None:
    assert parts.log_ticks(low, high) == pytest.approx(ticks)


def test_figures_of_ticks() -> None:
    assert [parts.unit_text(value) for value in (0.5, 3, 5e11, 1e12, 2.5e13)] == ["0.5", "3", "500 G", "1 T", "25 T"]
    assert [parts.power_text(value) for value in (1e21, 2e12, 1e-3)] == ["10²¹", "2·10¹²", "10⁻³"]


def test_labels_keep_apart() -> None:
    """Nine lines that end at nearly one place: each label at its own height, in the order of the lines."""
    looks = parts.looks_of([(f"contestant-{index}", "moe") for index in range(9)], "contestant-0")
    ends = [End(look, 1e12, 2 + 0.001 * look.index) for look in looks]
    labels = parts.end_labels(ends, (11.0, 12.5), (0.2, 0.5))
    heights = [(label["y"] - 0.2) / 0.3 * 320 + label["yshift"] for label in labels]
    assert [label["meta"] for label in labels] == list(range(8, -1, -1))
    assert all(above - below >= 15 - 0.2 for above, below in itertools.pairwise(heights))
    low = parts.end_labels([End(look, 1e12, 1.6 + 0.001 * look.index) for look in looks], (11.0, 12.5), (0.2, 0.5))
    assert min((label["y"] - 0.2) / 0.3 * 320 + label["yshift"] for label in low) >= 7  # not below the axis
    far = parts.end_labels([End(look, 10 ** (11 + look.index / 2), 2) for look in looks[:3]], (11.0, 12.5), (0.2, 0.5))
    assert [label["yshift"] for label in far] == [0, 0, 0]  # side by side there is room
    assert parts.end_labels([End(looks[0], 1e12, 9.0)], (11.0, 12.5), (0.2, 0.5)) == []
    assert parts.room_for_labels(ends, 1e11, 1e12) > 1.5e12


def palettes() -> dict[str, dict[str, str]]:
    """The colours of the page by name, in light and in dark."""
    loader = jinja2.PackageLoader("moekit.comparison.report")
    style = loader.get_source(jinja2.Environment(), "page.css")[0]
    blocks = re.findall(r":root[^{]*\{(.*?)\}", style, re.S)
    return {
        name: dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for name, block in zip(("light", "dark"), blocks, strict=True)
    }


# As people without one kind of cone see linear red, green and blue (Machado, Oliveira and Fernandes 2009, severity 1).
SEEN = {
    "all cones": np.eye(3),
    "no L cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no M cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def linear_rgb(colour: str) -> npt.NDArray[np.float64]:
    """`#rrggbb` as shares of the light that a screen gives."""
    srgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def oklab(colour: str, seen: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The colour as it is seen, where equal distances look equally far (Ottosson 2020)."""
    linear = np.clip(seen @ linear_rgb(colour), 0, 1)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: npt.NDArray[np.float64] = to_lab @ np.cbrt(cones @ linear)
    return lab


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eyes", SEEN)
def test_nine_contestants_can_be_told_apart(theme: str, eyes: str) -> None:
    """Any two differ by more than twice of what is just seen (0.02), solid lines by five times."""
    palette = palettes()[theme]
    names: list[tuple[str, parts.Kind]] = [
        ("dense", "dense"), ("moe", "moe"), ("moe-fine", "moe"), ("moe-many", "moe"), ("hybrid", "hybrid"),
        ("dense-large", "dense"), ("ngram", "ngram"), ("gpt3", "dense"), ("lstm", "lstm"),
    ]  # fmt: skip
    looks = parts.looks_of(names, "dense")

    def colour(look: Look) -> npt.NDArray[np.float64]:
        return oklab(palette[look.colour[len("var(--") : -1]], SEEN[eyes])

    assert len({look.symbol for look in looks}) == 9
    for one, other in itertools.combinations(looks, 2):
        apart = float(np.linalg.norm(colour(one) - colour(other)))
        assert apart >= (0.1 if one.dash == other.dash == "solid" else 0.05), (one.name, other.name, apart)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out_from_the_page(theme: str) -> None:
    """By the contrast that WCAG 2.1 (1.4.11) asks of what is not text."""
    palette = palettes()[theme]

    def luminance(colour: str) -> float:
        return float(np.array([0.2126, 0.7152, 0.0722]) @ linear_rgb(colour))

    page = luminance(palette["page"])
    for name in [f"s{index}" for index in range(1, 9)]:
        low, high = sorted((luminance(palette[name]), page))
        assert (high + 0.05) / (low + 0.05) >= 3, name
