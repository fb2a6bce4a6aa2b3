"""Architectures of GGUF files: transformers' models through a file and back, and files that contradict themselves."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tests.families.round_trips import check_logits
from torch import Tensor

from moekit.checkpoint.gguf import GGUFFile, OutputTensor, Strings, write_gguf
from moekit.config import AttentionConfig, DenseConfig, LinearScaling, ModelConfig, YarnScaling
from moekit.config.comparing import differences
from moekit.convert.export.gguf_export import plan_quantization
from moekit.core.errors import MoekitError
from moekit.families.gguf import ARCHITECTURES, GGUFModel, describe, layout
from moekit.families.gguf.written_metadata import with_plain_norms
from moekit.kernels.native.weights import LayerWeights, MoEWeights, NetworkWeights
from moekit.kernels.packed import BLOCK_TYPES_BY_NAME, F32, PackedMatrix, dequantize
from moekit.kernels.packed.quantize_blocks import quantize
from moekit.models import Decoder, load
from moekit.models.gguf import load_gguf

_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, tuple[str, Any]] = {
    "llama": ("llama", transformers.LlamaConfig(**_SHAPE)),
    "llama-3": ("llama", transformers.LlamaConfig(**_SHAPE, head_dim=16, rope_parameters=_LLAMA_3)),
    "llama-biases": (
        "llama",
        transformers.LlamaConfig(**_SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    ),
    "mistral": ("llama", transformers.MistralConfig(**_SHAPE, sliding_window=8)),
    "mixtral": ("llama", transformers.MixtralConfig(**_SHAPE, num_local_experts=4, num_experts_per_tok=2)),
    "qwen2": ("qwen2", transformers.Qwen2Config(**_SHAPE)),
    "qwen3": ("qwen3", transformers.Qwen3Config(**_SHAPE, head_dim=16)),
    "qwen2_moe": (
        "qwen2moe",
        transformers.Qwen2MoeConfig(**_SHAPE, **_EXPERTS, moe_intermediate_size=24, shared_expert_intermediate_size=40),
    ),
    "qwen3_moe": (
        "qwen3moe",
        transformers.Qwen3MoeConfig(**_SHAPE, **_EXPERTS, moe_intermediate_size=24, head_dim=16, norm_topk_prob=True),
    ),
    "olmoe": ("olmoe", transformers.OlmoeConfig(**_SHAPE, **_EXPERTS)),
    "gemma3": (
        "gemma3",
        transformers.Gemma3TextConfig(
            **_SHAPE | {"num_hidden_layers": 7}, head_dim=16, query_pre_attn_scalar=16, sliding_window=6
        ),
    ),
    "gemma3-every-second": (
        "gemma3",
        transformers.Gemma3TextConfig(
            **_SHAPE | {"num_hidden_layers": 4, "tie_word_embeddings": False},
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"] * 2,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            },
        ),
    ),
}


def folder_of(config: Any, folder: Path) -> tuple[Any, Path]:
    """Transformers' model and its folder, every weight drawn anew."""
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            # Vectors stay near what they start as: norms at one, or at zero where they stand for 1 + w.
            start = parameter if parameter.dim() == 1 else 0.0
            parameter.copy_(torch.randn_like(parameter) * 0.1 + start)
    theirs.eval().save_pretrained(folder)
    return theirs, folder


def file_of(folder: Path, kind: str = "f32") -> Path:
    out = folder.with_suffix(f".{kind}.gguf")
    plan_quantization(folder, BLOCK_TYPES_BY_NAME[kind]).run(out)
    return out


@pytest.fixture(params=sorted(MODELS), scope="module")
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """The architecture's name, transformers' model, and its folder, beside which the file lies."""
    torch.manual_seed(0)
    name, config = MODELS[request.param]
    theirs, folder = folder_of(config, tmp_path_factory.mktemp(request.param) / "model")
    file_of(folder)
    return name, theirs, folder


def test_a_model_survives_the_way_through_a_file(stored: tuple[str, Any, Path]) -> None:
    name, theirs, folder = stored
    path = folder.with_suffix(".f32.gguf")
    ours, before = load_gguf(path), load(folder)
    assert isinstance(before, Decoder)
    assert list(differences(ours.config, with_plain_norms(before.config))) == []
    tokens_BT = torch.randint(0, 96, (2, 24))
    with torch.no_grad():
        check_logits(theirs(tokens_BT).logits, ours(tokens_BT))
    # As the package names this architecture's tensors, which is how other programs look for them.
    file = GGUFFile(path)
    assert file.metadata["general.architecture"] == name
    key = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[key]}
    for tensor in file.tensors:
        plain = ".".join("{bid}" if part.isdigit() else part for part in tensor.split(".")[:-1])
        assert plain in known, tensor


def test_weights_in_place_are_the_module_s(stored: tuple[str, Any, Path]) -> None:
    name, theirs, folder = stored
    path = folder.with_suffix(".f32.gguf")
    if theirs.config.to_dict().get("mlp_bias"):
        with pytest.raises(MoekitError, match="which only the torch path adds"):
            GGUFModel(path).weights()
        return
    module, weights = load_gguf(path), GGUFModel(path).weights()
    assert weights.interleaved == (name == "llama")
    assert torch.equal(numbers(weights.embedding), module.embedding.weight)
    assert torch.equal(numbers(weights.head), module.head.weight)
    assert np.array_equal(weights.norm_D, module.norm.weight.detach().numpy())
    for layer, held in zip(module.layers, weights.layers, strict=True):
        assert isinstance(held, LayerWeights)
        attention = held.attention
        parts = [numbers(matrix) for matrix in (attention.query, attention.key, attention.value)]
        biases = [
            None if bias is None else torch.from_numpy(bias)
            for bias in (attention.query_bias, attention.key_bias, attention.value_bias)
        ]
        if weights.interleaved:
            for index in (0, 1):
                parts[index] = halves(parts[index], module.config)
                bias = biases[index]
                biases[index] = None if bias is None else halves(bias, module.config)
        assert torch.equal(torch.cat(parts), layer.attention.query_key_value.weight)
        if layer.attention.query_key_value.bias is not None:
            assert torch.equal(
                torch.cat([bias for bias in biases if bias is not None]), layer.attention.query_key_value.bias
            )
        assert torch.equal(numbers(attention.output), layer.attention.output.weight)
        for norm, ours in ((attention.query_norm, "query_norm"), (attention.key_norm, "key_norm")):
            module_norm = getattr(layer.attention, ours)
            assert (norm is None) == (module_norm is None)
            assert norm is None or np.array_equal(norm, module_norm.weight.detach().numpy())
        check_feed_forward(held.feed_forward, layer.feed_forward)


def numbers(matrix: PackedMatrix) -> Tensor:
    return torch.from_numpy(dequantize(matrix))


def halves(rows: Tensor, config: ModelConfig) -> Tensor:
    """Rows of pairs next to each other as rows of two halves, head by head: written out as a loop."""
    width = config.layers[0].attention.head_width
    order = [
        begin + 2 * pair + half for begin in range(0, len(rows), width) for half in (0, 1) for pair in range(width // 2)
    ]
    return rows[order]


def check_feed_forward(held: NetworkWeights | MoEWeights, module: Any) -> None:
    if isinstance(held, NetworkWeights):
        check_network(held, module.gate_up.weight, module.down.weight)
        return
    assert torch.equal(numbers(held.router), module.router.weight)
    experts = module.experts
    hidden = experts.gate_up_EGD.shape[1] // 2
    assert held.experts.gate is not None
    assert torch.equal(numbers(held.experts.gate), experts.gate_up_EGD[:, :hidden].flatten(0, 1))
    assert torch.equal(numbers(held.experts.up), experts.gate_up_EGD[:, hidden:].flatten(0, 1))
    assert torch.equal(numbers(held.experts.down), experts.down_EDF.flatten(0, 1))
    assert (held.shared_expert is None) == (module.branch is None)
    if held.shared_expert is not None:
        check_network(held.shared_expert, module.branch.gate_up.weight, module.branch.down.weight)
        assert held.shared_expert_gate_D is not None
        assert np.array_equal(held.shared_expert_gate_D, module.branch_gate.weight[0].detach().numpy())


def check_network(held: NetworkWeights, gate_up: Tensor, down: Tensor) -> None:
    assert held.gate is not None
    assert torch.equal(torch.cat([numbers(held.gate), numbers(held.up)]), gate_up)
    assert torch.equal(numbers(held.down), down)


def changed(path: Path, change: Any) -> Path:
    """The file again with other metadata and tensors: `change(metadata, tensors)`."""
    file = GGUFFile(path)
    metadata = {
        key: list(value) if isinstance(value, Strings) else value
        for key, value in file.metadata.items()
        if key != "general.architecture"
    }
    tensors = {name: torch.from_numpy(file.numbers(name)) for name in file.tensors}
    change(metadata, tensors)
    architecture = metadata.pop("general.architecture", file.metadata["general.architecture"])
    out = path.with_name("changed.gguf")
    outputs = [
        OutputTensor(
            name=name,
            type=F32,
            shape=tuple(x.shape),
            make=lambda x=x: iter([quantize(x.reshape(-1, x.shape[-1]), F32).data_RB]),
        )
        for name, x in tensors.items()
    ]
    write_gguf(out, architecture, metadata, outputs)
    return out


def single_experts(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if "_exps" in name]:
        for expert, matrix in enumerate(tensors.pop(name)):
            tensors[name.replace("_exps", f".{expert}")] = matrix


def test_files_of_before_experts_were_stacked_are_read(tmp_path: Path) -> None:
    _, folder = folder_of(MODELS["mixtral"][1], tmp_path / "model")
    path = file_of(folder)
    old = changed(path, single_experts)
    assert "blk.0.ffn_up.3.weight" in GGUFFile(old)
    tokens_BT = torch.randint(0, 96, (1, 9))
    with torch.no_grad():
        assert torch.equal(load_gguf(old)(tokens_BT), load_gguf(path)(tokens_BT))
    ours, stacked = GGUFModel(old).weights().layers[0].feed_forward, GGUFModel(path).weights().layers[0].feed_forward
    assert isinstance(ours, MoEWeights)
    assert isinstance(stacked, MoEWeights)
    assert np.array_equal(ours.experts.up.data_RB, stacked.experts.up.data_RB)
    assert np.array_equal(ours.experts.down.data_RB, stacked.experts.down.data_RB)


def test_published_factors_without_keys_are_understood(tmp_path: Path) -> None:
    """Files of others hold factors alone: those of a context of 8192 by name, others by their mixed frequencies."""
    shape = _SHAPE | {"head_dim": 128, "num_attention_heads": 1, "num_key_value_heads": 1}
    for context, high in ((8192, 4.0), (4096, 8.0)):
        more = {"original_max_position_embeddings": context, "high_freq_factor": high, "rope_theta": 500_000.0}
        config = transformers.LlamaConfig(**shape, rope_parameters=_LLAMA_3 | more)
        folder = tmp_path / f"{context}"
        _, _ = folder_of(config, folder)
        path = changed(file_of(folder), without_our_keys).rename(folder.with_suffix(".gguf"))
        before = load(folder)
        assert isinstance(before, Decoder)
        (a,), (b,) = load_gguf(path).ropes, before.ropes
        assert a.frequencies == pytest.approx(b.frequencies, rel=1e-4)


def without_our_keys(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for key in ("original_context_length", "low_freq_factor", "high_freq_factor"):
        metadata.pop(f"llama.rope.scaling.{key}")


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("is 'bert', which moekit does not read", lambda m, t: m.update({"general.architecture": "bert"})),
        ("llama.block_count is missing", lambda m, t: m.pop("llama.block_count")),
        ("lacks the tensor 'blk.4999", lambda m, t: m.update({"llama.block_count": 5000})),
        ("lacks the tensor 'blk.2", lambda m, t: m.update({"llama.block_count": 3})),
        ("must lie between 1", lambda m, t: m.update({"llama.block_count": 10**9})),
        ("must be an integer", lambda m, t: m.update({"llama.attention.head_count": "four"})),
        ("describes no model", lambda m, t: m.update({"llama.attention.head_count_kv": 3})),
        ("has the shape", lambda m, t: m.update({"llama.feed_forward_length": 47})),
        ("has the shape", lambda m, t: m.update({"llama.embedding_length": 2**31})),
        ("dimension_count is not the width", lambda m, t: m.update({"llama.rope.dimension_count": 4})),
        ("is 'longrope'", lambda m, t: m.update({"llama.rope.scaling.type": "longrope"})),
        ("clamp_kqv is set", lambda m, t: m.update({"llama.attention.clamp_kqv": 8.0})),
        (
            "'blk.0.extra.weight', which llama has no place for",
            lambda m, t: t.update({"blk.0.extra.weight": torch.ones(3)}),
        ),
        ("lacks the tensor 'blk.1.ffn_up.weight'", lambda m, t: t.pop("blk.1.ffn_up.weight")),
        ("token_embd.weight is missing", lambda m, t: t.pop("token_embd.weight")),
        ("none of Llama 3.1's", lambda m, t: t.update({"rope_freqs.weight": torch.tensor([1.0, 3.0, 2.0, 8.0])})),
    ],
)
def test_a_file_that_contradicts_itself_is_one_sentence(message: str, change: Any, llama: Path) -> None:
    path = changed(llama, change)
    with pytest.raises(MoekitError, match=message) as error:
        load_gguf(path)
    assert "\n" not in str(error.value)
    with pytest.raises(MoekitError, match=message):
        GGUFModel(path).weights()
    path.unlink()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return file_of(folder_of(MODELS["llama"][1], tmp_path_factory.mktemp("llama") / "model")[1])


def plain(**more: Any) -> ModelConfig:
    attention = {"heads": 2, "kv_heads": 1, "head_width": 8} | more.pop("attention", {})
    layers = (DenseConfig(width=8),) * 2
    return ModelConfig(vocab_size=8, width=16, context=32, attention=attention, layers=layers, **more)


@pytest.mark.parametrize("scaling", [None, LinearScaling(factor=4), YarnScaling(factor=4, context=16, magnitude=1.5)])
def test_scaled_positions_survive(scaling: Any, tmp_path: Path) -> None:
    config = plain(attention={"rope_scaling": scaling})
    Decoder(config).save(tmp_path / "model")
    read = load_gguf(file_of(tmp_path / "model")).config.layers[0].attention
    assert isinstance(read, AttentionConfig)
    if isinstance(scaling, YarnScaling):
        assert isinstance(read.rope_scaling, YarnScaling)
        assert read.rope_scaling.magnitude == pytest.approx(scaling.magnitude, rel=1e-6)  # four bytes in the file
        scaling = scaling.model_copy(update={"magnitude": read.rope_scaling.magnitude})
    assert read.rope_scaling == scaling


@pytest.mark.parametrize(
    "config",
    [
        plain(norm="layer"),
        plain(block="sandwich"),
        plain(logit_scale=0.5),
        plain(attention={"soft_cap": 30.0}),
        plain(attention={"windows": (4, None)}),
        plain(attention={"rope_scaling": YarnScaling(factor=4, context=16, whole_ends=False)}),
        plain(attention={"positions": "alibi"}),
    ],
)
def test_what_no_architecture_can_say_is_refused(config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="no known architecture"):
        describe(config)


def test_every_layout_names_a_tensor_once() -> None:
    config = plain()
    for architecture in ARCHITECTURES.values():
        names = [entry.name for entry in layout(architecture, config)]
        assert len(names) == len(set(names))
