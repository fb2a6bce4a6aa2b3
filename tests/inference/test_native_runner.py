"""The native runner computes what the torch runner computes, in prompts, in steps, and in any cut of the two."""

import copy
from collections.abc import Iterator

import pytest
import torch
from tests.inference.runner_logits import decode, prefill
from tests.kernels.instruction_sets import using_instruction_set

from moekit.config import AttentionConfig, DenseConfig, FeedForwardConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.inference.native_runner import NativeRunner
from moekit.inference.packed_weights import packed_weights
from moekit.inference.torch_runner import TorchRunner
from moekit.kernels import native
from moekit.kernels.native import module
from moekit.kernels.packed import BF16, Q8_0, BlockType, PackedMatrix, dequantize
from moekit.models import Decoder

pytestmark = [
    pytest.mark.processor,
    pytest.mark.skipif(not native.available(), reason="the native kernels are not built"),
]

EXPERTS = SoftmaxTopKConfig(top_k=2)


def config(*layers: FeedForwardConfig, **attention: object) -> ModelConfig:
    return ModelConfig(
        vocab_size=256,
        width=64,
        context=600,
        attention={"heads": 4, "kv_heads": 2, "head_width": 32} | attention,
        layers=layers,
        init_std=0.1,
    )


CONFIGS = {
    "dense": config(DenseConfig(width=96), DenseConfig(width=64, activation="gelu_tanh", gated=False)),
    "mixture": config(MoEConfig(experts=4, expert_width=96, router=EXPERTS), DenseConfig(width=96)),
    "shared": config(
        MoEConfig(
            experts=4,
            expert_width=64,
            router=SoftmaxTopKConfig(top_k=2, renormalize=False),
            branch="gated_shared",
            branch_width=32,
        ),
        qkv_bias=True,
        output_bias=True,
        query_key_norm="head",
    ),
    "windowed": config(
        DenseConfig(width=96), DenseConfig(width=96), windows=(None, 20), soft_cap=10.0, query_key_norm="all"
    ),
    "odd": ModelConfig(  # nothing is a whole number of tiles
        vocab_size=256,
        width=72,
        context=600,
        attention=AttentionConfig(heads=3, kv_heads=1, head_width=40),
        layers=(
            MoEConfig(experts=5, expert_width=50, router=SoftmaxTopKConfig(top_k=3)),
            DenseConfig(width=33, activation="gelu", gated=False),
        ),
        init_std=0.1,
    ),
    "sandwich": config(
        MoEConfig(experts=3, expert_width=32, router=EXPERTS, branch="shared", branch_width=32)
    ).model_copy(update={"block": "sandwich", "embedding_scale": 2.0, "logit_scale": 0.5, "tie_embeddings": True}),
}


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Decoder:
    model = Decoder(CONFIGS[name]).eval()
    with torch.no_grad():  # norms and biases that are not what they start as
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.to(dtype)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_logits_as_torch_in_fp32(name: str) -> None:
    """A prompt longer than a chunk, then a step."""
    model, tokens_T = model_of(name), torch.randint(256, (530,))
    theirs, step = TorchRunner(model), torch.tensor([7])
    cache = theirs.new_cache()
    expected = [prefill(theirs, cache, tokens_T), decode(theirs, [cache], step)[0]]
    ours = NativeRunner(model.config, packed_weights(model))
    chunks: list[int] = []
    own = ours.new_cache()
    found = [prefill(ours, own, tokens_T, chunks.append), decode(ours, [own], step)[0]]
    assert sum(chunks) == 530
    assert len(chunks) == 2
    for ours_V, theirs_V in zip(found, expected, strict=True):
        assert (ours_V - theirs_V).abs().max() <= 1e-5 * theirs_V.std()


@pytest.mark.parametrize("name", CONFIGS)
def test_any_cut_into_prompts_and_steps_is_the_whole(name: str) -> None:
    """Two sequences of unlike lengths step together; one of them is cut back and goes on."""
    model, tokens_T = model_of(name), torch.randint(256, (40,))
    runner = NativeRunner(model.config, packed_weights(model))
    whole = [prefill(runner, runner.new_cache(), tokens_T[:size]) for size in (39, 40)]
    caches = [runner.new_cache(), runner.new_cache()]
    prefill(runner, caches[0], tokens_T[:5])
    prefill(runner, caches[0], tokens_T[5:37])
    prefill(runner, caches[1], tokens_T[:39])
    caches[1].truncate(38)
    decode(runner, caches, torch.stack((tokens_T[37], tokens_T[38])))
    found = decode(runner, caches, torch.stack((tokens_T[38], tokens_T[39])))
    for ours_V, theirs_V in zip(found, whole, strict=True):
        assert (ours_V - theirs_V).abs().max() <= 1e-5 * theirs_V.std()


def rounded(matrix: PackedMatrix, numbers_RC: torch.Tensor) -> None:
    numbers_RC.copy_(torch.from_numpy(dequantize(matrix)).view(numbers_RC.shape))


@pytest.mark.parametrize("kind", [BF16, Q8_0])
def test_quantised_on_load_is_near_the_same_numbers_in_torch(kind: object) -> None:
    """bf16 products of a prompt and 8-bit activations of a step: small errors; a wrong matrix would give large ones."""
    model = model_of("dense")
    weights = packed_weights(copy.deepcopy(model), kind)  # type: ignore[arg-type]
    assert weights.layers[0].attention.query.type is kind
    with torch.no_grad():
        for layer, packed in zip(model.layers, weights.layers, strict=True):
            parts = torch.split(layer.attention.query_key_value.weight, [128, 64, 64])
            for matrix, numbers in zip(
                (packed.attention.query, packed.attention.key, packed.attention.value), parts, strict=True
            ):
                rounded(matrix, numbers)
            rounded(packed.attention.output, layer.attention.output.weight)
            rounded(packed.feed_forward.down, layer.feed_forward.down.weight)  # type: ignore[union-attr]
            halves = [packed.feed_forward.gate, packed.feed_forward.up]  # type: ignore[union-attr]
            filled = [half for half in halves if half is not None]
            for matrix, numbers in zip(filled, layer.feed_forward.gate_up.weight.chunk(len(filled)), strict=True):
                rounded(matrix, numbers)
        rounded(weights.embedding, model.embedding.weight)
        rounded(weights.head, model.head.weight)
    tokens_T, theirs = torch.randint(256, (50,)), TorchRunner(model)
    ours, cache, own = NativeRunner(model.config, weights), theirs.new_cache(), None
    own = ours.new_cache()
    expected = torch.stack([prefill(theirs, cache, tokens_T), decode(theirs, [cache], tokens_T[:1])[0]])
    found = torch.stack([prefill(ours, own, tokens_T), decode(ours, [own], tokens_T[:1])[0]])
    assert (found - expected).square().mean().sqrt() <= 0.03 * expected.std()


@pytest.fixture(params=module.native().instruction_sets() if native.available() else [])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    with using_instruction_set(request.param) as name:
        yield name


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cuts", [(530,), (1, 17, 64, 448)])
def test_prompts_in_bf16_are_near_torch_in_fp32(name: str, cuts: tuple[int, ...], instructions: str) -> None:
    """The same weights, activations rounded to bf16: small errors; a wrong place, mask or weight gives large ones."""
    model, tokens_T = model_of(name, torch.bfloat16), torch.randint(256, (sum(cuts),))
    theirs = TorchRunner(copy.deepcopy(model).float())
    ours = NativeRunner(model.config, packed_weights(model))
    own, cache = ours.new_cache(), theirs.new_cache()
    found, expected = [], []
    for tokens in torch.split(tokens_T, list(cuts)):
        found.append(prefill(ours, own, tokens))
        expected.append(prefill(theirs, cache, tokens))
    found.append(decode(ours, [own], torch.tensor([7]))[0])
    expected.append(decode(theirs, [cache], torch.tensor([7]))[0])
    for ours_V, theirs_V in zip(found, expected, strict=True):
        error = (ours_V - theirs_V).square().mean().sqrt() / theirs_V.std()
        assert error <= 0.03


@pytest.mark.parametrize("kind", [Q8_0, BF16])
def test_a_sequence_does_not_depend_on_those_beside_it(kind: BlockType, instructions: str) -> None:
    """To the bit, so that the same seed gives the same text whatever else is in the batch."""
    model = model_of("dense")
    runner = NativeRunner(model.config, packed_weights(model, kind))
    prompts = [torch.randint(256, (length,)) for length in (3, 20, 9)]
    caches = [runner.new_cache() for _ in range(2 * len(prompts))]
    for cache, prompt in zip(caches, prompts * 2, strict=True):
        prefill(runner, cache, prompt)
    step = torch.tensor([5, 6, 7])
    together_BV = decode(runner, caches[:3], step)
    alone_BV = torch.cat([decode(runner, [cache], step[i : i + 1]) for i, cache in enumerate(caches[3:])])
    assert torch.equal(together_BV, alone_BV)


def test_numbers_are_fp32_whatever_torch_makes_by_default() -> None:
    model, tokens_T = model_of("mixture", torch.bfloat16), torch.randint(256, (20,))
    runner = NativeRunner(model.config, packed_weights(model))
    expected = [prefill(runner, cache := runner.new_cache(), tokens_T), decode(runner, [cache], tokens_T[:1])]
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = [prefill(runner, cache := runner.new_cache(), tokens_T), decode(runner, [cache], tokens_T[:1])]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) and pair[0].dtype == torch.float32 for pair in zip(found, expected, strict=True))
