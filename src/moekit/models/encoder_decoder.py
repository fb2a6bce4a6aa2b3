"""The encoder-decoder: T5, the Switch Transformer and GShard are its configurations.

B batch, S source tokens, T target tokens, D model width, V vocabulary of the target.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.kernels.backends import Backend
from moekit.models.encoder_decoder_parts import (
    CrossAttention,
    DecodingCache,
    SelfAttention,
    Source,
    Stack,
)
from moekit.models.language_model import LanguageModel
from moekit.moe import MoELayer, RouterInput, Routing
from moekit.nn import FeedForward
from moekit.nn.relative_bias import RelativeBias


class EncoderDecoder(LanguageModel):
    """An encoder-decoder built from `config`, its weights drawn from torch's current seed.

    Args:
        config: the configuration.
        backend: the kernels that compute the experts.
    """

    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig, backend: Backend = "fastest") -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.target_embedding = self.embedding
        if config.target_vocab_size is not None:
            self.target_embedding = nn.Embedding(config.target_vocab_size, config.width)
        self.encoder = Stack(config, backend, decoder=False)
        self.decoder = Stack(config, backend, decoder=True)
        self.head = nn.Linear(config.width, config.target_vocabulary, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.target_embedding.weight
        with torch.no_grad():
            self._initialize()

    @property
    def moe_layers(self) -> list[MoELayer]:
        """The layers that have experts, in the order of their Routings: the encoder's, then the decoder's."""
        layers = [*self.encoder.all_layers, *self.decoder.all_layers]
        return [layer.feed_forward for layer in layers if isinstance(layer.feed_forward, MoELayer)]

    def forward(
        self,
        source_BS: Tensor | None,
        target_BT: Tensor,
        *,
        source_real_BS: Tensor | None = None,
        target_real_BT: Tensor | None = None,
        cache: DecodingCache | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """Compute logits_BTV of the token after each of target_BT.

        Args:
            source_BS: int64 ids; None where the cache has seen the source.
            target_BT: int64, the decoder's input, which begins with the start token.
            source_real_BS: bool, False for padding, wherever it stands: nothing looks at it.
            target_real_BT: bool, False for padding, which has to stand at the end: no expert computes it.
            cache: from `new_cache`; target_BT then follows the tokens seen before, and the cache is extended.
            routings: a list that gets the Routing of each MoE layer appended, in the order of `moe_layers`.

        Raises:
            ValueError: where a sequence is longer than a context, or there is no source.
        """
        source = self._source(source_BS, source_real_BS, cache, routings)
        h_BTD = self.decoder(
            self.target_embedding(target_BT),
            _router_input(target_BT, target_real_BT),
            source=source,
            caches=cache.target if cache else None,
            routings=routings,
        )
        if self.config.scaled_logits:
            h_BTD = h_BTD * self.config.width**-0.5
        return self.head(h_BTD)  # type: ignore[no-any-return]

    def encode(
        self, source_BS: Tensor, *, real_BS: Tensor | None = None, routings: list[Routing] | None = None
    ) -> Tensor:
        """Compute encoded_BSD; the arguments are those of `forward`."""
        h_BSD = self.embedding(source_BS)
        given = _router_input(source_BS, real_BS)
        return self.encoder(h_BSD, given, real_BT=real_BS, routings=routings)  # type: ignore[no-any-return]

    def new_cache(self, batch: int, context: int, dtype: torch.dtype = torch.float32) -> DecodingCache:
        """Make an empty cache for `batch` targets of up to `context` tokens, the start token included."""
        config = self.config
        layers = len(config.decoder_layers)
        return DecodingCache(layers, batch, config.heads, config.head_width, context, dtype)

    def target_log_prob(
        self,
        source_BS: Tensor,
        target_BT: Tensor,
        *,
        source_real_BS: Tensor | None = None,
        target_real_BT: Tensor | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """Compute log p in nats of each token of target_BT given the source and those before it.

        target_BT is without the start token. The options are those of `forward`.

        Returns:
            Shape (B, T), at least fp32.
        """
        logits_BTV = self(
            source_BS,
            self.shifted(target_BT),
            source_real_BS=source_real_BS,
            target_real_BT=target_real_BT,
            routings=routings,
        )
        logits_BTV = logits_BTV.to(torch.promote_types(torch.float32, logits_BTV.dtype))
        return -F.cross_entropy(logits_BTV.transpose(1, 2), target_BT, reduction="none")

    def log_prob(
        self,
        tokens_BT: Tensor,
        routings: list[Routing] | None = None,
        *,
        source_BS: Tensor | None = None,
        source_real_BS: Tensor | None = None,
        real_BT: Tensor | None = None,
    ) -> Tensor:
        """Compute log p in nats of each token but the first, given those before it and the source.

        Without a source the encoder reads an empty one: the end token alone, or the pad token where there is none. A
        model that only ever learned to fill in spans has hardly seen that, and scores plain text worse than it could;
        with its first sentinel and the end token as the source and the sentinel as first token, the text is one span.
        Neither figure is a causal language model's.

        Args:
            tokens_BT: the target without the start token, which the decoder reads before it.
            routings: as in `forward`.
            source_BS: as in `forward`.
            source_real_BS: as in `forward`.
            real_BT: bool, in the shape of tokens_BT.

        Returns:
            Shape (B, T - 1), at least fp32.
        """
        if source_BS is None:
            end = self.config.end_token
            source_BS = tokens_BT.new_full((len(tokens_BT), 1), self.config.pad_token if end is None else end)
        return self.target_log_prob(
            source_BS, tokens_BT, source_real_BS=source_real_BS, target_real_BT=real_BT, routings=routings
        )[:, 1:]

    def loss(self, batch: Mapping[str, Tensor], routings: list[Routing] | None = None) -> tuple[Tensor, int]:
        """Compute the sum of -log p in nats over the real tokens of the target, and how many these are.

        batch: `source`, `source_real`, `target`, `target_real`, as moekit.data.objectives.spans and .pairs make them.
        """
        real_BT = batch["target_real"]
        log_prob_BT = self.target_log_prob(
            batch["source"],
            batch["target"],
            source_real_BS=batch["source_real"],
            target_real_BT=real_BT,
            routings=routings,
        )
        return -log_prob_BT.masked_fill(~real_BT, 0).sum(), int(real_BT.sum())

    def shifted(self, target_BT: Tensor) -> Tensor:
        """Make the decoder's input for target_BT: the start token, then all but the last."""
        start_B1 = target_BT.new_full((len(target_BT), 1), self.config.start_token)
        return torch.cat((start_B1, target_BT[:, :-1]), 1)

    def _source(
        self,
        source_BS: Tensor | None,
        real_BS: Tensor | None,
        cache: DecodingCache | None,
        routings: list[Routing] | None,
    ) -> Source:
        """Compute keys and values of the source for every layer of the decoder, or take those in the cache."""
        if cache and cache.source:
            return Source(keys_values=cache.source, real_BS=cache.source_real_BS)
        if source_BS is None:
            raise ValueError("there is no source: give source_BS, or a cache that has seen it")
        encoded_BSD = self.encode(source_BS, real_BS=real_BS, routings=routings)
        keys_values = [layer.keys_values(encoded_BSD) for layer in self.decoder.all_layers]
        if cache:
            cache.source, cache.source_real_BS = keys_values, real_BS
        return Source(keys_values=keys_values, real_BS=real_BS)

    def _initialize(self) -> None:
        """Draw weights with deviations as in mesh-tensorflow's T5: 1 / sqrt(fan in), and 1 for embeddings.

        Queries have that of C times the fan in, which makes up for the scale that scores lack.
        """
        config, factor = self.config, self.config.init_factor
        across = factor / math.sqrt(config.width)
        for part in self.modules():
            match part:
                case SelfAttention():
                    nn.init.normal_(part.query_key_value.weight, std=across)
                    part.query_key_value.weight[: config.heads * config.head_width] /= math.sqrt(config.head_width)
                case CrossAttention():
                    nn.init.normal_(part.query.weight, std=across / math.sqrt(config.head_width))
                    nn.init.normal_(part.key_value.weight, std=across)
                case FeedForward():
                    nn.init.normal_(part.gate_up.weight, std=across)
                    nn.init.normal_(part.down.weight, std=factor / math.sqrt(part.down.in_features))
                    for linear in (part.gate_up, part.down):
                        if linear.bias is not None:
                            nn.init.zeros_(linear.bias)
                case RelativeBias():
                    nn.init.normal_(part.weight, std=across)
                case nn.Embedding():
                    nn.init.normal_(part.weight, std=factor)
                case MoELayer():
                    part.router.initialize(across)
                    nn.init.normal_(part.experts.gate_up_EGD, std=across)
                    nn.init.normal_(part.experts.down_EDF, std=factor / math.sqrt(part.config.expert_width))
            if isinstance(part, SelfAttention | CrossAttention):
                nn.init.normal_(part.output.weight, std=factor / math.sqrt(config.heads * config.head_width))
        if not (config.tie_embeddings and config.scaled_logits):
            # Either way logits begin with a deviation of about 1.
            nn.init.normal_(self.head.weight, std=factor if config.scaled_logits else across)


def _router_input(tokens_BT: Tensor, real_BT: Tensor | None) -> RouterInput:
    return RouterInput(token_T=tokens_BT.flatten(), real_T=None if real_BT is None else real_BT.flatten())
