"""`load_runner(folder, quantize=...)` computes what the file computes that `moekit quantize` would write."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.inference.runner_logits import decode, prefill

from moekit.config import AttentionConfig, ModelConfig, MoEConfig, NormConfig, SoftmaxTopKConfig
from moekit.convert.export.gguf_export import plan_quantization
from moekit.core.errors import MoekitError, UsageError
from moekit.families.gguf import GGUFModel
from moekit.inference import load_runner
from moekit.inference.packed_weights import packed_weights
from moekit.kernels.native import available
from moekit.kernels.packed import Q4_K, Q6_K, Q8_0, BlockType, PackedMatrix, dequantize
from moekit.models import Decoder, load

pytestmark = pytest.mark.skipif(not available(), reason="the native module is not built")


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A mixture that reads bytes; its rows are blocks of 256 numbers, but those of its experts' `down`."""
    torch.manual_seed(0)
    expert = MoEConfig(experts=3, expert_width=96, router=SoftmaxTopKConfig(top_k=2))
    config = ModelConfig(
        vocab_size=256,
        width=256,
        context=64,
        attention=AttentionConfig(heads=4, kv_heads=2, head_width=64),
        layers=(expert, expert),
        tie_embeddings=request.param,
        init_std=1 / 16,
    )
    Decoder(config).save(tmp_path / "model")
    return tmp_path / "model"


def matrices(part: object, name: str = "") -> Iterator[tuple[str, PackedMatrix]]:
    """Every matrix by its place."""
    if isinstance(part, PackedMatrix):
        yield name, part
    elif isinstance(part, tuple):
        for index, one in enumerate(part):
            yield from matrices(one, f"{name}.{index}")
    elif is_dataclass(part):
        for field in fields(part):
            yield from matrices(getattr(part, field.name), f"{name}.{field.name}")


@pytest.mark.parametrize("kind", [Q4_K, Q8_0], ids=lambda kind: kind.name)
def test_it_is_the_file_that_quantize_writes(folder: Path, kind: BlockType) -> None:
    """The same types and numbers (rows of queries and keys stand in another order there), so the same logits."""
    file = folder.with_name("model.gguf")
    plan_quantization(folder, kind).run(file)
    model = load(folder)
    assert isinstance(model, Decoder)
    ours = dict(matrices(packed_weights(model, kind)))
    theirs = dict(matrices(GGUFModel(file).weights()))
    assert ours.keys() == theirs.keys()
    for name, matrix in ours.items():
        assert matrix.type is theirs[name].type, name
        if not name.endswith(("query", "key")):
            np.testing.assert_array_equal(dequantize(matrix), dequantize(theirs[name]))
    assert ours[".head"].type is (Q6_K if kind is Q4_K else kind)
    assert ours[".layers.1.feed_forward.experts.down"].type is Q8_0
    assert not any(parameter.numel() for parameter in model.layers.parameters())


def test_what_is_computed(folder: Path) -> None:
    """Steps multiply integers with the packed weights of either, and differ from fp32 by far more."""
    file = folder.with_name("model.gguf")
    plan_quantization(folder, Q4_K).run(file)
    tokens_T = torch.arange(1, 40)
    logits = []
    for runner in (load_runner(folder, quantize="q4_k").runner, load_runner(file).runner, load_runner(folder).runner):
        cache = runner.new_cache()
        prefill(runner, cache, tokens_T)
        logits.append(decode(runner, [cache], tokens_T[:1]))
    from_file, from_fp32 = ((logits[0] - other).norm() / logits[0].norm() for other in logits[1:])
    assert from_file < 0.2 * from_fp32
    assert from_fp32 > 0.01


def test_what_cannot_be_quantised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder.with_name("model.gguf")
    plan_quantization(folder, Q8_0).run(file)
    with pytest.raises(UsageError, match=r"model\.gguf is a GGUF file, whose weights run in the types they have"):
        load_runner(file, quantize="q8_0")
    with pytest.raises(UsageError, match=r"no type 'q8' to quantise to.*q8_0"):
        load_runner(folder, quantize="q8")
    monkeypatch.setattr("moekit.kernels.native.available", lambda: False)
    with pytest.raises(UsageError, match="needs the native kernels, and they are not built here"):
        load_runner(folder, quantize="q8_0")


def test_a_model_that_the_kernels_do_not_compute(folder: Path) -> None:
    """Said before weights are read, of which there are none."""
    config = load(folder).config  # type: ignore[union-attr]
    assert isinstance(config, ModelConfig)
    other = folder.with_name("other")
    norm = NormConfig(kind="layer")
    layers = tuple(layer.model_copy(update={"norm": norm}) for layer in config.layers)
    Decoder(config.model_copy(update={"layers": layers, "norm": norm})).save(other)
    for weights in other.glob("*.safetensors"):
        weights.write_bytes(b"no weights")
    with pytest.raises(UsageError, match=r"they do not compute this model, because layers\[0\].norm.kind is layer"):
        load_runner(other, quantize="q8_0")


def test_weights_that_are_no_numbers(folder: Path) -> None:
    model = load(folder)
    assert isinstance(model, Decoder)
    with torch.no_grad():
        model.get_parameter("layers.1.attention.output.weight")[0, 0] = torch.nan
    model.save(folder.with_name("broken"))
    with pytest.raises(MoekitError, match=r"'layers\.1\.attention\.output\.weight' holds numbers that are not finite"):
        load_runner(folder.with_name("broken"), quantize="q8_0")
