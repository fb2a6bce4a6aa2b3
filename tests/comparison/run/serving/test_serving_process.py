"""Measuring after all training: what it may take, what it leaves, and that it fails alone."""

import logging
from pathlib import Path

import pytest
import torch
from tests.conftest import DENSE, model_config

from moekit.comparison.results_schema import Decode, Run
from moekit.comparison.run.measurements import mean_bits_per_byte
from moekit.comparison.run.serving.served_figures import ServedFigures
from moekit.comparison.run.serving.serving_process import serve, serving_seconds
from moekit.comparison.run.training_task import bits_as_served
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.config import MoEConfig, SwitchConfig
from moekit.models import Decoder
from moekit.moe import without_capacity

DECODE = Decode(
    engine="native", weight_type="bf16", weight_bytes=1, cache_bytes=1, context=1, threads=1, round_ms=[[1.0]]
)


def test_it_takes_a_small_share_of_a_comparison() -> None:
    assert serving_seconds(100.0) == pytest.approx(7.0)
    assert serving_seconds(660.0) == serving_seconds(1e6) == 45.0


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path)
    figures = ServedFigures.of_runs({("dense", 3): DECODE})
    folder.served.write_text(figures.model_dump_json())
    found = serve(folder, 45.0)
    assert found == figures
    measured, other = Run(seed=3, status="done"), Run(seed=4, status="done")
    assert found.with_decode("dense", measured).decode == DECODE
    assert found.with_decode("dense", other) == other
    assert found.with_decode("moe", measured) == measured


def test_measuring_that_fails_is_told_and_costs_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert serve(ComparisonFolder(tmp_path), 1.0) == ServedFigures()
    assert "was not measured" in caplog.text
    assert "holds no comparison" in caplog.text


def test_a_capacity_hides_nothing_of_what_is_served() -> None:
    """A router that sends every token to one expert drops most of a batch, and nothing of what is served."""
    windows = {"a": torch.randint(1, 256, (4, 25))}
    switch = MoEConfig(experts=4, expert_width=24, router=SwitchConfig())
    model = Decoder(model_config((switch, switch))).eval()
    with torch.no_grad():
        for layer in model.moe_layers:
            layer.router.weight.zero_()
    found = bits_as_served(model, windows, "float32")
    with without_capacity(model):
        assert found == mean_bits_per_byte(model, windows, "float32")
    assert found != pytest.approx(mean_bits_per_byte(model, windows, "float32"), rel=1e-4)
    assert bits_as_served(Decoder(model_config((DENSE,) * 2)), windows, "float32") is None
