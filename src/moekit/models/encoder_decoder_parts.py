"""The parts of an encoder-decoder: attention over a mask, layers, and the two stacks.

B batch, T target tokens, S source tokens, P positions that are seen, D model width, H heads, C head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.config import DenseConfig, FeedForwardConfig
from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.kernels.backends import Backend
from moekit.moe import MoELayer, RouterInput, Routing
from moekit.nn import FeedForward, KeyValueCache, new_norm
from moekit.nn.relative_bias import RelativeBias


class DecodingCache:
    """The KV cache of a decoder, empty until the first forward pass.

    It holds keys and values of each layer's target, and once and for all those of the source, with its mask.
    """

    def __init__(self, layers: int, batch: int, heads: int, head_width: int, context: int, dtype: torch.dtype) -> None:
        widths = (head_width, head_width)
        self.target = [KeyValueCache(batch, heads, widths, context, dtype) for _ in range(layers)]
        self.source: list[tuple[Tensor, Tensor]] = []
        self.source_real_BS: Tensor | None = None

    @property
    def length(self) -> int:
        """The number of target tokens that it holds."""
        return self.target[0].length


@dataclass(frozen=True, kw_only=True)
class Source:
    """The encoded source, as the decoder attends to it.

    Attributes:
        keys_values: one (key_BHSC, value_BHSC) a layer.
        real_BS: which positions are real (None: all).
    """

    keys_values: list[tuple[Tensor, Tensor]]
    real_BS: Tensor | None = None


class SelfAttention(nn.Module):
    """softmax(q k + bias) v without a scale. query_key_value has rows of queries, then of keys, then of values."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.head_width
        self.query_key_value = nn.Linear(config.width, 3 * inner, bias=False)
        self.output = nn.Linear(inner, config.width, bias=False)

    def forward(self, x_BTD: Tensor, mask: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        """Compute y_BTD. mask: added to the scores. With a cache, x follows the tokens in it."""
        query_BHTC, key_BHPC, value_BHPC = split_heads(self.query_key_value(x_BTD), 3 * self.heads).chunk(3, 1)
        if cache:
            key_BHPC, value_BHPC = cache.append(key_BHPC, value_BHPC)
        return self.output(mix(query_BHTC, key_BHPC, value_BHPC, mask))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Attention with queries of the target, and keys and values of the source; it has neither scale nor positions."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.head_width
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key_value = nn.Linear(config.width, 2 * inner, bias=False)
        self.output = nn.Linear(inner, config.width, bias=False)

    def forward(self, x_BTD: Tensor, key_value: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Compute y_BTD. key_value: what `keys_values` gave."""
        return self.output(mix(split_heads(self.query(x_BTD), self.heads), *key_value, mask))  # type: ignore[no-any-return]

    def keys_values(self, source_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Compute key_BHSC and value_BHSC, which are the same in every step."""
        key_BHSC, value_BHSC = split_heads(self.key_value(source_BSD), 2 * self.heads).chunk(2, 1)
        return key_BHSC, value_BHSC


class Layer(nn.Module):
    """One layer of either stack; `cross` says whether it attends to a source."""

    def __init__(
        self, config: EncoderDecoderConfig, feed_forward: FeedForwardConfig, backend: Backend, *, cross: bool
    ) -> None:
        super().__init__()
        self.attention_norm = new_norm(config.norm_config, config.width)
        self.attention = SelfAttention(config)
        if cross:
            self.cross_norm = new_norm(config.norm_config, config.width)
            self.cross_attention = CrossAttention(config)
        self.feed_forward_norm = new_norm(config.norm_config, config.width)
        self.feed_forward: FeedForward | MoELayer
        if isinstance(feed_forward, DenseConfig):
            self.feed_forward = FeedForward(config.width, feed_forward)
        else:
            vocabulary = config.target_vocabulary if cross else config.vocab_size
            self.feed_forward = MoELayer(config.width, feed_forward, vocabulary, backend)

    def attend(self, h_BTD: Tensor, mask: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        """Compute h after attention to its own sequence."""
        return h_BTD + self.attention(self.attention_norm(h_BTD), mask, cache)  # type: ignore[no-any-return]

    def look_up(self, h_BTD: Tensor, key_value: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Compute h after attention to the source."""
        return h_BTD + self.cross_attention(self.cross_norm(h_BTD), key_value, mask)  # type: ignore[no-any-return]

    def keys_values(self, source_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values of the encoded source, for `look_up`."""
        return self.cross_attention.keys_values(source_BSD)

    def feed(self, h_BTD: Tensor, given: RouterInput) -> tuple[Tensor, Routing | None]:
        """Compute h after the feed-forward part, and its Routing where it has experts."""
        x_BTD, routing = self.feed_forward_norm(h_BTD), None
        if isinstance(self.feed_forward, MoELayer):
            y_BTD, routing = self.feed_forward(x_BTD, given)
        else:
            y_BTD = self.feed_forward(x_BTD)
        return h_BTD + y_BTD, routing


class Stack(nn.Module):
    """The layers of an encoder, or of a decoder, with what they share: positions, and the norm at the end."""

    def __init__(self, config: EncoderDecoderConfig, backend: Backend, *, decoder: bool) -> None:
        super().__init__()
        self.decoder, self.context = decoder, config.context
        plan = config.decoder_layers if decoder else config.encoder_layers
        self.relative_bias: RelativeBias | None = None
        self.position_embedding: nn.Embedding | None = None
        if config.context is not None:
            self.position_embedding = nn.Embedding(config.context, config.width)
        else:
            self.relative_bias = RelativeBias(config.heads, config.buckets, config.max_distance, both_ways=not decoder)
        self.layers = nn.ModuleList(Layer(config, feed_forward, backend, cross=decoder) for feed_forward in plan)
        self.norm = new_norm(config.norm_config, config.width)

    def forward(
        self,
        h_BTD: Tensor,
        given: RouterInput,
        *,
        real_BT: Tensor | None = None,
        source: Source | None = None,
        caches: list[KeyValueCache] | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """Compute h_BTD after all layers. real_BT: what an encoder may see; a decoder has its padding at the end."""
        tokens, start = h_BTD.shape[1], caches[0].length if caches else 0
        if self.position_embedding is not None:
            h_BTD = h_BTD + self.position_embedding.weight[self._checked(start, tokens)]
        mask = self._mask(tokens, start + tokens, real_BT, h_BTD)
        source_mask = None if source is None else mask_of(source.real_BS, h_BTD)
        for index, layer in enumerate(self.all_layers):
            h_BTD = layer.attend(h_BTD, mask, caches[index] if caches else None)
            if source is not None:
                h_BTD = layer.look_up(h_BTD, source.keys_values[index], source_mask)
            h_BTD, routing = layer.feed(h_BTD, given)
            if routings is not None and routing is not None:
                routings.append(routing)
        return self.norm(h_BTD)

    @property
    def all_layers(self) -> list[Layer]:
        """The layers, of the type that they have."""
        return list(self.layers)  # type: ignore[arg-type]

    def _mask(self, tokens: int, positions: int, real_BT: Tensor | None, like: Tensor) -> Tensor | None:
        """Compute what is added to the scores of the last `tokens` of `positions`: broadcastable to (B, H, T, P)."""
        bias = None if self.relative_bias is None else self.relative_bias(tokens, positions)[None].to(like.dtype)
        if self.decoder:
            seen = torch.ones(tokens, positions, dtype=torch.bool, device=like.device).tril(positions - tokens)
        elif real_BT is not None:
            seen = real_BT[:, None, None]
        else:
            return bias
        # Not -inf: a row of nothing but padding then sees all of it alike, and none of it becomes NaN.
        lowest = torch.finfo(like.dtype).min
        return (like.new_zeros(1) if bias is None else bias).masked_fill(~seen, lowest)

    def _checked(self, start: int, tokens: int) -> slice:
        assert self.context is not None
        if start + tokens > self.context:
            raise ValueError(f"{start + tokens} tokens are more than the context of {self.context}")
        return slice(start, start + tokens)


def split_heads(x_BTN: Tensor, heads: int) -> Tensor:
    """Split x_BTN into heads, x_BHTC."""
    return x_BTN.view(*x_BTN.shape[:2], heads, -1).transpose(1, 2)


def mix(query_BHTC: Tensor, key_BHPC: Tensor, value_BHPC: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax(q k + mask) v with the heads side by side again: (B, T, H C)."""
    mixed_BHTC = F.scaled_dot_product_attention(query_BHTC, key_BHPC, value_BHPC, attn_mask=mask, scale=1.0)
    return mixed_BHTC.transpose(1, 2).flatten(2)


def mask_of(real_BS: Tensor | None, like: Tensor) -> Tensor | None:
    """Compute what is added to every query's scores where only some positions are real."""
    if real_BS is None:
        return None
    return like.new_zeros(1).masked_fill(~real_BS[:, None, None], torch.finfo(like.dtype).min)
