"""What is measured, against loops and against cases whose answer is known."""

import math

import numpy as np
import pytest
import torch

from moekit.comparison.run.measurements import (
    count_by_window,
    experts_by_domain,
    held_out_bits,
    measure_domains,
    mutual_information,
)
from moekit.config import ModelConfig
from moekit.models import Decoder


def test_bits_equal_the_loop_and_leave_separators_out(any_config: ModelConfig) -> None:
    model = Decoder(any_config).eval()
    windows = torch.randint(1, 256, (5, 13))
    windows[1, 4] = windows[2, 0] = windows[3, 12] = 0
    bits, count = held_out_bits(model, windows, "float32")
    expected, scored = 0.0, 0
    with torch.no_grad():
        for window in windows:
            p = model(window[None, :-1]).softmax(-1)[0]
            for position, target in enumerate(window[1:].tolist()):
                if target != 0:
                    expected -= math.log2(p[position, target].item())
                    scored += 1
    # Of the three separators one stands first in its window, where it is no target.
    assert count == scored == 5 * 12 - 2
    assert bits == pytest.approx(expected, rel=1e-5)


def test_mutual_information_of_known_tables() -> None:
    assert mutual_information(np.eye(4)) == pytest.approx(2.0)
    assert mutual_information(np.ones((4, 8))) == pytest.approx(0.0, abs=1e-12)
    assert mutual_information(np.array([[3.0, 1.0], [1.0, 3.0]])) == pytest.approx(
        2 * (3 / 8) * math.log2(1.5) + 2 * (1 / 8) * math.log2(0.5)
    )


def test_the_control_tells_specialists_from_chance() -> None:
    generator = np.random.default_rng(1)
    label_N = np.repeat(np.arange(4), 16)
    chance_NE = generator.multinomial(50, np.full(8, 1 / 8), size=64)
    chance = experts_by_domain(0, chance_NE, label_N, list("abcd"))
    assert chance.mutual_information_bits < 2 * chance.shuffled_p95_bits
    specialised_NE = np.zeros((64, 8), dtype=int)
    specialised_NE[np.arange(64), label_N] = 50
    specialised = experts_by_domain(0, specialised_NE, label_N, list("abcd"))
    assert specialised.mutual_information_bits == pytest.approx(2.0)
    assert specialised.mutual_information_bits > 5 * specialised.shuffled_p95_bits
    assert specialised.share[2] == [0, 0, 1, 0, 0, 0, 0, 0]


def test_domains_and_layers_add_up(any_config: ModelConfig) -> None:
    model = Decoder(any_config)
    windows = {"a": torch.randint(1, 256, (20, 13)), "b": torch.randint(1, 256, (3, 13))}
    parts = {name: torch.arange(len(each))[:, None].expand(-1, 12) // 2 for name, each in windows.items()}
    found = measure_domains(model, windows, "float32", parts)
    by_domain, routing, tables = found.bits_per_byte_by_domain, found.routing, found.experts_by_domain
    assert found.bits_per_byte == pytest.approx((20 * by_domain["a"] + 3 * by_domain["b"]) / 23)
    assert {name: len(bits) for name, bits in found.bits_by_part.items()} == {"a": 10, "b": 2}
    for name, each in windows.items():
        assert sum(found.bits_by_part[name]) == pytest.approx(12 * len(each) * by_domain[name], abs=0.01)
    moe_layers = [index for index, layer in enumerate(any_config.feed_forwards) if layer.kind == "moe"]
    assert [stats.layer for stats in routing] == [table.layer for table in tables] == moe_layers
    for table in tables:
        assert [sum(row) for row in table.share] == pytest.approx([1.0, 1.0])


def test_window_counts_equal_the_loop(any_config: ModelConfig) -> None:
    model = Decoder(any_config).eval()
    windows = torch.randint(0, 256, (4, 9))
    routings: list[list] = []
    held_out_bits(model, windows, "float32", routings)
    alone: list[list] = []
    for window in windows:
        held_out_bits(model, window[None], "float32", alone)
    for layer, routing in enumerate(routings[0]):
        expected = torch.stack([batch[layer].counts_E for batch in alone])
        assert torch.equal(count_by_window(routing, 8), expected)
