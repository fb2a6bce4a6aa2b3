"""The native decoder where no two layers are alike, against the torch one with the same weights.

T tokens, V vocabulary.
"""

from typing import Any

import pytest
import torch
from tests.kernels.instruction_sets import using_instruction_set
from tests.kernels.packed_decoder import as_type
from tests.kernels.test_native_decoder import (
    DENSE,
    MOE,
    PLAIN,
    GivenCache,
    assert_same,
    bf16_bound,
    decode,
    make,
    native,
    q8_bound,
    step,
    text,
)
from tests.kernels.test_native_prompts import check_prompts, prefill

from moekit.config import ModelConfig
from moekit.kernels.native.decoder import CacheKind
from moekit.kernels.native.decoder_description import unsupported
from moekit.kernels.native.module import available
from moekit.kernels.native.module import native as native_module
from moekit.kernels.packed import BF16, F32

pytestmark = [
    pytest.mark.skipif(not available(), reason="the native module is not built"),
    pytest.mark.usefixtures("one_thread"),
]

SETS = native_module().instruction_sets() if available() else []

LOCAL: dict[str, Any] = {
    "attention": {
        "heads": 4,
        "kv_heads": 2,
        "head_width": 10,
        "window": 3,
        "rope_base": 100.0,
        "query_key_norm": "head",
        "scale": 0.4,
    },
    "feed_forward": DENSE | {"activation": "gelu_tanh"},
    "block": "sandwich",
    "norm": {"eps": 1e-6, "zero_centered": True},
}
GLOBAL: dict[str, Any] = {
    "attention": {
        "heads": 6,
        "kv_heads": 3,
        "head_width": 16,
        "rope_base": 5000.0,
        "rope_scaling": {"kind": "yarn", "factor": 4.0, "context": 16},
        "query_key_norm": "all",
        "soft_cap": 3.0,
        "qkv_bias": True,
    },
    "feed_forward": MOE,
    "norm": {"eps": 1e-5},
}
WITHOUT_POSITIONS: dict[str, Any] = {
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 35, "positions": "none", "output_bias": True},
    "feed_forward": {"kind": "dense", "width": 40, "activation": "relu", "gated": False},
    "norm": {"eps": 1e-2},
}
SHARED: dict[str, Any] = {
    "attention": {
        "heads": 3,
        "kv_heads": 3,
        "head_width": 8,
        "window": 7,
        "rope_scaling": {"kind": "linear", "factor": 2},
    },
    "feed_forward": {
        "kind": "moe",
        "experts": 3,
        "expert_width": 32,
        "router": PLAIN,
        "branch": "gated_shared",
        "branch_width": 28,
    },
    "block": "sandwich",
    "norm": {"eps": 1e-4},
}


def model_of(*layers: dict[str, Any], **settings: Any) -> ModelConfig:
    of: dict[str, Any] = {"layers": layers, "width": 36, "vocab_size": 50, "context": 16, "init_std": 0.2}
    return ModelConfig.model_validate(of | {"norm": {"eps": 1e-3, "zero_centered": True}} | settings)


MIXED = model_of(LOCAL, GLOBAL, WITHOUT_POSITIONS, SHARED, LOCAL)
ORDERS = {
    "mixed": MIXED,
    "reversed": model_of(SHARED, WITHOUT_POSITIONS, GLOBAL, LOCAL),
    "local_and_global": model_of(*[LOCAL, LOCAL, GLOBAL] * 2),
}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("instructions", SETS)
def test_steps(name: str, instructions: str) -> None:
    of = ORDERS[name]
    assert unsupported(of) is None
    model, tokens_T = make(of), text(of, of.context)
    with using_instruction_set(instructions):
        decoder = native(model)
        assert_same(decode(decoder, tokens_T, decoder.new_cache("fp32")), model(tokens_T[None])[0])


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("instructions", SETS)
def test_prompts_in_chunks(name: str, instructions: str) -> None:
    of = ORDERS[name].model_copy(update={"context": 120})
    model = make(of)
    with using_instruction_set(instructions):
        check_prompts(native(model), model, [37, 1, 81])


def test_attention_cut_into_parts_over_several_pages() -> None:
    of = MIXED.model_copy(update={"context": 1030})
    model, tokens_T = make(of), text(of, 1030)
    decoder = native(model)
    cache = decoder.new_cache("fp32")
    decoder.extend(cache, tokens_T[:-6].tolist())
    assert_same(decode(decoder, tokens_T[-6:], cache), model(tokens_T[None])[0, -6:])


def test_heads_whose_pairs_are_neighbours() -> None:
    of = model_of(LOCAL, GLOBAL, SHARED)
    model, tokens_T = make(of), text(of, of.context)
    decoder = native(model, interleaved=True)
    assert_same(decode(decoder, tokens_T, decoder.new_cache("fp32")), model(tokens_T[None])[0])


@pytest.mark.parametrize("kind", [F32, BF16], ids=lambda kind: kind.name)
def test_neither_threads_nor_other_sequences_change_a_bit(kind: Any) -> None:
    of = MIXED.model_copy(update={"context": 600})
    decoder, tokens = native(make(of), as_type(kind)), [text(of, length, seed=length) for length in (530, 1, 7)]
    results = []
    for threads in (1, 2, 3):
        native_module().set_threads(threads)
        caches = [decoder.new_cache() for _ in tokens]
        logits = [prefill(decoder, cache, tokens_T) for cache, tokens_T in zip(caches, tokens, strict=True)]
        results.append(torch.cat((torch.stack(logits), step(decoder, caches, [5, 6, 7]))))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    caches = [decoder.new_cache() for _ in tokens]
    for cache, tokens_T in zip(caches, tokens, strict=True):
        decoder.extend(cache, tokens_T.tolist())
    alone = [step(decoder, [cache], [token])[0] for cache, token in zip(caches, (5, 6, 7), strict=True)]
    assert torch.equal(torch.stack(alone), results[0][3:])


@pytest.mark.parametrize(("kind", "bound"), [("bf16", bf16_bound), ("q8", q8_bound)])
def test_caches_of_fewer_bits_have_the_widths_of_each_layer(kind: CacheKind, bound: Any) -> None:
    model, tokens_T = make(MIXED), text(MIXED, 12)
    decoder = native(model)
    cache = decoder.new_cache(kind)
    logits_TV = decode(decoder, tokens_T, cache)
    given: Any = [GivenCache(cache, layer, bound) for layer in range(len(MIXED.layers))]
    expected = [model(token_1[None], caches=given)[0] for token_1 in tokens_T.split(1)]
    assert_same(logits_TV, torch.cat(expected))


def test_a_cache_is_refused_where_one_layer_has_other_widths() -> None:
    wider = {**SHARED, "attention": SHARED["attention"] | {"head_width": 10}}
    decoder, other = native(make(model_of(LOCAL, SHARED))), native(make(model_of(LOCAL, wider)))
    with pytest.raises(ValueError, match="that of another model"):
        decoder.decode([other.new_cache()], [1])
