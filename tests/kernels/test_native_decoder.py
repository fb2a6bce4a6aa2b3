"""The native decoder against the torch one with the same weights.

B sequences, T tokens, P positions in the cache, G key-value heads, C head width, D model width, V vocabulary.
"""

import itertools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from tests.kernels.packed_decoder import EXACT, Pack, as_type, packed
from torch import Tensor

from moekit.config import ModelConfig
from moekit.kernels.native.decoder import CacheKind, NativeCache, NativeDecoder
from moekit.kernels.native.decoder_description import unsupported
from moekit.kernels.native.module import available
from moekit.kernels.native.module import native as native_module
from moekit.kernels.native.weights import (
    DecoderWeights,
)
from moekit.kernels.packed import BF16, F16, F32, Q4_K, Q6_K, Q8_0, BlockType, dequantize
from moekit.kernels.packed.quantize_blocks import quantize
from moekit.models import Decoder
from moekit.nn import KeyValueCache

pytestmark = [
    pytest.mark.processor,
    pytest.mark.skipif(not available(), reason="the native module is not built"),
    pytest.mark.usefixtures("one_thread"),
]

DENSE = {"kind": "dense", "width": 24}
MOE = {"kind": "moe", "experts": 5, "expert_width": 24, "router": {"top_k": 2}}
PLAIN = {"top_k": 2, "renormalize": False}
LATENT = {"kind": "latent", "heads": 4, "head_width": 8, "rotary_width": 4, "value_width": 8, "kv_rank": 8}
YARN = {"kind": "yarn", "factor": 4.0, "context": 16}


def config(depth: int = 2, attention: dict[str, Any] | None = None, **settings: Any) -> ModelConfig:
    """A tiny model. Widths are no multiples of a vector's, so that every loop has its rest."""
    usual = {"heads": 4, "kv_heads": 2, "head_width": 10}
    settings = {"layers": [DENSE] * depth, "width": 36, "vocab_size": 50, "context": 16} | settings
    if attention and attention.get("kind") == "latent":
        usual = {}
    return ModelConfig.model_validate({"attention": usual | (attention or {}), "init_std": 0.2} | settings)


FEATURES = {
    "dense": config(),
    "multi_head": config(attention={"kv_heads": 4}),
    "seven_to_one": config(attention={"heads": 7, "kv_heads": 1}),
    "biases": config(attention={"qkv_bias": True, "output_bias": True}),
    "norm_by_head": config(attention={"query_key_norm": "head"}),
    "norm_of_all_heads": config(attention={"query_key_norm": "all"}),
    "windows": config(attention={"windows": [3, None, 7]}, depth=3),
    "soft_cap": config(attention={"soft_cap": 2.0, "scale": 0.5}),
    "no_positions": config(attention={"positions": "none"}),
    "yarn": config(attention={"rope_scaling": YARN}),
    "tied": config(tie_embeddings=True, embedding_scale=3.0, logit_scale=0.5),
    "sandwich": config(block="sandwich"),
    "gelu": config(layers=[DENSE | {"activation": "gelu"}]),
    "gelu_tanh": config(layers=[DENSE | {"activation": "gelu_tanh"}]),
    "ungated": config(layers=[DENSE | {"activation": "relu", "gated": False}]),
    "moe": config(layers=[MOE, DENSE, MOE]),
    "moe_not_renormalized": config(layers=[MOE | {"router": PLAIN}]),
    "moe_shared": config(layers=[MOE | {"branch": "shared", "branch_width": 28}]),
    "moe_gated_shared": config(layers=[MOE | {"router": PLAIN, "branch": "gated_shared", "branch_width": 28}]),
    "grok": config(
        layers=[MOE | {"activation": "gelu_tanh", "router": PLAIN}] * 2, block="sandwich", attention={"soft_cap": 3.0}
    ),
}


def make(of: ModelConfig) -> Decoder:
    """Random weights, none of which is a neutral 0 or 1."""
    torch.manual_seed(0)
    model = Decoder(of).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def native(model: Decoder, pack: Pack = EXACT, interleaved: bool = False) -> NativeDecoder:
    return NativeDecoder(model.config, packed(model, pack, interleaved))


def decode(decoder: NativeDecoder, tokens_T: Tensor, cache: NativeCache) -> Tensor:
    """logits_TV, one token after the other."""
    return torch.cat([step(decoder, [cache], [token]) for token in tokens_T.tolist()])


def step(decoder: NativeDecoder, caches: list[NativeCache], tokens: list[int]) -> Tensor:
    """Compute logits_BV after one more token of each sequence."""
    return torch.from_numpy(decoder.decode(caches, tokens))


def text(of: ModelConfig, length: int, seed: int = 0) -> Tensor:
    return torch.randint(of.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def assert_same(logits: Tensor, expected: Tensor) -> None:
    assert (logits - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize("name", FEATURES)
def test_equals_the_torch_decoder(name: str) -> None:
    of = FEATURES[name]
    assert unsupported(of) is None
    model, tokens_T = make(of), text(of, of.context)
    decoder = native(model)
    assert_same(decode(decoder, tokens_T, decoder.new_cache("fp32")), model(tokens_T[None])[0])


@pytest.mark.parametrize("name", ["dense", "biases", "norm_by_head", "norm_of_all_heads", "yarn"])
def test_heads_whose_pairs_are_neighbours(name: str) -> None:
    of = FEATURES[name]
    model, tokens_T = make(of), text(of, 12)
    decoder = native(model, interleaved=True)
    assert_same(decode(decoder, tokens_T, decoder.new_cache("fp32")), model(tokens_T[None])[0])


@pytest.mark.parametrize("windows", [[None], [700, 3]], ids=["all", "windows"])
def test_attention_cut_into_parts_over_several_pages(windows: list[int | None]) -> None:
    """The last tokens of 1030 are in the fourth and fifth page of 256, the second and third part of 512."""
    of = config(context=1030, attention={"windows": windows})
    model, tokens_T = make(of), text(of, 1030)
    decoder = native(model)
    cache = decoder.new_cache("fp32")
    decoder.extend(cache, tokens_T[:-12].tolist())
    logits_TV = decode(decoder, tokens_T[-12:], cache)
    assert_same(logits_TV, model(tokens_T[None])[0, -12:])


@pytest.mark.parametrize("name", ["dense", "windows", "moe", "moe_gated_shared"])
def test_a_batch_equals_each_alone(name: str) -> None:
    """To the bit, whatever the lengths, and with more sequences than share a reading of the weights."""
    of = FEATURES[name]
    decoder = native(make(of))
    batch = 19
    tokens_BT = [text(of, 1 + 3 * b % 7, seed=b) for b in range(batch)]
    together, alone = ([decoder.new_cache("bf16") for _ in range(batch)] for _ in range(2))
    expected = [decode(decoder, tokens_T, cache) for tokens_T, cache in zip(tokens_BT, alone, strict=True)]
    for tokens_T, cache in zip(tokens_BT, together, strict=True):
        if len(tokens_T) > 1:
            decode(decoder, tokens_T[:-1], cache)
    logits_BV = step(decoder, together, [int(tokens_T[-1]) for tokens_T in tokens_BT])
    torch.testing.assert_close(logits_BV, torch.stack([logits_TV[-1] for logits_TV in expected]), rtol=0, atol=0)
    assert [cache.length for cache in together] == [len(tokens_T) for tokens_T in tokens_BT]


@pytest.mark.parametrize("name", ["windows", "moe_gated_shared", "grok"])
def test_threads_do_not_change_a_bit(name: str) -> None:
    of = FEATURES[name].model_copy(update={"context": 600})
    model, tokens_BT = make(of), [text(of, length) for length in (530, 1, 7)]
    decoder = native(model)
    results = []
    for threads in (1, 2, 3):
        caches = [decoder.new_cache("bf16") for _ in tokens_BT]
        native_module().set_threads(threads)
        for tokens_T, cache in zip(tokens_BT, caches, strict=True):
            decoder.extend(cache, tokens_T.tolist())
        results.append(torch.stack([step(decoder, caches, [token] * 3) for token in range(3)]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


class GivenCache(KeyValueCache):
    """Holds what another cache kept, and checks what it is asked to hold against that."""

    def __init__(self, kept: NativeCache, layer: int, bound: Callable[[Tensor], Tensor]) -> None:
        self.key_GPC, self.value_GPC = map(torch.from_numpy, kept.read(layer, kept.length))
        self.length, self.bound = 0, bound

    def append(self, key_BGTC: Tensor, value_BGTC: Tensor) -> tuple[Tensor, Tensor]:
        begin, self.length = self.length, self.length + key_BGTC.shape[2]
        for kept_GPC, given_GTC in ((self.key_GPC, key_BGTC[0]), (self.value_GPC, value_BGTC[0])):
            error_GTC = (kept_GPC[:, begin : self.length] - given_GTC).abs()
            assert (error_GTC <= self.bound(given_GTC)).all()
        return self.key_GPC[None, :, : self.length], self.value_GPC[None, :, : self.length]


# How far a number may be from what is kept of it: half a unit in the last of bf16's 8 bits, half a step of a block's
# 254. The rest is for what is rounded, which the two sides compute in different orders.
ROOM = 1e-5


def bf16_bound(rows_GTC: Tensor) -> Tensor:
    return rows_GTC.abs() * 2**-8 + ROOM


def q8_bound(rows_GTC: Tensor) -> Tensor:
    blocks = rows_GTC.split(32, -1)
    return torch.cat([(block.abs().amax(-1, keepdim=True) / 254).expand_as(block) for block in blocks], -1) + ROOM


@pytest.mark.parametrize(("kind", "bound"), [("bf16", bf16_bound), ("q8", q8_bound)])
@pytest.mark.parametrize("head_width", [10, 40, 64])
def test_caches_of_fewer_bits(kind: CacheKind, bound: Callable[[Tensor], Tensor], head_width: int) -> None:
    """What is kept is near what was given, and attention is exact on what is kept."""
    of = config(attention={"head_width": head_width, "heads": 6})
    model, tokens_T = make(of), text(of, 12)
    decoder = native(model)
    cache = decoder.new_cache(kind)
    logits_TV = decode(decoder, tokens_T, cache)
    given = cast(list[KeyValueCache], [GivenCache(cache, layer, bound) for layer in range(len(of.layers))])
    expected = [model(token_1[None], caches=given)[0] for token_1 in tokens_T.split(1)]
    assert_same(logits_TV, torch.cat(expected))


def test_a_truncated_cache_goes_on_as_if_the_rest_had_never_been() -> None:
    of = config(context=300)
    model = make(of)
    decoder = native(model)
    tokens_T, other_T = text(of, 260), text(of, 4, seed=1)
    cache, fresh = decoder.new_cache(), decoder.new_cache()
    decoder.extend(cache, tokens_T.tolist())
    full = cache.bytes
    cache.truncate(250)
    assert cache.length == 250
    assert cache.bytes == full // 2
    decoder.extend(fresh, tokens_T[:250].tolist())
    torch.testing.assert_close(decode(decoder, other_T, cache), decode(decoder, other_T, fresh), rtol=0, atol=0)


# An activation of 8 bits in a block of 32 is off by at most 1/254 of the block's largest, evenly spread: for normal
# numbers, whose largest of 32 is about 2.4 standard deviations, that is 2.4 / 127 / sqrt(12) = 0.55 % of a product. One
# of bf16 is off by half of 2^-7 at most, by 2^-7 / sqrt(12 · 2.16) = 0.15 % in the mean square (2.16: that of
# significands). Logits see four products in a row in each of two layers, and the head's; what enters gate and up moves
# both the same way, so that it counts twice, which is four times in the sum of squares.
PRODUCTS = (2 * (3 + 4) + 1) ** 0.5


@pytest.mark.parametrize(("kind", "error"), [(BF16, 0.0015), (Q8_0, 0.0055), (Q4_K, 0.0055), (Q6_K, 0.0055)])
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_packed_weights(kind: BlockType, error: float, name: str) -> None:
    layer = {"dense": {"kind": "dense", "width": 256}, "moe": MOE | {"expert_width": 256}}[name]
    of = config(layers=[layer] * 2, width=256, attention={"head_width": 64}, init_std=1 / 16)
    model, tokens_T = make(of), text(of, 8)
    decoder = native(model, as_type(kind))
    round_weights(model, as_type(kind))
    assert 0 < median_error(decoder, model, tokens_T) <= PRODUCTS * error


def median_error(decoder: NativeDecoder, model: Decoder, tokens_T: Tensor) -> float:
    """Of a token's logits, relative; the median, since a router may fall the other way where it is nearly undecided."""
    expected_TV = model(tokens_T[None])[0]
    difference_TV = decode(decoder, tokens_T, decoder.new_cache("fp32")) - expected_TV
    return (difference_TV.norm(dim=1) / expected_TV.norm(dim=1)).median().item()


def round_weights(model: Decoder, pack: Pack) -> None:
    """The numbers that remain of a model's weights once they are packed."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "router" not in name:
            rows_RC = parameter.flatten(0, -2)
            parameter.copy_(torch.from_numpy(dequantize(pack(rows_RC))).view_as(parameter))


def test_matrices_of_several_types_in_one_layer() -> None:
    of = config(
        layers=[{"kind": "dense", "width": 64}, MOE | {"expert_width": 32}],
        width=64,
        attention={"head_width": 16},
        init_std=1 / 8,
    )
    model, tokens_T = make(of), text(of, 8)
    # Numbers that every one of the types holds, so that only the activations differ.
    round_weights(model, as_type(Q8_0))
    round_weights(model, as_type(BF16))
    kinds = itertools.cycle([F32, BF16, Q8_0, F16])
    decoder = native(model, lambda weight: quantize(weight, next(kinds)))
    assert 0 < median_error(decoder, model, tokens_T) <= PRODUCTS * 0.0055


def test_two_decoders_in_two_threads() -> None:
    decoders = [native(make(FEATURES[name])) for name in ("dense", "moe")]
    texts = [text(decoder.config, 16, seed) for seed, decoder in enumerate(decoders)]
    expected = [
        decode(decoder, tokens_T, decoder.new_cache()) for decoder, tokens_T in zip(decoders, texts, strict=True)
    ]
    jobs = [0, 1, 0, 1]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda job: decode(decoders[job], texts[job], decoders[job].new_cache()), jobs)
    for job, logits_TV in zip(jobs, results, strict=True):
        torch.testing.assert_close(logits_TV, expected[job], rtol=0, atol=0)


def test_what_a_step_refuses() -> None:
    of = config(context=2)
    decoder, other = native(make(of)), native(make(config(depth=3)))
    cache = decoder.new_cache()
    with pytest.raises(IndexError, match="token 50 is not one of a vocabulary of 50"):
        decoder.decode([cache], [50])
    with pytest.raises(ValueError, match="two have the same cache"):
        decoder.decode([cache, cache], [1, 2])
    with pytest.raises(ValueError, match="that of another model"):
        decoder.decode([other.new_cache()], [1])
    with pytest.raises(ValueError, match="1 caches are not those of 2 tokens"):
        decoder.decode([cache], [1, 2])
    assert cache.length == 0
    decode(decoder, text(of, 2), cache)
    with pytest.raises(ValueError, match="3 positions do not fit a context of 2"):
        decoder.decode([cache], [1])


def test_what_a_cache_refuses() -> None:
    of = config(context=4)
    decoder = native(make(of))
    cache = decoder.new_cache("fp32")
    decoder.extend(cache, [1, 2])
    with pytest.raises(IndexError, match="does not hold 3 positions"):
        cache.read(0, 3)
    with pytest.raises(IndexError, match="layer 2 of 2"):
        cache.read(2, 2)


def test_weights_of_other_shapes_are_refused() -> None:
    weights = packed(make(config()))
    with pytest.raises(ValueError, match="embedding is 50 x 36 where 51 x 36 are needed"):
        NativeDecoder(config(vocab_size=51), weights)
    with pytest.raises(ValueError, match="weights of 2 layers"):
        NativeDecoder(config(depth=3), weights)
    with pytest.raises(ValueError, match="layer 0: query_bias is missing"):
        NativeDecoder(config(attention={"qkv_bias": True}), weights)
    with pytest.raises(ValueError, match="layer 0: the weights are not those of a layer of kind moe"):
        NativeDecoder(config(layers=[MOE, MOE]), weights)
    with pytest.raises(ValueError, match="layer 0: down is 36 x 24 where 36 x 25 are needed"):
        NativeDecoder(config(layers=[DENSE | {"width": 25}] * 2), weights)
    with pytest.raises(ValueError, match="layer 0: query is 40 x 36 where 32 x 36 are needed"):
        NativeDecoder(config(attention={"head_width": 8}), weights)


def test_weights_that_the_configuration_does_not_know_are_refused() -> None:
    """Biases, norms and shared experts would change nothing, in silence."""
    biased = packed(make(config(attention={"output_bias": True})))
    with pytest.raises(ValueError, match="layer 0: output_bias is among the weights"):
        NativeDecoder(config(), biased)
    sandwich = packed(make(config(block="sandwich")))
    with pytest.raises(ValueError, match="layer 0: attention_post_norm is among the weights"):
        NativeDecoder(config(), sandwich)
    shared = packed(make(config(layers=[MOE | {"branch": "shared", "branch_width": 28}])))
    with pytest.raises(ValueError, match="layer 0: shared_expert is among the weights"):
        NativeDecoder(config(layers=[MOE]), shared)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"norm": "layer"}, "layers[0].norm.kind is layer"),
        ({"block": "parallel"}, "layers[0].block is parallel"),
        ({"learned_positions": True}, "learned_positions is True"),
        ({"attention": {"positions": "alibi"}}, "layers[0].attention.positions is alibi"),
        ({"attention": {"head_width": 1026}}, "layers[0].attention.head_width is over 1024"),
        ({"attention": LATENT}, "layers[0].attention.kind is latent"),
        ({"layers": [DENSE, DENSE | {"bias": True}]}, "layers[1].feed_forward.bias is True"),
        (
            {"layers": [MOE | {"branch": "residual", "branch_width": 8}]},
            "layers[0].feed_forward.branch is residual",
        ),
        ({"layers": [MOE | {"router": {"kind": "gshard"}}]}, "layers[0].feed_forward.router.kind is gshard"),
        (
            {"layers": [MOE | {"router": {"top_k": 2, "capacity_factor": 1.0}}]},
            "layers[0].feed_forward.router.capacity_factor is 1.0",
        ),
    ],
)
def test_what_is_left_to_torch_is_said(settings: dict[str, Any], reason: str) -> None:
    of = config(**settings)
    assert unsupported(of) == reason
    with pytest.raises(ValueError, match=re.escape(reason)):
        NativeDecoder(of, cast(DecoderWeights, None))
