"""Grok-1 against a NumPy oracle written from xai-org/grok-1's description of itself: no package has that model."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from moekit.config import AttentionConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.models import Decoder

Array = npt.NDArray[np.float64]

VOCAB, WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, EXPERTS = 37, 24, 4, 2, 6, 20, 5
EMBEDDING_SCALE, LOGIT_SCALE, CAP, EPS = WIDTH**0.5, 3**-0.5, 3.0, 1e-5

CONFIG = ModelConfig(
    vocab_size=VOCAB,
    width=WIDTH,
    context=16,
    attention=AttentionConfig(heads=HEADS, kv_heads=KV_HEADS, head_width=HEAD, soft_cap=CAP),
    layers=(
        MoEConfig(
            experts=EXPERTS,
            expert_width=HIDDEN,
            router=SoftmaxTopKConfig(top_k=2, renormalize=False),
            activation="gelu_tanh",
        ),
    )
    * 2,
    block="sandwich",
    tie_embeddings=True,
    embedding_scale=EMBEDDING_SCALE,
    logit_scale=LOGIT_SCALE,
    init_std=0.4,
)


def rms(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight


def turn(x: Array, position: int) -> Array:
    half = HEAD // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    first, second = x[:half], x[half:]
    return np.concatenate(
        (first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle))
    )


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def attend(x_TD: Array, weights: dict[str, Array], layer: str) -> Array:
    projected = x_TD @ weights[f"{layer}.attention.query_key_value.weight"].T
    heads = projected.reshape(len(x_TD), HEADS + 2 * KV_HEADS, HEAD)
    out = np.zeros((len(x_TD), HEADS * HEAD))
    for t in range(len(x_TD)):
        for h in range(HEADS):
            shared = HEADS + h * KV_HEADS // HEADS
            query = turn(heads[t, h], t)
            scores = np.array([query @ turn(heads[s, shared], s) / np.sqrt(HEAD) for s in range(t + 1)])
            share = softmax(CAP * np.tanh(scores / CAP))
            out[t, h * HEAD : (h + 1) * HEAD] = share @ heads[: t + 1, shared + KV_HEADS]
    return out @ weights[f"{layer}.attention.output.weight"].T


def experts(x_TD: Array, weights: dict[str, Array], layer: str) -> Array:
    out = np.zeros_like(x_TD)
    for t, x in enumerate(x_TD):
        probs = softmax(weights[f"{layer}.feed_forward.router.weight"] @ x)
        for e in np.argsort(-probs)[:2]:
            gate, up = np.split(weights[f"{layer}.feed_forward.experts.gate_up_EGD"][e] @ x, 2)
            out[t] += probs[e] * (weights[f"{layer}.feed_forward.experts.down_EDF"][e] @ (gelu_tanh(gate) * up))
    return out


def grok(tokens: list[int], weights: dict[str, Array]) -> Array:
    h = weights["embedding.weight"][tokens] * EMBEDDING_SCALE
    for index in range(2):
        layer = f"layers.{index}"

        def norm(x: Array, name: str, layer: str = layer) -> Array:
            return rms(x, weights[f"{layer}.{name}.weight"])

        h = h + norm(attend(norm(h, "attention_norm"), weights, layer), "attention_after_norm")
        h = h + norm(experts(norm(h, "feed_forward_norm"), weights, layer), "feed_forward_after_norm")
    return rms(h, weights["norm.weight"]) @ weights["embedding.weight"].T * LOGIT_SCALE


@pytest.fixture
def model() -> Decoder:
    model = Decoder(CONFIG).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def test_logits_equal_the_oracles(model: Decoder) -> None:
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    tokens = torch.randint(0, VOCAB, (1, 11))
    with torch.no_grad():
        got = model(tokens)[0].numpy()
    expected = grok(tokens[0].tolist(), weights)
    assert np.abs(got - expected).max() <= 1e-6 * expected.std()


def test_each_of_its_extras_matters(model: Decoder) -> None:
    """The comparison above would notice each of them missing."""
    tokens = torch.randint(0, VOCAB, (1, 11))
    uncapped = tuple(
        layer.model_copy(update={"attention": layer.attention.model_copy(update={"soft_cap": None})})
        for layer in CONFIG.layers
    )
    silu = [part.model_copy(update={"activation": "silu"}) for part in CONFIG.feed_forwards]
    with torch.no_grad():
        expected = model(tokens)
        for change in (
            {"embedding_scale": 1.0},
            {"logit_scale": 1.0},
            {"layers": uncapped},
            {"layers": CONFIG.with_feed_forwards(silu).layers},
        ):
            other = Decoder(CONFIG.model_copy(update=change)).double().eval()
            other.load_state_dict(model.state_dict())
            assert (other(tokens) - expected).abs().max() > 1e-3 * expected.std()
