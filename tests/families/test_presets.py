"""Published configurations: their totals come out, and the model that they describe is the one that is counted."""

import pytest
import torch

from moekit.config import ModelConfig
from moekit.config.comparing import same_function
from moekit.counting import count_parameters
from moekit.families import describe, presets
from moekit.families.settings import Settings
from moekit.models import build
from moekit.models.folder import layout_of, own_tensors

PRESETS = presets()

# What the published shape gives where that is not the published figure.
OFF = {
    # The paper's row has 24 heads of 128 in a width of 2048, and that is more than 1.3 B.
    "gpt3-1.3b": 1.517e9,
    # "40B" is a name: the published shape has 41.3 B.
    "falcon-40b": 41.3e9,
    "deepseek-v3": 671e9,
    # T5's paper gives 770 million, which its shape does not have.
    "t5-large": 737.7e6,
    # The paper's table is rounded: its experts alone, from its own dimensions, come to more.
    "gshard-12b": 13.2e9,
    "gshard-37b": 39.5e9,
    "gshard-50b": 51.9e9,
    "gshard-150b": 155.5e9,
    "gshard-200b": 206.5e9,
    "gshard-600b": 619.4e9,
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
        assert agrees(total, OFF.get(name, preset.parameters))


def agrees(total: int, published: float) -> bool:
    """Within two percent, or the same when it is rounded to as many digits as were published."""
    digits = len(f"{published:.15g}".replace(".", "").strip("0").split("e")[0])
    return abs(total - published) <= 0.02 * published or float(f"{total:.{digits - 1}e}") == published


@pytest.mark.parametrize("name", PRESETS)
def test_the_folder_says_it(name: str) -> None:
    """Settings lead back to the configuration, and the layout covers the model's tensors, each element once."""
    from pathlib import Path

    from moekit.checkpoint.views import check_cover

    config = PRESETS[name].config
    family, settings = describe(config)
    assert same_function(family.config(Settings(settings, Path("config.json"))), config)
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
