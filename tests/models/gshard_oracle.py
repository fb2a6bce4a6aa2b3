"""GShard's translation model in NumPy, token by token in fp64: what EncoderDecoder is held to in evaluation.

Written from arXiv 2006.16668 (section 2.2 and algorithm 1) and the layers of tensorflow/lingvo (RMSNorm before each
part, no scale of the scores, learned positions, an output that is the target's table times D^-1/2, and 1e-9 in the
division of the gates).
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def logits(weights: Weights, source: Array, target: Array, heads: int, factor: float, eps: float) -> tuple[Array, int]:
    """(B, T, V) for ids of sources and decoder inputs, and how many choices of experts had to be dropped."""
    dropped = 0
    encoded = weights["embedding.weight"][source] + weights["encoder.position_embedding.weight"][: source.shape[1]]
    for index in range(layer_count(weights, "encoder")):
        prefix = f"encoder.layers.{index}."
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        normed = norm(encoded, part["attention_norm.weight"], eps)
        encoded = encoded + self_attention(part, normed, heads, causal=False)
        more, lost = feed_forward(part, norm(encoded, part["feed_forward_norm.weight"], eps), factor)
        encoded, dropped = encoded + more, dropped + lost
    encoded = norm(encoded, weights["encoder.norm.weight"], eps)

    table = weights["target_embedding.weight"]
    decoded = table[target] + weights["decoder.position_embedding.weight"][: target.shape[1]]
    for index in range(layer_count(weights, "decoder")):
        prefix = f"decoder.layers.{index}."
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        normed = norm(decoded, part["attention_norm.weight"], eps)
        decoded = decoded + self_attention(part, normed, heads, causal=True)
        decoded = decoded + cross_attention(part, norm(decoded, part["cross_norm.weight"], eps), encoded, heads)
        more, lost = feed_forward(part, norm(decoded, part["feed_forward_norm.weight"], eps), factor)
        decoded, dropped = decoded + more, dropped + lost
    decoded = norm(decoded, weights["decoder.norm.weight"], eps)
    return decoded / math.sqrt(table.shape[1]) @ table.T, dropped


def layer_count(weights: Weights, stack: str) -> int:
    return 1 + max(int(name.split(".")[2]) for name in weights if name.startswith(f"{stack}.layers."))


def norm(x: Array, weight: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight)


def self_attention(part: Weights, x: Array, heads: int, *, causal: bool) -> Array:
    query, key, value = np.split(part["attention.query_key_value.weight"], 3)
    return attend(x @ query.T, x @ key.T, x @ value.T, heads, causal=causal) @ part["attention.output.weight"].T


def cross_attention(part: Weights, x: Array, source: Array, heads: int) -> Array:
    key, value = np.split(part["cross_attention.key_value.weight"], 2)
    query = x @ part["cross_attention.query.weight"].T
    return (
        attend(query, source @ key.T, source @ value.T, heads, causal=False) @ part["cross_attention.output.weight"].T
    )


def attend(query: Array, key: Array, value: Array, heads: int, *, causal: bool) -> Array:
    """One head of one query at a time."""
    y = np.zeros_like(query)
    width = query.shape[-1] // heads
    for row in range(len(query)):
        for place in range(query.shape[1]):
            for head in range(heads):
                of_head = slice(head * width, (head + 1) * width)
                seen = slice(place + 1 if causal else key.shape[1])
                scores = key[row, seen, of_head] @ query[row, place, of_head]
                share = np.exp(scores - scores.max())
                y[row, place, of_head] = share / share.sum() @ value[row, seen, of_head]
    return y


def feed_forward(part: Weights, x: Array, factor: float) -> tuple[Array, int]:
    if "feed_forward.router.weight" not in part:
        hidden = np.maximum(x @ part["feed_forward.gate_up.weight"].T, 0)
        return hidden @ part["feed_forward.down.weight"].T, 0
    return mixture(part, x, factor)


def mixture(part: Weights, x: Array, factor: float) -> tuple[Array, int]:
    """Algorithm 1 with all tokens as one group, in evaluation, where each second choice is kept."""
    tokens = x.reshape(-1, x.shape[-1])
    wi, wo = part["feed_forward.experts.gate_up_EGD"], part["feed_forward.experts.down_EDF"]
    experts = len(wi)
    capacity = math.ceil(2 * len(tokens) / experts * factor)
    taken, dropped, y = [0] * experts, 0, np.zeros_like(tokens)
    choices = []
    for token in tokens:
        scores = part["feed_forward.router.weight"] @ token
        gates = np.exp(scores - scores.max())
        gates /= gates.sum()
        first = int(gates.argmax())
        second = max((e for e in range(experts) if e != first), key=lambda e, gates=gates: gates[e])
        choices.append((first, second, gates))
    for rank in (0, 1):
        for place, (first, second, gates) in enumerate(choices):
            expert = (first, second)[rank]
            if taken[expert] < capacity:
                taken[expert] += 1
                weight = gates[expert] / (gates[first] + gates[second] + 1e-9)
                y[place] += weight * (wo[expert] @ np.maximum(wi[expert] @ tokens[place], 0))
            else:
                dropped += 1
    return y.reshape(x.shape), dropped
