"""Published configurations: their totals come out, and the model that they describe is the one that is counted."""

import pytest
import torch

from moekit.config import ModelConfig
from moekit.counting import count_parameters
from moekit.families import describe, presets, same_function
from moekit.families.settings import Settings
from moekit.models import build
from moekit.models.folder import layout_of, own_tensors

PRESETS = presets()

# Where the published figure is further than two percent from what the published shape gives.
OFF = {
    # The paper's row has 24 heads of 128 in a width of 2048, and that is more than 1.3 B.
    "gpt3-1.3b": 1.517e9,
    # "40B" is a name: the published shape has 41.3 B.
    "falcon-40b": 41.3e9,
    "deepseek-v3": 671e9,
}


@pytest.mark.parametrize("name", PRESETS)
def test_published_totals(name: str) -> None:
    preset = PRESETS[name]
    with torch.device("meta"):
        model = build(preset.config)
    total = sum(tensor.numel() for tensor in model.parameters())
    if isinstance(preset.config, ModelConfig):
        assert count_parameters(preset.config).total == total
        if preset.active is not None:
            assert count_parameters(preset.config).active == pytest.approx(preset.active, rel=0.025)
    if preset.parameters is not None:
        assert total == pytest.approx(OFF.get(name, preset.parameters), rel=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_the_folder_says_it(name: str) -> None:
    """Settings lead back to the configuration, and the layout covers the model's tensors, each element once."""
    from pathlib import Path

    from moekit.checkpoint.parts import check_cover

    config = PRESETS[name].config
    family, settings = describe(config)
    assert same_function(family.read(Settings(settings, Path("config.json"))), config)
    with torch.device("meta"):
        model = build(config)
    check_cover(layout_of(family, config, model), own_tensors(model))


def test_the_figures_that_people_look_up() -> None:
    def billions(name: str) -> tuple[float, float]:
        config = PRESETS[name].config
        assert isinstance(config, ModelConfig)
        counted = count_parameters(config)
        return round(counted.total / 1e9, 2), round(counted.active / 1e9, 2)

    assert billions("mixtral-8x7b") == (46.7, 12.88)
    assert billions("mixtral-8x22b") == (140.63, 39.16)
    assert billions("llama-3-8b")[0] == 8.03
    assert billions("llama-3-70b")[0] == 70.55
    assert billions("llama-3.1-405b")[0] == 405.85
    assert billions("grok-1")[0] == 315.68  # 314.9 without the embedding: the published 314
    assert billions("deepseek-v3") == (671.03, 37.55)
