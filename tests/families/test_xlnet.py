"""XLNet's folders: every tensor has its place, both ways, and settings that mean another function are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.families.layout_copies import copy_in, copy_out, randomize, saved_tensors

from moekit.config import DenseConfig, MoEConfig, SoftmaxTopKConfig
from moekit.config.xlnet import XLNetConfig
from moekit.core.errors import MoekitError
from moekit.families.settings import Settings
from moekit.families.xlnet import FAMILIES, FAMILY
from moekit.models.xlnet import XLNet

DENSE = DenseConfig(width=24, activation="relu", gated=False, bias=True)


def make_config(**more: Any) -> XLNetConfig:
    settings = {"layers": (DENSE, DENSE), "attention": "both", "memory": 6, "reuse": 4, "clamp": 3} | more
    return XLNetConfig(vocab_size=41, width=16, heads=2, norm_eps=1e-6, **settings)


def read(values: dict[str, Any]) -> Any:
    return FAMILY.config(Settings(values, Path("config.json")))


def test_a_folder_of_transformers_comes_and_goes_bit_for_bit(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install moekit[peers])")
    settings = FAMILY.write(make_config())
    assert settings is not None
    theirs = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**settings)).eval()
    randomize(theirs)
    tensors = saved_tensors(theirs, tmp_path)
    config = read(json.loads((tmp_path / "config.json").read_text()))
    assert config == make_config()
    ours = XLNet(config).eval()
    copy_in(tensors, ours, FAMILY.layout(config))
    again = copy_out(ours, FAMILY.layout(config))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())

    # What we write, transformers reads as the same model.
    folder = tmp_path / "ours"
    folder.mkdir()
    save_file(again, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": FAMILY.model_type, **settings}))
    back, info = transformers.XLNetLMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    tokens_BT = torch.randint(0, 41, (2, 12))
    with torch.no_grad():
        expected, got = back.eval()(tokens_BT), ours(tokens_BT, remember=True)
    assert (got.logits - expected.logits).abs().max() <= 1e-5 * expected.logits.std()
    assert got.memories is not None
    assert got.memories[0].shape == (2, 4, 16) == expected.mems[0].transpose(0, 1).shape


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
@pytest.mark.parametrize(("attention", "memory", "reuse", "clamp"), [("both", None, None, None), ("causal", 3, 2, 5)])
def test_settings_say_the_whole_configuration(
    activation: Any, attention: str, memory: int | None, reuse: int | None, clamp: int | None
) -> None:
    dense = DENSE.model_copy(update={"activation": activation})
    config = make_config(layers=(dense,) * 3, attention=attention, memory=memory, reuse=reuse, clamp=clamp)
    settings = FAMILY.write(config)
    assert settings is not None
    assert read(json.loads(json.dumps(settings))) == config


def test_missing_and_zero_memory_mean_what_they_mean_to_transformers() -> None:
    settings = FAMILY.write(make_config())
    assert settings is not None
    assert read({key: value for key, value in settings.items() if key != "mem_len"}).memory == 512
    assert read(settings | {"mem_len": 0}).memory is None
    assert read(settings | {"mem_len": None}).memory is None
    assert read(settings | {"clamp_len": -1, "reuse_len": 0}) == make_config(clamp=None, reuse=None)


@pytest.mark.parametrize(
    "layers",
    [
        (DENSE, DENSE.model_copy(update={"width": 8})),
        (DENSE.model_copy(update={"gated": True}),),
        (DENSE.model_copy(update={"bias": False}),),
        (MoEConfig(experts=2, expert_width=8, router=SoftmaxTopKConfig(top_k=2)),),
    ],
)
def test_what_xlnet_cannot_say_is_written_whole(layers: Any) -> None:
    config = make_config(layers=layers)
    assert FAMILY.write(config) is None
    own = FAMILIES[1]
    settings = own.write(config)
    assert settings is not None
    assert own.config(Settings(json.loads(json.dumps(settings)), Path("config.json"))) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"bi_data": True},
        {"same_length": True},
        {"tie_word_embeddings": False},
        {"ff_activation": "quick_gelu"},
        {"attn_type": "tri"},
        {"d_head": 4},
        {"architectures": ["XLNetForSequenceClassification"]},
        {"n_layer": 0},
        {"d_model": None},
    ],
)
def test_settings_of_another_function_are_refused(wrong: dict[str, Any]) -> None:
    settings = FAMILY.write(make_config())
    assert settings is not None
    with pytest.raises(MoekitError, match=next(iter(wrong))):
        read(settings | wrong)


@pytest.mark.parametrize(("name", "layers", "width"), [("xlnet-base-cased", 12, 768), ("xlnet-large-cased", 24, 1024)])
def test_presets_have_the_size_of_their_shapes(name: str, layers: int, width: int) -> None:
    preset = FAMILY.presets[name]
    with torch.device("meta"):
        model = XLNet(preset.config)  # type: ignore[arg-type]
    attention = 5 * width**2 + 5 * width + 2 * width
    feed_forward = 2 * width * 4 * width + 5 * width + 2 * width
    expected = 32_000 * (width + 1) + width + layers * (attention + feed_forward)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    settings = FAMILY.write(preset.config)
    assert settings is not None
    assert read(settings) == preset.config
