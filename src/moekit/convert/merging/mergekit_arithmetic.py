"""What has to be mergekit 0.1.5's arithmetic, bit for bit: its gates, and its noise on experts.

Gates made of hidden states run the base model as transformers 5 does, in every rounding: order of operations, type of
each step, attention kernel, padding on the left. Everything else in moekit runs models by its own modules, which give
other last bits. Weights are multiplied from aligned memory: a product of one row in fp32 has other bits where they
begin between two 16-byte boundaries.
B prompts, T tokens, D model width, H heads, C head width, F feed-forward width, L layers, E experts.
"""

import bisect
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.checkpoint.alignment import aligned
from moekit.config import AttentionConfig, DenseConfig, LayerConfig, ModelConfig, NormConfig
from moekit.config.comparing import same_function
from moekit.models.stored_model import dense_of
from moekit.models.streamed_decoder import ReadableModel, TokenBatch, embedding_rows
from moekit.nn.rope import Rope
from moekit.nn.scores import visible

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
# Below it a norm counts as this, so that a prompt without a direction gives zeros and not NaN.
_LEAST_NORM = 1e-8


def runs(config: ModelConfig) -> bool:
    """Tell whether this file runs models of that configuration: those of Llama's shape.

    It is made again of what is looked at here, and has to be the same function; a field that is not known here is then
    not passed over.
    """
    layers = []
    for layer in config.layers:
        attention, part = layer.attention, layer.feed_forward
        if not (isinstance(attention, AttentionConfig) and isinstance(part, DenseConfig)):
            return False
        if attention.query_key_norm == "all":
            return False
        known = {"heads", "kv_heads", "head_width", "rope_base", "rope_scaling", "window", "qkv_bias", "output_bias"}
        seen = AttentionConfig(**attention.model_dump(include=known | {"query_key_norm"}))
        network = DenseConfig(width=part.width, activation=part.activation)
        layers.append(LayerConfig(attention=seen, feed_forward=network, norm=NormConfig(eps=layer.norm.eps)))
    after = {"norm", "tie_embeddings", "logit_scale", "init_std"}  # behind the last block, or not computed with
    seen_model = ModelConfig(
        **config.model_dump(include={"vocab_size", "width", "context", *after}), layers=tuple(layers)
    )
    return same_function(seen_model, config)


def drawn_gates(mode: str, layers: int, experts: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw gate_LED in fp32: `random` from N(0, 1), `uniform_random` from U(-1/sqrt(D), 1/sqrt(D))."""
    if mode == "random":
        return torch.randn((layers, experts, width), generator=generator)
    bound = math.sqrt(1.0 / width)
    return torch.rand((layers, experts, width), generator=generator) * 2 * bound - bound


def prompted_gates(
    mode: str, base: ReadableModel, prompts: Sequence[TokenBatch], against: Sequence[TokenBatch | None]
) -> Tensor:
    """Make gate_LED of `hidden`, `hidden_last`, `hidden_avg` (in bf16) or `cheap_embed` (in fp32).

    prompts: of each expert, padded on the left. against: the prompts that should not go to it, if there are any.
    """
    batches = [*prompts, *(batch for batch in against if batch is not None)]
    if mode == "cheap_embed":
        vectors = [_embedded_prompts(base, batch).repeat(len(base.config.layers), 1) for batch in batches]
    else:
        vectors = _hidden_states(base, batches, average=mode == "hidden_avg")
    negatives = iter(vectors[len(prompts) :])
    gates = []
    for vector_LD, batch in zip(vectors, against, strict=False):
        if batch is not None:
            vector_LD = vector_LD - next(negatives)
        gates.append(vector_LD / vector_LD.norm(p=2, dim=-1, keepdim=True).clamp(min=_LEAST_NORM))
    return torch.stack(gates).permute(1, 0, 2)


def _embedded_prompts(base: ReadableModel, batch: TokenBatch) -> Tensor:
    """Sum the embeddings of all tokens of all prompts and bring the sum to length 1, (1, D)."""
    h_BTD = embedding_rows(base, batch.tokens_BT, torch.float32)
    sum_1D: Tensor = (h_BTD * batch.real_BT.unsqueeze(-1)).sum(dim=1).sum(dim=0, keepdim=True)
    return sum_1D.div(sum_1D.norm(dim=-1, keepdim=True).clamp(min=_LEAST_NORM))


def _hidden_states(base: ReadableModel, batches: Sequence[TokenBatch], *, average: bool) -> list[Tensor]:
    """Give for each batch the mean over prompts of the inputs of all blocks, (L, D) in bf16.

    Of each prompt its last token; with `average` the mean over all positions, padding included, as mergekit takes it.
    """
    layers: list[list[Tensor]] = [[] for _ in batches]
    with torch.no_grad():
        for inputs in block_inputs(base, batches, torch.bfloat16):
            for h_BTD, found in zip(inputs, layers, strict=True):
                of_prompts = h_BTD.sum(dim=1) / h_BTD.shape[1] if average else h_BTD[:, -1]
                found.append(of_prompts.sum(dim=0) / of_prompts.shape[0])
    return [torch.stack(found) for found in layers]


def block_inputs(model: ReadableModel, batches: Sequence[TokenBatch], dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """Give what each block reads, h_BTD of each batch, with the weights of one block in memory at a time."""
    hidden = [embedding_rows(model, batch.tokens_BT, dtype) for batch in batches]
    for index in range(len(model.config.layers)):
        yield hidden
        if index + 1 < len(model.config.layers):
            block = _Block(model, index, dtype)
            hidden = [block(h_BTD, batch) for h_BTD, batch in zip(hidden, batches, strict=True)]


class _Block:
    """One block of a model of Llama's shape, its weights read."""

    def __init__(self, model: ReadableModel, index: int, dtype: torch.dtype) -> None:
        layer, dense, prefix = model.config.layers[index], dense_of(model.config, index), f"layers.{index}."
        attention = layer.attention
        assert isinstance(attention, AttentionConfig)
        self._attention, self._eps, self._activation = attention, layer.norm.eps, _ACTIVATIONS[dense.activation]

        def read(name: str, begin: int = 0, end: int | None = None) -> Tensor:
            rows = model.rows(prefix + name, begin, end).to(dtype)
            return aligned(rows.flatten() if model.shapes[prefix + name].dim() == 1 else rows)

        self._before, self._after = read("attention_norm.weight"), read("feed_forward_norm.weight")
        queries, keys = attention.heads * attention.head_width, attention.kv_heads * attention.head_width
        places = {"q": (0, queries), "k": (queries, queries + keys), "v": (queries + keys, queries + 2 * keys)}
        self._weights = {name: read("attention.query_key_value.weight", *place) for name, place in places.items()}
        self._weights["o"] = read("attention.output.weight")
        self._biases: dict[str, Tensor] = {}
        if attention.qkv_bias:
            self._biases = {name: read("attention.query_key_value.bias", *place) for name, place in places.items()}
        if attention.output_bias:
            self._biases["o"] = read("attention.output.bias")
        self._norms: dict[str, Tensor] = {}
        if attention.query_key_norm != "none":
            self._norms = {"q": read("attention.query_norm.weight"), "k": read("attention.key_norm.weight")}
        self._gate_FD = read("feed_forward.gate_up.weight", 0, dense.width)
        self._up_FD = read("feed_forward.gate_up.weight", dense.width, 2 * dense.width)
        self._down_DF = read("feed_forward.down.weight")

    def __call__(self, h_BTD: Tensor, batch: TokenBatch) -> Tensor:
        h_BTD = h_BTD + self._attend(_rms_norm(h_BTD, self._before, self._eps), batch)
        x_BTD = _rms_norm(h_BTD, self._after, self._eps)
        gated = self._activation(F.linear(x_BTD, self._gate_FD)) * F.linear(x_BTD, self._up_FD)
        return h_BTD + F.linear(gated, self._down_DF)

    def _attend(self, x_BTD: Tensor, batch: TokenBatch) -> Tensor:
        tokens, config = x_BTD.shape[1], self._attention
        query, key, value = (self._heads(name, x_BTD) for name in "qkv")
        cos_TC, sin_TC = _angles(config, tokens, x_BTD.dtype)
        query, key = (part * cos_TC + _rotate_half(part) * sin_TC for part in (query, key))
        mask = self._mask(batch)
        groups = config.heads // config.kv_heads
        if mask is not None and groups > 1:
            key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and tokens > 1,
            scale=config.head_width**-0.5,
            enable_gqa=mask is None and groups > 1,
        )
        return self._linear("o", mixed.transpose(1, 2).contiguous().flatten(2))

    def _linear(self, name: str, x_BTD: Tensor) -> Tensor:
        return F.linear(x_BTD, self._weights[name], self._biases.get(name))

    def _heads(self, name: str, x_BTD: Tensor) -> Tensor:
        """Compute queries, keys or values, (B, H, T, C), after their norm."""
        heads = self._linear(name, x_BTD)
        heads = heads.view(*heads.shape[:-1], -1, self._attention.head_width)
        norm = self._norms.get(name)
        return (heads if norm is None else _rms_norm(heads, norm, self._eps)).transpose(1, 2)

    def _mask(self, batch: TokenBatch) -> Tensor | None:
        """Give which positions each token sees, (B, 1, T, T); None where that is all before it."""
        tokens, window = batch.tokens_BT.shape[1], self._attention.window
        if bool(batch.real_BT.all()) and (window is None or tokens < window):
            return None
        seen_TT = visible(tokens, tokens, window, batch.tokens_BT.device)
        return seen_TT & batch.real_BT[:, None, None, :]


def _rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Norm in fp32, rounded before it is multiplied by the weight, as transformers' LlamaRMSNorm has it."""
    wide = x_BTD.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * wide.to(x_BTD.dtype)


def _angles(config: AttentionConfig, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Give cos and sin of T positions, (T, C), computed in fp32 and rounded to `dtype`."""
    rope = Rope(config.head_width, config)
    if config.rope_scaling is None:
        exponent = torch.arange(0, config.head_width, 2, dtype=torch.float) / config.head_width
        frequency = 1.0 / (config.rope_base**exponent)
    else:
        frequency = torch.tensor(rope.frequencies, dtype=torch.float)
    angle = torch.arange(tokens).float()[:, None] * frequency
    angle = torch.cat((angle, angle), -1)
    return (angle.cos() * rope.magnitude).to(dtype), (angle.sin() * rope.magnitude).to(dtype)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


@dataclass(frozen=True)
class Draw:
    """Standard normal noise of that shape and type."""

    key: Hashable
    shape: tuple[int, ...]
    dtype: torch.dtype

    def take(self, generator: torch.Generator) -> Tensor:
        """Take the next numbers of the generator."""
        return torch.randn(self.shape, dtype=self.dtype, generator=generator)


class Noise:
    """A row of draws that follow each other from one generator, any of which can be had again.

    The generator's state before a draw (5 kB) is remembered once it is known; a draw whose state is not known yet takes
    those between, so that reading in nearly the same order, as writing does, costs little more than each draw once.
    """

    def __init__(self, generator: torch.Generator, draws: Sequence[Draw]) -> None:
        self._draws = draws
        self._places = {draw.key: place for place, draw in enumerate(draws)}
        self._known = [0]
        self._states = {0: generator.get_state()}

    def of(self, key: Hashable) -> Tensor:
        """Give the numbers of that draw."""
        place = self._places[key]
        first = self._known[bisect.bisect_right(self._known, place) - 1]
        generator = torch.Generator()
        generator.set_state(self._states[first])
        for before in range(first, place):
            self._draws[before].take(generator)
            self._remember(before + 1, generator)
        numbers = self._draws[place].take(generator)
        self._remember(place + 1, generator)
        return numbers

    def _remember(self, place: int, generator: torch.Generator) -> None:
        if place not in self._states:
            self._states[place] = generator.get_state()
            bisect.insort(self._known, place)


def noise_order(
    matrices: Sequence[str], matrix_by_matrix: bool, layers: int, experts: int
) -> Iterator[tuple[int, int, str]]:
    """Give (layer, expert, matrix) in the order in which mergekit reads them, which decides who gets which noise.

    matrices: in a format's order. matrix_by_matrix: whether all experts' come before the next one's. experts: the
    routed ones, then the shared ones.
    """
    for layer in range(layers):
        if matrix_by_matrix:
            yield from ((layer, expert, matrix) for matrix in matrices for expert in range(experts))
        else:
            yield from ((layer, expert, matrix) for expert in range(experts) for matrix in matrices)
