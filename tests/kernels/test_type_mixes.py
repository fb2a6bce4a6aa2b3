"""Mixes of types: which matrix gets how many bits, by llama.cpp's rules, and by its own program where that is there."""

import ctypes
from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from moekit.checkpoint.gguf import GGUFFile
from moekit.cli.quantize import quantize as verb
from moekit.config import DenseConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.convert.conversion import Refused
from moekit.convert.export.gguf_export import plan_quantization
from moekit.convert.verbs import plan_quantize
from moekit.kernels.packed import F32, WRITTEN_TYPES
from moekit.kernels.packed.type_mixes import PURE, TYPE_MIXES, Shape, TypeMix
from moekit.models import Decoder
from moekit.models.gguf import load_gguf

DENSE = DenseConfig(width=256)
MIXES = {name: mix for name, mix in TYPE_MIXES.items() if mix not in PURE.values()}


def mixture(experts: int) -> MoEConfig:
    return MoEConfig(experts=experts, expert_width=256, router=SoftmaxTopKConfig(top_k=2))


def saved(folder: Path, layer: DenseConfig | MoEConfig, layers: int) -> Path:
    config = ModelConfig(
        vocab_size=256,
        width=256,
        context=16,
        attention={"heads": 4, "kv_heads": 2, "head_width": 64},
        layers=(layer,) * layers,
    )
    Decoder(config).to(torch.bfloat16).save(folder)
    return folder


def types(mix: TypeMix, role: str, shape: Shape) -> list[str]:
    return [mix.type_of(f"blk.{layer}.{role}.weight", shape).name for layer in range(shape.layers)]


def test_q4_k_m_gives_both_ends_and_every_third_layer_more() -> None:
    mix, shape = TYPE_MIXES["q4_k_m"], Shape(layers=32, experts=0, grouped=True)
    more = [*range(4), 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for role in ("attn_v", "ffn_down"):
        assert [layer for layer, kind in enumerate(types(mix, role, shape)) if kind == "q6_k"] == more
    assert set(types(mix, "attn_q", shape)) == set(types(mix, "ffn_up", shape)) == {"q4_k"}
    assert types(mix, "ffn_down_exps", shape) == types(mix, "ffn_down", shape)
    assert mix.file_type == 15


def test_the_smaller_mixes() -> None:
    shape = Shape(layers=32, experts=0, grouped=True)
    assert Counter(types(TYPE_MIXES["q4_k_s"], "attn_v", shape)) == {"q5_k": 4, "q4_k": 28}
    assert Counter(types(TYPE_MIXES["q3_k_m"], "attn_v", shape)) == {"q5_k": 2, "q4_k": 30}
    assert Counter(types(TYPE_MIXES["q3_k_m"], "ffn_down", shape)) == {"q5_k": 2, "q4_k": 30}
    assert set(types(TYPE_MIXES["q3_k_l"], "attn_output", shape)) == {"q5_k"}
    assert set(types(TYPE_MIXES["q5_k_s"], "attn_v", shape)) == {"q5_k"}
    eight = Shape(layers=32, experts=8, grouped=True)
    assert set(types(TYPE_MIXES["q4_k_m"], "attn_k", eight)) == {"q8_0"}
    assert set(types(TYPE_MIXES["q4_k_m"], "attn_output", eight)) == {"q5_k"}
    large = Shape(layers=80, experts=0, grouped=True)
    assert set(types(TYPE_MIXES["q3_k_s"], "attn_v", large)) == {"q5_k"}


@pytest.mark.parametrize("kind", WRITTEN_TYPES, ids=lambda kind: kind.name)
def test_a_pure_type_is_one_everywhere(kind: object) -> None:
    mix = next(mix for base, mix in PURE.items() if base is kind)
    for experts in (0, 8):
        assert set(types(mix, "attn_v", Shape(layers=80, experts=experts, grouped=True))) == {mix.name}


@pytest.mark.parametrize("name", ["Q4_K_M", "q5_k_m", "Q3_K_S"])
def test_the_verb_takes_names_in_large_letters_and_what_it_writes_loads(name: str, tmp_path: Path) -> None:
    source, out = saved(tmp_path / "m", mixture(3), 2), tmp_path / "m.gguf"
    done = CliRunner().invoke(verb, [str(source), "--type", name, "--out", str(out)])
    assert done.exit_code == 0, done.output
    file = GGUFFile(out)
    assert file.metadata["general.file_type"] == TYPE_MIXES[name.lower()].file_type
    assert file["output.weight"].type.name == "Q6_K"
    assert len(load_gguf(out).config.layers) == 2
    unpacked = {tensor.type.name.lower() for tensor in file.tensors.values()} & {"q3_k", "q5_k"}
    assert all(kind in done.stderr for kind in unpacked)


def test_an_unknown_type_is_one_sentence_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"There is no type 'iq2_xxs' to write; valid are .*q4_k_m.*q8_0") as error:
        plan_quantize(tmp_path, "iq2_xxs")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", ["dense 2", "dense 17", "eight 9", "three 16"])
def test_llama_cpp_chooses_the_same(shape: str, tmp_path: Path) -> None:
    llama = pytest.importorskip("llama_cpp").llama_cpp
    kind, layers = shape.split()
    layer = {"dense": DENSE, "eight": mixture(8), "three": mixture(3)}[kind]
    source, whole = saved(tmp_path / "m", layer, int(layers)), tmp_path / "f32.gguf"
    plan_quantization(source, F32).run(whole)
    for name, mix in MIXES.items():
        options = llama.llama_model_quantize_default_params()
        options.ftype, options.nthread = mix.file_type, 1
        out = tmp_path / f"{name}.gguf"
        assert llama.llama_model_quantize(bytes(whole), bytes(out), ctypes.byref(options)) == 0
        theirs = {tensor.name: tensor.type.name.lower() for tensor in GGUFFile(out).tensors.values()}
        assert {tensor.name: tensor.type.name for tensor in plan_quantization(source, mix).tensors} == theirs, name
