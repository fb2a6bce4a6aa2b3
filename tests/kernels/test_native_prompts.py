"""Prompts of the native decoder against the torch one in fp64, on every instruction set.

T tokens, R rows, D columns.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.instruction_sets import using_instruction_set
from tests.kernels.packed_decoder import as_type, packed
from tests.kernels.test_native_decoder import config, decode, make, native, round_weights, text
from torch import Tensor

from moekit.config import ModelConfig
from moekit.kernels.native.decoder import NativeCache, NativeDecoder
from moekit.kernels.native.module import available
from moekit.kernels.native.module import native as native_module
from moekit.kernels.packed import BF16, F16, F32, Q4_0, Q4_K, Q6_K, Q8_0, BlockType
from moekit.kernels.packed.quantize_blocks import quantize
from moekit.models import Decoder

pytestmark = [
    pytest.mark.skipif(not available(), reason="the native module is not built"),
    pytest.mark.usefixtures("one_thread"),
]

SETS = native_module().instruction_sets() if available() else []
IN_FP32 = [name for name in SETS if name not in ("avx512_bf16", "amx")]
"""Those without products of bf16 numbers."""
QUANTIZED = [Q4_0, Q8_0, Q4_K, Q6_K]


@pytest.fixture
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    with using_instruction_set(request.param) as name:
        yield name


def assert_same(logits_V: Tensor, expected_V: Tensor) -> None:
    """Within what rounding in fp32 does: its last bit is 6e-8, and a few dozen of them add up."""
    assert logits_V.dtype == torch.float32
    assert (logits_V - expected_V).abs().max() <= 1e-5 * expected_V.std()


def prefill(decoder: NativeDecoder, cache: NativeCache, tokens_T: Tensor) -> Tensor:
    """Compute logits_V after a prompt."""
    return torch.from_numpy(decoder.prefill(cache, tokens_T.tolist()))


def check_prompts(decoder: NativeDecoder, model: Decoder, chunks: list[int]) -> None:
    """One chunk after another, the logits after each, and those of a step at the end."""
    tokens_T = text(model.config, sum(chunks) + 1)
    expected_TV = model.double()(tokens_T[None])[0]
    cache, end = decoder.new_cache("fp32"), 0
    for chunk_T in tokens_T[:-1].split(chunks):
        end += len(chunk_T)
        assert_same(prefill(decoder, cache, chunk_T), expected_TV[end - 1])
        assert cache.length == end
    assert_same(decode(decoder, tokens_T[-1:], cache)[0], expected_TV[-1])


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Small models of any widths with any of the features that prompts know.

    Hidden widths of a few numbers are left out: where those are nearly 0, a norm behind them makes rounding large, and
    torch's fp32 is as far from its fp64 as ours.
    """
    kv_heads, activations = draw(st.integers(1, 3)), ["silu", "gelu", "gelu_tanh", "relu"]

    def layer() -> dict[str, Any]:
        network = {"activation": draw(st.sampled_from(activations)), "gated": draw(st.booleans())}
        if draw(st.booleans()):
            return {"kind": "dense", "width": draw(st.integers(8, 90))} | network
        experts, branch = draw(st.integers(1, 6)), draw(st.sampled_from(["none", "shared", "gated_shared"]))
        router = {"top_k": draw(st.integers(1, experts)), "renormalize": draw(st.booleans())}
        width = {} if branch == "none" else {"branch_width": draw(st.integers(8, 40))}
        sizes = {"experts": experts, "expert_width": draw(st.integers(8, 50))}
        return {"kind": "moe", "router": router, "branch": branch} | sizes | width | network

    layers = [layer() for _ in range(draw(st.integers(1, 2)))]
    attention = {
        "heads": kv_heads * draw(st.integers(1, 4)),
        "kv_heads": kv_heads,
        "head_width": 2 * draw(st.integers(4, 36)),
        "qkv_bias": draw(st.booleans()),
        "output_bias": draw(st.booleans()),
        "query_key_norm": draw(st.sampled_from(["none", "head", "all"])),
        "windows": [draw(st.sampled_from([None, 1, 7, 40])) for _ in layers],
        "soft_cap": draw(st.sampled_from([None, 3.0])),
    }
    return config(
        attention=attention,
        layers=layers,
        width=draw(st.integers(8, 80)),
        context=300,
        block=draw(st.sampled_from(["pre", "sandwich"])),
        embedding_scale=draw(st.sampled_from([1.0, 3.0])),
        logit_scale=draw(st.sampled_from([1.0, 0.5])),
    )


@pytest.mark.parametrize("instructions", SETS, indirect=True)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(of=configs(), interleaved=st.booleans(), chunks=st.lists(st.integers(1, 70), min_size=1, max_size=3))
def test_prompts_of_fp32_models(of: ModelConfig, interleaved: bool, chunks: list[int], instructions: str) -> None:
    model = make(of)
    decoder = native(model, interleaved=interleaved)
    check_prompts(decoder, model, chunks)


def mixed_model(windows: list[int | None] | None = None) -> ModelConfig:
    """Make a dense layer and one of experts, of widths that all types have whole blocks of."""
    mixture = {"kind": "moe", "experts": 3, "expert_width": 256, "router": {"top_k": 2}}
    return config(
        layers=[{"kind": "dense", "width": 512}, mixture],
        width=256,
        context=700,
        attention={"head_width": 64, "windows": windows or [None, None]},
        init_std=1 / 16,
    )


@pytest.mark.parametrize("instructions", IN_FP32, indirect=True)
def test_fp16_weights_are_multiplied_as_the_numbers_they_stand_for(instructions: str) -> None:
    """Without products of bf16 numbers. bf16 weights, too. The head is that of a step, and fp32 here."""
    for kind in (F16, BF16):
        of = mixed_model()
        model = make(of)
        weights = replace(packed(model, as_type(kind)), head=packed(model).head)
        head_VD = model.head.weight.clone()
        round_weights(model, as_type(kind))
        model.head.weight.copy_(head_VD)
        decoder = NativeDecoder(of, weights)
        tokens_T = text(of, 83)
        expected_TV = model.double()(tokens_T[None])[0]
        cache = decoder.new_cache("fp32")
        decoder.extend(cache, tokens_T[:13].tolist())
        assert_same(prefill(decoder, cache, tokens_T[13:]), expected_TV[-1])


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("instructions", IN_FP32, indirect=True)
def test_quantised_weights_are_multiplied_as_in_a_step(kind: BlockType, instructions: str) -> None:
    """Of short prompts, since a last bit of attention's may bring an activation to the next whole number."""
    of = mixed_model()
    model = make(of)
    decoder = NativeDecoder(of, replace(packed(model, as_type(kind)), head=packed(model).head))
    differences = []
    for seed in range(12):
        tokens_T, cache, stepwise = text(of, 5 + seed, seed=seed), decoder.new_cache("fp32"), decoder.new_cache("fp32")
        expected_V = [decode(decoder, token_1, stepwise)[0] for token_1 in tokens_T.split(1)][-1]
        differences.append((prefill(decoder, cache, tokens_T) - expected_V).abs().max() / expected_V.std())
    assert torch.stack(differences).median() <= 1e-5
    assert max(differences) <= 0.05


@pytest.mark.parametrize("instructions", SETS, indirect=True)
def test_matrices_of_several_types_in_one_layer(instructions: str) -> None:
    """Whole numbers for some, tiles for others: no further from torch than steps, which round more activations."""
    mixture = {"kind": "moe", "experts": 3, "expert_width": 64, "router": {"top_k": 2}, "branch": "shared"}
    of = config(
        layers=[{"kind": "dense", "width": 64}, mixture | {"branch_width": 64}, mixture | {"branch_width": 96}],
        width=64,
        context=100,
        attention={"head_width": 16},
        init_std=1 / 8,
    )
    model = make(of)
    # Numbers that every one of the types holds, so that only the activations differ.
    round_weights(model, as_type(Q8_0))
    round_weights(model, as_type(BF16))
    tokens_T, ends = text(of, 60), range(20, 60, 4)
    expected_TV = model(tokens_T[None])[0]

    def error(logits_V: Tensor, end: int) -> Tensor:
        return (logits_V - expected_TV[end - 1]).norm() / expected_TV[end - 1].norm()

    types = [F32, BF16, Q8_0, F16, Q8_0]
    for start in range(len(types)):
        kinds = itertools.cycle(types[start:] + types[:start])
        decoder = native(model, lambda weight, kinds=kinds: quantize(weight, next(kinds)))
        steps_TV = decode(decoder, tokens_T, decoder.new_cache("fp32"))
        of_steps = torch.stack([error(steps_TV[end - 1], end) for end in ends])
        of_prompts = torch.stack(
            [error(prefill(decoder, decoder.new_cache("fp32"), tokens_T[:end]), end) for end in ends]
        )
        assert 0 < of_prompts.median() <= of_steps.median()


@pytest.mark.parametrize("kind", [F32, BF16, *QUANTIZED], ids=lambda kind: kind.name)
@pytest.mark.parametrize("instructions", SETS, indirect=True)
def test_how_a_prompt_is_cut_does_not_change_a_bit(kind: BlockType, instructions: str) -> None:
    of = mixed_model([300, None])
    decoder, tokens_T, results = native(make(of), as_type(kind)), text(of, 600), []
    for chunks in ([600], [1, 599], [37, 300, 263], [511, 1, 88]):
        cache = decoder.new_cache()
        results.append([prefill(decoder, cache, chunk_T) for chunk_T in tokens_T.split(chunks)][-1])
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("kind", [F32, Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("instructions", SETS, indirect=True)
def test_neither_threads_nor_what_was_computed_before_change_a_bit(kind: BlockType, instructions: str) -> None:
    mixture = {"kind": "moe", "experts": 5, "expert_width": 96, "router": {"top_k": 2}, "branch": "shared"}
    of = config(layers=[mixture | {"branch_width": 64}] * 2, width=64, context=600, attention={"head_width": 16})
    decoder, results = native(make(of), as_type(kind)), []
    for threads in (1, 2, 3):
        native_module().set_threads(threads)
        results.append(prefill(decoder, decoder.new_cache(), text(of, 530)))
        prefill(decoder, decoder.new_cache(), text(of, 20, seed=threads))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_caches_follow_the_first_matrix() -> None:
    model = make(config(width=32, layers=[{"kind": "dense", "width": 32}], attention={"head_width": 8}))
    decoders = {kind: native(model, as_type(kind)) for kind in (F32, BF16, Q8_0)}
    for kind, decoder in decoders.items():
        cache, same = decoder.new_cache(), decoder.new_cache("fp32" if kind is F32 else "bf16")
        for one in (cache, same):
            decoder.extend(one, [1, 2, 3])
        assert cache.bytes == same.bytes


def test_what_a_prompt_refuses() -> None:
    of = config(context=5)
    decoder = native(make(of))
    cache = decoder.new_cache()
    with pytest.raises(IndexError, match="token 50 is not one of a vocabulary of 50"):
        decoder.prefill(cache, [1, 50])
    with pytest.raises(ValueError, match="a prompt has a token or more"):
        decoder.prefill(cache, [])
    with pytest.raises(ValueError, match="6 positions do not fit a context of 5"):
        decoder.prefill(cache, [1] * 6)
    assert cache.length == 0
