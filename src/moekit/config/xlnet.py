"""XLNet's configuration."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moekit.config.config_base import MAX_LAYERS, Config, Count, Positive
from moekit.config.feed_forward import FeedForwardConfig, MoEConfig


class XLNetConfig(Config):
    """Two-stream attention over Transformer-XL's relative positions (Yang et al., arXiv 1906.08237).

    Norms are LayerNorms that follow what is added. Embedding and head share their matrix. Each layer has biases of
    queries of its own (`untie_r` in XLNet's code: all published models).

    Attributes:
        width: the width of the residual stream (D), even, a multiple of heads.
        layers: one feed-forward configuration a layer. A router with a capacity, expert choice or hashing goes by other
            tokens or by the token's id, from which the query stream would learn what it has to predict: these are
            refused.
        attention: `both` ways, the order of factorisation being what masks; or `causal`, as in Transformer-XL.
        memory: how many positions of each layer's input are remembered for the next segment, None for all.
        reuse: only the first that many positions of a segment are remembered, None for all.
        clamp: distances beyond it, in tokens, count as it; None means that none do.
        init_std: the deviation of the normal initialisation.
    """

    kind: Literal["xlnet"] = "xlnet"
    vocab_size: Count
    width: Count
    heads: Count
    layers: Annotated[tuple[FeedForwardConfig, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    attention: Literal["both", "causal"] = "both"
    memory: Count | None = None
    reuse: Count | None = None
    clamp: Count | None = None
    norm_eps: Positive = 1e-12
    init_std: Positive = 0.02

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width ({self.width}) must be even, and a multiple of heads ({self.heads})")
        for layer in self.layers:
            if isinstance(layer, MoEConfig):
                router = layer.router
                if router.kind in ("expert_choice", "hash") or router.capacity_factor is not None:
                    raise ValueError(
                        "in XLNet a router that hashes tokens, lets experts choose or has a capacity would see what "
                        "has to be predicted; take another, with capacity_factor: null"
                    )
        return self

    @property
    def feed_forwards(self) -> tuple[FeedForwardConfig, ...]:
        """The feed-forward part of each layer."""
        return self.layers
