"""The encoder-decoder's configuration, which T5, the Switch Transformer and GShard all are."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from moekit.config.config_base import MAX_LAYERS, Config, Count, Positive
from moekit.config.feed_forward import FeedForwardConfig
from moekit.config.norm import NormConfig

_Layers = Annotated[tuple[FeedForwardConfig, ...], Field(min_length=1, max_length=MAX_LAYERS)]
_Token = Annotated[int, Field(ge=0)]


class EncoderDecoderConfig(Config):
    """An encoder that reads a source, and a decoder that writes a target token by token (T5, arXiv 1910.10683).

    Every layer is h += attention(norm(h)), then in the decoder h += attention(norm(h), source), then h +=
    feed_forward(norm(h)); each stack ends in a norm. Scores are not divided by sqrt(head_width), and nothing in
    attention has a bias, in T5 as in GShard's published layers (tensorflow/lingvo, gshard_builder.py).

    Attributes:
        vocab_size: the vocabulary of the source, and of the target where `target_vocab_size` is None: then both share
            one table.
        width: the width of the residual stream (D).
        head_width: the width of a head; attention's inner width, heads · head_width, may differ from D.
        encoder_layers: the encoder's plan, one feed-forward configuration a layer.
        decoder_layers: the decoder's plan, likewise.
        positions: `relative`, a learned bias per head and bucket of distances, one table a stack, used in all of its
            layers (arXiv 1910.10683, section 2.1); or `learned`, a table of `context` positions added to each stack's
            embedding.
        buckets: the number of buckets of relative positions; half of them are for single distances, the others grow up
            to max_distance; an encoder needs half of them for either direction.
        max_distance: the distance, in tokens, from which on all share the last bucket.
        tie_embeddings: whether the output matrix is the target's table.
        scaled_logits: whether logits are multiplied by D^-1/2.
        start_token: the token that the decoder reads first.
        pad_token: the token that fills up rows.
        end_token: the token that ends source and target, or None.
        init_factor: the factor of the standard deviations, which are 1 / sqrt(fan in); it is the square root of the
            Switch Transformer's "initialization scale" (arXiv 2101.03961, section 2.4), which is a factor of the
            variance.
    """

    kind: Literal["encoder_decoder"] = "encoder_decoder"
    vocab_size: Count
    target_vocab_size: Count | None = None
    width: Count
    heads: PositiveInt
    head_width: PositiveInt
    encoder_layers: _Layers
    decoder_layers: _Layers
    positions: Literal["relative", "learned"] = "relative"
    buckets: Annotated[int, Field(ge=4, le=2**16)] = 32
    max_distance: Annotated[int, Field(gt=0, le=2**31)] = 128
    context: Count | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: Positive = 1e-6
    tie_embeddings: bool = True
    scaled_logits: bool = True
    start_token: _Token = 0
    pad_token: _Token = 0
    end_token: _Token | None = 1
    init_factor: Positive = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.positions == "learned") != (self.context is not None):
            raise ValueError("context goes with learned positions: set both, or neither")
        if self.max_distance <= self.buckets // 2:
            raise ValueError(
                f"max_distance ({self.max_distance}) must be larger than buckets / 2 ({self.buckets // 2})"
            )
        smaller = min(self.vocab_size, self.target_vocabulary)
        tokens = {"start_token": self.start_token, "pad_token": self.pad_token, "end_token": self.end_token}
        for name, token in tokens.items():
            below = self.target_vocabulary if name == "start_token" else smaller
            if token is not None and token >= below:
                raise ValueError(f"{name} ({token}) is not in the vocabulary of {below}")
        for layer in self.decoder_layers:
            if layer.kind == "moe" and layer.router.kind == "expert_choice" and not layer.router.leaky:
                raise ValueError(
                    "an expert-choice router in a decoder sees the tokens that it has to predict; set leaky: true on "
                    "the router if that is what you want to study"
                )
        return self

    @property
    def norm_config(self) -> NormConfig:
        """The norm that all layers and both stacks have."""
        return NormConfig(kind=self.norm, eps=self.norm_eps)

    @property
    def target_vocabulary(self) -> int:
        """The number of tokens that the decoder chooses from."""
        return self.target_vocab_size or self.vocab_size
