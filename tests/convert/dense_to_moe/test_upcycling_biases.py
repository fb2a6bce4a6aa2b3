"""Upcycling networks with biases: those of channels go with them, that of down adds up to itself once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tests.convert.dense_models import check_same, model_type, save

from moekit.cli.upcycle import upcycle
from moekit.config import MoEConfig
from moekit.convert.dense_to_moe.upcycling import Upcycling, plan_upcycling
from moekit.convert.expert_channels import Slot
from moekit.core.errors import MoekitError
from moekit.models import load

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt2", {}),
        ("gpt_neo", {"granularity": 4, "top_k": 8, "shared": 3}),
        ("falcon-rw", {"top_k": 3, "layers": (1,)}),
    ],
)
def test_the_command_takes_published_families_with_biases(
    dense: dict[str, Path], tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    assert model_type(dense[name]) == name.removesuffix("-rw")
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in options.items() if key != "layers"]
    layers = ",".join(map(str, options.get("layers", (0, 1))))
    command = [str(dense[name]), f"--layers={layers}", *arguments, "--json", f"--out={tmp_path / 'out'}"]
    shown = CliRunner().invoke(upcycle, command)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["exact"] is True
    assert model_type(tmp_path / "out") == "moekit_decoder"
    mixtures = [layer for layer in load(tmp_path / "out").config.feed_forwards if isinstance(layer, MoEConfig)]  # type: ignore[attr-defined]
    assert [layer.bias for layer in mixtures] == [True] * (layers.count(",") + 1)
    check_same(dense[name], tmp_path / "out")


WRONG = {
    "as the matrix": property(lambda slot: slot.scales[0]),
    "not at all": 1.0,
    "left out": 0.0,
}


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({}, "left out"),
        ({"granularity": 2, "top_k": 4}, "as the matrix"),
        ({"renormalize": False, "router_std": 0.0}, "not at all"),
        ({"shared": 1}, "not at all"),
        ({"shared": 1, "granularity": 2}, "as the matrix"),
    ],
)
def test_with_biases_scaled_wrongly_it_fails(
    dense: dict[str, Path], tmp_path: Path, options: dict[str, Any], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slot, "bias_scale", WRONG[wrong])
    with pytest.raises(MoekitError, match="not the same function"):
        plan_upcycling(dense["gpt2"], Upcycling(**options)).run(tmp_path / "out")


def test_half_precision_keeps_the_bits_of_biases(tmp_path: Path) -> None:
    source = save(tmp_path, "gpt2", torch.bfloat16)
    assert plan_upcycling(source, Upcycling(granularity=2, top_k=2)).run(tmp_path / "out").tolerance == 1e-5
    found, given = load_file(tmp_path / "out/model.safetensors"), load_file(source / "model.safetensors")
    up_EF, down_ED = (found[f"layers.1.feed_forward.experts.{name}"] for name in ("gate_up_bias_EG", "down_bias_ED"))
    assert up_EF.dtype is down_ED.dtype is torch.bfloat16
    assert torch.equal(up_EF, given["transformer.h.1.mlp.c_fc.bias"].view(2, 24).repeat(8, 1))
    assert torch.equal(down_ED, given["transformer.h.1.mlp.c_proj.bias"].expand(16, 32))
